"""What is scanned: a data set, and what a fit does with its batches; made by each framework."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import DataLoader

from otf_core.errors import CommandError, ErrorCode
from otf_core.state.loader_parts import Look, put_parts, reading_parts
from otf_core.state.parts import Modules
from otf_core.state.plain_values import Decoder

Around = Callable[[], contextlib.AbstractContextManager[Any]]

# Of which set -> who has its loader.
SETS: Final = {"train": "train_dataloader", "val": "val_dataloader", "test": "test_dataloader"}
_BATCH: Final = 32  # where nobody says one
_LOGS: Final = ("log", "log_dict")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A data set, and what a fit does with its batches.

    Attributes:
        name: of the set: "train", "val", "test".
        collate: of the user's loader.
        step: ``(batch, batch_idx)``, as the framework calls it; None: there is none that may be.
        step_name: for people, as "training_step of Net".
        hook: the module's ``per_sample_loss``.
        render: the module's ``render_sample``.
        transfer: to the device, and the user's transforms of a batch.
        around: what happens inside leaves no trace on the run; weights and data set are seen to.
        context: precision, around a step.
    """

    name: str
    dataset: Any
    collate: Callable[[list[Any]], Any]
    batch_size: int
    modules: Modules
    step: Callable[[Any, int], Any] | None
    step_name: str
    around: Around
    hook: Callable[[Any], Any] | None = None
    render: Callable[[Any], Any] | None = None
    transfer: Callable[[Any], Any] = lambda batch: batch
    context: Around = contextlib.nullcontext


def refuse_another_set(name: str) -> None:
    """Raises CommandError ``bad_payload`` where there is no such set."""
    if name not in SETS:
        detail = f"Samples of {name[:60]!r} were asked; allowed: {', '.join(SETS)}."
        allowed = list(SETS)
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="subset_on", allowed=allowed)


def refuse_no_loader(name: str) -> None:
    """Raises CommandError ``unsupported``: nobody has one for this set."""
    detail = (
        f"Samples of the {name} set were asked, but there is no loader for it; allowed: "
        f"{SETS[name]} of module or data module."
    )
    raise CommandError(ErrorCode.UNSUPPORTED, detail)


def loader_of(loaders: list[Any], name: str, place: int = 0) -> DataLoader[Any]:
    """The one loader whose data set has samples by index.

    Args:
        place: which of them, where a set has several.

    Raises:
        CommandError: ``unsupported``, ``bad_payload``.
    """
    if not 0 <= place < len(loaders):
        detail = f"Loader {place} of the {name} set was asked; allowed: 0 to {len(loaders) - 1}."
        allowed = {"min": 0, "max": len(loaders) - 1}
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="loader", allowed=allowed)
    loader = loaders[place]
    if not isinstance(loader, DataLoader):
        why = f"{type(loader).__name__} is no DataLoader of torch"
    elif loader.batch_size is None and loader.batch_sampler is None:
        why = f"{type(loader).__name__} makes no batches (batch_size=None)"
    else:
        return loader
    detail = f"Samples of the {name} set were asked; {why}."
    raise CommandError(ErrorCode.UNSUPPORTED, detail)


def batch_size_of(loader: DataLoader[Any]) -> int:
    """What it says; a batch sampler of the user's own may say nothing."""
    found = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    return found if isinstance(found, int) and found > 0 else _BATCH


@contextlib.contextmanager
def apart(subject: Subject) -> Iterator[None]:
    """What happens inside leaves no trace on the run, nor on what makes its samples."""
    data = reading_parts(subject.dataset, subject.collate)
    saved = Look()(data)
    with subject.around():
        try:
            yield
        finally:
            put_parts(data, saved, Decoder(small=True), own=True)


@contextlib.contextmanager
def silenced(module: Any) -> Iterator[None]:
    """What the module logs inside is heard by nobody."""
    own = vars(module)  # past __setattr__ of nn.Module, which looks at every value
    before = {name: own[name] for name in _LOGS if name in own}
    # A layer of that name is none of ours.
    names = [n for n in _LOGS if inspect.isroutine(getattr(module, n, None)) or n in before]
    own.update(dict.fromkeys(names, _ignored))
    try:
        yield
    finally:
        for name in names:
            own.pop(name, None)
        own.update(before)


def hook_of(name: str, *owners: Any) -> Callable[..., Any] | None:
    """A hook of ours that one of them has; the first."""
    found: list[Callable[..., Any]] = [
        hook for owner in owners if callable(hook := getattr(owner, name, None))
    ]
    return found[0] if found else None


def _ignored(*_: Any, **__: Any) -> None:
    return None


def fetch(dataset: Any, ids: list[int]) -> list[Any]:
    """Samples, as torch's own loaders fetch them."""
    many = getattr(dataset, "__getitems__", None)
    return list(many(ids)) if callable(many) else [dataset[i] for i in ids]


def seed_all(seed: int) -> None:
    """Every generator of the process that ``state.rng`` parks."""
    # Not torch.manual_seed: where CUDA is not in use yet, it leaves a seed for when it will be.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
