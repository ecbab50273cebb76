"""The commands on the runs of a session: look at samples and health, fork, switch, merge; training
thread, at the gate.

Rule: a new command on runs has its row in ``RunCommands.register``; what it does is a part of
``runs`` or ``health``, which knows no session.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from otf_core.control.actions import ConsoleAction
from otf_core.control.bus import Ticket
from otf_core.control.delegate import ControlDelegate
from otf_core.control.router import LATER, CommandRouter, Later
from otf_core.errors import CommandError, ErrorCode
from otf_core.health.checks import CHECKS
from otf_core.health.checks import run as run_check
from otf_core.health.subject import Subject as HealthSubject
from otf_core.protocol import SetParam
from otf_core.ranks.health import SharedChecks
from otf_core.ranks.shared import SharedWeights, tell_budget
from otf_core.ranks.shares import SharedScan
from otf_core.ranks.together import Others
from otf_core.runs import forking
from otf_core.runs.comparing import Comparing
from otf_core.runs.data import TrainingData
from otf_core.runs.exports import Exports
from otf_core.runs.forking import Forks
from otf_core.runs.looking import NO_SAMPLES, Looking
from otf_core.runs.merges import NO_MERGE, Merges
from otf_core.runs.out_files import OutFiles
from otf_core.runs.samples import Scan
from otf_core.runs.session_files import SessionFiles
from otf_core.runs.subject import Subject as SampleSubject
from otf_core.runs.tree import RunTree
from otf_core.state.checkpoint_file import read_checkpoint
from otf_core.state.parts import Modules
from otf_core.state.store import CheckpointStore, Pending
from otf_core.steering.changes import Change
from otf_core.steering.history import History
from otf_core.steering.recipe import print_of, recipe_of

# What a framework need not supply; the commands that it is for, each with the reason.
NEEDS_SAMPLES: Final = dict.fromkeys(
    (
        *("scan", "samples", "select", "compare", "generate_report", "get_selected_region_indices"),
        *("show_samples", "export_subset"),
    ),
    NO_SAMPLES,
)
NEEDS_HEALTH: Final = dict.fromkeys(
    CHECKS, "The health of this run cannot be looked at: its step is the loop's own."
)
NEEDS_MODULES: Final = dict.fromkeys(("merge", "merge_preview"), NO_MERGE)


class Run(forking.Run, Protocol):
    """What is needed of the session."""

    run_dir: Path | None

    def look(self) -> None:
        """Note where the run stands, for those who ask from other threads."""

    def settle(self) -> None:
        """What was told so far is on the disk."""

    def tell_exactness_anew(self) -> None:
        """Another run trains; whoever looks at it is told as well."""


class RunCommands:
    """Of one session.

    Args:
        losses: (step, loss) of the last steps.
        check_value: raises where a parameter cannot be set.
        apart: whether a path is no value of the training.
        data: the training data, where it can be changed.
        samples: a set of the run by its name, where it can be looked at.
        health: the run as a check of its health sees it, with its losses so far.
        changes: what is other when the run has changed at the same step.
        modules: those that are trained, where other weights may be tried in them.
        others: the other ranks of the run.
    """

    def __init__(
        self,
        run: Run,
        tree: RunTree,
        *,
        delegate: ControlDelegate,
        actions: ConsoleAction,
        history: History,
        store: CheckpointStore,
        losses: Callable[[], Sequence[tuple[int, float]]],
        changes: Callable[[], int],
        check_value: Callable[[SetParam], None],
        apart: Callable[[str], bool],
        data: TrainingData | None,
        samples: Callable[[str], SampleSubject] | None,
        health: Callable[[Sequence[tuple[int, float]]], HealthSubject] | None,
        modules: Callable[[], Modules] | None,
        others: Others | None = None,
    ) -> None:
        self._run, self._actions, self._history, self._store = run, actions, history, store
        self._losses, self._health = losses, health
        self._modules, self._apart = modules, apart
        self._seeds = {"fork": 0, "merge": 0, "gen": 0}

        def at() -> tuple[Any, ...]:
            now = run.position()
            return run.run_id, now.step, now.batch_idx, changes()

        history.ways["run"] = self._back_to
        self._run_check = run_check if others is None else SharedChecks(others).run
        self.looking = Looking(
            samples, exclusive=actions.exclusive, emit=run.emit, at=at, step=lambda: self._step,
            scan=Scan if others is None else functools.partial(SharedScan, others),
            may_work=functools.partial(_all_stand, others, actions),
        )  # fmt: skip
        actions.cancellable = self.looking.cancellable
        self._comparing = Comparing(
            self.looking,
            tree,
            here=lambda: (run.run_id, run.run_dir, self._step),
            exclusive=self._cancellable,
            emit=run.emit,
            kept=self._keep,
            **({} if others is None else {"beside": SharedWeights(others)}),
        )
        self.forks = Forks(
            run,
            tree,
            delegate=delegate,
            data=data,
            check_value=check_value,
            chosen=self.looking.chosen,
            **({} if others is None else {"limited": functools.partial(tell_budget, others)}),
        )
        files = self._files = OutFiles(lambda: run.run_dir)
        self.exports = Exports(
            run,
            tree,
            files,
            looking=self.looking,
            samples=samples,
            exclusive=self._cancellable,
            keep=self._keep,
            saved=store.settle,
        )
        self.session_files = SessionFiles(
            run,
            tree,
            files,
            looking=self.looking,
            exclusive=self._cancellable,
            fresh=self.exports.fresh,
        )

        self._merges = Merges(
            run,
            self.forks,
            delegate=delegate,
            modules=modules,
            samples=samples,
            exclusive=self._cancellable,
            **({} if others is None else {"beside": SharedWeights(others)}),
        )
        self._cannot = {
            **(NEEDS_SAMPLES if samples is None else {}),
            **(NEEDS_HEALTH if health is None else {}),
            **(NEEDS_MODULES if modules is None else {}),
        }

    def register(self, router: CommandRouter) -> None:
        """Every command that is answered here."""
        on = router.on
        on("set_counter_seeds")(self._set_counter_seeds)
        on("attach_context")(self._attach_context)
        on("switch_run")(self._attach_context)
        on("fork")(self._fork)
        on("merge")(self._merge)
        on("merge_preview")(self._preview_merge)
        on("scan")(self.looking.scan)
        on("samples")(self.looking.samples)
        on("select")(self.looking.select)
        on("show_samples")(self.looking.show)
        on("compare")(self._comparing.compare)
        on("cancel")(self.looking.cancel)
        on("generate_report")(self._generate_report)
        on("get_selected_region_indices")(self._selected_region)
        on("export_subset")(self.exports.subset)
        on("prepare_export")(self.exports.session)
        on("spill_all")(self.exports.spill)
        on("export_session")(self.session_files.archive)
        on("export_report")(self.session_files.report)
        on("export_recipe")(self._export_recipe)
        on("export_weights")(self.exports.weights)
        for name in CHECKS:
            on(name)(self._check_health)
        router.unsupported(self._cannot)

    # Which run trains.

    def _set_counter_seeds(self, ticket: Ticket) -> dict[str, Any]:
        self._raise_seeds(ticket.payload)
        self._seeds["gen"] += 1
        said = {"ok": True, **self._counters(), "seed_gen": self._seeds["gen"]}
        return {**said, "applied_step": self._step}

    def _raise_seeds(self, asked: Any) -> None:
        """The next automatic name is above what the other side has in use."""
        self._seeds["fork"] = max(self._seeds["fork"], asked.fork_counter_init)
        self._seeds["merge"] = max(self._seeds["merge"], asked.merge_counter_init)

    def _counters(self) -> dict[str, int]:
        return {
            "fork_counter_seed": self._seeds["fork"],
            "merge_counter_seed": self._seeds["merge"],
        }

    def _attach_context(self, ticket: Ticket) -> Later:
        """Bound to the run that is under way already: it is held, the checkpoint is loaded."""
        asked = ticket.payload
        if asked.run_id != self._run.run_id:
            return self._switch(ticket)
        loaded = asked.init_ckpt is not None and asked.init_step != self._step
        if loaded:
            name, path = self._file_of(asked.init_ckpt)
            state, _ = read_checkpoint(path, field="init_ckpt")
            self._history.go_to(ticket, state, name, str(path))
        self._raise_seeds(asked)
        said = {"ok": True, "run_id": self._run.run_id, "ckpt_loaded": loaded, **self._counters()}
        self._actions.hold(Held(ticket, said))
        return LATER

    def _file_of(self, asked: str) -> tuple[str, Path]:
        """A checkpoint by its path, or the newest of the run where that file is gone."""
        path = Path(asked)
        if path.is_file():
            return path.stem, path
        last = self._store.last()
        if last is None:
            detail = f"The checkpoint {asked[:200]!r} is not there, and the run has no other."
            raise CommandError(ErrorCode.NOT_FOUND, detail, field="init_ckpt")
        return last[0].id, Path(last[1])

    def _switch(self, ticket: Ticket) -> Later:
        """Another run of this session, or one that lies in the project; held there."""
        asked = ticket.payload
        left = self._run.run_id
        found = self.forks.switch(asked.run_id, asked.init_ckpt)
        self._run.tell_exactness_anew()
        self._history.made_run(ticket, left, new=False)
        self._raise_seeds(asked)
        self._actions.hold(Held(ticket, {"ok": True, **found, **self._counters()}))
        return LATER

    def _fork(self, ticket: Ticket) -> dict[str, Any]:
        return self._other_run(lambda: self.forks.fork(ticket, self._seeds["fork"]))

    def _merge(self, ticket: Ticket) -> dict[str, Any]:
        return self._other_run(lambda: self._merges.merge(ticket, self._seeds["merge"]))

    def _preview_merge(self, ticket: Ticket) -> dict[str, Any]:
        step = self._step
        return {**self._merges.preview(ticket), "step": step, "applied_step": step}

    def _other_run(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A new one trains from here on; ``undo`` goes back to the one before."""
        said = make()
        self._run.look()
        self._run.tell_exactness_anew()
        kept = self._store.last()
        self._actions.stands_elsewhere(self._step, kept[1] if kept is not None else None)
        return said

    def _back_to(self, change: Change, ticket: Ticket) -> dict[str, Any]:
        """Undo of a fork, a merge or a switch: the run before, from where it was left."""
        assert change.back is not None
        run_id = change.back["run_id"]
        self.forks.switch(run_id, None)
        self._run.tell_exactness_anew()
        self._history.taken_back(change, ticket)  # in the ledger of that run
        return {"run_id": run_id, "step": self._step}

    # What is known of the run that trains.

    def model(self) -> dict[str, Any] | None:
        """By which its model is known again; None where that cannot be told."""
        return None if self._modules is None else print_of(self._modules())

    def _export_recipe(self, ticket: Ticket) -> dict[str, Any]:
        """What was done to it, as a file for a run that begins."""
        run_id, step = self._run.run_id, self._step
        content = recipe_of(
            self._history.changes,
            run_id=run_id,
            model=self.model(),
            apart=self._apart,
        )
        out = self._files.file(ticket.payload.out_path, name=f"{run_id}-step{step}", ending=".json")
        with out.write() as file:
            file.write(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
        self._run.emit("artifact_created", path=str(out.path))
        return {
            "ok": True,
            "out_path": str(out.path),
            "bytes": out.bytes,
            "run_id": run_id,
            "steps": len(content["steps"]),
            "applied_step": step,
        }

    def _generate_report(self, ticket: Ticket) -> dict[str, Any]:
        """The losses of the run that trains, as they are now."""
        asked, now = ticket.payload, self._run.position()
        if asked.owner_run_id not in (None, self._run.run_id):
            raise no_run(asked.owner_run_id, self._run.run_id)
        if asked.subset_on != "train":
            detail = f"A report on {asked.subset_on[:40]!r} was asked; allowed: train."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="subset_on", allowed=["train"])
        found = self.looking.report(ticket)
        meta = {"at_step": now.step, "at_epoch": now.epoch, "note": found.pop("note")}
        owner = {"owner_run_id": self._run.run_id, "reqId": asked.reqId}
        return {**found, "meta": meta, **owner, "applied_step": now.step}

    def _selected_region(self, ticket: Ticket) -> dict[str, Any]:
        if ticket.payload.run_id not in (None, self._run.run_id):
            raise no_run(ticket.payload.run_id, self._run.run_id)
        return {"indices": self.looking.within(ticket)}

    def _check_health(self, ticket: Ticket) -> dict[str, Any]:
        """One of ``health.checks.CHECKS``; the run is as it was."""
        assert self._health is not None
        subject = self._health(self._losses())
        given = {
            name: value
            for name, value in msgspec.structs.asdict(ticket.payload).items()
            if value is not None
        }
        with self._cancellable("validating", ticket) as cancelled:
            found = self._run_check(ticket.request.cmd, subject, given, cancelled=cancelled)
        return {**found.to_wire(), "step": self._step}

    @contextlib.contextmanager
    def _cancellable(self, state: str, ticket: Ticket) -> Iterator[Callable[[], bool]]:
        """The run stands inside, that is said, and ``cancel`` ends it."""
        with self._actions.exclusive(state, ticket.id), self.looking.cancellable(ticket) as asked:
            yield asked

    def _keep(self) -> Pending:
        """The run that trains, as it stands: on the disk, and the ring may drop it."""
        return self.forks.keep(pinned=False)

    @property
    def _step(self) -> int:
        return self._run.position().step


class Held:
    """A command that ends paused: it waits as a pause does, and answers with more."""

    def __init__(self, ticket: Ticket, said: Mapping[str, Any]) -> None:
        self._ticket, self._said = ticket, said
        self.id, self.fail = ticket.id, ticket.fail

    def reply(self, data: Mapping[str, Any]) -> None:
        """It stands."""
        steps = {"step": data["step"], "applied_step": data["step"]}
        held = {"paused": True, "ckpt_path": data["ckpt"], **steps}
        self._ticket.reply({**held, **self._said})


def _all_stand(others: Others | None, actions: ConsoleAction) -> bool:
    """Whether nobody trains now; else all are asked to stand."""
    if others is None or others.stand:
        return True
    actions.wake()
    return False


def no_run(asked: str, known: str) -> CommandError:
    """The refusal of a run that is not the one that trains."""
    detail = f"No run named {asked[:120]!r}; this session has {known}."
    return CommandError(ErrorCode.NOT_FOUND, detail, field="run_id", allowed=[known])
