"""What a script holds, to plain values and back: one graph over all its frames; training thread.

Rule 1: what is one object in the script is one node, and one object after it: an optimizer goes
on with the parameters of the model that it had.
Rule 2: what is there already is filled in place, since others may hold it; in a memory that
something else has here, nothing is written.
Rule 3: ``KINDS`` is the table of what can be had; the first row that fits counts. What none fits is
left as it is, and named.
Rule 4: a class is looked up by its name among the script's own only; for functions see there.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import sys
import types
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import torch

from otf_core.script.frames import ABSENT, is_own
from otf_core.script.prints import Print, attributes, print_of, size_of, slots, state_print
from otf_core.state.plain_values import PLAIN, SMALL, TAG, Decoder, Encoder

LARGE: Final = 1024 * 1024  # bytes; above it what the script does not touch it makes again


LEFT: Final = {TAG: "left"}
_CONTAINERS: Final = (list, tuple, dict, set, frozenset, collections.deque)


class Kind(NamedTuple):
    """A row of the table.

    Attributes:
        fits: whether a value is of this kind.
        take: its node: plain values, and what ``taking`` returns for what lies in it; None: it is
            not of this kind after all, the next row that fits counts.
        make: the object of a node, the live one where it can be; ABSENT where there is none.
        fill: puts in what lies in it; None where ``make`` has done all.
    """

    name: str
    fits: Callable[[Taking, Any], bool]
    take: Callable[[Taking, Any, str], dict[str, Any] | None]
    make: Callable[[Giving, dict[str, Any], Any], Any]
    fill: Callable[[Giving, dict[str, Any], Any], None] | None = None


class Own:
    """What is of the script's own code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[type, bool] = {}

    def module(self, name: str) -> types.ModuleType | None:
        """A module of the script's, which it has imported."""
        found = sys.modules.get(name)
        if found is None or found is sys.modules["__main__"]:
            return found
        file = getattr(found, "__file__", None)
        return found if file is not None and is_own(file, self.folder) else None

    def modules(self) -> dict[str, types.ModuleType]:
        """Those that it has imported, beside the main one."""
        # A list first: another thread may be importing.
        names = [n for n in list(sys.modules) if n not in ("__main__", "__mp_main__")]
        found = ((name, self.module(name)) for name in names)
        return {name: module for name, module in found if module is not None}

    def cls(self, kind: type) -> bool:
        """Whether a class is the script's."""
        if kind not in self._known:
            self._known[kind] = self.module(getattr(kind, "__module__", "")) is not None
        return self._known[kind]

    def function(self, function: types.FunctionType) -> bool:
        """Whether a function is the script's."""
        return is_own(function.__code__.co_filename, self.folder)

    def find(self, name: str, live: Any = ABSENT) -> type | None:
        """The class of this name: of the live object, or one of the script's."""
        if class_name(type(live)) == name:
            return type(live)
        if name in _KNOWN:
            return _KNOWN[name]
        module_name, _, path = name.partition(":")
        found: Any = self.module(module_name)
        for part in path.split("."):
            found = getattr(found, part, None)
        return found if isinstance(found, type) else None


def class_name(kind: type) -> str:
    """As ``Own.find`` finds it."""
    return f"{kind.__module__}:{kind.__qualname__}"


_KNOWN: Final = {
    class_name(kind): kind
    for kind in (
        *_CONTAINERS,
        collections.Counter,
        collections.OrderedDict,
        collections.defaultdict,
        argparse.Namespace,
        types.SimpleNamespace,
    )
}


@dataclasses.dataclass
class First:
    """What the script held when it began to train, as far as it may be left out later.

    Attributes:
        prints: path -> what tells a value from another; of what is large or a library's.
    """

    prints: dict[str, Any] = dataclasses.field(default_factory=dict)


