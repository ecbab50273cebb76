"""What of a run lies in an accelerator's memory, by name; training thread, while it stands.

Rule 1: what is found is a storage, not a tensor: views, tied weights, the buckets that gradients
are views of, and whoever else has the tensor, all mean the same storage.
Rule 2: only what the run's own objects hold is found. A tensor that somebody else has may be used
by another thread, and stays where it is.
Rule 3: the options of an optimizer's groups and values of one element stay as well: they are read
while a run stands, and free nothing.
"""

from __future__ import annotations

import collections
import functools
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.data import DataLoader

from otf_core.state.training import Pieces

LARGE: Final = 100_000  # a container of so many plain values is data, and is not gone through
_PLAIN: Final = (str, bytes, bytearray, int, float, complex, bool, type(None), torch.dtype)
_APART: Final = (  # none of the run's state, or of another thread
    type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType,
    types.GeneratorType, types.FrameType, types.CodeType, weakref.ref, threading.Thread,
    functools.partial, DataLoader, torch.device, torch.Generator,
)  # fmt: skip
_SINGLE_BYTES: Final = 64  # a storage up to here holds single values


class Holdings(NamedTuple):
    """Where to look.

    Attributes:
        roots: objects of the run, by the names that a person knows.
        fence: objects that are not gone into, as a trainer that a module points to.
        why_not: why this run's memory cannot be given back at all.
    """

    roots: Mapping[str, Any]
    fence: Sequence[Any] = ()
    why_not: str | None = None


class Piece(NamedTuple):
    """A storage on the accelerator, under the name at which it was found first."""

    name: str
    storage: torch.UntypedStorage
    nbytes: int


def holdings_of(pieces: Pieces, *, fence: Sequence[Any] = ()) -> Holdings:
    """Of a training that says itself what it is made of; not what it has logged."""
    optimizers = {f"optimizer {i}": each for i, each in enumerate(pieces.optimizers)}
    objects = {name: each for name, each in pieces.objects.items() if name != "logged"}
    modules = {name or "model": each for name, each in pieces.modules.items()}
    roots = {**modules, **optimizers, "scaler": pieces.scaler, **objects, **pieces.plain}
    return Holdings(roots, fence)


class Found(NamedTuple):
    """What was found; ``stuck`` are names of what cannot be moved, each with the reason."""

    pieces: list[Piece]
    stuck: dict[str, str]


def find(holdings: Holdings, holds: Callable[[torch.device], bool]) -> Found:
    """All that the roots hold in memory of devices for which ``holds`` is true."""
    search = _Search(holds, holdings.fence)
    for name, root in holdings.roots.items():
        search.look(name, root)
    return Found(list(search.pieces.values()), search.stuck)


class _Search:
    def __init__(self, holds: Callable[[torch.device], bool], fence: Sequence[Any]) -> None:
        self._holds = holds
        self._seen = {id(each): each for each in fence}  # kept alive: an id is used again
        self.pieces: dict[int, Piece] = {}
        self.stuck: dict[str, str] = {}

    def look(self, name: str, root: Any) -> None:
        """Go through it, widest first: what is found in two places has the shorter name."""
        waiting = collections.deque([(name, root)])
        while waiting:
            name, value = waiting.popleft()
            if isinstance(value, _PLAIN) or id(value) in self._seen or isinstance(value, _APART):
                continue
            self._seen[id(value)] = value
            if isinstance(value, torch.Tensor):
                self._tensor(name, value)
            waiting.extend(_within(name, value))

    def _tensor(self, name: str, tensor: torch.Tensor) -> None:
        if _is_wrapper(tensor):
            return  # its data are those of the tensors in it
        if not self._holds(tensor.device):
            return
        if tensor.layout is not torch.strided:
            if tensor.layout is not torch.sparse_coo:
                self.stuck[name] = f"its layout is {tensor.layout}"
            return
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError) as error:
            self.stuck[name] = f"it has no storage of its own ({type(error).__name__})"
            return
        nbytes = storage.nbytes()
        if nbytes == 0 or storage._cdata in self.pieces:  # noqa: SLF001 -- which storage it is
            return
        if nbytes <= _SINGLE_BYTES and not name.startswith("optimizer") and tensor.numel() <= 1:
            return
        if not storage.resizable():
            self.stuck[name] = "its memory is not torch's own"
            return
        self.pieces[storage._cdata] = Piece(name, storage, nbytes)  # noqa: SLF001 -- as above


def _within(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds, each by its name."""
    if isinstance(value, torch.Tensor):
        yield from _of_tensor(name, value)
    elif isinstance(value, torch.optim.Optimizer):
        yield from _of_optimizer(name, value)
    elif isinstance(value, nn.Module):
        own = vars(value)
        for kind in ("_parameters", "_buffers", "_modules"):
            yield from ((f"{name}.{key}", each) for key, each in own.get(kind, {}).items())
        yield from ((f"{name}.{key}", each) for key, each in own.items() if key not in _OF_MODULE)
    elif isinstance(value, Mapping):
        if _is_worth(value.values()):
            yield from ((f"{name}.{key}", each) for key, each in list(value.items()))
    elif isinstance(value, list | tuple | set | frozenset | collections.deque):
        if _is_worth(value):
            yield from ((f"{name}.{i}", each) for i, each in enumerate(list(value)))
    elif hasattr(value, "__dict__"):
        yield from ((f"{name}.{key}", each) for key, each in list(vars(value).items()))
    if not isinstance(value, torch.Tensor | nn.Module):
        yield from _slots(name, value)


_OF_MODULE: Final = ("_parameters", "_buffers", "_modules")


def _of_tensor(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, Any]]:
    if _is_wrapper(tensor):
        inner: Any = tensor
        for key in inner.__tensor_flatten__()[0]:
            yield f"{name}.{key}", getattr(tensor, key)
    elif tensor.layout is torch.sparse_coo:
        yield f"{name}.indices", tensor._indices()  # noqa: SLF001 -- indices() asks for coalesced ones
        yield f"{name}.values", tensor._values()  # noqa: SLF001 -- as above
    if tensor.is_leaf and tensor.grad is not None:
        yield f"{name}.grad", tensor.grad
    yield from ((f"{name}.{key}", each) for key, each in vars(tensor).items())


def _of_optimizer(name: str, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any]]:
    numbers: dict[int, int] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            numbers[id(parameter)] = len(numbers)
            yield f"{name}.params.{numbers[id(parameter)]}", parameter
    for key, state in list(optimizer.state.items()):
        yield f"{name}.state.{numbers.get(id(key), key)}", state
    apart = ("param_groups", "state", "defaults")
    yield from ((f"{name}.{key}", v) for key, v in vars(optimizer).items() if key not in apart)


def _is_wrapper(tensor: Any) -> bool:
    """Whether it is made of other tensors, as a DTensor is."""
    return bool(is_traceable_wrapper_subclass(tensor))


def _is_worth(values: Any) -> bool:
    return len(values) < LARGE or not isinstance(next(iter(values)), _PLAIN)


def _slots(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else tuple(slots):
            if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                yield f"{name}.{slot}", getattr(value, slot)
