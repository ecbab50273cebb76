"""The runs that one session knows: each has a folder, a record and a lock; training thread.

Rule 1: one run trains at a time. The others lie on the disk as they were left, and are locked, so
that no other process goes on with them meanwhile.
Rule 2: the journal stays in the folder of the run that the session began with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from otf_core.errors import CommandError, ErrorCode
from otf_core.protocol import run_name_problem
from otf_core.state import run_folder
from otf_core.state.run_folder import RunIsLiveError, RunLock, RunRecord


@dataclasses.dataclass
class Here:
    """One run of a session.

    Attributes:
        folder: None where the disk has none.
        lock: None for the run that the session began with, whose lock is the session's.
        limits: ``max_steps`` and ``max_epochs`` when it was left, -1 for none.
    """

    record: RunRecord
    folder: Path | None
    lock: RunLock | None = None
    limits: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """Its name, which is that of its folder."""
        return self.record.run_id


class RunTree:
    """All of them.

    Args:
        save_dir, project: where their folders are.
        home: the run that the session began with.
    """

    def __init__(self, save_dir: Path, project: str, home: Here) -> None:
        self._save_dir, self._project = save_dir.absolute(), project
        self.home = home
        self._runs = {home.run_id: home}

    def find(self, run_id: str, field: str = "run_id") -> Here:
        """One that this session has had, or that lies in the project and nobody else trains.

        Raises:
            CommandError: ``not_found``, ``not_allowed_now``.
        """
        found = self.look(run_id, field)
        if self._runs.get(run_id) is found or found.folder is None:
            return found
        return self._open(found.folder, found.record, field)

    def look(self, run_id: str, field: str = "run_id") -> Here:
        """As ``find``, only to be read: nobody is kept from going on with it.

        Raises:
            CommandError: ``not_found``.
        """
        if (known := self._runs.get(run_id)) is not None:
            return known
        if run_name_problem(run_id) is None:
            folder = self._save_dir / self._project / run_id
            record = run_folder.record_of(folder)
            if record is not None and record.run_id == run_id:
                return Here(record, folder)
        names = [*self._runs]
        detail = f"No run named {run_id[:120]!r} in {self._project}; this session has {names}."
        raise CommandError(ErrorCode.NOT_FOUND, detail[:400], field=field, allowed=names[:20])

    @property
    def known(self) -> list[Here]:
        """The runs that this session has had, in the order in which it came by them."""
        return [*self._runs.values()]

    def held(self) -> list[Path]:
        """The folders whose locks this process has."""
        ours = (here for here in self.known if here.lock is not None or here is self.home)
        return [here.folder for here in ours if here.folder is not None]

    def family(self) -> list[Here]:
        """Those and all that they are kin to, to be read: parents, forks, and theirs."""
        kin = dict(self._runs)
        others = {
            record.run_id: Here(record, folder)
            for folder, record in run_folder.records(self._save_dir, self._project)
            if record.run_id == folder.name and record.run_id not in kin
        }
        grown = True
        while grown:
            parents = {name for run in kin.values() for name in run.record.parents}
            near = [
                name
                for name, run in others.items()
                if name in parents or kin.keys() & run.record.parents
            ]
            kin.update((name, others.pop(name)) for name in near)
            grown = bool(near)
        return sorted(kin.values(), key=lambda run: run.record.started_ts)

    def _open(self, folder: Path, record: RunRecord, field: str) -> Here:
        lock = RunLock(folder)
        try:
            lock.acquire()
        except RunIsLiveError as error:
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, str(error), field=field) from error
        found = self._runs[record.run_id] = Here(record, folder, lock)
        return found

    def make(
        self,
        run_id: str,
        *,
        kind: str,
        parents: list[str],
        made: Mapping[str, Any],
        session_id: str,
    ) -> Here:
        """A new one, with its folder.

        Raises:
            CommandError: ``bad_payload``, the name is taken or none; ``not_allowed_now``, the
                disk.
        """
        if (why := run_name_problem(run_id)) is not None:
            raise CommandError(ErrorCode.BAD_PAYLOAD, f"{why}.", field="run_name")
        try:
            folder = run_folder.named_folder(self._save_dir, self._project, run_id)
        except FileExistsError:
            detail = f"There is a run named {run_id} already; allowed: another name."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="run_name") from None
        except OSError as error:
            detail = f"A folder for {run_id} cannot be made: {error.strerror}."
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail) from error
        lock = RunLock(folder)
        with contextlib.suppress(OSError):  # a file system without locks
            lock.acquire()
        record = RunRecord(
            run_id=run_id,
            run_name=self.home.record.run_name,  # so that ``resume="auto"`` finds it
            project=self._project,
            session_ids=[session_id],
            parents=parents,
            kind=kind,
            made=dict(made),
            journal=self.home.run_id,
            versions=run_folder.versions(),
            **run_folder.this_process(),
        )
        found = self._runs[run_id] = Here(record, folder, lock)
        return found

    def drop(self, here: Here) -> None:
        """One that came to nothing is gone again, with its folder."""
        self._runs.pop(here.run_id, None)
        if here.folder is not None:
            run_folder.remove_new(here.folder)
        if here.lock is not None:
            here.lock.release()

    def automatic_name(self, kind: str, seed: int) -> str:
        """The next of ``fork1``, ``fork2`` …: above the seed, and above every name in use."""
        parent = self._save_dir / self._project
        folders = [path.name for path in parent.iterdir()] if parent.is_dir() else []
        numbers = [
            int(found[1])
            for name in itertools.chain(folders, self._runs)
            if (found := re.fullmatch(rf"{kind}(\d{{1,9}})", name))
        ]
        return f"{kind}{max(seed, *numbers, 0) + 1}"

    def close(self) -> None:
        """Let go of all but the run that the session began with."""
        for here in self._runs.values():
            if here.lock is not None:
                here.lock.release()


def parted_at(runs: Sequence[Here], find: Callable[[str, str], Here]) -> tuple[Here, str] | None:
    """The run and checkpoint at which these parted; None where nobody knows.

    The nearest run that all come from; of its checkpoints that their lines begin with, the oldest.
    """
    lines = [_line(here, find) for here in {run.run_id: run for run in runs}.values()]
    common = [run_id for run_id in lines[0] if all(run_id in line for line in lines)]
    if not common:
        return None
    begun = [at for line in lines if (at := line[common[0]]) is not None]
    return (find(common[0], "base"), min(begun)[1]) if begun else None


def _line(here: Here | None, find: Callable[[str, str], Here]) -> dict[str, tuple[int, str] | None]:
    """The runs that one comes from, itself first: where it left each, as step and checkpoint."""
    line: dict[str, tuple[int, str] | None] = {}
    left: tuple[int, str] | None = None
    while here is not None and here.run_id not in line:
        line[here.run_id] = left
        made, here = here.record.made, None
        if made:
            left = int(made["at_step"]), str(made["init_from"])
            with contextlib.suppress(CommandError):  # it was removed
                here = find(str(made["from"]), "base")
    return line
