"""Fisher-weighted averaging, and the diagonal Fisher information from real gradients.

Matena and Raffel: "Merging Models with Fisher-Weighted Averaging", NeurIPS 2022. The diagonal
Fisher F_i of source i, and the merged parameter j:

    F_i,j   = 1/N sum_n (d/d theta_j log p(y_n | x_n, theta_i))^2
    theta_j = sum_i w_i F_i,j theta_i,j / sum_i w_i F_i,j

With the labels of the data for y_n, as here, F is called the empirical Fisher; the paper takes the
expectation over the model's own y, which a ``loss`` that draws its labels from the output gives.
Where all F_i,j are 0 the data say nothing of a parameter, and it is averaged.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.func import functional_call, grad, vmap
from torch.utils import _pytree as pytree

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.merging import Job, Recipe, listed, weighted_mean
from otf_core.state.checkpoint_file import write_checkpoint

# Negative log-likelihood, its mean over the samples of a batch.
Loss = Callable[[nn.Module, Any], torch.Tensor]
# What is used of torch 2.13 beyond its documentation: module -> names.
PRIVATE: Final = {"torch._C._functorch": ("is_functorch_wrapped_tensor",)}
GRADIENTS_BYTES: Final = 256 * 1024 * 1024  # of several samples at once
# What torch.func raises at what it cannot do; the user's own errors come again one by one.
_CANNOT: Final = (RuntimeError, TypeError, ValueError)


def fisher(job: Job) -> Recipe:
    """The Fisher information of each source is an option; what it does not name is averaged."""
    fishers = job.options.fishers
    if fishers is None or len(fishers) != len(job.sources):
        found = "none" if fishers is None else str(len(fishers))
        why = f"{found} Fisher information was given for {len(job.sources)} sources"
        job.refuse(why, field="fishers")
    names: dict[str, str] = {}
    for name in job.names:
        known = (alias for alias in job.aliases[name] if all(alias in f.shapes for f in fishers))
        if (alias := next(known, None)) is not None:
            names[name] = alias
    for name, alias in names.items():
        for each in fishers:
            if each.shapes[alias].shape != job.sources[0].shapes[name].shape:
                job.refuse(f"the Fisher information of {alias} has another shape", field="fishers")
    if rest := [name for name in job.names if name not in names]:
        job.told.append(f"averaged, since no Fisher information is there: {listed(rest)}")

    def shared(values: list[torch.Tensor]) -> torch.Tensor:
        found, information = values[: len(fishers)], values[len(fishers) :]
        if not all(f.min().item() >= 0 for f in information):  # NaN is not, either
            job.refuse("Fisher information is negative or NaN", field="fishers")
        weighted = [w * f for w, f in zip(job.weights, information, strict=True)]
        total = torch.zeros_like(weighted[0])
        for part in weighted:
            total += part
        shares = [
            torch.where(total > 0, f / total, w) for w, f in zip(job.weights, weighted, strict=True)
        ]
        return weighted_mean(found, shares)

    def combine(name: str) -> torch.Tensor:
        if name not in names:
            return job.mean(name, job.weights)
        read = [(source, name) for source in job.sources]
        return job.by_blocks(name, [*read, *((f, names[name]) for f in fishers)], shared)

    return Recipe(combine, job.weights)


def write_fisher(path: Path, fisher: Mapping[str, torch.Tensor]) -> None:
    """Put it on the disk, so that one at a time is in memory; ``open_weights`` reads it.

    Raises:
        OSError: the disk.
    """
    write_checkpoint({"otf": {"kind": "fisher"}, "state_dict": dict(fisher)}, path)


def fisher_diagonal(
    module: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    *,
    on_batch: Callable[[int], None] = lambda *_: None,
) -> dict[str, torch.Tensor]:
    """The diagonal of the Fisher information at the module's weights; training thread.

    The gradient of each sample is taken by itself: of many at once where ``torch.func`` can and
    finds the same as autograd does for the first sample; else of one after the other. Modes, RNG
    and buffers are the caller's to park; BatchNorm needs ``eval``. Gradients that the parameters
    have are left alone.

    Args:
        batches: tensors, in any nesting. Their first dimension is that of the samples, if it is as
            long as that of the first of them; all else is given with every sample. What cannot be
            cut so comes in batches of one.
        loss: of the module and such a batch.
        on_batch: told how many batches are done; may raise, to cancel.

    Returns:
        By the names of the parameters that are trained; float32 where those have less.

    Raises:
        CommandError: ``bad_payload``, there is no batch.
    """
    params = {
        name: p
        for name, p in module.named_parameters()
        if p.requires_grad and p.is_floating_point()
    }
    found = {name: torch.zeros_like(p, dtype=_at_least_32(p.dtype)) for name, p in params.items()}
    gradients = _Gradients(module, loss, params)
    samples = 0
    for done, batch in enumerate(batches, 1):
        cut = _Samples(batch)
        with torch.enable_grad():
            for rows in gradients.of(cut):
                for name, grads in rows.items():
                    found[name] += grads.to(found[name].dtype).square().sum(0)
        samples += cut.number
        on_batch(done)
    if not samples:
        detail = "Fisher information was asked, but there is no batch; allowed: 1 or more."
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail)
    return {name: total / samples for name, total in found.items()}


class _Samples:
    """A batch, cut into its samples."""

    def __init__(self, batch: Any) -> None:
        self._leaves, self._spec = pytree.tree_flatten(batch)
        lengths = [len(x) for x in self._leaves if isinstance(x, torch.Tensor) and x.dim()]
        self.number = lengths[0] if lengths else 1
        self._cut = [
            place
            for place, x in enumerate(self._leaves)
            if lengths and isinstance(x, torch.Tensor) and x.dim() and len(x) == self.number
        ]

    def tensors(self, begin: int, end: int) -> list[torch.Tensor]:
        """Of some samples, what is theirs alone."""
        return [self._leaves[place][begin:end] for place in self._cut]

    def batch(self, tensors: Iterable[torch.Tensor]) -> Any:
        """Like the whole one, of these samples."""
        leaves = list(self._leaves)
        for place, tensor in zip(self._cut, tensors, strict=True):
            leaves[place] = tensor
        return pytree.tree_unflatten(leaves, self._spec)


class _Step(nn.Module):
    """So that ``functional_call`` reaches a loss that is no method of the module."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module = module
        self._loss = loss

    def forward(self, batch: Any) -> torch.Tensor:
        return self._loss(self.module, batch)


