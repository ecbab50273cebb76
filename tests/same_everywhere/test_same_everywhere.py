"""The same training by Lightning, the Runner, a script and a loop of one's own: the same events,
metrics, commands, exactness report and weights. What differs is a row of ``DIFFERS``, with why.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest

from otf_core.control.actions import NOT_IN_THIS_VERSION
from otf_core.testing.conformance import DelegateSuite
from otf_core.testing.conformance.fields import STAMPS
from otf_core.testing.conformance.running import Running, bare, running
from tests.same_everywhere.frameworks import FRAMEWORKS
from tests.script.small_script import forks  # noqa: F401 -- the fixture

IN_EPOCH, LATE = 3, 9  # batches of twelve

NO_EPOCH_OF_OURS = "A loop of one's own calls its own function: nobody counts its batches."
ITS_OWN_SCHEDULE = "Whoever writes the loop steps its schedules in it, whenever it does."
ITS_OWN_CLIP = "Whoever writes the loop clips in it."
ITS_OWN_NAMES = "A loop gives its models their names."
ITS_OWN_MODULES = "What a script calls in its forward is the script's own."
NO_LOGGER = "A script logs where it likes: its losses are seen, its other numbers are not."
NO_HOOKS = "A script's model gets no hooks: torch.compile would see them."
NO_CALL = "A script's test cannot be called; its validation can, where it registers one."
AGAIN = "A script goes on from another run by starting again."
ITS_OWN_DATA = "Which data set a loop reads, and how it makes a loss of it, is the loop's own."
ITS_OWN_WEIGHTS = "Which of a script's variables are weights is the script's own."
ITS_OWN_STEP = "A training step of a loop cannot be run without the loop."
ONE_RUN = "A script's data and loops are its own: it is one run."
PREVIEW = "What a preview has found is of a merge, which it cannot do."
ITS_OWN_END = "When a script is through is the script's own affair."

# What of the others is not as with Lightning, and why.
DIFFERS: dict[str, dict[str, str]] = {
    "Runner": {},
    "tick": {
        "preview_params is unsupported": ITS_OWN_SCHEDULE,
        "merge is unsupported": ITS_OWN_STEP,
        "merge_preview is unsupported": ITS_OWN_STEP,
        "scan is unsupported": ITS_OWN_DATA,
        "samples is unsupported": ITS_OWN_DATA,
        "select is unsupported": ITS_OWN_DATA,
        "show_samples is unsupported": ITS_OWN_DATA,
        "compare is unsupported": ITS_OWN_DATA,
        "generate_report is unsupported": ITS_OWN_DATA,
        "get_selected_region_indices is unsupported": ITS_OWN_DATA,
        "export_subset is unsupported": ITS_OWN_DATA,
        "only Lightning, asked: event artifact_created: path rows": ITS_OWN_DATA,
        "dist_health is unsupported": ITS_OWN_STEP,
        "throughput_health is unsupported": ITS_OWN_STEP,
        "activations_health is unsupported": ITS_OWN_STEP,
        "numerics_health is unsupported": ITS_OWN_STEP,
        "determinism_health is unsupported": ITS_OWN_STEP,
        "only Lightning, asked: event progress: cmd done eta_s request_id total": ITS_OWN_DATA,
        "only Lightning, asked: event progress: cmd done eta_s found request_id total": PREVIEW,
        "only Lightning: parameter gradient_clip_val": ITS_OWN_CLIP,
        "only Lightning: parameter data.batch_size": ITS_OWN_DATA,
        "only Lightning: parameter data.takes_effect": ITS_OWN_DATA,
        "only Lightning: parameter trainer.accumulate_grad_batches": ITS_OWN_STEP,
        "only Lightning: parameter model.dropout.net.3": ITS_OWN_NAMES,
        "not Lightning: parameter model.dropout.3": ITS_OWN_NAMES,
        "only Lightning, asked: event testStep: step": NO_EPOCH_OF_OURS,
    },
    "script": {
        "preview_params is unsupported": ITS_OWN_SCHEDULE,
        "scan is unsupported": ITS_OWN_DATA,
        "samples is unsupported": ITS_OWN_DATA,
        "select is unsupported": ITS_OWN_DATA,
        "show_samples is unsupported": ITS_OWN_DATA,
        "compare is unsupported": ITS_OWN_DATA,
        "generate_report is unsupported": ITS_OWN_DATA,
        "get_selected_region_indices is unsupported": ITS_OWN_DATA,
        "export_subset is unsupported": ITS_OWN_DATA,
        "only Lightning, asked: event artifact_created: path rows": ITS_OWN_DATA,
        "dist_health is unsupported": ITS_OWN_STEP,
        "throughput_health is unsupported": ITS_OWN_STEP,
        "activations_health is unsupported": ITS_OWN_STEP,
        "numerics_health is unsupported": ITS_OWN_STEP,
        "determinism_health is unsupported": ITS_OWN_STEP,
        "only Lightning, asked: event progress: cmd done eta_s request_id total": ITS_OWN_DATA,
        "only Lightning, asked: event progress: cmd done eta_s found request_id total": PREVIEW,
        "only Lightning: parameter gradient_clip_val": ITS_OWN_CLIP,
        "only Lightning: parameter data.batch_size": ITS_OWN_DATA,
        "only Lightning: parameter data.takes_effect": ITS_OWN_DATA,
        "only Lightning: parameter trainer.accumulate_grad_batches": ITS_OWN_STEP,
        "only Lightning: parameter model.dropout": ITS_OWN_MODULES,
        "only Lightning: parameter model.dropout.net.3": ITS_OWN_MODULES,
        "only Lightning: parameter after_fit": ITS_OWN_END,
        "extend is unsupported": ITS_OWN_END,
        "fork is unsupported": ONE_RUN,
        "merge is unsupported": ONE_RUN,
        "merge_preview is unsupported": ONE_RUN,
        "switch_run is unsupported": ONE_RUN,
        "only Lightning, asked: event runTransition: from prev_step to": ONE_RUN,
        "only Lightning, asked: event finalizeRun: last_step next_run": ONE_RUN,
        "load_ckpt is unsupported": AGAIN,
        "export_weights is unsupported": ITS_OWN_WEIGHTS,
        "only Lightning: a step has val_loss": NO_LOGGER,
        "only Lightning: a step logs train_loss": NO_LOGGER,
        "only Lightning: a step logs val_loss": NO_LOGGER,
        "only Lightning: epoch_end has a val_loss": NO_LOGGER,
        "only Lightning: a step has activation_zero_frac": NO_HOOKS,
        "test is unsupported": NO_CALL,
        "test_now is unsupported": NO_CALL,
        "validate_now is unsupported": NO_CALL,
        "only Lightning, asked: event testStep: step": NO_CALL,
        "only Lightning, asked: event test_complete: avg_loss ckpt_path env_test_label label "
        "metrics seconds source status step": NO_CALL,
        "only Lightning, asked: state paused to testing (action)": NO_CALL,
        "only Lightning, asked: state testing to paused (user)": NO_CALL,
    },
}


class Seen(NamedTuple):
    """What a dashboard sees of a run.

    Attributes:
        told: what is told without a command: a line for each kind of event and each field of it,
            for each value that a step has, for each state.
        answers: command -> applied, or the code of the refusal.
        events: the kinds that came of the commands, with their fields.
        exactness: the report.
    """

    told: frozenset[str]
    answers: Mapping[str, str]
    events: frozenset[str]
    exactness: str
    params: frozenset[str]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Seen]:
    """Watch a framework's run, then ask everything of another; once for each."""

    @functools.cache
    def look(name: str) -> Seen:
        framework = FRAMEWORKS[name]
        with running(framework, tmp_path_factory.mktemp("watched")) as run:
            run.found()
            told = frozenset((*_lines(run), *_values(run)))
        with running(framework, tmp_path_factory.mktemp("asked"), hold=(IN_EPOCH, LATE)) as run:
            run.pause_in(IN_EPOCH)
            params = frozenset(row["path"] for row in run.ask("list_params")["params"])
            exactness = run.ask("status")["exactness"]
            answers = dict(_answers(run, framework))
            run.resume()
            run.pause_in(LATE)
            run.ask("stop", save=False)
            run.found()
            events = frozenset(_lines(run))
        with running(framework, tmp_path_factory.mktemp("failed"), fail=IN_EPOCH) as run:
            run.thread.wait()
            run.dashboard.expect_end()
            events |= {f"{line}, failed" for line in _lines(run)}
        return Seen(told, answers, events, exactness, params)

    return look


