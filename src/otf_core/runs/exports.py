"""What is taken out of a session: samples as a table, weights, the checkpoints of its runs;
training thread, at the gate.

Rule 1: the run is as it was, whatever becomes of an export.
Rule 2: what can be refused is refused before anything is looked at.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Final, Protocol

import numpy as np
import torch

from otf_core import __version__
from otf_core.control.bus import Ticket
from otf_core.control.delegate import Position
from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.looking import SLICE_S, Looking
from otf_core.runs.out_files import OutFile, OutFiles
from otf_core.runs.sample_files import ENDINGS, refuse_without_arrow, sample_file
from otf_core.runs.sample_rows import SampleRows
from otf_core.runs.selection import decode_selection, resolve
from otf_core.runs.subject import Subject, apart
from otf_core.runs.table import Ids, SampleTable
from otf_core.runs.tree import RunTree
from otf_core.state.checkpoint_file import Manifest
from otf_core.state.run_folder import complete_checkpoints, goes_on_from
from otf_core.state.safetensors_file import DTYPES, write_safetensors
from otf_core.state.store import Pending
from otf_core.state.weights_file import WeightsFile, open_weights, tied

SAFETENSORS: Final = ".safetensors"


class Run(Protocol):
    """What is needed of the session."""

    run_id: str

    def position(self) -> Position:
        """Where the run stands."""

    def emit(self, kind: str, /, **fields: Any) -> int:
        """Tell."""


class Exports:
    """Those of one session.

    Args:
        samples: a set of the run by its name; None: it has none that can be looked at.
        exclusive: ``exclusive(state, ticket)``: the run stands inside, that is said, and
            ``cancel`` reaches it; gives whether it was cancelled.
        keep: the run as it stands is on the disk; see ``Forks.keep``.
        saved: returns when what was saved is on the disk, and the ring has dropped its oldest.
    """

    def __init__(
        self,
        run: Run,
        tree: RunTree,
        files: OutFiles,
        *,
        looking: Looking,
        samples: Callable[[str], Subject] | None,
        exclusive: Callable[[str, Ticket], AbstractContextManager[Callable[[], bool]]],
        keep: Callable[[], Pending],
        saved: Callable[[], None],
    ) -> None:
        self._run, self._tree, self._files, self._looking = run, tree, files, looking
        self._samples, self._exclusive = samples, exclusive
        self._keep, self._saved = keep, saved

    # Samples.

    def subset(self, ticket: Ticket) -> dict[str, Any]:
        """Samples of a set as a table, with what is known of them."""
        asked, run_id, step = ticket.payload, self._run.run_id, self._run.position().step
        self._refuse_another(asked.run_id)
        form = asked.format or _form_of(asked.out_path)
        refuse_without_arrow(form)
        name = f"{run_id}-step{step}-{asked.on}"
        out = self._files.file(asked.out_path, name=name, ending=ENDINGS[form])
        ids = self._ids(ticket)
        table = self._looking.losses(asked.on, ids, ticket)
        assert self._samples is not None
        self._write(out, form, table, self._samples(asked.on), ticket)
        self._run.emit("artifact_created", path=str(out.path), rows=len(table))
        return {
            "ok": True,
            "run_id": run_id,
            "out_path": str(out.path),
            "rows": len(table),
            "format": form,
            "received_indices": len(asked.subset_indices or ()),
            "export_all": ids is None,
            "applied_step": step,
        }

    def _refuse_another(self, asked: str | None) -> None:
        """Losses are those of the weights that are there."""
        if asked in (None, self._run.run_id):
            return
        self._tree.look(asked)
        detail = (
            f"Samples of {asked} were asked, and {self._run.run_id} trains; allowed: that one, or "
            "switch_run first."
        )
        allowed = [self._run.run_id]
        raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail, field="run_id", allowed=allowed)

    def _ids(self, ticket: Ticket) -> Ids | None:
        """Which samples are asked for; None: all."""
        asked = ticket.payload
        if asked.subset_indices is not None and asked.selection is not None:
            detail = "Both subset_indices and selection were given; allowed: one of them."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="selection")
        if asked.selection is not None:
            selection = decode_selection(asked.selection)
            return resolve(selection, self._looking.table(selection, asked.on, ticket))
        indices = asked.subset_indices
        if indices is None or (not indices and ticket.link.legacy):  # its page may send none
            return None
        if not indices:
            detail = "subset_indices are none; allowed: at least 1, or leave them out for all."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="subset_indices")
        try:
            return np.array(indices, dtype=np.int64)
        except OverflowError as error:
            detail = f"A sample of subset_indices is none ({error}); allowed: indices from 0 on."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="subset_indices") from None

    def _write(
        self, out: OutFile, form: str, table: SampleTable, subject: Subject, ticket: Ticket
    ) -> None:
        with (
            self._exclusive("validating", ticket) as cancelled,
            out.write() as file,
            apart(subject),
        ):
            rows = SampleRows(table, subject, cancelled)
            target = sample_file(form, file, rows.kinds)
            began_s = told_s = time.monotonic()
            for done, columns in rows.parts():
                target.write(columns)
                now_s = time.monotonic()
                if now_s - told_s >= SLICE_S or done == len(table):
                    told_s = now_s
                    eta_s = (now_s - began_s) / done * (len(table) - done)
                    numbers = {"done": done, "total": len(table), "eta_s": eta_s}
                    cmd = ticket.request.cmd
                    self._run.emit("progress", request_id=ticket.id, cmd=cmd, **numbers)
            target.end()
        if rows.left_out:
            text = (
                f"{out.path.name} is without {rows.left_out:,} values, which have another name or "
                "kind than those of the first samples"
            )
            self._run.emit("log", level="warning", phase="info", text=text)

    # Checkpoints.

    def session(self, ticket: Ticket) -> dict[str, Any]:
        """The paths of the checkpoints that an export of the session takes with it."""
        asked, here = ticket.payload, self._run.run_id
        owners = asked.owners if asked.owners else [here.run_id for here in self._tree.known]
        for owner in owners:
            self._tree.look(owner, "owners")
        self.fresh()
        main = here if here in owners else owners[0]
        found = self._newest(main)
        ckpt = None
        if found is not None:
            ckpt = {"path": found[1], "run": main, "step": found[0].step}
        left = self._snapshots(owners, latest_only=asked.latest_only)
        taken = None if found is None else found[1]
        return {"ckpt": ckpt, "snapshots": [each for each in left if each["path"] != taken]}

    def spill(self, ticket: Ticket) -> list[dict[str, Any]]:
        """Every run's, as ``session`` lists them."""
        self.fresh()
        return self._snapshots(
            [here.run_id for here in self._tree.known], latest_only=ticket.payload.latest_only
        )

    def _snapshots(self, owners: list[str], *, latest_only: bool) -> list[dict[str, Any]]:
        found = []
        for owner in owners:
            newest = self._newest(owner)
            kept = reversed(complete_checkpoints(self._tree.look(owner).folder))
            for manifest, path in [newest] if latest_only and newest is not None else kept:
                ckpt_id = f"{owner}-{manifest.id}"
                found.append(
                    {"ckpt_id": ckpt_id, "owner": owner, "path": path, "step": manifest.step}
                )
        return found

    def fresh(self) -> Pending:
        """The newest checkpoint of the run that trains is one of where it stands."""
        kept = self._keep()
        self._saved()
        return kept

    def _newest(self, run_id: str) -> tuple[Manifest, str] | None:
        there = self._tree.look(run_id)
        return goes_on_from(there.folder, there.record)

    # Weights.

    def weights(self, ticket: Ticket) -> dict[str, Any]:
        """The weights of a checkpoint as safetensors; without a name of where the run stands."""
        asked, step = ticket.payload, self._run.position().step
        if asked.out_path is not None:  # before anything is saved
            self._files.file(asked.out_path, name="", ending=SAFETENSORS)
        manifest, path = self._checkpoint(asked)
        name = f"{manifest.run_id}-{manifest.id}"
        out = self._files.file(asked.out_path, name=name, ending=SAFETENSORS)
        with (
            open_weights(Path(path), expected=manifest, field="checkpoint") as found,
            self._looking.cancellable(ticket) as cancelled,
            out.write() as file,
        ):
            said = write_weights(file, found, manifest, cancelled)
        if said["left_out"]:
            text = f"{out.path.name} is without {', '.join(said['left_out'])[:300]}: no tensors"
            self._run.emit("log", level="warning", phase="info", text=text)
        self._run.emit("artifact_created", path=str(out.path))
        of = {"run_id": manifest.run_id, "checkpoint": manifest.id, "step": manifest.step}
        return {**of, "out_path": str(out.path), "bytes": out.bytes, **said, "applied_step": step}

    def _checkpoint(self, asked: Any) -> tuple[Manifest, str]:
        here = self._run.run_id
        there = self._tree.look(asked.run_id or here)
        if asked.checkpoint is None and there.run_id == here:
            fresh = self.fresh()
            return fresh.manifest, fresh.path
        kept = complete_checkpoints(there.folder)
        if asked.checkpoint is None:
            found = goes_on_from(there.folder, there.record)
        else:
            found = next((each for each in kept if each[0].id == asked.checkpoint), None)
        if found is None:
            names = [manifest.id for manifest, _ in reversed(kept)][:20]
            detail = (
                f"{there.run_id} has no checkpoint {(asked.checkpoint or '')[:120]!r}; the newest "
                "are in allowed."
            )
            raise CommandError(ErrorCode.NOT_FOUND, detail, field="checkpoint", allowed=names)
        return found


