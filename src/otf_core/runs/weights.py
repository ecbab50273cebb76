"""A model's weights wherever they are, as a merge reads them, and as the live model takes them.

Rule 1: weights that are being written to are no source. What the live model has is copied first
(``weights_aside``), or read from its checkpoint.
Rule 2: training thread, as far as the live model is concerned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Protocol

import torch

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.subject import Subject
from otf_core.state.parts import Modules, joined, named_buffers, named_parameters

Named = tuple[str, torch.Tensor]
_TOLD: Final = 5  # of the names that differ


class Weights(Protocol):
    """One model's; a ``state.weights_file.WeightsFile``, or LiveWeights."""

    @property
    def label(self) -> str:
        """What a sentence calls it."""

    @property
    def shapes(self) -> Mapping[str, torch.Tensor]:
        """Its tensors by name, perhaps without data."""

    @property
    def others(self) -> Iterable[str]:
        """Names of what is no tensor that could be merged."""

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the host, in memory of its own. Raises CommandError ``bad_payload``."""

    def block(self, name: str, begin: int, end: int) -> torch.Tensor:
        """Some elements of one, on the host; not to be written to. Raises as ``read``."""


class Beside(Protocol):
    """The other ranks of the run in which weights are tried."""

    def aside(self) -> contextlib.AbstractContextManager[None]:
        """What each has itself is there again behind it."""

    def follow(self, modules: Modules) -> None:
        """What this rank's model has now, all have."""

    def alone(self, subject: Subject) -> Subject:
        """The same, whose batches this rank takes while the others stand."""


class Alone:
    """Beside, where there is no other rank."""

    def aside(self) -> contextlib.AbstractContextManager[None]:
        """See Beside."""
        return contextlib.nullcontext()

    def follow(self, modules: Modules) -> None:
        """See Beside."""

    def alone(self, subject: Subject) -> Subject:
        """See Beside."""
        return subject


class LiveWeights:
    """Weights in memory.

    Args:
        tensors: by their names in a ``state_dict``; not to be changed as long as they are read.
    """

    def __init__(self, label: str, tensors: Mapping[str, object]) -> None:
        self.label = label
        self.shapes = {
            name: t.detach() for name, t in tensors.items() if isinstance(t, torch.Tensor)
        }
        self.others = [name for name in tensors if name not in self.shapes]

    def read(self, name: str) -> torch.Tensor:
        """See Weights."""
        return self.shapes[name].to("cpu", copy=True)

    def block(self, name: str, begin: int, end: int) -> torch.Tensor:
        """See Weights."""
        return self.shapes[name].reshape(-1)[begin:end].to("cpu")


def refuse_another_shape(
    asked: str, one: Weights, other: Weights, *, field: str | None = None
) -> None:
    """Refuse weights of two different models.

    Raises:
        CommandError: ``bad_payload``, with the names and shapes that differ.
    """
    here, there = (
        {name: (list(t.shape), _kind(t)) for name, t in each.shapes.items()}
        for each in (one, other)
    )
    differ = [n for n in (here | there) if here.get(n) != there.get(n)]
    if not differ:
        return
    told = ", ".join(
        f"{n} {_said(there.get(n))} ({one.label} {_said(here.get(n))})" for n in differ[:_TOLD]
    )
    more = f" and {len(differ) - _TOLD} more" if len(differ) > _TOLD else ""
    detail = (
        f"{asked} was asked, but {other.label} is of another model than {one.label}: {told}{more}; "
        "allowed: the same names and shapes in all; nothing has been changed."
    )
    raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field=field)