def _lines(run: Running) -> Iterator[str]:
    for event in run.events():
        kind = event["type"]
        yield f"event {kind}: {' '.join(sorted(event.keys() - STAMPS))}"
        if kind == "state":
            yield f"state {event['previous']} to {event['state']} ({event['reason']})"
        if kind == "trainingFinished":
            yield f"the end is {event['status']}"
        if kind == "epoch_end" and event["val_loss"] is not None:
            yield "epoch_end has a val_loss"


def _values(run: Running) -> Iterator[str]:
    for event in run.events("trainStep"):
        yield from (f"a step has {name}" for name, value in event.items() if value is not None)
        yield from (f"a step logs {name}" for name in event["metrics"])


def _answers(run: Running, framework: Any) -> Iterator[tuple[str, str]]:
    suite = DelegateSuite()
    suite.framework = framework
    payloads = suite.payloads(run)
    del payloads["undo"]
    asked: dict[str, Any] = {}
    for name, payload in payloads.items():
        asked[name] = payload
        if name == "note":  # which every one has; runs of older files have it not
            asked["undo"] = {"request_id": "note"}
    for name, payload in asked.items():
        reply = run.dashboard.reply_to(run.dashboard.send(name, payload, request_id=name))
        yield name, "applied" if reply["ok"] else reply["code"]


