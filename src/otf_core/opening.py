"""How a run is opened, whatever drives it: what a user may choose, and the options of its session.

Rule: a value that is not allowed is refused when it is given, before anything of a run exists.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console

from otf_core import spawn
from otf_core.session import AFTER_FIT, Session, SessionOptions
from otf_core.state.keeper import Every, Origin, every, find_origin
from otf_core.state.run_folder import run_name_of
from otf_core.steering.declared import Declared, all_declared
from otf_core.steering.guard_rules import guard_rules
from otf_core.steering.recipe import Recipe, read_recipe
from otf_core.telemetry.notices import targets

Notify = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None
DASHBOARDS: Final = ("auto", "spawn", "stdio", "off")
TELEMETRY: Final = ("full", "basic", "off")
AT_MAX_PAUSE: Final = (None, "resume", "park")

# ``guards=``: a rule, or several.
Guarded = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None

# With several ranks a hold or a change on one of them would leave the others waiting in a
# collective: all do it together, or it is refused.
TOGETHER: Final = (
    "pause", "stop", "set_param", "set_params", "save_ckpt", "test_now", "test", "validate_now",
    "rollback", "undo", "extend", "load_ckpt", "reset_session", "attach_context", "fork",
    "switch_run", "merge", "merge_preview", "cancel",
    "park",
    # What looks at samples or health, or takes something out.
    "scan", "samples", "select", "show_samples", "compare",
    "generate_report", "get_selected_region_indices",
    "export_subset", "prepare_export", "spill_all",
    "export_weights", "export_session", "export_report", "export_recipe",
    "dist_health", "throughput_health", "activations_health", "numerics_health",
    "determinism_health",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a user may choose of a run; every value works untouched.

    Attributes:
        project: folder of the run below ``save_dir``; the script's name if None.
        run_name: the model's class name if None; a taken name gets ``-2``, ``-3`` …
        save_dir: where runs are kept.
        dashboard: "auto" (one that runs on this machine, else keep looking, quietly), "spawn"
            (start one and print its URL), "stdio", "off", or "host:port". ``OTF_DASHBOARD`` and
            ``OTF_TOKEN`` say the same from outside.
        resume: "auto" (the newest complete checkpoint of this project and run name; none: start
            fresh), or a path. ``OTF_RESUME`` says the same from outside.
        keep_checkpoints: how many automatic checkpoints are kept.
        checkpoint_every: an int is steps, ``"10min"`` is time; None for never.
        telemetry: "full", "basic" (nothing that has to be computed), "off" (no values per step).
        after_fit: what is done when training would end. "return"; "test", then return; "hold":
            test, then wait until resumed, stopped or ``max_hold``, or until 60 s after the last
            dashboard has left; "auto": hold for a VS Code dashboard, else return. With nobody
            connected it always returns.
        max_hold: seconds that the end is held at most.
        pause_at_start: hold before the first batch.
        max_pause: seconds after which a forgotten pause is ended, and said; None for never.
        at_max_pause: "resume" or "park": what becomes of it then; None: it is resumed.
        guards: rules that watch the run's values and act, each as ``"nan:pause"``,
            ``"spike:rollback,z=8"`` or a mapping; see docs/steering.md. None for no rule.
        params: attributes that can be set, each an ``otf_param``; beside those that module and
            data module name in their ``otf_params``.
        recipe: a file of ``otf export recipe``; what was done to that run is done to this one.
        notify: whom to tell that the run is paused, finished, failed, stalled or guarded:
            "desktop", the URL of a webhook, or a mapping (see ``telemetry.notices``), or several.
            ``OTF_NOTIFY`` adds to it from outside.

    Raises:
        ValueError: a value that is not allowed; it says what is.
        RecipeError: the recipe cannot be read, or has a step that cannot be replayed.
    """

    project: str | None = None
    run_name: str | None = None
    save_dir: str | Path = "otf_runs"
    dashboard: str = "auto"
    resume: str | Path | None = None
    keep_checkpoints: int = 5
    checkpoint_every: int | str | None = None
    telemetry: Literal["full", "basic", "off"] = "full"
    after_fit: Literal["auto", "return", "test", "hold"] = "auto"
    max_hold: float = 1800
    pause_at_start: bool = False
    max_pause: float | None = None
    at_max_pause: Literal["resume", "park"] | None = None
    guards: Guarded = None
    params: Sequence[Declared] | None = None
    recipe: str | Path | None = None
    notify: Notify = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        _allowed("at_max_pause", self.at_max_pause, AT_MAX_PAUSE)
        self._check_guards()
        _allowed("telemetry", self.telemetry, TELEMETRY)
        _allowed("after_fit", self.after_fit, AFTER_FIT)
        every(self.checkpoint_every)
        if self.params is not None:
            all_declared(self.params, "params")
        if ":" not in self.dashboard:
            _allowed("dashboard", self.dashboard, (*DASHBOARDS, "host:port"))
        targets(self.notify)
        if self.keep_checkpoints < 1:
            asked = self.keep_checkpoints
            msg = f"keep_checkpoints was asked to be {asked!r}; allowed: 1 or more"
            raise ValueError(msg)
        for name, seconds in (("max_pause", self.max_pause), ("max_hold", self.max_hold)):
            if seconds is not None and not seconds > 0:
                msg = f"{name} was asked to be {seconds!r}; allowed: seconds > 0"
                raise ValueError(msg)
        self.read_recipe()

    def read_recipe(self) -> Recipe | None:
        """The recipe, where one is to be replayed. RecipeError."""
        return read_recipe(self.recipe) if self.recipe is not None else None

    def _check_guards(self) -> None:
        rules = guard_rules(self.guards)
        if rules and self.telemetry == "off":
            msg = 'guards were asked with telemetry="off", which reads no values; allowed: "full"'
            raise ValueError(msg)
        back = [rule.rule for rule in rules if rule.action == "rollback"]
        if back and self.checkpoint_every is None:
            msg = (
                f"guard {back[0]!r} was asked to roll back, and checkpoint_every is None; "
                "allowed: a number of steps, or a time"
            )
            raise ValueError(msg)

    @property
    def every(self) -> Every:
        """How often a checkpoint is made."""
        return every(self.checkpoint_every)

    def names(self, model: str) -> tuple[str, str]:
        """Project and run name as folders have them.

        Args:
            model: the name of the model's class.
        """
        return run_name_of(self.project or script_name()), run_name_of(self.run_name or model)

    def asked_origin(self) -> str | Path | None:
        """What the run is to go on from: as ``resume`` says, or the environment."""
        return self.resume if self.resume is not None else os.environ.get("OTF_RESUME") or None

    def origin(self, model: str | None, asked: str | Path | None = None) -> Origin | None:
        """The checkpoint from which the run goes on; None: it begins.

        Args:
            model: the name of the model's class; None where it is not known yet.
            asked: in place of what the options say.

        Raises:
            ResumeError: there is no such file.
        """
        project, run_name = self.names(model or "")
        return find_origin(
            asked if asked is not None else self.asked_origin(),
            save_dir=Path(self.save_dir).absolute(),
            project=project,
            run_name=run_name if model is not None or self.run_name is not None else None,
        )

    def session_options(
        self,
        model: str,
        origin: Origin | None,
        *,
        world_size: int = 1,
        together: bool = False,
    ) -> SessionOptions:
        """What the session is given; starts a dashboard where one is to be spawned.

        Raises:
            RuntimeError: it did not start.
        """
        project, run_name = self.names(model)
        save_dir, dashboard = Path(self.save_dir), self.dashboard
        if dashboard == "spawn":
            dashboard = spawn.start_dashboard(save_dir)
        return SessionOptions(
            project=project,
            run_name=run_name,
            save_dir=save_dir,
            dashboard=dashboard,
            keep_checkpoints=self.keep_checkpoints,
            max_pause_s=self.max_pause,
            pause_at_start=self.pause_at_start and (world_size == 1 or together),
            telemetry=self.telemetry,
            origin=origin,
            every=self.every,
            after_fit=self.after_fit,
            max_hold_s=self.max_hold,
            guards=guard_rules(self.guards),
            at_max_pause=self.at_max_pause or "resume",
            recipe=self.read_recipe(),
            notify=targets(self.notify),
        )


