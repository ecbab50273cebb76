"""What a script trains: found by one walk over the variables on its stack, under its own names.

Nothing of the script's is called: objects are known by ``issubclass(type(x), …)``, since a lazy
proxy answers ``isinstance`` with code, and are looked into by ``vars``.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from otf_core.script.frames import values

MAX_DEPTH: Final = 6  # of containers and objects inside one another
MAX_ITEMS: Final = 256  # looked at in one container: a list of a million samples holds no model
_WRAPPERS: Final = {  # a wrapper's class -> where the user's own module is
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",
}

Named = tuple[str, Any]


class Parts:
    """Named objects, none of which is kept alive by it: a script may train one after the other."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, weakref.ref[Any]]] = []

    def append(self, name: str, part: Any) -> None:
        """Add one; what cannot be referred to weakly is left out."""
        with contextlib.suppress(TypeError):
            self._parts.append((name, weakref.ref(part)))

    def __iter__(self) -> Iterator[Named]:
        """Those that are still there."""
        return iter([(n, part) for n, ref in self._parts if (part := ref()) is not None])

    def __len__(self) -> int:
        """How many are still there."""
        return sum(ref() is not None for _, ref in self._parts)

    def put(self, parts: Iterable[Named]) -> None:
        """These instead."""
        found = [*parts]
        self._parts.clear()
        for name, part in found:
            self.append(name, part)


class Found:
    """The parts, each with the name that the script has for it; the outermost frame's first.

    Attributes:
        others: what else can be saved by ``state_dict`` and ``load_state_dict``: a scaler, an
            average of weights, metrics.
        scanned: the model was not on the stack, and was found among all objects.
    """

    def __init__(self) -> None:
        self.modules, self.optimizers, self.schedulers = Parts(), Parts(), Parts()
        self.loaders, self.others = Parts(), Parts()
        self.scanned = False

    def owners(self, optimizer: Optimizer) -> list[Named]:
        """The outermost modules that have the parameters of an optimizer, the largest first."""
        left = {id(p) for group in optimizer.param_groups for p in group["params"]}
        sizes = [({id(p) for p in m.parameters()}, name, m) for name, m in self.modules]
        # Of a wrapper and what it wraps, which have the same parameters, the wrapper.
        sizes.sort(key=lambda size: len([*size[2].modules()]), reverse=True)
        found: list[Named] = []
        while left and sizes:
            mine, name, module = max(sizes, key=lambda s: (len(s[0] & left), len(s[0])))
            if not mine & left:
                break
            found.append((name, module))
            left -= mine
        return found

    def models(self) -> list[Named]:
        """The modules that are trained, without those that lie in another of them."""
        found = {id(m): (n, m) for _, o in self.optimizers for n, m in self.owners(o)}
        owned = [*found.values()] or [*self.modules][:1]
        inner = {id(part) for _, m in owned for part in m.modules() if part is not m}
        return [(name, module) for name, module in owned if id(module) not in inner]

    def sentence(self, loader: Any, *, fed: bool) -> str:
        """What was found, for the person at the terminal.

        Args:
            loader: the one that is trained on, None where it is not on the stack.
            fed: whether a loader drives the loop at all.
        """
        trained = [self._of(optimizer) for _, optimizer in self.optimizers]
        if not trained:
            names = " and ".join(f"{class_of(m)} as '{n}'" for n, m in self.models())
            trained = [f"no optimizer, {names or 'no module'}"]
        place = next((n for n, (_, each) in enumerate(self.loaders, 1) if each is loader), None)
        if not fed:
            data = "no loader: it is met at the head of its loop"
        elif place is None:
            data = "a loader"
        else:
            name = [*self.loaders][place - 1][0]
            data = f"loader {place} of {len(self.loaders)} ('{name}')"
        also = [class_of(each) for _, each in (*self.schedulers, *self.others)]
        scanned = ["found by a scan of all objects"] if self.scanned else []
        return f"training found: {', '.join([*trained, data, *also, *scanned])}"

    def _of(self, optimizer: Optimizer) -> str:
        groups = len(optimizer.param_groups)
        owners = " and ".join(f"{class_of(m)} as '{n}'" for n, m in self.owners(optimizer))
        over = f"{groups} parameter group{'s' if groups > 1 else ''}"
        return f"{type(optimizer).__name__} over {over} of {owners or 'tensors of no module'}"


def class_of(part: Any) -> str:
    """The name of a class; of the user's own, where torch has wrapped it."""
    inside = _WRAPPERS.get(type(part).__name__)
    inner = getattr(part, inside, None) if inside is not None else None
    return class_of(inner) if inner is not None else type(part).__name__