def _differences(one: Seen, other: Seen) -> set[str]:
    found = {f"only Lightning: {line}" for line in one.told - other.told}
    found |= {f"not Lightning: {line}" for line in other.told - one.told}
    found |= {f"only Lightning, asked: {line}" for line in one.events - other.events - one.told}
    found |= {f"not Lightning, asked: {line}" for line in other.events - one.events - other.told}
    found |= {f"only Lightning: parameter {path}" for path in one.params - other.params}
    found |= {f"not Lightning: parameter {path}" for path in other.params - one.params}
    names = one.answers.keys() | other.answers.keys()
    found |= {
        f"{name} is {other.answers.get(name)}"
        for name in names
        if one.answers.get(name) != other.answers.get(name)
    }
    if one.exactness != other.exactness:
        found.add(f"exactness: {other.exactness}")
    return found


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", DIFFERS)
def test_a_dashboard_sees_the_same(name: str, seen: Callable[[str], Seen]) -> None:
    found = _differences(seen("Lightning"), seen(name))
    assert found == DIFFERS[name].keys()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", DIFFERS)
def test_the_training_is_the_same(name: str) -> None:
    expected = bare(FRAMEWORKS["Lightning"])
    found = bare(FRAMEWORKS[name])
    theirs, ours = (json.dumps(list(run.weights.values())) for run in (found, expected))
    assert theirs == ours
    assert found.probe.lrs == expected.probe.lrs


def test_lightning_does_everything(seen: Callable[[str], Seen]) -> None:
    found = seen("Lightning")
    refused = {name for name, answer in found.answers.items() if answer != "applied"}
    assert refused == {*NOT_IN_THIS_VERSION, "park"}  # nothing lies on an accelerator here
    assert found.exactness == "exact"


def test_every_difference_has_its_reason() -> None:
    assert all(why.endswith(".") for rows in DIFFERS.values() for why in rows.values())
