"""The arguments of a verb as click has them."""

from __future__ import annotations

from typing import Any, Final

import click

from otf_core.client.verbs import Arg

_KINDS: Final[dict[str, Any]] = {"int": click.INT, "float": click.FLOAT}


def param_of(arg: Arg) -> click.Parameter:
    """An argument or an option."""
    if not arg.words:
        shown = arg.shown or arg.key.upper()
        if arg.kind == "several":
            return click.Argument([arg.key], metavar=shown, required=arg.required, nargs=-1)
        return click.Argument([arg.key], metavar=shown, required=arg.required)
    if arg.kind == "flag":
        return click.Option([arg.key, *arg.words], is_flag=True, help=arg.help)
    kind = click.Choice(arg.choices) if arg.choices else _KINDS.get(arg.kind, click.STRING)
    return click.Option([arg.key, *arg.words], type=kind, help=arg.help)


def settings_of(word: str) -> dict[str, Any]:
    """ "otf set lr -1" is a value, not an option."""
    return {"ignore_unknown_options": True} if word == "set" else {}
