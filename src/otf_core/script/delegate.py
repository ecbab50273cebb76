"""ScriptDelegate: what the core asks of a script that knows nothing of us; training thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from otf_core.control.delegate import Applied, Evaluation, OnBatch, Position
from otf_core.data_knobs import DataKnobs
from otf_core.errors import CommandError, ErrorCode
from otf_core.script.driver import ScriptDriver
from otf_core.script.found import Found
from otf_core.script.register import REGISTERED
from otf_core.state.host_pool import HostPool
from otf_core.state.rng import get_rng, set_rng
from otf_core.steering import averages
from otf_core.steering import frozen as frozen_parameters
from otf_core.steering.knobs import Knob
from otf_core.steering.preview import NEEDS_CADENCE

NO_TEST: Final = (
    "A script under otf-fit has no test that otf could call; allowed: a validation that the "
    "script names by otf_core.register_validation(fn)."
)
NO_VALIDATION: Final = (
    "A script's validation cannot be called without its arguments, and may print and write files; "
    "allowed: one that the script names by otf_core.register_validation(fn)."
)
NO_NEW_SESSION: Final = "A script begins anew by starting again (otf-fit --resume, or OTF_RESUME)."
NO_FOREIGN: Final = (
    "A script loads no file while it runs; allowed: rollback to a checkpoint of its own, or "
    "starting again (otf-fit --resume)."
)
NO_LIMIT: Final = "The limit of a script is the script's own; otf does not know it."
NO_REENTRY: Final = "This version (0.2.0) of otf keeps no checkpoints of a script."
NO_FORK: Final = "A script is one run; forking it is not part of this version (0.2.0) of otf."
NO_WEIGHTS: Final = (
    "A script's checkpoint holds all its variables, and which of them are a model's weights is the "
    "script's own; allowed: torch.save in the script."
)
UNSUPPORTED: Final = {
    **NEEDS_CADENCE,
    "export_weights": NO_WEIGHTS,
    "test_now": NO_TEST,
    "test": NO_TEST,
    "reset_session": NO_NEW_SESSION,
    "load_ckpt": NO_FOREIGN,
    "extend": NO_LIMIT,
    "fork": NO_FORK,
    "switch_run": NO_FORK,
    "merge": NO_FORK,
    "merge_preview": NO_FORK,
}


class Reentry(Protocol):
    """Takes a script's variables, loops and loaders, and puts them back; at the safe point."""

    def capture(self, pool: HostPool | None) -> dict[str, Any]:
        """See ControlDelegate.capture."""

    def sizes(self) -> Sequence[tuple[int, bool]]:
        """See ControlDelegate.sizes."""

    def check(self, state: Mapping[str, Any]) -> None:
        """See ControlDelegate.check."""

    def apply(self, state: dict[str, Any]) -> Applied:
        """See ControlDelegate.apply."""

    def environment(self) -> dict[str, Any]:
        """See ControlDelegate.environment."""

    def exactness(self) -> tuple[Sequence[str], Sequence[str]]:
        """See ControlDelegate.exactness."""


