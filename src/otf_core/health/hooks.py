"""Forward hooks on the modules of a run for the time of a check; training thread.

Not put where a hook could change what is computed: see ``telemetry.activations.left_alone``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from otf_core.health.subject import called
from otf_core.state.parts import Modules, named_modules
from otf_core.telemetry.activations import left_alone

# Called behind each forward: the module's name, itself, what it was given and what it returned.
Seen = Callable[[str, nn.Module, Any, Any], None]


def open_modules(modules: Modules) -> dict[str, nn.Module]:
    """Every module on which a hook may be put, by name, in the order of their definition."""
    found: dict[str, nn.Module] = {}
    closed: list[str] = []
    for name, module in named_modules(modules).items():
        within = any(name.startswith(f"{outer}.") or not outer for outer in closed)
        if within or left_alone(module):
            closed.append(name)
        else:
            found[called(name, module)] = module
    return found


@contextlib.contextmanager
def watching(modules: Mapping[str, nn.Module], seen: Seen) -> Iterator[None]:
    """Call ``seen`` behind each forward inside; what it raises passes through the forward."""
    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(_Hook(name, seen), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclasses.dataclass
class _Hook:
    name: str
    seen: Seen

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        with torch.no_grad():
            self.seen(self.name, module, (args, kwargs), output)

    # A model that is copied meanwhile must not carry the check along.
    def __reduce__(self) -> tuple[Any, ...]:
        return _no_hook, ()


def _nothing(*_: Any) -> None:
    return None


def _no_hook() -> Callable[..., None]:
    return _nothing


def tensors_in(value: Any, depth: int = 8) -> Iterator[torch.Tensor]:
    """Those that can be looked at, in their order; through containers and dataclasses."""
    if isinstance(value, torch.Tensor):
        if not value.is_meta and not value.is_nested and value.layout is torch.strided:
            yield value
        return
    items: Iterable[Any] = ()
    if isinstance(value, Mapping):
        items = value.values()
    elif isinstance(value, list | tuple):
        items = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    if depth:
        for item in items:
            yield from tensors_in(item, depth - 1)


def all_finite(value: Any) -> bool:
    """Whether no tensor in it has a NaN or Inf; waits for the device."""
    return all(bool(torch.isfinite(t).all()) for t in tensors_in(value) if _has_nan(t))


def _has_nan(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
