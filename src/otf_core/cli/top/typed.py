"""What was typed on the command line of the page, as a request; the words of ``otf``."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import click

from otf_core.cli.arguments import param_of, settings_of
from otf_core.client.verbs import EXPORTS, VERBS, UsageError, Verb, request_of


@dataclasses.dataclass(frozen=True)
class Typed:
    """A verb and what it sends."""

    verb: Verb
    cmd: str
    payload: dict[str, Any]


def read(line: str) -> Typed:
    """``set lr 0.0005``, ``otf export weights --checkpoint 200-ring`` …

    Raises:
        UsageError: it is none of our verbs, or its arguments do not fit; the message says why.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        msg = f"{error}; a text with spaces stands in quotes."
        raise UsageError(msg) from error
    words = words[1:] if words[:1] == ["otf"] else words
    if not words:
        msg = "nothing was typed; a verb of otf is, as in: set lr 0.0005"
        raise UsageError(msg)
    table = {f"export {verb.word}": verb for verb in EXPORTS} | {verb.word: verb for verb in VERBS}
    name = " ".join(words[:2]) if words[0] == "export" else words[0]
    verb = table.get(name)
    if verb is None:
        msg = f"{name!r} is no verb; there are: {', '.join(sorted(table))}."
        raise UsageError(msg)
    rest = words[len(name.split()) :]
    command = click.Command(
        verb.word,
        params=[param_of(arg) for arg in verb.args],
        add_help_option=False,
        context_settings=settings_of(verb.word),
    )
    try:
        given = command.make_context(name, rest).params
    except click.UsageError as error:
        msg = f"{name}: {error.format_message()}"
        raise UsageError(msg) from error
    cmd, payload = request_of(verb, given)
    return Typed(verb, cmd, payload)