def find(
    frames: Sequence[FrameType], optimizers: Sequence[Optimizer], own: Callable[[type], bool]
) -> Found:
    """Walk the variables of these frames, the outermost first.

    Args:
        optimizers: those that were seen to step; they count whether they are on the stack or not.
        own: whether a class is the script's, so that its objects are looked into.
    """
    walk = _Walk(own)
    for frame in frames:
        for name, value in [*values(frame).items()]:
            walk.look(name, value, inside=name == "self")
    found = walk.found
    _settle_optimizers(found, optimizers)
    _settle_schedulers(found)
    if any(not found.owners(optimizer) for _, optimizer in found.optimizers):
        _scan(found)
    return found


class _Walk:
    def __init__(self, own: Callable[[type], bool]) -> None:
        self.found = Found()
        self._own = own
        self._seen: set[int] = set()
        self._entered: set[int] = (
            set()
        )  # a trainer may be seen before it is the ``self`` of a frame

    def look(self, name: str, value: Any, *, inside: bool = False, depth: int = 0) -> None:
        """Take it in, or go through it.

        Args:
            inside: go into its attributes, whoever's class it is.
        """
        cls = type(value)
        if cls in _PLAIN or depth > MAX_DEPTH or id(value) in self._entered:
            return
        if (kind := self._kind(cls)) is not None and id(value) not in self._seen:
            kind.append(name, value)
        self._seen.add(id(value))
        if kind is not None and not issubclass(cls, nn.Module):
            return
        if issubclass(cls, dict):
            items: Iterable[Named] = _first(
                (f"{name}[{key!r}]" if type(key) in (str, int) else f"{name}[…]", each)
                for key, each in dict.items(value)
            )
        elif cls in (list, tuple, set, frozenset):
            items = _first((f"{name}[{n}]", each) for n, each in enumerate(value))
        elif (inside or self._own(cls)) and (attributes := _attributes(value)):
            # A module's own dicts hold its parts, which belong to it.
            private = issubclass(cls, nn.Module)
            items = [
                (f"{name}.{key}", each)
                for key, each in attributes.items()
                if not (private and key.startswith("_"))
            ]
        else:
            return
        self._entered.add(id(value))
        for inner, each in items:
            self.look(inner, each, depth=depth + 1)

    def _kind(self, cls: type) -> Parts | None:
        if issubclass(cls, nn.Module):
            return self.found.modules
        if issubclass(cls, Optimizer):
            return self.found.optimizers
        if issubclass(cls, LRScheduler):
            return self.found.schedulers
        if issubclass(cls, DataLoader):
            return self.found.loaders
        if all(any(n in vars(base) for base in cls.__mro__) for n in _STATEFUL):
            return self.found.others
        return None


_STATEFUL: Final = ("state_dict", "load_state_dict")
_PLAIN: Final = frozenset((int, float, str, bytes, bool, type(None), type))


def _first(items: Iterable[Named]) -> Iterator[Named]:
    return (item for item, _ in zip(items, range(MAX_ITEMS), strict=False))


def _attributes(value: Any) -> dict[str, Any]:
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return dict(found) if type(found) is dict else {}


def _settle_optimizers(found: Found, stepped: Sequence[Optimizer]) -> None:
    """Each once, and not what only wraps one: a wrapper shows the groups of what it wraps."""
    known = {id(o): name for name, o in found.optimizers}
    first = [(known.get(id(o), type(o).__name__), o) for o in stepped]
    others = [named for named in found.optimizers if not any(named[1] is o for o in stepped)]
    kept: list[Named] = []
    for name, optimizer in (*first, *others):
        if not any(optimizer.param_groups is o.param_groups for _, o in kept):
            kept.append((name, optimizer))
    order = [id(o) for _, o in found.optimizers]
    kept.sort(key=lambda n: order.index(id(n[1])) if id(n[1]) in order else len(order))
    found.optimizers.put(kept)


def _settle_schedulers(found: Found) -> None:
    """The outermost ones: not those inside a SequentialLR."""
    inner = {id(each) for _, s in found.schedulers for each in getattr(s, "_schedulers", ())}
    found.schedulers.put(named for named in found.schedulers if id(named[1]) not in inner)


def _scan(found: Found) -> None:
    """The last resort: all objects there are, 40 ms for a quarter of a million."""
    known = {id(module) for _, module in found.modules}
    modules = [
        each
        for each in gc.get_objects()
        if issubclass(type(each), nn.Module) and id(each) not in known
    ]
    inner = {id(part) for module in modules for part in module.modules() if part is not module}
    before = len(found.modules)
    for module in modules:
        if id(module) not in inner:
            found.modules.append(class_of(module), module)
    found.scanned = len(found.modules) > before