def only_watched(world_size: int, *, together: bool = False) -> dict[str, str]:
    """The commands that a run of so many ranks cannot carry out, each with its reason.

    Args:
        together: its ranks do together what is in ``TOGETHER``.
    """
    if world_size == 1 or together:
        return {}
    reason = (
        f"This run has {world_size} ranks; holding or changing one of them alone would leave the "
        "others waiting. This version (0.2.0) only watches such a run."
    )
    return dict.fromkeys(TOGETHER, reason)


def script_name() -> str:
    """What the user runs, for the name of the project."""
    name = Path(sys.argv[0]).stem if sys.argv and sys.argv[0] else ""
    return "notebook" if name in ("", "-c", "ipykernel_launcher", "__main__") else name


def tell_epoch(session: Session, epoch: int, **found_since: float | None) -> None:
    """An epoch has ended; told on stderr where nobody is connected, one line an epoch.

    Args:
        found_since: what has been found behind its last step, as ``val_loss``.
    """
    found = {**session.recorder.latest, **found_since}
    session.emit("epoch_end", epoch=epoch, val_loss=found.get("val_loss"))
    if not session.connected:
        _say_epoch(session.run_id, epoch, session.position().step, found)


def _say_epoch(run_id: str, epoch: int, step: int, found: Mapping[str, Any]) -> None:
    shown = ((name, found.get(name)) for name in ("loss", "val_loss", "accuracy"))
    values = ", ".join(f"{name} {value:.4g}" for name, value in shown if value is not None)
    line = f"otf: {run_id} epoch {epoch} ended at step {step:,}"
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"{line}: {values}" if values else line, markup=False, style="dim"
    )


def _allowed(name: str, asked: Any, allowed: tuple[Any, ...]) -> None:
    if asked not in allowed:
        msg = f"{name} was asked to be {asked!r}; allowed: {', '.join(map(str, allowed))}"
        raise ValueError(msg)