def write_weights(
    file: IO[bytes], found: WeightsFile, manifest: Manifest, cancelled: Callable[[], bool]
) -> dict[str, Any]:
    """All tensors of a checkpoint under their names in the model's ``state_dict``.

    Tied ones are written under each of their names, so that ``load_state_dict`` needs nothing but
    the file; which they are is in the file's metadata.

    Returns:
        tensors, tied [[name]], left_out [name].

    Raises:
        CommandError: ``unsupported``, the format has no such type; ``not_allowed_now``, cancelled.
    """
    strange = [n for n, shape in found.shapes.items() if shape.dtype not in DTYPES]
    if strange:
        kind = str(found.shapes[strange[0]].dtype).removeprefix("torch.")
        detail = f"{strange[0][:100]} is of {kind}, which safetensors does not have."
        raise CommandError(ErrorCode.UNSUPPORTED, detail)
    alone = f"{found.owners[0]}." if len(found.owners) == 1 else ""

    def named(name: str) -> str:
        return name.removeprefix(alone)

    def read(name: str) -> torch.Tensor:
        if cancelled():
            detail = "export_weights was cancelled; nothing was written, the run is as it was."
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
        return found.read(alone + name)

    several = [sorted(map(named, names)) for names in tied(found.shapes) if len(names) > 1]
    left_out = [named(name) for name in found.others]
    metadata = {
        "format": "pt",
        "otf_version": __version__,
        "run_id": manifest.run_id,
        "checkpoint": manifest.id,
        "step": str(manifest.step),
        "tied": json.dumps(several),
        "left_out": json.dumps(left_out),
    }
    shapes = {named(name): shape for name, shape in found.shapes.items()}
    write_safetensors(file, shapes, read, metadata)
    return {"tensors": len(shapes), "tied": several, "left_out": left_out}


def _form_of(out_path: str | None) -> str:
    """By the ending of the file that is asked for."""
    ending = "" if out_path is None else Path(out_path).suffix.lower()
    return next((form for form, each in ENDINGS.items() if each == ending), "csv")
