"""The losses of torch as they are called within a step, and the same for each sample.

Rule 1: what is called goes on as it would have; a call is only noted.
Rule 2: a call stands for a step only where the step's loss is, bit for bit, what it returned.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from otf_core.runs.table import NO_CLASS

# All that take a reduction and give, without one, something whose first dimension is the batch.
# The modules (nn.CrossEntropyLoss …) call these.
RECOGNISED: Final = (
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cosine_embedding_loss",
    "cross_entropy",
    "ctc_loss",
    "gaussian_nll_loss",
    "hinge_embedding_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "margin_ranking_loss",
    "mse_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "nll_loss",
    "poisson_nll_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
)
# function -> its parameters, with what they are where nobody says it.
_PARAMETERS: Final = {
    getattr(functional, name): {
        parameter.name: parameter.default
        for parameter in inspect.signature(getattr(functional, name)).parameters.values()
    }
    for name in RECOGNISED
}
_OF_CLASSES: Final = ("cross_entropy", "nll_loss")
_BINARY: Final = ("binary_cross_entropy", "binary_cross_entropy_with_logits")


@dataclasses.dataclass(frozen=True, eq=False)
class Classes:
    """What a classifier says of a batch; on its device, a row for each sample.

    Attributes: see SampleTable.
    """

    labels: torch.Tensor
    predictions: torch.Tensor
    confidence: torch.Tensor
    rivals: torch.Tensor
    rival_confidence: torch.Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What a loss of classes was given, a row for each sample."""

    name: str
    ignore_index: int | None
    scores: torch.Tensor
    target: torch.Tensor

    def fits(self, other: Scores) -> bool:
        """Whether both can be read as one."""
        return (
            (self.name, self.ignore_index) == (other.name, other.ignore_index)
            and self.scores.shape[1:] == other.scores.shape[1:]
            and self.target.shape[1:] == other.target.shape[1:]
            and self.target.dtype == other.target.dtype
        )


def classes_of(found: Sequence[Scores]) -> Classes:
    """Labels and predictions of all of them, which fit each other."""
    first = found[0]
    joined = dataclasses.replace(
        first,
        scores=torch.cat([each.scores for each in found]),
        target=torch.cat([each.target for each in found]),
    )
    return _of_two(joined) if first.name in _BINARY else _of_classes(joined)


class Call:
    """A loss that was computed.

    Args:
        args, kwargs: as it was called.
        returned: what the step got.
    """

    def __init__(
        self,
        function: Callable[..., torch.Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        returned: torch.Tensor,
    ) -> None:
        self.function, self.returned = function, returned
        self._given = {**dict(zip(_PARAMETERS[function], args, strict=False)), **kwargs}
        self._version = self._versions()

    @property
    def name(self) -> str:
        """Of the function in torch.nn.functional."""
        return self.function.__name__

    @property
    def reduction(self) -> str:
        """mean, sum, batchmean or none."""
        found: str = self.get("reduction")
        return found

    def get(self, name: str) -> Any:
        """An argument, also one that was left out."""
        return self._given.get(name, _PARAMETERS[self.function].get(name))

    @property
    def is_known(self) -> bool:
        """Whether it says its reduction by that name, and nothing was changed in place since."""
        of_old = self.get("size_average"), self.get("reduce")
        return of_old == (None, None) and self._versions() == self._version

    def is_loss(self, loss: torch.Tensor) -> bool:
        """Whether the loss of a step is this very tensor."""
        return self.returned is loss and self.reduction != "none" and self.is_known

    def equals(self, loss: torch.Tensor) -> bool:
        """Whether it is of the same value; waits for the device."""
        mine = self.returned.detach()
        if self.reduction == "none":
            mine = mine.mean()
        if mine.shape != loss.shape or not self.is_known:
            return False
        loss = loss.detach().to(mine.dtype)
        return torch.allclose(loss, mine, rtol=0, atol=0, equal_nan=True)

    def _versions(self) -> list[int]:
        """So that what was changed in place after it was noted is not computed with."""
        return [
            value._version  # noqa: SLF001 -- torch has no other name for it
            for value in (self.returned, *self._given.values())
            if isinstance(value, torch.Tensor) and not value.is_inference()
        ]

    def per_sample(self, number: int) -> tuple[torch.Tensor, bool] | None:
        """The mean over all but the batch's dimension; None where that cannot be told.

        Positions that the loss leaves out (``ignore_index``) do not count; a sample that has no
        others has NaN. ``kl_div`` with ``batchmean`` is summed, as it is there.

        Returns:
            Of shape (number,), and whether the samples lay there with another dimension as one, so
            that it is a guess which belong together: those that follow each other.
        """
        each = self.returned.detach()
        reduction = self.reduction
        if reduction != "none":
            each = self.function(**{**self._given, "reduction": "none"})
        if each.ndim == 0 or each.numel() == 0 or len(each) % number:
            return None
        if each.ndim == 1 and len(each) == number:
            return each, False  # those that are left out have no label, see Scanned
        folded = len(each) != number
        rows = each.reshape(number, -1)
        if reduction == "batchmean":
            return rows.sum(1), folded
        counted = self._counted()
        if counted is None:
            return rows.mean(1), folded
        return rows.sum(1) / counted.reshape(number, -1).sum(1), folded

    def scores(self, number: int) -> Scores | None:
        """What a classifier said, where this is a loss of one class for each sample."""
        if self.name not in (*_OF_CLASSES, *_BINARY):
            return None
        scores, target = self.get("input"), self.get("target")
        if self.name in _BINARY:
            if scores.shape not in ((number,), (number, 1)):
                return None
            scores, target = scores.reshape(number), target.reshape(number)
        elif scores.ndim != 2 or len(scores) != number or scores.shape[1] < 2:
            return None
        return Scores(self.name, self.get("ignore_index"), scores.detach(), target.detach())

    def _counted(self) -> torch.Tensor | None:
        target = self.get("target")
        if self.name not in _OF_CLASSES or target is None or target.is_floating_point():
            return None
        counted: torch.Tensor = target != self.get("ignore_index")
        return counted


class LossWatch(TorchFunctionMode):
    """Notes the losses that are computed inside; training thread."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        returned = func(*args, **given)
        if func in _PARAMETERS and isinstance(returned, torch.Tensor):
            self.calls.append(Call(func, args, given, returned))
        return returned

    def of(self, loss: torch.Tensor) -> Call | None:
        """The one call that the step's loss is; None where there is none, or more than one."""
        for call in self.calls:
            if call.is_loss(loss):
                return call
        found = [call for call in self.calls if call.equals(loss)]
        return found[0] if len(found) == 1 else None


def _of_classes(found: Scores) -> Classes:
    scores, target = found.scores.float(), found.target
    chances = scores.softmax(1) if found.name == "cross_entropy" else scores.exp()
    if target.is_floating_point():
        labels = target.argmax(1)
    else:
        assert found.ignore_index is not None
        labels = target.where(target != found.ignore_index, NO_CLASS)
    best, second = chances.topk(2).indices.T
    rivals = torch.where(best == labels, second, best)
    chance = chances.gather(1, torch.stack([labels.clamp(min=0), rivals], 1))
    return Classes(labels, best, chance[:, 0], rivals, chance[:, 1])


def _of_two(found: Scores) -> Classes:
    scores = found.scores.float()
    chance = scores if found.name == "binary_cross_entropy" else scores.sigmoid()
    labels = (found.target > 0.5).long()
    own = torch.where(labels == 1, chance, 1 - chance)
    return Classes(labels, (chance > 0.5).long(), own, 1 - labels, 1 - own)
