"""Runs side by side on the same samples: each run's weights are in the live module for as long as
it is looked at; training thread, at the gate.

Rule 1: whose weights do not fit is refused, by name, before the live ones are touched.
Rule 2: the live weights are back when it is over, bit for bit, also where it raises or somebody
cancels.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from otf_core.control.bus import Ticket
from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.figures import accuracy, figures_of
from otf_core.runs.looking import FEATURES, SLICE_S, Looking
from otf_core.runs.merge import as_it_is
from otf_core.runs.samples import AnyScan
from otf_core.runs.selection import Selection, decode_selection, resolve
from otf_core.runs.subject import Subject
from otf_core.runs.table import Ids, SampleTable
from otf_core.runs.tree import RunTree
from otf_core.runs.weights import (
    Alone,
    Beside,
    LiveWeights,
    live_weights,
    put,
    refuse_another_shape,
    refuse_other_values,
    weights_aside,
)
from otf_core.state import run_folder
from otf_core.state.store import Pending
from otf_core.state.weights_file import WeightsFile, open_weights

MOST: Final = 16  # runs at a time
APART: Final = 10  # samples of a pair


class Source(NamedTuple):
    """Whose weights.

    Attributes:
        name: as it was asked for.
        path: of the checkpoint; None: the live ones.
    """

    name: str
    run_id: str
    checkpoint: str | None
    step: int
    path: Path | None


class Comparing:
    """The comparisons of one session.

    Args:
        here: name of the run that trains, its folder, and the steps it has done.
        exclusive: ``exclusive(state, ticket)``: the run stands inside, that is said, and it can be
            cancelled; gives what it is to ask.
        emit: tells how far it is.
        kept: the checkpoint of where the run stands.
        beside: the other ranks.
    """

    def __init__(
        self,
        looking: Looking,
        tree: RunTree,
        *,
        here: Callable[[], tuple[str, Path | None, int]],
        exclusive: Callable[[str, Ticket], contextlib.AbstractContextManager[Callable[[], bool]]],
        emit: Callable[..., Any],
        kept: Callable[[], Pending],
        beside: Beside | None = None,
    ) -> None:
        self._beside = beside or Alone()
        self._looking, self._tree, self._here = looking, tree, here
        self._exclusive, self._emit, self._kept = exclusive, emit, kept

    def compare(self, ticket: Ticket) -> dict[str, Any]:
        """Losses of several runs over the same samples, and which are better where."""
        asked = ticket.payload
        sources = self._sources(asked.runs)
        subject = self._looking.set_of(asked.on)
        with contextlib.ExitStack() as stack:
            files = [_opened(source, stack) for source in sources]
            live = LiveWeights("the live model", live_weights(subject.modules))
            for file in files:
                if file is not None:
                    refuse_another_shape("A comparison", live, file, field="runs")
            if any(files):
                here = stack.enter_context(open_weights(Path(self._kept().path), field="runs"))
                refuse_other_values(subject.modules, as_it_is(here), "A comparison was asked")
            chosen, ids = None, None
            if asked.selection is not None:
                chosen = decode_selection(asked.selection)
            if chosen is not None and (files[0] is None or not chosen.needs()):
                ids = resolve(chosen, self._looking.table(chosen, asked.on, ticket))
            cancelled = stack.enter_context(self._exclusive("validating", ticket))
            if chosen is not None and ids is None and files[0] is not None:
                ids = self._chosen_by(files[0], chosen, subject, cancelled)
            if any(files):
                stack.enter_context(self._beside.aside())
                stack.enter_context(weights_aside(subject.modules))
            scans = self._scanned(ticket, subject, files, ids, cancelled)
        tables = [scan.table() for scan in scans]
        step = self._here()[2]
        return {
            "on": asked.on,
            "count": len(tables[0]),
            "rule": scans[0].told,
            "seconds": sum(scan.progress().seconds for scan in scans),
            "runs": [_row(*each) for each in zip(sources, tables, strict=True)],
            "pairs": _pairs(sources, tables),
            "step": step,
            "applied_step": step,
        }

    def _scanned(
        self,
        ticket: Ticket,
        subject: Subject,
        files: Sequence[WeightsFile | None],
        ids: Ids | None,
        cancelled: Callable[[], bool],
    ) -> list[AnyScan]:
        """One scan after the other; the live weights first, which nobody has to put there."""
        scans = [self._looking.begin_scan(subject, ids) for _ in files]
        total = sum(scan.progress().total for scan in scans)
        order = sorted(range(len(files)), key=lambda place: files[place] is not None)
        done, seconds = 0, 0.0
        for place in order:
            file, scan = files[place], scans[place]
            if file is not None:
                self._put(subject, file)
            for now in scan.slices(SLICE_S, cancelled):
                so_far, took = done + now.done, seconds + now.seconds
                eta_s = took / so_far * (total - so_far) if so_far else None
                numbers = {"done": so_far, "total": total, "eta_s": eta_s}
                self._emit("progress", request_id=ticket.id, cmd="compare", **numbers)
            now = scan.progress()
            done, seconds = done + now.done, seconds + now.seconds
            if not now.finished:
                detail = (
                    f"compare was cancelled after {done:,} of {total:,} losses; the run is as "
                    "it was."
                )
                raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
        return scans

    def _put(self, subject: Subject, file: WeightsFile) -> None:
        put(subject.modules, as_it_is(file))
        self._beside.follow(subject.modules)

    def _chosen_by(
        self,
        file: WeightsFile,
        chosen: Selection,
        subject: Subject,
        cancelled: Callable[[], bool],
    ) -> Ids:
        """By what a run says of the samples whose weights are not the live ones."""
        layers = [n.removeprefix(FEATURES) for n in chosen.needs() if n.startswith(FEATURES)]
        scan = self._looking.begin_scan(subject, layer=layers[0] if layers else None)
        with self._beside.aside(), weights_aside(subject.modules):
            self._put(subject, file)
            for _ in scan.slices(SLICE_S, cancelled):
                pass
        if not scan.progress().finished:
            detail = "compare was cancelled while samples were chosen; the run is as it was."
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
        return resolve(chosen, scan.table())

    def _sources(self, names: Sequence[str] | None) -> list[Source]:
        if names is None:
            names = [run.run_id for run in self._tree.known][:MOST]
        if not 0 < len(names) <= MOST or len(set(names)) < len(names):
            detail = (
                f"{len(names)} runs were asked to be compared; allowed: 1 to {MOST}, each once."
            )
            allowed = {"min": 1, "max": MOST}
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="runs", allowed=allowed)
        return [self._source(name) for name in names]

    def _source(self, name: str) -> Source:
        live, folder, step = self._here()
        if name == live:
            return Source(name, live, None, step, None)
        for manifest, path in run_folder.complete_checkpoints(folder):
            if name in (manifest.id, path):
                return Source(name, live, manifest.id, manifest.step, Path(path))
        run = self._tree.look(name, "runs")
        found = run_folder.goes_on_from(run.folder, run.record)
        if found is None:
            detail = f"A comparison with {name} was asked, which has no checkpoint."
            raise CommandError(ErrorCode.NOT_FOUND, detail, field="runs")
        return Source(name, run.run_id, found[0].id, found[0].step, Path(found[1]))


def _opened(source: Source, stack: contextlib.ExitStack) -> WeightsFile | None:
    if source.path is None:
        return None
    return stack.enter_context(open_weights(source.path, field="runs"))


def _row(source: Source, table: SampleTable) -> dict[str, Any]:
    found = figures_of(table, worst_k=0)
    names = {"name": source.name, "run_id": source.run_id, "checkpoint": source.checkpoint}
    told = ("mean", "std", "not_finite", "quantiles")
    figures = {name: found[name] for name in told}
    return {**names, "step": source.step, **figures, "accuracy": accuracy(table)}


def _pairs(sources: Sequence[Source], tables: Sequence[SampleTable]) -> list[dict[str, Any]]:
    """Of each two, how many samples the second does better and worse, and the widest apart."""
    rows = []
    for (one, a), (other, b) in itertools.combinations(zip(sources, tables, strict=True), 2):
        assert a.losses is not None
        assert b.losses is not None
        both = np.isfinite(a.losses) & np.isfinite(b.losses)
        counts = {
            "better": int((both & (b.losses < a.losses)).sum()),
            "worse": int((both & (b.losses > a.losses)).sum()),
            "same": int((both & (b.losses == a.losses)).sum()),
            "not_finite": int((~both).sum()),
        }
        differ = np.where(both, np.abs(b.losses - a.losses), -1.0)
        most = np.argsort(-differ, kind="stable")[:APART]
        apart = [
            {"id": int(a.ids[row]), "one": float(a.losses[row]), "other": float(b.losses[row])}
            for row in most.tolist()
            if differ[row] > 0
        ]
        rows.append({"one": one.name, "other": other.name, **counts, "apart": apart})
    return rows
