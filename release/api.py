"""The public names of the package with their signatures, as text.

``python -m release.api`` writes ``release/api.txt``; a test compares it with what is there, so that
a change of what people build on is seen in the diff, and meant.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

PINNED: Final = Path(__file__).with_name("api.txt")
MODULES: Final = (
    "otf_lightning",
    "otf_core",
    "otf_core.client",
    "otf_core.control.delegate",
    "otf_core.own_loop",
    "otf_core.runner",
    "otf_core.testing",
    "otf_core.testing.conformance",
)
PARTS: Final = {"Changing", "GoingBack", "Holding", "Idle", "Wire"}  # of DelegateSuite


def lines() -> Iterator[str]:
    """A heading a module, a line a name, and below a class what its own classes give it."""
    for name in MODULES:
        module = importlib.import_module(name)
        yield f"# {name}"
        for public in sorted(_names(module)):
            yield from _told(public, getattr(module, public))
        yield ""


def _names(module: Any) -> list[str]:
    declared: list[str] | None = getattr(module, "__all__", None)
    if declared is not None:
        return [name for name in declared if name not in PARTS]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def _told(name: str, value: Any) -> Iterator[str]:
    if not inspect.isclass(value):
        yield f"{name}{_signature(value)}" if callable(value) else f"{name}: {type(value).__name__}"
        return
    bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
    yield f"class {name}({bases})"
    own = [cls for cls in value.__mro__ if cls.__module__.startswith("otf_")]
    if any("__init__" in vars(cls) for cls in own) and typing.Protocol not in value.__bases__:
        yield f"    __init__{_signature(value.__init__)}"
    members: dict[str, str] = {}
    for cls in reversed(own):
        members |= {key: _member(key, part) for key, part in vars(cls).items()}
        members |= {
            key: f"{key}: {getattr(said, '__forward_arg__', said)}"  # of a NamedTuple
            for key, said in inspect.get_annotations(cls).items()
        }
    for key in sorted(members):
        if not key.startswith(("_", "test_")):
            yield f"    {members[key]}"


def _member(name: str, part: Any) -> str:
    if isinstance(part, property):
        return f"{name} -> {inspect.signature(part.fget).return_annotation}" if part.fget else name
    if isinstance(part, staticmethod | classmethod):
        return f"{name}{_signature(part.__func__)}"
    return f"{name}{_signature(part)}" if callable(part) else f"{name}: {type(part).__name__}"


class _Bare:
    """An annotation without the quotes of a string."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _bare(annotation: Any) -> Any:
    return _Bare(annotation) if isinstance(annotation, str) else annotation


def _signature(value: Any) -> str:
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):  # written in C
        return "(...)"
    parameters = [p.replace(annotation=_bare(p.annotation)) for p in found.parameters.values()]
    returned = _bare(found.return_annotation)
    said = str(found.replace(parameters=parameters, return_annotation=returned))
    return re.sub(r" at 0x[0-9a-f]+", "", said)


def text() -> str:
    return "\n".join(lines())


def main() -> int:
    """Exit code 0: written."""
    PINNED.write_text(text())
    sys.stderr.write(f"{PINNED.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
