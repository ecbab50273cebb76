"""``otf-fit pkg.mod:Class --data pkg.mod:Data``: a module without a loop, trained by ours.

The arguments are those of the classes' own signatures (``--model.lr 3e-4``, ``--data.batch_size
64``) and of the Runner (``--max-epochs 3``); ``--config FILE`` takes them from YAML. Nothing is
written to stdout; ``--help`` is.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, Final

from jsonargparse import ArgumentParser, Namespace

from otf_core.errors import OtfError
from otf_core.opening import RunOptions
from otf_core.runner.options import Options
from otf_core.runner.refusals import RunnerError, RunnerUnsupportedError
from otf_core.runner.runner import Runner
from otf_core.state.keeper import ResumeError
from otf_core.steering.recipe import RecipeError

REFUSALS: Final = (ResumeError, RecipeError, RunnerError, RunnerUnsupportedError)
PLACE: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_ALONE: Final = ("--help", "--print_config")


class UsageError(OtfError):
    """What was asked on the command line cannot be; says what can."""


def run_module(place: str, argv: Sequence[str]) -> None:
    """Make the objects and train; the main thread's.

    Args:
        place: ``package.module:Class``.
        argv: what stands behind it on the command line.

    Raises:
        UsageError: there is no such class, or a value is not allowed.
        SystemExit: 2 where an argument is not allowed; it is said on stderr.
        REFUSALS: the run that was to go on cannot, or the Runner does not do that.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")  # as ``python -m`` has it
    data_place, rest = _data_of(argv)
    model_class = _class_at(place)
    data_class = _class_at(data_place) if data_place is not None else None
    parser = _parser(place, model_class, data_class)
    asked = parser.parse_args(_plain(rest))
    model = model_class(**_of(asked, "model"))
    data = data_class(**_of(asked, "data")) if data_class is not None else None
    own = {"config", "print_config", "model", "data"}
    options = {name: value for name, value in vars(asked).items() if name not in own}
    try:
        runner = Runner(**options)
    except (ValueError, RunnerError, RunnerUnsupportedError) as error:
        raise UsageError(str(error)) from error
    runner.fit(model, datamodule=data)


def _parser(place: str, model: type, data: type | None) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"otf-fit {place}",
        usage=f"otf-fit {place} [--data pkg.mod:Data] [options]",
        description=_first_line(model),
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of these")
    parser.add_class_arguments(Options, fail_untyped=False)
    parser.add_class_arguments(RunOptions)
    parser.add_class_arguments(model, "model", fail_untyped=False)
    if data is not None:
        parser.add_class_arguments(data, "data", fail_untyped=False)
    return parser


def _data_of(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Takes ``--data pkg.mod:Data`` out; other uses of ``--data`` are the parser's."""
    rest, found = list(argv), None
    for index, argument in enumerate(rest):
        name, given, value = argument.partition("=")
        if name != "--data":
            continue
        width = 1 if given else 2
        value = value if given else "".join(rest[index + 1 : index + 2])
        if PLACE.fullmatch(value):
            found = value
            del rest[index : index + width]
        break
    return found, rest


def _class_at(place: str) -> Any:
    if not PLACE.fullmatch(place):
        msg = f"a class was asked as {place!r}; allowed: package.module:Class"
        raise UsageError(msg)
    module, name = place.split(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        msg = f"{place} was asked, but there is no module {error.name!r} here or in {os.getcwd()}"
        raise UsageError(msg) from None
    if not callable(found):
        classes = [n for n, v in vars(sys.modules[module]).items() if _made_there(v, module)]
        msg = f"{place} was asked, found none; {module} has {', '.join(classes) or 'no class'}"
        raise UsageError(msg)
    return found


def _made_there(value: Any, module: str) -> bool:
    return isinstance(value, type) and value.__module__ == module


def _plain(argv: Sequence[str]) -> list[str]:
    """``--max-epochs`` is ``--max_epochs``; one without a value is a flag, and true."""
    plain = []
    for argument, following in zip(argv, [*argv[1:], "--"], strict=True):
        name, given, value = argument.partition("=")
        if name.startswith("--") and "." not in name:
            name = "--" + name[2:].replace("-", "_")
        if name.startswith("--") and following.startswith("--") and name not in _ALONE:
            given, value = "=", value if given else "true"
        plain.append(name + given + value)
    return plain


def _of(asked: Namespace, name: str) -> dict[str, Any]:
    group = asked.get(name)
    return {} if group is None else dict(vars(group))


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]
