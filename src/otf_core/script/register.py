"""What a script may tell otf of itself; it stands in the script, so it works without otf as well.

One script runs in a process, so there is one table. Under plain ``python`` nobody reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

Validation = Callable[[], "Mapping[str, Any] | float | None"]
V = TypeVar("V", bound=Validation)


@dataclasses.dataclass
class Registered:
    """What the script has named so far.

    Attributes:
        values: name -> how it is read, and put back.
    """

    values: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = dataclasses.field(
        default_factory=dict
    )
    validation: Validation | None = None


REGISTERED: Final = Registered()


def register(name: str, getter: Callable[[], Any], setter: Callable[[Any], Any]) -> None:
    """Have a checkpoint of this script hold a value that otf does not find by itself.

    Args:
        name: what it is called in the checkpoint; the same name again replaces the earlier one.
        getter: gives the value: numbers, text, tensors, and lists and dicts of them.
        setter: puts such a value back; called when the script goes on from a checkpoint.

    Raises:
        TypeError: getter or setter cannot be called.
    """
    _must_be_called(f"register({name!r})", getter)
    _must_be_called(f"register({name!r})", setter)
    REGISTERED.values[name] = getter, setter


def register_validation(fn: V) -> V:
    """Let ``otf validate`` call this function between two steps; also a decorator.

    It is called without arguments and without gradients; random numbers and the modes of the
    modules are as before afterwards.

    Args:
        fn: returns the metrics by name, one number (the loss), or None.

    Raises:
        TypeError: it cannot be called.
    """
    _must_be_called("register_validation", fn)
    REGISTERED.validation = fn
    return fn


def _must_be_called(asked: str, given: Any) -> None:
    if not callable(given):
        msg = f"{asked} was given {type(given).__name__}; allowed: a function"
        raise TypeError(msg)
