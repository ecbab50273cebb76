"""A session as one file: an archive that another machine goes on from, a page that says what it
was; training thread, at the gate.

Rule 1: the run is as it was, whatever becomes of it.
Rule 2: it stands for as long as its files are read: what is packed must not change meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from otf_core.control.bus import Ticket
from otf_core.control.delegate import Position
from otf_core.errors import CommandError, ErrorCode
from otf_core.protocol import run_name_problem
from otf_core.runs.archive import ArchiveError, CancelledError, pack, relatives
from otf_core.runs.looking import Looking
from otf_core.runs.out_files import OutFiles
from otf_core.runs.report import report
from otf_core.runs.tree import RunTree
from otf_core.state.run_folder import record_of


class Run(Protocol):
    """What is needed of the session."""

    run_id: str

    @property
    def run_dir(self) -> Path | None:
        """Its folder."""

    def position(self) -> Position:
        """Where the run stands."""

    def emit(self, kind: str, /, **fields: Any) -> int:
        """Tell."""

    def settle(self) -> None:
        """What was told so far is on the disk."""


class SessionFiles:
    """Those of one session.

    Args:
        exclusive: as of ``Exports``.
        fresh: the newest checkpoint is one of where the run stands, and on the disk.
    """

    def __init__(
        self,
        run: Run,
        tree: RunTree,
        files: OutFiles,
        *,
        looking: Looking,
        exclusive: Callable[[str, Ticket], AbstractContextManager[Callable[[], bool]]],
        fresh: Callable[[], object],
    ) -> None:
        self._run, self._tree, self._files, self._looking = run, tree, files, looking
        self._exclusive, self._fresh = exclusive, fresh

    def archive(self, ticket: Ticket) -> dict[str, Any]:
        """The run and its relatives, or those that are named, in a file."""
        asked, step = ticket.payload, self._run.position().step
        began_s = time.monotonic()
        project_dir = self._project_dir()
        name = f"{self._run.run_id}-step{step}"
        out = self._files.file(asked.out_path, name=name, ending=".zip")
        folders = self._folders(project_dir, asked.runs)
        with self._exclusive("validating", ticket) as cancelled:
            self._fresh()
            self._run.settle()
            with self._telling(ticket) as tell, out.write() as file:
                contents = pack(
                    folders,
                    file,
                    checkpoints=asked.checkpoints,
                    held=self._tree.held(),
                    tell=tell,
                    cancelled=cancelled,
                )
        self._run.emit("artifact_created", path=str(out.path))
        return {
            "ok": True,
            "out_path": str(out.path),
            "bytes": out.bytes,
            "runs": [run.run_id for run in contents.runs],
            "checkpoints": sum(len(run.checkpoints) for run in contents.runs),
            "missing": contents.missing,
            "seconds": time.monotonic() - began_s,
            "applied_step": step,
        }

    def report(self, ticket: Ticket) -> dict[str, Any]:
        """The page of a run of the project."""
        asked, step = ticket.payload, self._run.position().step
        began_s = time.monotonic()
        project_dir = self._project_dir()
        run_id = asked.run_id or self._run.run_id
        self._tree.look(run_id)
        out = self._files.file(asked.out_path, name=f"{run_id}-step{step}", ending=".html")
        figures = self._looking.figures() if run_id == self._run.run_id else {}
        with self._exclusive("validating", ticket) as cancelled:
            self._run.settle()
            with self._telling(ticket) as tell, out.write() as file:
                page = report(
                    project_dir,
                    run_id,
                    figures=figures,
                    now_ts=time.time(),
                    tell=tell,
                    cancelled=cancelled,
                )
                file.write(page.encode("utf-8", "replace"))
        self._run.emit("artifact_created", path=str(out.path))
        return {
            "ok": True,
            "out_path": str(out.path),
            "bytes": out.bytes,
            "run_id": run_id,
            "seconds": time.monotonic() - began_s,
            "applied_step": step,
        }

    # Inside.

    def _project_dir(self) -> Path:
        if self._run.run_dir is None:
            detail = "There is no run folder that could be read; nothing was saved of this run."
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
        return self._run.run_dir.parent

    def _folders(self, project_dir: Path, asked: list[str] | None) -> list[Path]:
        if asked is None:
            return relatives(project_dir, self._run.run_id)
        if not asked:
            detail = "No run was asked for; allowed: names of runs, or no list for all relatives."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="runs")
        for run_id in asked:
            self._tree.look(run_id, "runs")
            if run_name_problem(run_id) is not None or record_of(project_dir / run_id) is None:
                detail = f"{run_id[:120]!r} has no folder in {project_dir}."
                raise CommandError(ErrorCode.NOT_FOUND, detail, field="runs")
        return [project_dir / run_id for run_id in dict.fromkeys(asked)]

    def _telling(self, ticket: Ticket) -> _Telling:
        return _Telling(ticket, self._run.emit)


class _Telling:
    """Progress as events, and refusals as those of the command."""

    def __init__(self, ticket: Ticket, emit: Callable[..., Any]) -> None:
        self._ticket, self._emit = ticket, emit
        self._began_s = time.monotonic()

    def __enter__(self) -> Callable[[int, int], None]:
        return self._tell

    def _tell(self, done: int, total: int) -> None:
        eta_s = (time.monotonic() - self._began_s) / max(1, done) * (total - done)
        cmd = self._ticket.request.cmd
        numbers = {"done": done, "total": total, "eta_s": eta_s}
        self._emit("progress", request_id=self._ticket.id, cmd=cmd, **numbers)

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> None:
        if isinstance(error, CancelledError):
            detail = (
                f"{self._ticket.request.cmd}: {error} Nothing was written; the run is as it was."
            )
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail) from error
        if isinstance(error, ArchiveError):
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, str(error)) from error