class Taking:
    """Makes the nodes; one for all frames.

    Args:
        kinds: the table.
        silent: what is left alone without a word.
        first: None while ``prints`` of the beginning are collected.
        take: copies one tensor to the host.
    """

    def __init__(
        self,
        kinds: Iterable[Kind],
        own: Own,
        silent: Callable[[Taking, Any], bool] = lambda _taking, _value: False,
        first: First | None = None,
        take: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.own, self.first = own, first
        self.copy = take or (lambda t: t.to("cpu", copy=True))
        self.nodes: list[dict[str, Any]] = []
        self.prints: dict[str, Any] = {}
        self.reasons: list[str] = []
        self.left_out: dict[str, str] = {}  # path -> type
        self.made_again: list[str] = []
        self.asked: Any = None  # the iterator of a loader, for the next batch
        self.turn = 0  # see reentry.Moment
        self.loaders: list[tuple[int, Any]] = []
        self.iterated: set[int] = set()  # ids of those that are being read
        self.owned: set[int] = set()  # ids of tensors that belong to a model or an optimizer
        self.tensors: dict[int, tuple[int, torch.Tensor, str]] = {}  # by id: node, itself, path
        self.arrays: list[tuple[int, Any, str]] = []  # node, itself, path
        self._kinds, self._silent, self._plain = tuple(kinds), silent, Encoder()
        self._memo: dict[int, tuple[Any, dict[str, Any]]] = {}
        self._waiting: collections.deque[tuple[int, Any, str]] = collections.deque()

    def __call__(self, value: Any, path: str) -> Any:
        """A plain value, or the reference to a node."""
        kind = type(value)
        if kind in PLAIN:
            if kind in (str, bytes) and (print_ := self.large(value, path)) is not None:
                self.nodes.append({"k": "text", "again": print_})
                return {TAG: "ref", "n": len(self.nodes) - 1}
            return self._plain(value)
        known = self._memo.get(id(value))
        if known is not None:
            return known[1]
        if self._silent(self, value):
            return LEFT
        n = len(self.nodes)
        ref = {TAG: "ref", "n": n}
        self.nodes.append({})
        self._memo[id(value)] = value, ref  # kept alive, so that the id is not used again
        self._waiting.append((n, value, path))
        return ref

    def run(self) -> None:
        """Take what was met, and what lies in it."""
        while self._waiting:
            n, value, path = self._waiting.popleft()
            for kind in self._kinds:
                if kind.fits(self, value) and (node := kind.take(self, value, path)) is not None:
                    self.nodes[n] = {"k": kind.name, **node}
                    if isinstance(value, torch.Tensor):
                        self.tensors[id(value)] = n, value, path
                    break
            else:
                self.nodes[n] = {"k": "left"}
                self.leave(path, value)

    def known(self, value: Any) -> bool:
        """Whether it was met."""
        return id(value) in self._memo

    def leave(self, path: str, value: Any) -> None:
        """Name what is left out, once for each path."""
        self.left_out.setdefault(path, type(value).__name__)

    def leave_state(self, path: str, value: Any) -> dict[str, Any]:
        """Leave out what holds a state; the node tells by what it is to be known again.

        Where it has changed since the run began that is said now, and then it is not looked at.
        """
        self.leave(path, value)
        now = self.prints[path] = state_print(value)
        if self.first is None:
            return {}
        if now is not None and self.first.prints.get(path) == now:
            return {"print": now}
        how = "has changed" if now is not None else "may have changed"
        self.reasons.append(f"{path} ({type(value).__name__}) {how}, and is not stored")
        return {}

    def again(self, value: Any, path: str) -> bool:
        """Whether a value is as it was when the run began, so that the script makes it."""
        self.prints[path] = now = print_of(value, whole=True)
        return self.first is not None and self.first.prints.get(path) == now

    def changed(self, value: Any, path: str) -> bool:
        """Whether a value was another when the run began; one that is new since is none."""
        return not self.again(value, path) and self.first is not None and path in self.first.prints

    def large(self, value: Any, path: str) -> Print | None:
        """What a large value is known by that the script makes again; None: it is to be saved."""
        if size_of(value) <= (SMALL if isinstance(value, _CONTAINERS) else LARGE):
            return None
        again = self.again(value, path)
        if again:
            self.made_again.append(path)
        return self.prints[path] if again or self.first is None else None

    def objects(self) -> Iterator[Any]:
        """All that was met."""
        return (value for value, _ in self._memo.values())


class Giving:
    """Puts the nodes back; used once.

    Args:
        protected: memory of models; nothing is written there but by a model's own parameters.
        leave: names of kinds that are not put back; for tests.
    """

    def __init__(
        self,
        kinds: Iterable[Kind],
        own: Own,
        nodes: list[dict[str, Any]],
        protected: Iterable[int] = (),
        leave: Iterable[str] = (),
    ) -> None:
        self.own, self.nodes = own, nodes
        self.protected = set(protected)
        self.functions: Any = None  # of this process; see ``functions``
        self.positions: list[Any] = []
        self.settled: list[Any] = []
        self.lost: list[str] = []
        self.loaders: list[tuple[Any, Any, Any]] = []  # put back behind the rest
        self.data: list[tuple[Any, Any]] = []  # loaders, and what told their data set
        self.last: list[Callable[[], None]] = []  # and behind those
        self.late: collections.deque[Callable[[], None]] = collections.deque()  # behind the rest
        self.behind: list[Callable[[], None]] = []  # what stands on something else that is filled
        self.dec = Decoder()
        self._kinds = {kind.name: kind for kind in kinds}
        self._leave = set(leave)
        self._made: dict[int, Any] = {}
        self._used: dict[int, Any] = {}
        self._waiting: collections.deque[tuple[Kind, dict[str, Any], Any]] = collections.deque()

    def __call__(self, plain: Any, live: Any = ABSENT) -> Any:
        """The value, which may be the live one; ABSENT where it cannot be had."""
        if type(plain) in PLAIN:
            return plain
        if plain is LEFT or plain[TAG] == "left":
            return live
        if plain[TAG] != "ref":
            return self.dec(plain)
        n = plain["n"]
        if n not in self._made:
            self._made[n] = self._make(n, live)
        return self._made[n]

    def _make(self, n: int, live: Any) -> Any:
        node = self.nodes[n]
        kind = self._kinds.get(node["k"])
        if kind is None or kind.name in self._leave:
            return live  # left as it is
        known = len(self.lost)
        made = kind.make(self, node, ABSENT if id(live) in self._used else live)
        if made is ABSENT and live is not ABSENT and "function" in node:
            self.lose(f"{node['function']}, which is another here and cannot be had")
        if made is not ABSENT and len(self.lost) == known:
            self._used[id(made)] = made
            if kind.fill is not None:
                self._waiting.append((kind, node, made))
        return made

    def is_free(self, live: Any) -> bool:
        """Whether nothing was made of a live object yet."""
        return id(live) not in self._used

    def made(self, ref: dict[str, Any]) -> Any:
        """What a reference was made to; ABSENT where nothing was."""
        return self._made.get(ref["n"], ABSENT)

    def run(self) -> None:
        """Fill what was made, and what lies in it."""
        while self._waiting or self.late:
            if not self._waiting:
                self.late.popleft()()
                continue
            kind, node, made = self._waiting.popleft()
            assert kind.fill is not None
            kind.fill(self, node, made)
        for then in self.behind:
            then()
        self.behind.clear()

    def lose(self, what: str) -> None:
        """Note what cannot be put back."""
        self.lost.append(what)


# Attributes of an object.


def take_attributes(
    taking: Taking, obj: Any, path: str, skip: Iterable[str] = ()
) -> list[tuple[str, Any]]:
    """Names and values, those in slots among them."""
    skipped = set(skip)
    return [
        (name, taking(value, f"{path}.{name}"))
        for name, value in attributes(obj).items()
        if name not in skipped
    ]


def give_attributes(
    giving: Giving, saved: Iterable[tuple[str, Any]], obj: Any, keep: Iterable[str] = ()
) -> None:
    """Put back what take_attributes returned; what was made since goes, but for ``keep``."""
    live, kind = attributes(obj), cast("Hashable", type(obj))
    new = {name: giving(value, live.get(name, ABSENT)) for name, value in saved}
    for name in live.keys() - new.keys() - set(keep):
        if name in getattr(obj, "__dict__", {}):
            del vars(obj)[name]
    for name, value in new.items():
        if value is ABSENT or value is live.get(name, ABSENT):
            continue
        if hasattr(obj, "__dict__") and name not in slots(kind):
            vars(obj)[name] = value  # not by a __setattr__ of the class: it was not set now
        else:
            object.__setattr__(obj, name, value)


def made_as_known(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    """What was left out, and had not changed: it is to be made as it was."""
    was = node.get("print")
    if was is not None and (live is ABSENT or state_print(live) != tuple(was)):
        giving.lose(f"a {node.get('c', 'value')} that is not stored, and is made otherwise")
    return live


def made_again(giving: Giving, print_: Any, live: Any) -> Any:
    """What the script has made itself, if it is what it was."""
    if live is ABSENT or print_of(live, whole=True) != tuple(print_):
        name, size, _ = print_
        giving.lose(f"a {name} of {size:,}, which the script makes and has made otherwise")
    return live
