"""Merges tried in the live model: sources that are open, candidates, what each is worth; training
thread, in the paused window.

Rule: the live model has whatever was tried last. Whoever opens a trial puts its own weights back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import nn

from otf_core.control.bus import Ticket
from otf_core.control.delegate import Evaluation, OnBatch
from otf_core.errors import CommandError, ErrorCode
from otf_core.runs import merge
from otf_core.runs.batch_norm import recalibrate, statistics
from otf_core.runs.fisher import fisher_diagonal, write_fisher
from otf_core.runs.merging import Options
from otf_core.runs.subject import Subject, apart, fetch, seed_all
from otf_core.runs.tree import Here, RunTree, parted_at
from otf_core.runs.weights import (
    Beside,
    Named,
    Weights,
    parameter_names,
    put,
    refuse_another_shape,
)
from otf_core.state.parts import Modules, joined
from otf_core.state.weights_file import open_weights
from otf_core.telemetry.canonical import canonicalize_metrics

MAX_FISHER: Final = 2048  # samples; its error falls with their root
_ASIDE: Final = ".merge-"  # the folder of what is needed only while a merge is made


class Source(NamedTuple):
    """One of those that are merged.

    Attributes:
        id: of its checkpoint, or its file's name.
    """

    run: Here
    path: str
    id: str
    weights: Weights

    @property
    def said(self) -> dict[str, Any]:
        """For people."""
        return {"run_id": self.run.run_id, "checkpoint": self.id, "path": self.path}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """The fit in which candidates are tried.

    Attributes:
        validate: see ControlDelegate.run_validation.
        training_set: raises where there is none whose samples could be taken.
        tree: its runs.
        checkpoint_of: see Forks.
        folder: of the run that trains.
        emit: tells how far a trial is.
        beside: the other ranks.
    """

    modules: Modules
    validate: Callable[[int | None, OnBatch], Evaluation]
    training_set: Callable[[], Subject]
    tree: RunTree
    checkpoint_of: Callable[[Here, str | None], tuple[str, str | None]]
    folder: Path | None
    emit: Callable[..., Any]
    beside: Beside


class Trial:
    """One command.

    Args:
        cancelled: looked at between batches.
        number: of candidates that it will try.
        stack: closes what is opened on the way.
    """

    def __init__(
        self,
        fit: Fit,
        ticket: Ticket,
        sources: list[Source],
        *,
        cancelled: Callable[[], bool],
        number: int,
        stack: contextlib.ExitStack,
    ) -> None:
        self._fit, self._ticket, self._asked = fit, ticket, ticket.payload
        self.modules, self.sources = fit.modules, sources
        self._cancelled, self._stack = cancelled, stack
        self._done, self._number, self._began_s = 0, number, time.monotonic()
        self._fishers: list[Weights] | None = None

    # What is asked of it.

    def candidate(self, strategy: str) -> dict[str, Any]:
        """What a strategy would be worth, or why it cannot be."""
        began_s = time.monotonic()
        try:
            merged, told = self._merged(strategy)
            gathered: Mapping[str, torch.Tensor] = {}
            if self._asked.recalibrate:
                put(self.modules, merged.tensors())
                gathered, text = self._recalibrated()
                told.append(text)
            said = {"strategy": strategy}
            worth = self.worth([*gathered.items()], begin=merged.tensors(), said=said)
        except CommandError as error:
            if self._cancelled():
                raise
            refused = {"strategy": strategy, "score": None, "refused": error.detail}
            self._progress(refused)
            return refused
        return {**worth, "told": told, "seconds": time.monotonic() - began_s}

    def merge_into(self, state: dict[str, Any], strategy: str) -> list[str]:
        """Put merged weights into a checkpoint's state; sentences on what was done."""
        merged, told = self._merged(strategy)
        there = tensors_of(state)
        with torch.no_grad():
            for name, tensor in merged.tensors():
                there[name].copy_(tensor)
            if self._asked.recalibrate:
                put(self.modules, merged.tensors())
                gathered, text = self._recalibrated()
                told.append(text)
                for name, tensor in gathered.items():
                    there[name].copy_(tensor)
        self._progress()
        return told

    def worth(
        self,
        tensors: Iterable[Named],
        begin: Iterable[Named] = (),
        *,
        said: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Metrics and score on the validation set of weights, which the live model has then.

        Args:
            said: whose they are; goes along, also to those who are told how far it is.
        """
        put(self.modules, begin)
        found = {**said, **self._validated(tensors)}
        self._progress(found)
        return found

    # Inside.

    def _validated(self, tensors: Iterable[Named]) -> dict[str, Any]:
        put(self.modules, tensors)
        self._fit.beside.follow(self.modules)
        found = self._fit.validate(self._asked.limit_batches, self._on_batch)
        known = {**found.metrics, **canonicalize_metrics(found.metrics)}
        score = known.get(self._asked.monitor)
        if score is None and self._asked.monitor == "val_loss":
            score = found.avg_loss
        is_number = isinstance(score, int | float) and math.isfinite(score)
        return {"metrics": dict(found.metrics), "score": score if is_number else None}

    def _merged(self, strategy: str) -> tuple[merge.Merged, list[str]]:
        asked, needs = self._asked, merge.needs_of(strategy)
        told: list[str] = []
        base = None
        if "base" in needs:
            base, text = self._base()
            told.append(text)
        if "fishers" in needs and self._fishers is None:
            self._fishers, text = self._found_fishers()
            told.append(text)
        options = Options(
            weights=asked.weights,
            base=base,
            density=asked.density,
            scale=asked.scale,
            fishers=self._fishers if "fishers" in needs else None,
            parameters=parameter_names(self.modules),
        )
        weights = [source.weights for source in self.sources]
        merged = merge.run(strategy, weights, options, self._evaluate, lambda *_: self._go_on())
        return merged, [*told, *merged.told]

    def _evaluate(self, tensors: Iterator[Named]) -> float:
        found = self._validated(tensors)["score"]  # a step on the way to one candidate
        if found is None:
            detail = (
                f"merge was asked by {self._asked.monitor!r}, which the validation does not give "
                "as a finite number; allowed: a metric that it logs, as monitor."
            )
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="monitor")
        return float(found) if self._asked.mode == "min" else -float(found)

    def _base(self) -> tuple[Weights, str]:
        """What the sources have begun from: named, or where they parted."""
        runs = [source.run for source in self.sources]
        found = self._named_base() or parted_at(runs, self._fit.tree.look)
        if found is None:
            detail = (
                "ties needs the checkpoint that all have begun from, and these runs did not part "
                "from one; allowed: name it with base."
            )
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="base")
        here, name = found
        path, own = self._fit.checkpoint_of(here, name)
        if own != name and path != name:
            detail = f"{here.run_id} does not have {name} any more, from which these have begun."
            raise CommandError(ErrorCode.NOT_FOUND, detail, field="base")
        weights = self._stack.enter_context(open_weights(Path(path), field="base"))
        refuse_another_shape("merge", self.sources[0].weights, weights, field="base")
        return weights, f"changes are told from {here.run_id}/{name}"

    def _named_base(self) -> tuple[Here, str] | None:
        name = self._asked.base
        if name is None:
            return None
        run_id, slash, checkpoint = name.partition("/")
        if slash and run_id and "/" not in checkpoint:
            return self._fit.tree.look(run_id, "base"), checkpoint
        return self.sources[0].run, name

    def _found_fishers(self) -> tuple[list[Weights], str]:
        """The Fisher information of each source, on the disk; see ``fisher_diagonal``."""
        subject = self._training_set("fisher")
        step = subject.step
        assert step is not None
        module, names = _as_one(subject.modules)
        ids = np.unique(
            np.linspace(0, len(subject.dataset) - 1, MAX_FISHER, dtype=np.int64)
        ).tolist()

        def loss(_: nn.Module, batch: Any) -> torch.Tensor:
            with subject.context():
                found = step(batch, 0)
            value = found.get("loss") if isinstance(found, Mapping) else found
            if not isinstance(value, torch.Tensor):
                detail = f"fisher needs a loss, and {subject.step_name} returned none."
                raise CommandError(ErrorCode.UNSUPPORTED, detail)
            return value

        folder = self._folder()
        found: list[Weights] = []
        for place, source in enumerate(self.sources):
            put(self.modules, merge.as_it_is(source.weights))
            with apart(subject):
                module.eval()
                batches = self._batches(subject, ids)
                diagonal = fisher_diagonal(module, batches, loss)
            path = folder / f"{place}.ckpt"
            write_fisher(path, {names(name): value for name, value in diagonal.items()})
            found.append(self._stack.enter_context(open_weights(path)))
        return found, f"Fisher information is of {len(ids):,} training samples"

    def _recalibrated(self) -> tuple[dict[str, torch.Tensor], str]:
        """BatchNorm's statistics for the weights that the live model has, by their names."""
        subject = self._training_set("recalibrate")
        step = subject.step
        assert step is not None
        module, names = _as_one(subject.modules)
        order = torch.Generator().manual_seed(0)
        ids = torch.randperm(len(subject.dataset), generator=order).tolist()
        if len(ids) % subject.batch_size == 1 and len(ids) > 1:
            ids = ids[:-1]  # of one sample BatchNorm can tell no variance

        def forward(_: nn.Module, batch: Any) -> None:
            with subject.context():
                step(batch, 0)

        with apart(subject):
            found = recalibrate(module, self._batches(subject, ids), forward)
            gathered = {
                names(name): buffer.detach().to("cpu", copy=True)
                for name, buffer in statistics(module).items()
            }
        text = f"BatchNorm of {found.layers} layers was gathered anew over {found.batches} batches"
        return gathered, text

    def _training_set(self, what: str) -> Subject:
        subject = self._fit.training_set()
        if subject.step is None:
            detail = f"{what} was asked, which needs a loss that no optimizer steps by hand in."
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        return subject

    def _batches(self, subject: Subject, ids: Sequence[int]) -> Iterator[Any]:
        for begin in range(0, len(ids), subject.batch_size):
            self._go_on()
            seed_all(begin)
            items = fetch(subject.dataset, list(ids[begin : begin + subject.batch_size]))
            yield subject.transfer(subject.collate(items))

    def _folder(self) -> Path:
        """For what is as large as the weights of all sources; gone when the command is done."""
        parent = self._fit.folder
        for left in parent.glob(f"{_ASIDE}*") if parent is not None else ():
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed
        try:
            made = tempfile.TemporaryDirectory(prefix=_ASIDE, dir=parent)
        except OSError as error:
            detail = f"fisher needs room beside the checkpoints: {error.strerror}."
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail) from error
        return Path(self._stack.enter_context(made))

    def _on_batch(self, *_: Any) -> None:
        self._go_on()

    def _go_on(self) -> None:
        if self._cancelled():
            detail = (
                f"{self._ticket.request.cmd} was cancelled after {self._done} of {self._number} "
                "candidates; the run is as it was."
            )
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)

    def _progress(self, found: Mapping[str, Any] | None = None) -> None:
        self._done += 1
        took_s = time.monotonic() - self._began_s
        numbers = {"done": self._done, "total": self._number}
        eta_s = took_s / self._done * (self._number - self._done)
        said = {"request_id": self._ticket.id, "cmd": self._ticket.request.cmd}
        more = {} if found is None else {"found": found}
        self._fit.emit("progress", **said, **numbers, eta_s=eta_s, **more)
        self._go_on()


def tensors_of(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint's state, by the names that a merge has for them."""
    weights = state["state_dict"]
    several = bool(weights) and all(isinstance(value, Mapping) for value in weights.values())
    owners = weights.items() if several else (("", weights),)
    return {
        joined(str(owner), name): tensor
        for owner, found in owners
        for name, tensor in found.items()
        if isinstance(tensor, torch.Tensor)
    }


def _as_one(modules: Modules) -> tuple[nn.Module, Callable[[str], str]]:
    """All of them as one module, and what its names are in a checkpoint."""
    if len(modules) == 1:
        [(owner, module)] = modules.items()
        return module, lambda name: joined(owner, name)
    owners = list(modules)

    def name_of(name: str) -> str:
        place, _, rest = name.partition(".")
        return joined(owners[int(place)], rest)

    return nn.ModuleList(modules.values()), name_of
