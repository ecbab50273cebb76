"""Every part of the state is needed: leaving it as it is in the new process makes a run inexact.

``SWITCHES`` says for each part, and for each single value in the smaller ones, which
configuration notices, and behind how many batches it has to be resumed for that. A run is resumed
there twice: with everything, which must be exact, and without the one part, which must not.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

from tests.exact import runs
from tests.exact.table import CONFIGS
from tests.exact.verdict import Verdict
from tests.exact.ways import SIDES, Bare, Story, WentWrong

# Part, or path of a value below "exact"; the configuration; batches that are done.
SWITCHES: Final[tuple[tuple[str, str, int], ...]] = (
    ("datamodule", "data_module_with_state", 8),
    ("model", "shuffle", 8),
    ("callback states", "ema", 8),
    ("precision", "fp16_with_a_scaler", 8),
    ("schedulers", "plateau_by_epoch", 8),
    ("loops", "shuffle", 8),
    ("counters", "accumulation_by_epoch", 8),
    ("optimizers", "shuffle", 8),
    ("loader hooks", "reloaded_every_epoch", 7),
    ("buffers", "odd_attributes", 8),
    ("requires_grad", "freezes_once", 8),
    ("gradients", "accumulation_with_clipping", 8),
    ("callback attributes", "user_callback_and_early_stopping", 8),
    ("averaging momenta", "stochastic_weight_averaging", 26),
    ("data module attributes", "data_module_without_state_dict", 8),
    ("module attributes", "odd_attributes", 8),
    ("results", "shuffle", 8),
    ("logged", "shuffle", 8),
    ("positions", "shuffle", 8),
    ("rng", "shuffle", 8),
    # RNG, one by one.
    ("rng.torch", "augmented_in_process", 8),
    ("rng.numpy", "augmented_in_process", 8),
    ("rng.python", "augmented_in_process", 8),
    # Counters, optimizers, what was logged.
    ("counters.batches_that_stepped", "shuffle", 8),
    ("counters.skip_backward", "stochastic_weight_averaging", 26),
    ("counters.accumulate_grad_batches", "accumulation_by_epoch", 8),
    ("counters.should_stop", "asked_to_stop_early", 8),
    ("optimizers.0.groups", "unfreezing", 8),
    ("logged._callback_metrics", "plateau_on_a_validation_in_the_epoch", 9),
    ("logged._logged_metrics", "reads_what_was_logged", 8),
    ("logged._progress_bar_metrics", "reads_what_was_logged", 8),
    ("logged._first_loop_iter", "plateau_on_a_validation_in_the_epoch", 9),
    # What Lightning has around the loaders.
    ("positions.train", "workers", 8),
    ("positions.val", "validation_workers", 8),
    ("positions.idx", "no_loader_at_all", 8),
    ("positions.consumed", "two_streams_cycle", 6),
    ("positions.fetcher", "stream", 8),
    ("positions.fetcher.fetched", "asks_for_the_last_batch", 8),
    ("positions.fetcher.length", "reloaded_every_epoch", 7),
    ("positions.fetcher.batches", "stream", 8),
    ("positions.seen", "loaders_made_by_what_was_counted", 9),
    ("positions.made_in", "reloaded_every_second_epoch", 15),
    ("positions.made_in.0", "reloaded_every_second_epoch", 13),
    ("positions.made_in.1", "reloaded_every_second_epoch", 15),
    # The position of a loader without workers.
    ("positions.train.0.around", "counting_sampler", 8),
    ("positions.train.0.around.generator", "generator_beside_a_sampler", 8),
    ("positions.train.0.around.samplers", "user_generator", 8),
    ("positions.train.0.around.data", "own_generators_in_process", 8),
    ("positions.train.0.iterator", "shuffle", 8),
    ("positions.train.0.iterator.rng", "eager_batch_sampler", 8),
    ("positions.train.0.iterator.began", "counting_sampler", 8),
    ("positions.train.0.iterator.rng_start", "shuffle", 8),
    ("positions.train.0.iterator.n", "stream", 8),
    ("positions.train.0.iterator.drawn", "shuffle", 8),
    ("positions.train.0.iterator.ended", "stream_with_a_short_last_batch", 11),
    # The same with workers; of a validation loader only its pool is kept.
    ("positions.train.0.around.data", "data_changed_under_way", 8),
    ("positions.train.0.iterator.rng_pool", "workers", 12),
    ("positions.train.0.iterator.began_pool", "user_generator_with_workers", 12),
    ("positions.train.0.iterator.rng", "workers", 12),
    ("positions.train.0.iterator.began", "user_generator_with_workers", 12),
    ("positions.train.0.iterator.workers_began", "stream_in_persistent_workers", 8),
    ("positions.train.0.iterator.workers", "workers", 8),
    ("positions.train.0.iterator.n", "stream_in_workers", 8),
    ("positions.train.0.iterator.drawn", "workers_persistent", 13),
    ("positions.train.0.iterator.ahead", "workers", 8),
    ("positions.train.0.iterator.turn", "workers_persistent", 13),
    ("positions.val.0.around", "validation_with_state", 8),
    ("positions.val.0.around.data", "validation_with_state", 8),
    ("positions.val.1.around.generator", "validation_with_state", 8),
    ("positions.val.1.around.samplers", "validation_with_state", 8),
    ("positions.val.0.iterator", "validation_workers", 8),
    ("positions.val.0.iterator.workers", "workers_cut_short", 8),
    # The Runner. Its loaders have the same tap.
    ("model", "runner_shuffle", 8),
    ("optimizers", "runner_shuffle", 8),
    ("positions", "runner_shuffle", 8),
    ("counters", "runner_shuffle", 8),
    ("objects", "runner_shuffle", 8),
    ("rng", "runner_shuffle", 8),
    ("schedulers", "runner_plateau_by_epoch", 8),
    ("scaler", "runner_fp16_with_a_scaler", 8),
    ("buffers", "runner_odd_attributes", 8),
    ("module attributes", "runner_odd_attributes", 8),
    ("requires_grad", "runner_freezes_once", 8),
    ("gradients", "runner_accumulation_with_clipping", 8),
    ("plain attributes", "runner_ema", 8),
    ("loose parameters", "runner_parameter_in_no_module", 8),
    ("data attributes", "runner_plain_data_module", 8),
    ("optimizer attributes", "runner_optimizer_with_a_memory", 8),
    ("rng.torch", "runner_augmented_in_process", 8),
    ("rng.numpy", "runner_augmented_in_process", 8),
    ("rng.python", "runner_augmented_in_process", 8),
    ("optimizers.0.groups", "runner_unfreezing", 8),
    ("positions.train", "runner_workers", 8),
    ("positions.val", "runner_validation_workers", 8),
    ("positions.train.train.n", "runner_no_loader_at_all", 8),
    ("positions.train.train.position", "runner_shuffle", 8),
    ("objects.logged.book", "runner_reads_what_was_logged", 8),
    ("objects.logged.book.callback", "runner_plateau_on_a_validation_in_the_epoch", 9),
    ("objects.logged.book.logged", "runner_reads_what_was_logged", 8),
    ("objects.logged.book.progress", "runner_reads_what_was_logged", 8),
    ("objects.logged.book.first_iteration", "runner_logged_in_several_hooks", 8),
    ("objects.logged.loops", "runner_metrics_of_step_and_epoch", 8),
    ("counters.epoch", "runner_shuffle", 8),
    ("counters.epochs_processed", "runner_shuffle", 8),
    ("counters.batches_begun", "runner_shuffle", 8),
    ("counters.batches_done", "runner_shuffle", 14),
    ("counters.total_batches", "runner_validation_over_epochs", 9),
    ("counters.global_step", "runner_shuffle", 8),
    ("counters.batches_that_stepped", "runner_shuffle", 8),
    ("counters.fetched", "runner_asks_for_the_last_batch", 8),
    ("counters.ahead", "runner_stream", 8),
    ("counters.accumulate_grad_batches", "runner_early_stopping_and_accumulation_by_epoch", 8),
    ("counters.should_stop", "runner_asked_to_stop_early", 8),
    ("counters.clip", "runner_clip_changed_under_way", 8),
    ("counters.validated", "runner_logs_everywhere", 8),
)

# Values that no run of the matrix can notice, each with the reason.
NOT_NOTICED: Final[dict[str, str]] = {
    "optimizers.N.on_host": "which state stays on the host where the weights are on a GPU",
    "logged._current_fx": "read only in an epoch's first batch, when it is still None",
    "positions.fetcher.done": "never true at a gate",
    "positions.train.N.iterator.num_workers": "only compared, before anything is touched",
    "objects.logged.book.last_fx": "read only in an epoch's first batch, when it is cleared",
    "counters.in_epoch": "true at every gate; false at the end, for which tests/runner looks",
    "counters.is_last_batch": "false at every gate; true at the end",
    "counters.exhausted": "the same",
    "positions.train.train.live": "true at every gate; false at the end",
}
# Of a validation loader, which stands between two iterations, the position has more than it needs.
ONLY_WHILE_READ: Final = frozenset(
    (
        "num_workers",
        "rng",
        "rng_start",
        "ended",
        "rng_pool",
        "began_pool",
        "began",
        "workers_began",
        "n",
        "drawn",
        "ahead",
        "turn",
    )
)

# Not by a configuration of one process: ``check`` asks for the first, which a test of its own
# breaks; the second is DDP's, see tests/plugin/test_ranks_fork_and_merge.py; the third is for
# another number of ranks, see tests/plugin/test_sharded.py.
ONLY_CHECKED: Final = ("parameters", "buffers are synced", "positions.shares")


@contextlib.contextmanager
def without_part(table: Any, name: str) -> Iterator[None]:
    """Nothing of this part is put back.

    Args:
        table: the module that has it, as ``PARTS``.
    """
    off = [
        dataclasses.replace(part, apply=lambda _giving, _saved: None) if part.name == name else part
        for part in table.PARTS
    ]
    with mock.patch.object(table, "PARTS", tuple(off)):
        yield


def without_value(state: dict[str, Any], fresh: dict[str, Any], path: str) -> None:
    """This value of the snapshot becomes that of the process which is to go on from it."""
    *way, last = path.split(".")
    one, other = state["otf"]["exact"], fresh["otf"]["exact"]
    for key in way:
        one, other = _below(one, key), _below(other, key)
    place = int(last) if isinstance(one, list | tuple) else last
    one[place] = copy.deepcopy(other[place])


def _below(container: Any, key: str) -> Any:
    place = int(key) if isinstance(container, list | tuple) else key
    if isinstance(container[place], tuple):
        container[place] = list(container[place])
    return container[place]


class Resumed:
    """One configuration, whose state is kept at every batch, to be resumed from any."""

    def __init__(self, config: str, folder: Path) -> None:
        self._config, self._folder = CONFIGS[config], folder
        self.side = SIDES[self._config.side]
        self._states = folder / "states"
        self._n = 0
        story = Story(self._config, folder / "bare")
        ended = story.process(None)
        assert ended is not None
        self.bare = Bare(ended, story.told[0][0])
        self._states.mkdir()

        def keep(held: Any) -> None:
            (self._states / f"{held.batches}").write_bytes(held.save())

        first = Story(self._config, folder / "first")
        first.process(functools.partial(self.side.AtGate, keep))
        self._first = first.told[0]

    def state(self, batches: int) -> dict[str, Any]:
        """The snapshot behind so many batches."""
        return runs.loaded((self._states / f"{batches}").read_bytes())

    def at(self, batches: int, without: str | None) -> Verdict:
        """Go on behind so many batches; raising is not exact either."""
        self._n += 1
        story = Story(self._config, self._folder / f"{self._n}")
        story.told.append(self._first)
        state = self.state(batches)

        def act(held: Any) -> None:
            if held.gates:
                return
            off: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if without is not None and without in names_of(self.side.STATE):
                off = without_part(self.side.STATE, without)
            elif without is not None:
                without_value(state, held.delegate.capture(), without)
            with off:
                held.delegate.apply(state)

        try:
            ended = story.process(functools.partial(self.side.AtGate, act), resumed_at=batches)
        except WentWrong as wrong:
            return Verdict("raises", str(wrong).strip().splitlines()[-1])
        assert ended is not None
        return story.verdict(self.bare, ended)


def judged(config: str, wanted: dict[str, int], folder: Path) -> Iterator[tuple[str, Verdict]]:
    """For each part whether this configuration notices, and how; "FAILED" where it does not."""
    resumed = Resumed(config, folder)
    for batches in sorted(set(wanted.values())):
        whole = resumed.at(batches, None)
        if whole.how != "exact":
            yield f"nothing, at {batches}", Verdict("FAILED", f"with everything {whole.why}")
        for part in unnoticed(resumed.state(batches), resumed.side):
            yield part, Verdict("FAILED", "no configuration is known that notices")
    for part, batches in wanted.items():
        found = resumed.at(batches, part)
        if found.how == "exact":
            found = Verdict("FAILED", f"{config} is exact without it")
        yield part, found


def names_of(table: Any) -> set[str]:
    """The parts of a table."""
    return {part.name for part in table.PARTS}


def unnoticed(state: dict[str, Any], side: Any) -> set[str]:
    """Parts and values in this snapshot that no configuration notices; numbers are ``N``."""
    known = {_numberless(part) for part, _, _ in SWITCHES} | NOT_NOTICED.keys()
    known |= {f"positions.val.N.iterator.{name}" for name in ONLY_WHILE_READ}
    values = _values if side is runs else _native_values
    found = {_numberless(path) for path in values(state["otf"]["exact"])}
    return (names_of(side.STATE) | found) - known - set(ONLY_CHECKED)


def _values(exact: dict[str, Any]) -> Iterator[str]:
    """The single values of a snapshot that are ours to leave out, as paths."""
    positions = exact["positions"]
    for part in ("rng", "counters", "logged", "positions"):
        yield from (f"{part}.{name}" for name in exact[part])
    for optimizer in exact["optimizers"]:
        yield from (f"optimizers.N.{name}" for name in optimizer)
    yield from (f"positions.fetcher.{name}" for name in positions["fetcher"])
    yield from (f"positions.made_in.{place}" for place in range(len(positions["made_in"])))
    for which in ("train", "val"):
        for state in positions[which] or ():
            for name in ("around", "iterator") if state is not None and "around" in state else ():
                yield f"positions.{which}.N.{name}"
                yield from (f"positions.{which}.N.{name}.{key}" for key in state[name] or ())


def _native_values(exact: dict[str, Any]) -> Iterator[str]:
    """The same of a snapshot of the Runner; positions of loaders are looked at above."""
    yield from (f"rng.{name}" for name in exact["rng"])
    yield from (f"counters.{name}" for name in exact["counters"])
    yield from (f"objects.logged.{name}" for name in ("book", "loops"))
    yield from (f"objects.logged.book.{name}" for name in exact["objects"]["logged"]["book"])
    for optimizer in exact["optimizers"]:
        yield from (f"optimizers.N.{name}" for name in optimizer)
    yield from ("positions.train", "positions.val")
    yield from (f"positions.train.train.{name}" for name in exact["positions"]["train"]["train"])


def _numberless(path: str) -> str:
    return ".".join("N" if key.isdigit() else key for key in path.split("."))


def wanted(*, only_parts: bool = False, only: list[str] | None = None) -> dict[str, dict[str, int]]:
    """Configuration -> part or value -> batches.

    Args:
        only_parts: none of the single values.
        only: these configurations; all if empty.
    """
    found: dict[str, dict[str, int]] = {}
    for part, config, batches in SWITCHES:
        if (only_parts and "." in part) or (only and config not in only):
            continue
        found.setdefault(config, {})[part] = batches
    return found