def _kind(tensor: torch.Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    return "" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")


def _said(shape: tuple[list[int], str] | None) -> str:
    return "none" if shape is None else f"{shape[1]}{shape[0]}"


# The live model.


class Aside:
    """A copy of the live model's weights, on the host; see ``weights_aside``.

    Attributes:
        weights: the copy, which may be a source of a merge.
    """

    def __init__(self, label: str, live: Mapping[str, torch.Tensor]) -> None:
        self.weights = LiveWeights(label, {n: t.to("cpu", copy=True) for n, t in live.items()})
        self.kept = False

    def keep(self) -> None:
        """What the live model has now stays."""
        self.kept = True


@contextlib.contextmanager
def weights_aside(modules: Modules, label: str = "the live model") -> Iterator[Aside]:
    """Whatever is put into the live model inside is taken out again, unless it is to be kept.

    Raises:
        CommandError: ``unsupported``, the model's weights cannot be reached.
    """
    live = live_weights(modules)
    aside = Aside(label, live)
    try:
        yield aside
    except BaseException:
        aside.kept = False
        raise
    finally:
        if not aside.kept:
            _fill(live, aside.weights.shapes.items())


def put(modules: Modules, tensors: Iterable[Named]) -> None:
    """Copy weights into the live model; what has no name among them stays as it is.

    Raises:
        CommandError: ``bad_payload``, a name or shape that the model has not. Part of it may have
            been copied then, also where the iterable raises: see ``weights_aside``.
    """
    _fill(live_weights(modules), tensors)


def _fill(live: Mapping[str, torch.Tensor], tensors: Iterable[Named]) -> None:
    with torch.no_grad():
        for name, tensor in tensors:
            if name not in live or live[name].shape != tensor.shape:
                there = list(live[name].shape) if name in live else "none"
                detail = (
                    f"Weights were to be put into the live model, but it has {name} {there}, not "
                    f"{list(tensor.shape)}; allowed: those of this model."
                )
                raise CommandError(ErrorCode.BAD_PAYLOAD, detail)
            live[name].copy_(tensor)


def live_weights(modules: Modules) -> dict[str, torch.Tensor]:
    """The live model's own tensors, by their names in its ``state_dict``.

    Raises:
        CommandError: ``unsupported``, where a hook of the user's gives copies.
    """
    found = {
        joined(owner, name): value
        for owner, module in modules.items()
        for name, value in module.state_dict().items()
        if isinstance(value, torch.Tensor)
    }
    own = {
        t.untyped_storage().data_ptr()
        for part in (named_parameters(modules), named_buffers(modules))
        for t in part.values()
    }
    for name, tensor in found.items():
        if hasattr(tensor, "placements"):  # a DTensor
            detail = (
                f"Weights were to be put into the live model, but {name} lies in parts on its "
                "ranks; allowed: a model that each rank has whole."
            )
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        if tensor.untyped_storage().data_ptr() not in own:
            detail = (
                f"Weights were to be put into the live model, but its state_dict has a copy of "
                f"{name}; allowed: the tensors that it trains."
            )
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
    return found


def refuse_other_values(modules: Modules, tensors: Iterable[Named], what: str) -> None:
    """Refuse where the live model has not what a checkpoint has under ``state_dict``.

    A callback or hook of the script's may put others there, and load others: an average, say, as
    WeightAveraging of Lightning does.

    Args:
        what: the sentence begins with it.

    Raises:
        CommandError: ``unsupported``, with the name of the first.
    """
    live = live_weights(modules)
    for name, tensor in tensors:
        if name in live and not _same(live[name].detach().to("cpu"), tensor):
            detail = (
                f"{what}: {name} of the model that trains is not what its checkpoint has; a hook "
                "or callback of the script keeps others there, as averages of weights do; "
                "allowed: without it."
            )
            raise CommandError(ErrorCode.UNSUPPORTED, detail)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit, NaN at the same places among it."""
    other = other.to(one.dtype)
    if torch.equal(one, other):
        return True
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def parameter_names(modules: Modules) -> frozenset[str]:
    """Of what is trained, or could be; shared ones under each of their names."""
    return frozenset(
        joined(owner, name)
        for owner, module in modules.items()
        for name, _ in module.named_parameters(remove_duplicate=False)
    )
