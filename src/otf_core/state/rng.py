"""The random number generators of a process, and generator objects.

Covers torch (CPU, and each CUDA device once CUDA is in use), NumPy's global state and ``random``.
"""

from __future__ import annotations

import array
import contextlib
import functools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import numpy as np
import torch

GENERATORS: Final = (
    torch.Generator,
    random.Random,
    np.random.RandomState,
    np.random.Generator,
)


def _numpy_generator(kind: Callable[[int], Any]) -> np.random.Generator:
    return np.random.Generator(kind(0))


# generator_kind -> makes one, and draws nothing for it.
_NEW: Final[dict[str, Callable[[], Any]]] = {
    "torch cpu": torch.Generator,
    "random": random.Random,
    "numpy RandomState": np.random.RandomState,
    **{
        f"numpy {kind.__name__}": functools.partial(_numpy_generator, kind)
        for kind in (
            np.random.MT19937,
            np.random.PCG64,
            np.random.PCG64DXSM,
            np.random.Philox,
            np.random.SFC64,
        )
    },
}


def generator_kind(generator: Any) -> str:
    """What decides whose state it can be given."""
    if isinstance(generator, np.random.Generator):
        return f"numpy {type(generator.bit_generator).__name__}"
    if isinstance(generator, torch.Generator):
        return f"torch {generator.device}"
    return "random" if isinstance(generator, random.Random) else "numpy RandomState"


def new_generator(kind: str) -> Any:
    """A generator object of this kind; None where only the user's code can make it."""
    return _NEW[kind]() if kind in _NEW else None


def _python_state(state: tuple[int, tuple[int, ...], float | None]) -> Any:
    """Its 625 words as one value: torch's unpickler takes a microsecond for each."""
    version, words, gauss = state
    return version, array.array("I", words).tobytes(), gauss


def _state_of_python(saved: Any) -> Any:
    version, words, gauss = saved
    return version, tuple(array.array("I", words)), gauss


def generator_state(generator: Any) -> Any:
    """The state of a generator object."""
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, random.Random):
        return _python_state(generator.getstate())
    return generator.get_state()


def set_generator_state(generator: Any, state: Any) -> None:
    """Put back what generator_state returned."""
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(_state_of_python(state))
    else:
        generator.set_state(state)


def get_rng() -> dict[str, Any]:
    """RNG of torch (CPU, CUDA), NumPy and random as plain values; in any process."""
    kind, key, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    torches = [s.numpy().tobytes() for s in (torch.get_rng_state(), *cuda)]
    return {
        "torch": torches,
        "numpy": (kind, np.asarray(key).tobytes(), *rest),
        "python": _python_state(random.getstate()),
    }


def set_rng(state: dict[str, Any]) -> None:
    """Put back what get_rng returned."""
    cpu, *cuda = (torch.frombuffer(bytearray(s), dtype=torch.uint8) for s in state["torch"])
    torch.set_rng_state(cpu)
    for device, s in enumerate(cuda):
        torch.cuda.set_rng_state(s, device)
    kind, key, *rest = state["numpy"]
    np.random.set_state((kind, np.frombuffer(key, np.uint32), *rest))
    random.setstate(_state_of_python(state["python"]))


@contextlib.contextmanager
def parked_rng() -> Iterator[None]:
    """Whatever draws inside leaves the RNG as it was; training thread."""
    state = get_rng()
    try:
        yield
    finally:
        set_rng(state)


@contextlib.contextmanager
def pools_aside(loaders: Iterable[Any]) -> Iterator[None]:
    """The persistent worker pools of these loaders take no part in what happens inside.

    An evaluation that used them would move their RNG; one that made them would spare the training
    the draw that seeds them. Private names of torch 2.13's DataLoader.
    """
    persistent = [d for d in loaders if getattr(d, "persistent_workers", False)]
    pools = [(loader, loader._iterator) for loader in persistent]  # noqa: SLF001 -- torch has no other way
    for loader, _ in pools:
        loader._iterator = None  # noqa: SLF001 -- as above
    try:
        yield
    finally:
        for loader, pool in pools:
            if loader._iterator is not None:  # noqa: SLF001 -- as above
                loader._iterator._shutdown_workers()  # noqa: SLF001 -- as above
            loader._iterator = pool  # noqa: SLF001 -- as above
