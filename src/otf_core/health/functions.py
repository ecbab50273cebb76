"""Activations that are called as functions (``F.relu``), by the module that calls them.

Training thread. Seen by a mode of torch for the time of a check. Where something is compiled none
is put: it would be compiled anew.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# A module, and the functions that compute the same.
_SAME: Final[Sequence[tuple[Callable[[], nn.Module], Sequence[Any]]]] = (
    (nn.ReLU, (functional.relu, functional.relu_, torch.relu, torch.relu_)),
    (nn.ReLU, (torch.Tensor.relu, torch.Tensor.relu_)),
    (nn.ReLU6, (functional.relu6,)),
    (nn.Tanh, (functional.tanh, torch.tanh, torch.tanh_)),
    (nn.Tanh, (torch.Tensor.tanh, torch.Tensor.tanh_)),
    (nn.Sigmoid, (functional.sigmoid, torch.sigmoid, torch.sigmoid_)),
    (nn.Sigmoid, (torch.Tensor.sigmoid, torch.Tensor.sigmoid_)),
    (nn.Hardsigmoid, (functional.hardsigmoid,)),
    (nn.Softsign, (functional.softsign,)),
)
KNOWN: Final = MappingProxyType({f: kind for kind, functions in _SAME for f in functions})
# Called with the place, the module that would compute the same, and what was returned.
Seen = Callable[[str, nn.Module, Any], None]


class Calls(TorchFunctionMode):
    """Tells of each call, in no module that is looked at itself.

    Args:
        top: what a call outside of all modules is named by.
        alone: names of the modules that are looked at themselves.
    """

    def __init__(self, top: str, alone: frozenset[str], seen: Seen) -> None:
        super().__init__()
        self._alone, self._seen = alone, seen
        self._within: list[tuple[str, collections.Counter[str]]] = []
        self._top = top
        self.begin()

    def begin(self) -> None:
        """Calls of the next batch are numbered anew."""
        self._within = [(self._top, collections.Counter())]

    @contextlib.contextmanager
    def places(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Know inside which of these modules a call is in."""
        handles = []
        try:
            for name, module in modules.items():
                handles.append(module.register_forward_pre_hook(self._entering(name)))
                handles.append(module.register_forward_hook(self._leaving))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._within.append((name, collections.Counter()))

        return enter

    def _leaving(self, *_: Any) -> None:
        if len(self._within) > 1:
            self._within.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        kind = KNOWN.get(func)
        place, counter = self._within[-1]
        if kind is not None and place not in self._alone:
            name = func.__name__.rstrip("_")
            counter[name] += 1
            number = f" {counter[name]}" if counter[name] > 1 else ""
            with torch.no_grad():
                self._seen(f"{place}.{name}{number}", kind(), output)
        return output
