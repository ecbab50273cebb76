"""What is known of the samples of the run that trains: looked at when it is asked, kept while the
run stands where it stood; training thread, at the gate.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from otf_core.control.bus import Ticket
from otf_core.control.router import LATER, Later
from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.background import Background, share_of
from otf_core.runs.figures import WORST, figures_of, worst
from otf_core.runs.render import render_samples
from otf_core.runs.samples import BeginScan, Scan
from otf_core.runs.selection import Region, Selection, decode_selection, means, resolve
from otf_core.runs.subject import Subject
from otf_core.runs.table import Ids, SampleTable, fingerprint_of

SLICE_S: Final = 0.25  # after so long it is said how far it is, and looked whether it is cancelled
MOST_AT_ONCE: Final = 400_000  # samples in one answer: below the longest line of otf/1, 16 MiB
MOST_SHOWN: Final = 64  # samples at a time
FEATURES: Final = "features:"
LOSS: Final = frozenset({"loss"})
_PLAIN: Final = frozenset({"loss", "classes"})
NO_SAMPLES: Final = "The samples of this run cannot be looked at: its data is the loop's own."


class Found(NamedTuple):
    """What was found of a whole set.

    Attributes:
        run_id: the run whose losses they are.
        at: where it stood; None: the losses are not of one state.
        steps: done when the first and the last loss was taken.
    """

    run_id: str
    at: Any
    table: SampleTable
    steps: tuple[int, int]


class Looking:
    """The scans of one session.

    Attributes:
        background: a scan that goes on while the run trains; see ``go_on``.

    Args:
        subject: a set of the run by its name; None: this run has none that can be looked at.
        exclusive: ``exclusive(state, request_id)``: the run stands inside, and that is said.
        emit: tells how far a scan is.
        at: what is other when the run has changed: run, step and changes.
        step: steps that the run has done.
        scan: begins a scan; ``Scan`` where this process has the whole run.
        may_work: whether a slice of a scan in the background may be done now; see Background.
    """

    def __init__(
        self,
        subject: Callable[[str], Subject] | None,
        *,
        exclusive: Callable[[str, str | None], contextlib.AbstractContextManager[None]],
        emit: Callable[..., Any],
        at: Callable[[], Any],
        step: Callable[[], int],
        scan: BeginScan = Scan,
        may_work: Callable[[], bool] = lambda: True,
    ) -> None:
        self._subject, self._exclusive, self._emit, self._at = subject, exclusive, emit, at
        self._step, self.begin_scan, self._may_work = step, scan, may_work
        self._found: dict[str, Found] = {}  # by set
        self.background: Background | None = None
        self._running: str | None = None
        self._cancelled = threading.Event()

    # Commands.

    def scan(self, ticket: Ticket) -> dict[str, Any] | Later:
        """Look at a set, or at some of its samples."""
        asked = ticket.payload
        self._refuse_two()
        ids = None if asked.ids is None else np.array(asked.ids, dtype=np.int64)
        if asked.background:
            share = share_of(asked.share)
            scan = self.begin_scan(self.set_of(asked.on), ids, layer=asked.layer)
            self.background = Background(
                ticket, scan, on=asked.on, whole=ids is None, share=share,
                step=self._step, emit=self._emit, may_work=self._may_work,
            )  # fmt: skip
            return LATER
        needs = LOSS if asked.layer is None else LOSS | {f"{FEATURES}{asked.layer}"}
        table, told, seconds = self._look(asked.on, needs, ids, ticket)
        step = self._step()
        return self._scanned(asked.on, table, (step, step), rule=told, seconds=seconds)

    def go_on(self, _: Ticket) -> dict[str, Any] | Later:
        """What is due of the scan in the background; between two batches."""
        background = self.background
        assert background is not None
        done = background.go_on()
        if background.ticket.answered:  # with a refusal, somebody's cancel or what it has raised
            self.background = None
        if not done:
            return LATER
        self.background = None
        table, steps = background.scan.table(), (background.first_step, background.last_step)
        if background.whole:
            self._found[background.on] = Found(self._at()[0], None, table, steps)
        progress = background.scan.progress()
        told = {"rule": progress.told, "seconds": progress.seconds}
        return self._scanned(background.on, table, steps, **told)

    def end_background(self, why: str) -> None:
        """The scan in the background, if there is one, comes to nothing; see ``Background.end``."""
        background, self.background = self.background, None
        if background is not None:
            background.end(why)

    def samples(self, ticket: Ticket) -> dict[str, Any]:
        """A page of what was found last."""
        asked = ticket.payload
        known = self._found.get(asked.on)
        if known is None:
            detail = f"Samples of the {asked.on} set were asked; allowed once it was scanned."
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail, field="on")
        first, last = known.steps
        said = {"on": asked.on, "now": known.at == self._at()}
        return {**said, "first_step": first, "last_step": last, **known.table.page(asked.start)}

    def select(self, ticket: Ticket) -> dict[str, Any]:
        """What a selection means of what was found last; nothing is looked at anew."""
        asked = ticket.payload
        known = self._found.get(asked.on)
        size = len(self.set_of(asked.on).dataset)
        said: dict[str, Any] = {"on": asked.on, "of": size, "step": self._step()}
        if known is None and asked.selection is None:
            return {**said, "count": None}
        if known is None:
            detail = f"Samples of the {asked.on} set were asked; allowed once it was scanned."
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail, field="on")
        table, (first, last) = known.table, known.steps
        said |= {"run_id": known.run_id, "now": known.at == self._at()}
        said |= {"first_step": first, "last_step": last}
        if asked.selection is None:
            return {**said, "count": len(table), "figures": figures_of(table)}
        chosen = table.only(means(decode_selection(asked.selection), table))
        return {**said, "count": len(chosen), "worst": worst(chosen, WORST)}

    def show(self, ticket: Ticket) -> dict[str, Any]:
        """Some samples as images, texts or rows."""
        asked = ticket.payload
        subject = self.set_of(asked.on)
        ids, size = asked.ids, fingerprint_of(subject.dataset).size
        if not 1 <= len(ids) <= MOST_SHOWN or not all(0 <= each < size for each in ids):
            detail = (
                f"{len(ids)} samples of the {asked.on} set were asked to be shown; allowed: 1 to "
                f"{MOST_SHOWN}, each from 0 to {size - 1}."
            )
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="ids")
        with self._exclusive("validating", ticket.id):
            return {"on": asked.on, "samples": render_samples(subject, ids)}

    def report(self, ticket: Ticket) -> dict[str, Any]:
        """The losses of the training set or of a part, without those that are not finite."""
        asked = ticket.payload
        ids = None
        if asked.subset_indices is not None:
            ids = np.array(asked.subset_indices, dtype=np.int64)
        number = len(self.set_of("train").dataset) if ids is None else len(ids)
        if number > MOST_AT_ONCE and not ticket.link.legacy:
            detail = (
                f"generate_report was asked of {number:,} samples, which are no line that a "
                f"dashboard takes; allowed: {MOST_AT_ONCE:,}, or scan, and then pages of samples."
            )
            allowed = {"max": MOST_AT_ONCE}
            raise CommandError(
                ErrorCode.UNSUPPORTED, detail, field="subset_indices", allowed=allowed
            )
        table, told, _ = self._look("train", LOSS, ids, ticket)
        assert table.losses is not None
        there = np.isfinite(table.losses)
        return {
            "losses": table.losses[there].tolist(),
            "sample_indices": table.ids[there].tolist(),
            "note": told,
        }

    def within(self, ticket: Ticket) -> list[int]:
        """The samples whose loss lies in a region."""
        asked = ticket.payload
        region = Region(asked.min_loss, asked.max_loss)
        found: list[int] = region.ids(self.table(region, "train", ticket)).tolist()
        return found

    def cancel(self, ticket: Ticket) -> dict[str, Any]:
        """End what is running behind its slice; otf-reader."""
        asked, running, background = ticket.payload.request_id, self._running, self.background
        if running is not None and asked in (None, running):
            self._cancelled.set()
            return {"cancelled": running}
        open_ = background is not None and not background.ticket.answered
        if background is not None and open_ and asked in (None, background.ticket.id):
            background.end("it was cancelled")
            return {"cancelled": background.ticket.id}
        if asked is None:
            return {"cancelled": None}
        detail = f"cancel of {asked[:64]!r} was asked, which is not running."
        raise CommandError(ErrorCode.NOT_FOUND, detail, field="request_id")

    # For others.

    def chosen(self, ticket: Ticket) -> torch.Tensor | None:
        """The training samples that a payload chooses, int64; None: it chooses none."""
        asked = ticket.payload
        if asked.selection is not None:
            selection: Selection = decode_selection(asked.selection)
        elif asked.region is not None:
            selection = Region(asked.region.minLoss, asked.region.maxLoss)
        else:
            return None
        ids: Ids = resolve(selection, self.table(selection, "train", ticket))
        return torch.from_numpy(ids)

    def losses(self, on: str, ids: Ids | None, ticket: Ticket) -> SampleTable:
        """Those of a set or of some of its samples; found unless they are known.

        Raises:
            CommandError: ``bad_payload``, there is no such sample.
        """
        kept = self._found.get(on)
        if ids is not None and kept is not None and kept.at == self._at():
            chosen, table = np.unique(ids), kept.table
            if len(chosen) and np.isin(chosen, table.ids).all() and "loss" in table.known():
                return table.only(chosen)
        return self._look(on, LOSS, ids, ticket)[0]

    def figures(self) -> dict[str, dict[str, Any]]:
        """What was found of the run that trains, by the set: ``rule`` and ``figures``."""
        here = self._at()[0]
        return {
            on: {"rule": f"as scanned at step {found.at[1]:,}", "figures": figures_of(found.table)}
            for on, found in self._found.items()
            if found.at is not None and found.run_id == here and found.table.losses is not None
        }

    def table(self, selection: Selection, on: str, ticket: Ticket) -> SampleTable:
        """What a selection needs to know of a set."""
        if not selection.needs():
            return SampleTable.of_all(fingerprint_of(self.set_of(on).dataset))
        return self._look(on, selection.needs(), None, ticket)[0]

    def set_of(self, on: str) -> Subject:
        """A set of the run. Raises CommandError."""
        if self._subject is None:
            raise CommandError(ErrorCode.UNSUPPORTED, NO_SAMPLES)
        return self._subject(on)

    @contextlib.contextmanager
    def cancellable(self, ticket: Ticket) -> Any:
        """``cancel`` ends what happens inside; gives what it is to ask."""
        self._cancelled.clear()
        self._running = ticket.id or ""
        try:
            yield self._cancelled.is_set
        finally:
            self._running = None

    def _refuse_two(self) -> None:
        background = self.background
        if background is not None and not background.ticket.answered:
            detail = (
                f"A scan was asked, found one of the {background.on} set in the background; "
                "allowed: one at a time, cancel ends it."
            )
            raise CommandError(ErrorCode.BUSY, detail, retry_after_s=1.0)

    def _scanned(
        self, on: str, table: SampleTable, steps: tuple[int, int], **told: Any
    ) -> dict[str, Any]:
        step = self._step()
        return {
            "on": on,
            "count": len(table),
            **told,
            "figures": figures_of(table),
            "first_step": steps[0],
            "last_step": steps[1],
            "step": step,
            "applied_step": step,
        }

    def _look(
        self, on: str, needs: Iterable[str], ids: Ids | None, ticket: Ticket
    ) -> tuple[SampleTable, str, float]:
        subject, here, needs = self.set_of(on), self._at(), frozenset(needs)
        kept = self._found.get(on)
        if kept is not None and ids is None and kept.at == here and needs <= kept.table.known():
            return kept.table, "as it was found before", 0.0
        layers = sorted(need.removeprefix(FEATURES) for need in needs if need not in _PLAIN)
        if len(layers) > 1:
            detail = f"Features of {len(layers)} layers were asked; allowed: of one at a time."
            raise CommandError(ErrorCode.UNSUPPORTED, detail, field="selection")
        scan = self.begin_scan(subject, ids, layer=layers[0] if layers else None)
        with self._exclusive("validating", ticket.id), self.cancellable(ticket) as cancelled:
            for done in scan.slices(SLICE_S, cancelled):
                numbers = {"done": done.done, "total": done.total, "eta_s": done.eta_s}
                self._emit("progress", request_id=ticket.id, cmd=ticket.request.cmd, **numbers)
        progress = scan.progress()
        if not progress.finished:
            detail = (
                f"{ticket.request.cmd} was cancelled after {progress.done:,} of "
                f"{progress.total:,} samples; the run is as it was."
            )
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
        table = scan.table()
        if ids is None:
            step = self._step()
            self._found[on] = Found(here[0], here, table, (step, step))
        return table, progress.told, progress.seconds