class ScriptDelegate:
    """One script.

    Args:
        found: what it trains; looked up anew, since a part may be made late.
        reentry: None where its checkpoints cannot be made.
    """

    def __init__(
        self, driver: ScriptDriver, found: Callable[[], Found], reentry: Reentry | None = None
    ) -> None:
        self._driver, self._found, self._reentry = driver, found, reentry
        self.frozen = frozen_parameters.Frozen(
            lambda: frozen_parameters.names_of(found().modules), self.optimizers
        )

    def position(self) -> Position:
        """Epochs are passes over the loader that is trained on; without one it stays the first."""
        driver = self._driver
        epoch = max(driver.passes - 1, 0)
        batches = driver.batches_done()
        # By place: made at every step, and by name takes twice as long.
        return Position(driver.step, driver.optimizer_steps, epoch, batches, None, None, epoch)

    def capture(self, pool: HostPool | None = None, *, in_batch: bool = False) -> dict[str, Any]:
        """See Reentry; what an exception has left in mid-batch is never kept."""
        if in_batch:
            detail = "What an exception leaves of a script cannot be kept."
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        return self._needed().capture(pool)

    def sizes(self) -> Sequence[tuple[int, bool]]:
        """See ControlDelegate.sizes."""
        return self._reentry.sizes() if self._reentry is not None else []

    def check(self, state: Mapping[str, Any]) -> None:
        """See ControlDelegate.check."""
        self._needed().check(state)

    def apply(self, state: dict[str, Any]) -> Applied:
        """Only where the script has just arrived at the place from which it goes on."""
        return self._needed().apply(state)

    def environment(self) -> dict[str, Any]:
        """See ControlDelegate.environment."""
        return self._reentry.environment() if self._reentry is not None else {}

    def exactness(self) -> tuple[Sequence[str], Sequence[str]]:
        """See ControlDelegate.exactness."""
        return (
            self._reentry.exactness()
            if self._reentry is not None
            else (["this version keeps no checkpoints of a script"], ())
        )

    def _needed(self) -> Reentry:
        if self._reentry is None:
            raise CommandError(ErrorCode.UNSUPPORTED, NO_REENTRY)
        return self._reentry

    def extend(self, asked: Mapping[str, int]) -> None:  # noqa: ARG002 -- the protocol's
        """Refused."""
        raise CommandError(ErrorCode.UNSUPPORTED, NO_LIMIT)

    def run_validation(
        self,
        limit_batches: int | None,
        on_batch: OnBatch,  # noqa: ARG002 -- the protocol's
    ) -> Evaluation:
        """Call what the script has named, and leave no trace of it."""
        validation = REGISTERED.validation
        if validation is None:
            raise CommandError(ErrorCode.UNSUPPORTED, NO_VALIDATION)
        if limit_batches is not None:
            detail = "limit_batches was asked; a script's validation is called as it is."
            raise CommandError(ErrorCode.UNSUPPORTED, detail, field="limit_batches")
        modules = [m for _, module in self._found().modules for m in module.modules()]
        modes = [(module, module.training) for module in modules]
        rng, begun_s = get_rng(), time.perf_counter()
        try:
            with torch.no_grad():
                said = validation()
        finally:
            set_rng(rng)
            for module, training in modes:
                module.training = training
        metrics = _metrics(said)
        seconds = time.perf_counter() - begun_s
        return Evaluation(metrics, metrics.get("loss", metrics.get("val_loss")), seconds)

    def run_test(self, on_batch: OnBatch) -> Evaluation:  # noqa: ARG002 -- the protocol's
        """Refused."""
        raise CommandError(ErrorCode.UNSUPPORTED, NO_TEST)

    def leaving(self) -> bool:
        """SIGTERM is the script's own."""
        return False

    def request_stop(self) -> None:
        """Whoever ticks the session raises StopScript."""

    def optimizers(self) -> Sequence[Optimizer]:
        """As the script has made them, in the order in which they were found."""
        return [optimizer for _, optimizer in self._found().optimizers]

    def schedulers(self) -> Sequence[tuple[Any, Optimizer]]:
        """Those that were found, with their optimizers."""
        found = self._found()
        pairs = [(s, getattr(s, "optimizer", None)) for _, s in found.schedulers]
        return [(s, o) for s, o in pairs if isinstance(o, Optimizer)]

    def cadence(self) -> None:
        """The script steps its schedules itself."""

    def trainer_knobs(self) -> Mapping[str, Knob]:
        """What is frozen; a script has no trainer."""
        return {
            frozen_parameters.PATH: self.frozen.knob(),
            **DataKnobs().knobs(),
            **averages.no_average(averages.ITS_OWN),
        }

    def model(self) -> nn.Module | None:
        """The first that is trained."""
        models = self._found().models()
        return models[0][1] if models else None


def _metrics(said: Any) -> dict[str, Any]:
    if said is None:
        return {}
    found = dict(said) if isinstance(said, Mapping) else {"loss": said}
    return {str(k): float(v) if isinstance(v, torch.Tensor) else v for k, v in found.items()}