class _Gradients:
    """Gradients of single samples, by the way that is found to work at the first batch."""

    def __init__(self, module: nn.Module, loss: Loss, params: Mapping[str, nn.Parameter]) -> None:
        self._module, self._loss, self._params = module, loss, params
        self._step = _Step(module, loss)
        nbytes = sum(p.numel() * p.element_size() for p in params.values())
        self._at_once = GRADIENTS_BYTES // max(1, nbytes)
        self._together: bool | None = None if self._at_once > 1 else False

    def of(self, samples: _Samples) -> Iterator[dict[str, torch.Tensor]]:
        """Parameter to gradients, the samples in the first dimension; of some samples at a time."""
        if self._together is None and samples.number > 1:
            self._together = self._agree(samples)
        if self._together and samples.number > 1:
            for begin in range(0, samples.number, self._at_once):
                yield self._of_many(samples, begin, begin + self._at_once)
        else:
            for place in range(samples.number):
                yield self._of_one(samples, place)

    def _of_one(self, samples: _Samples, place: int) -> dict[str, torch.Tensor]:
        loss = self._loss(self._module, samples.batch(samples.tensors(place, place + 1)))
        params = list(self._params.values())
        grads: list[torch.Tensor | None]
        grads = list(torch.autograd.grad(loss, params, allow_unused=True))
        return {
            name: torch.zeros_like(p)[None] if g is None else g[None]
            for (name, p), g in zip(self._params.items(), grads, strict=True)
        }

    def _of_many(self, samples: _Samples, begin: int, end: int) -> dict[str, torch.Tensor]:
        fixed = {name: p.detach() for name, p in self._step.named_parameters()}
        fixed |= dict(self._step.named_buffers())

        def loss(params: dict[str, torch.Tensor], tensors: list[torch.Tensor]) -> torch.Tensor:
            own = {f"module.{name}": p for name, p in params.items()}
            batch = samples.batch(t.unsqueeze(0) for t in tensors)
            found: torch.Tensor = functional_call(self._step, fixed | own, (batch,))
            return found

        params = {name: p.detach() for name, p in self._params.items()}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what vmap does one by one: slow, and right
                found: dict[str, torch.Tensor] = vmap(grad(loss), in_dims=(None, 0))(
                    params, samples.tensors(begin, end)
                )
        finally:
            _let_none_escape(self._module)
        return found

    def _agree(self, samples: _Samples) -> bool:
        """Whether the gradient of the first sample is the same both ways."""
        try:
            together = self._of_many(samples, 0, 2)
        except _CANNOT:
            return False
        alone = self._of_one(samples, 0)
        return all(_close(together[name][0], alone[name][0]) for name in alone)


def _let_none_escape(module: nn.Module) -> None:
    """Zeros in place of tensors of ``vmap`` that the step has kept, as a metric does that counts.

    They are good for nothing outside of it; what was there before the caller has parked.
    """
    for part in module.modules():
        for place in (vars(part), vars(part)["_buffers"]):
            for name, value in place.items():
                if _is_of_vmap(value):
                    place[name] = torch.zeros(value.shape, dtype=value.dtype, device=value.device)
                elif isinstance(value, list):
                    value[:] = [v for v in value if not _is_of_vmap(v)]


def _is_of_vmap(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and is_functorch_wrapped_tensor(value)


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    most = 1e-2 if torch.finfo(other.dtype).bits < 32 else 1e-4
    one, other = one.double(), other.double()
    return bool((one - other).norm() <= most * other.norm() + 1e-12)


def _at_least_32(dtype: torch.dtype) -> torch.dtype:
    return dtype if torch.finfo(dtype).bits >= 32 else torch.float32
