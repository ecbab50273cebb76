"""docs/protocol.md is the authority on the wire: the tables of the code are its tables, and a real
run says what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import msgspec
import pytest
import torch

from otf_core import protocol
from otf_core.control.actions import NOT_IN_THIS_VERSION
from otf_core.dashboard.openapi import ENDPOINTS, SCHEMAS
from otf_core.dashboard.receipts import Receipt
from otf_core.dashboard.store import Session as StoredSession
from otf_core.errors import ErrorCode
from otf_core.rendezvous import Rendezvous
from otf_core.state import park
from otf_core.state.run_folder import RunRecord
from otf_core.state.store import Manifest
from otf_core.telemetry.metrics import METRICS
from otf_core.testing import FakeAccelerator
from otf_core.testing.conformance import fields
from otf_lightning import OnTheFlyCallback
from otf_lightning.digits import Digits, LitDigits
from tests.house.documents import names, read, section, table

DOCUMENT = read("docs/protocol.md")
COMMANDS = {row["cmd"].strip("`"): row for row in table(section(DOCUMENT, "Commands"), "cmd")}
EVENTS = {row["type"].strip("`"): row for row in table(section(DOCUMENT, "Events"), "type")}

BY_DECISION = {"propose_subsets"}  # stays unsupported; selections take its place


def test_every_command_is_a_row_with_its_lane_and_what_it_mutates() -> None:
    written = {name: (row["lane"], row["mutates"]) for name, row in COMMANDS.items()}
    assert written == {
        name: (spec.lane, "yes" if spec.mutates else "no")
        for name, spec in protocol.COMMANDS.items()
    }
    answered = {
        name for name, row in COMMANDS.items() if "no reply" not in row["data of the reply"]
    }
    assert answered == {name for name, spec in protocol.COMMANDS.items() if spec.answered}


@pytest.mark.parametrize("name", sorted(protocol.COMMANDS.keys() - NOT_IN_THIS_VERSION.keys()))
def test_the_payload_of_a_command_is_what_its_struct_takes(name: str) -> None:
    cell = COMMANDS[name]["payload"]
    if cell.startswith("as `"):
        cell = COMMANDS[cell.split("`")[1]]["payload"]
    always, optional = names(cell)
    fields = msgspec.structs.fields(protocol.COMMANDS[name].payload)
    assert always == {field.name for field in fields if field.required}
    assert optional == {field.name for field in fields if not field.required}


def test_what_is_unsupported_is_said() -> None:
    unsupported = {name for name, row in COMMANDS.items() if row["since"] == "unsupported"}
    assert unsupported == NOT_IN_THIS_VERSION.keys()
    assert unsupported == BY_DECISION
    reasons = section(DOCUMENT, "What is not carried out")
    listed = [name for row in table(reasons, "cmd") for name in re.findall(r"\w+", row["cmd"])]
    assert sorted(listed) == sorted(unsupported)


def test_every_event_is_a_row_with_where_it_goes() -> None:
    written = {name: (row["journaled"], row["legacy"]) for name, row in EVENTS.items()}
    yes = {True: "yes", False: "no"}
    assert written == {
        name: (yes[spec.journaled], yes[spec.legacy]) for name, spec in protocol.EVENTS.items()
    }


def test_error_codes_and_states_are_those_of_the_code() -> None:
    codes = [row["code"].strip("`") for row in table(section(DOCUMENT, "Error codes"), "code")]
    assert codes == [code.value for code in ErrorCode]
    told = re.findall(r"`(\w+)`", section(DOCUMENT, "States").partition("A run that")[0])
    assert tuple(told) == protocol.STATES


def test_every_field_of_a_train_step_is_a_row_with_its_unit_and_cadence() -> None:
    rows = table(section(DOCUMENT, "trainStep"), "field")
    written = [(row["field"].strip("`"), row["unit"], row["cadence"]) for row in rows]
    assert written == [(m.name, m.unit, m.cadence) for m in METRICS]


def test_the_conformance_kit_asks_for_the_fields_of_the_document() -> None:
    assert list(fields.TRAIN_STEP) == [m.name for m in METRICS]
    for kind, written in fields.EVENT_FIELDS.items():
        if kind != "trainStep":
            always, optional = names(EVENTS[kind]["fields besides the stamps"])
            asked = set(written.split())
            assert asked == always | {f"{name}?" for name in optional}, kind
    left_out = EVENTS.keys() - fields.EVENT_FIELDS.keys()
    later = {name for name, row in EVENTS.items() if "not yet" in row["fields besides the stamps"]}
    of_a_connection = {name for name, spec in protocol.EVENTS.items() if not spec.journaled}
    assert left_out == later | of_a_connection


def test_the_numbers_in_the_text_are_those_of_the_code() -> None:
    from otf_core import channel, dialling, handshake, outbox
    from otf_core.control import actions, bus

    assert f"A queue of {bus.MAX_QUEUE:,}" in DOCUMENT
    assert f"The last {bus.MAX_ANSWERS:,} answers" in DOCUMENT
    assert f"{protocol.MAX_LINE_BYTES >> 20} MiB towards the trainer" in DOCUMENT
    assert f"pass {outbox.MAX_BYTES >> 20} MiB" in DOCUMENT
    assert f"for {channel.QUIET_S} after it" in DOCUMENT
    assert f"takes longer than {actions.SAVE_PATIENCE_S:g} s" in DOCUMENT
    assert f"at most {handshake.MAX_REPLAYS} such" in " ".join(DOCUMENT.split())
    assert f"from {dialling.SHORTEST_S:g} doubling to {dialling.LONGEST_S:g}" in DOCUMENT


# REST and files.


def test_every_endpoint_is_a_row() -> None:
    rows = table(section(DOCUMENT, "REST and WebSocket of the dashboard"), "method and path")
    written = {row["method and path"].strip("`"): row["answer"] for row in rows}
    assert written.keys() == {f"{e.method} {e.path}" for e in ENDPOINTS}
    public = {path for path, answer in written.items() if answer.endswith("public")}
    assert public == {f"{e.method} {e.path}" for e in ENDPOINTS if e.public}
    for endpoint in ENDPOINTS:
        answer = written[f"{endpoint.method} {endpoint.path}"]
        for name in endpoint.query if not answer.startswith("as for") else ():
            assert f"`{name}`" in answer, f"{endpoint.path} takes {name}"


def _listed(opening: str) -> set[str]:
    """Names in the braces that open there, those of inner braces left out."""
    _, found, rest = DOCUMENT.partition(opening)
    assert found, opening
    depth = 1
    for end, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            always, optional = names(rest[:end])
            return always | optional
    raise AssertionError(opening)


@pytest.mark.parametrize(
    ("opening", "expected"),
    [
        ("**Session**: {", set(StoredSession("s", 0.0).to_json())),
        ("**Run**: {", set(SCHEMAS["Run"]["properties"])),
        ("receipt {", set(Receipt("i", "c", {}, "cli", 0.0).to_json())),
        ("```json\n{", set(Rendezvous.__dataclass_fields__)),
        ("| `run.json` | {", set(RunRecord.__struct_fields__)),
        ("| `checkpoints/<id>.json` | {", set(Manifest.__struct_fields__)),
    ],
)
def test_an_object_has_the_fields_that_are_listed(opening: str, expected: set[str]) -> None:
    if opening.startswith("```"):
        text = "{" + DOCUMENT.partition(opening)[2].partition("```")[0]
        assert set(msgspec.json.decode(text)) == expected
    else:
        assert _listed(opening) == expected


# A real run says what the document says.


class Link:
    """A dashboard that keeps what it hears, and resumes what has stopped for it."""

    legacy = False

    def __init__(self) -> None:
        self.replies: dict[str, Any] = {}
        self.events: list[Mapping[str, Any]] = []
        self.bus: Any = None
        self.went_back = False

    def ask(self, cmd: str, **payload: Any) -> None:
        raw = msgspec.Raw(msgspec.json.encode(payload))
        self.bus.receive(protocol.Request(cmd=cmd, id=cmd, payload=raw), self)

    def reply(self, line: bytes) -> None:
        reply = msgspec.json.decode(line)
        assert reply["ok"], reply
        self.replies[reply["id"]] = reply["data"]
        if reply["id"] == "pause":
            self.ask("park")
        elif reply["id"] in ("park", "attach_context"):
            self.ask("resume")

    def event(self, message: Mapping[str, Any]) -> None:
        self.events.append(message)


class Visitor(L.Callback):
    """Asks for everything after the third batch, as otf-reader would."""

    def __init__(self, link: Link, ours: OnTheFlyCallback) -> None:
        self.link, self.ours = link, ours
        self.journal = Path()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        session, link = self.ours.session, self.link
        assert session is not None
        assert session.journal.path is not None
        self.journal = session.journal.path
        if link.went_back:  # not of the callback: its attributes go back as well
            if trainer.global_step == 6:
                link.ask("fork", selection={"kind": "indices", "ids": [*range(200)]})
                for cmd in ("merge_preview", "merge"):
                    link.ask(cmd, parents=["fork3", "LitDigits"], strategy="linear")
            elif trainer.global_step == 7:
                link.ask("stop")
            return
        if trainer.global_step == 3:
            link.bus = session.bus
            for cmd in ("status", "ping", "list_params", "save_ckpt", "validate_now", "test_now"):
                link.ask(cmd)
            link.ask("set_param", path="lr", mul=0.5)
            link.ask("set_params", changes=[{"path": "lr", "mul": 1.0}])
            link.ask("preview_params", changes=[{"path": "lr", "mul": 0.5}])
            link.ask("list_changes")
            limit = {"watch": "limit", "params": {"above": 0.0}, "action": "notify"}
            link.ask("set_guard", rule="high", **limit)
            link.ask("list_guards")
            link.ask("note", text="half")
            link.ask("set_counter_seeds", fork_counter_init=2)
            link.ask("clean_disk")
            link.ask("pause", reason="to look")
        elif trainer.global_step == 5:
            link.ask("test", label="again")
            link.ask("scan")
            link.ask("samples")
            link.ask("select")
            link.ask("show_samples", ids=[3])
            link.ask("compare")
            link.ask("generate_report")
            link.ask("get_selected_region_indices", min_loss=0.1)
            link.ask("dist_health")
            link.ask("export_subset")
            link.ask("prepare_export")
            link.ask("export_weights")
            link.ask("export_session")
            link.ask("export_report")
            link.ask("export_recipe")
            link.ask("list_checkpoints")
            link.ask("results")
        elif trainer.global_step == 7:
            link.went_back = True
            link.ask("extend", max_epochs=9)
            link.ask("undo")
            path = link.replies["save_ckpt"]["path"]
            link.ask("load_ckpt", path=path)
            link.ask("rollback", checkpoint=link.replies["save_ckpt"]["id"])


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Link, list[dict[str, Any]]]:
    torch.set_num_threads(1)
    ours = OnTheFlyCallback(
        save_dir=tmp_path_factory.mktemp("runs"), dashboard="off", keep_checkpoints=1
    )
    link = Link()
    visitor = Visitor(link, ours)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[ours, visitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(park, "accelerator_of", lambda _: FakeAccelerator())
        trainer.fit(LitDigits(), datamodule=Digits())
    lines = visitor.journal.read_bytes().splitlines()
    return link, [protocol.decode_message(line) for line in lines]


ASKED = (
    *("status", "ping", "list_params", "save_ckpt", "validate_now", "test_now", "test"),
    *(
        "set_param",
        "set_params",
        "preview_params",
        "list_changes",
        "set_guard",
        "list_guards",
        "note",
        "set_counter_seeds",
        "clean_disk",
        "pause",
        "park",
        "resume",
    ),
    *("list_checkpoints", "stop", "rollback", "load_ckpt", "extend", "undo"),
    *("fork", "scan", "samples", "select", "generate_report", "get_selected_region_indices"),
    *("merge", "merge_preview", "compare", "results", "show_samples"),
    *("export_subset", "prepare_export", "export_weights"),
    *("export_session", "export_report", "export_recipe"),
)


@pytest.mark.parametrize("cmd", ASKED)
def test_a_reply_has_the_fields_that_are_listed(
    cmd: str, visited: tuple[Link, list[dict[str, Any]]]
) -> None:
    cell = COMMANDS[cmd]["data of the reply"]
    if cell.startswith("as `"):
        cell = COMMANDS[cell.split("`")[1]]["data of the reply"]
    always, optional = names(cell)
    if cmd == "status":
        always = _listed("even if the training thread is stuck: {")
    data = visited[0].replies[cmd]
    assert set(data) - optional == always
    assert ("applied_step" in data) == protocol.COMMANDS[cmd].mutates


def test_rows_of_checkpoints_and_parameters_have_the_fields_that_are_listed(
    visited: tuple[Link, list[dict[str, Any]]],
) -> None:
    replies = visited[0].replies
    rows = replies["list_checkpoints"]["checkpoints"]
    assert {frozenset(row) for row in rows} == {frozenset(_listed("| checkpoints [{"))}
    results = replies["results"]["results"]
    assert {frozenset(row) for row in results} == {frozenset(_listed("| results [{"))}
    changes = replies["list_changes"]["changes"]
    assert {frozenset(row) for row in changes} == {frozenset(_listed("A row of `list_changes`: {"))}
    params = replies["list_params"]["params"]
    assert _listed("A row of `list_params`: {") == set(params[0]) | {
        "choices", "unit", "script", "in_use",
    }  # fmt: skip
    paths = [row["path"] for row in params]
    assert paths[:4] == ["lr", "weight_decay", "beta1", "beta2"]
    assert {"eps", "amsgrad", "gradient_clip_val", "after_fit"} <= {*paths}
    for path in (*(row["path"] for row in params), "momentum"):
        name = re.sub(r"^(model\.dropout)\..*", r"\1.MODULE", path)
        name = re.sub(r"^(attr|hparams)\..*", r"\1.NAME", name)
        assert f"`{name}`" in section(DOCUMENT, "Status and parameters")


def test_events_have_the_fields_that_are_listed(
    visited: tuple[Link, list[dict[str, Any]]],
) -> None:
    stamps = {row["stamp"].strip("`") for row in table(section(DOCUMENT, "Messages"), "stamp")}
    _, events = visited
    seen = {event["type"] for event in events}
    for event in events:
        always, optional = names(EVENTS[event["type"]]["fields besides the stamps"])
        if event["type"] == "trainStep":
            always = {m.name for m in METRICS}
        assert set(event) - optional - {"type"} == always | stamps, event["type"]
    not_yet = {
        name for name, row in EVENTS.items() if "not yet" in row["fields besides the stamps"]
    }
    journaled = {name for name, spec in protocol.EVENTS.items() if spec.journaled}
    # They need a dashboard, a batch that does not end, or a rank that is lost:
    # tests/plugin/test_the_end_is_held.py, tests/plugin/test_ranks_lost.py,
    # tests/plugin/test_faults.py.
    assert journaled - seen - {"auto_test_complete", "stall", "rank_state"} == not_yet


def test_accepted_has_the_fields_that_are_listed_and_comes_for_what_mutates(
    visited: tuple[Link, list[dict[str, Any]]],
) -> None:
    heard = visited[0].events
    always, _ = names(EVENTS["accepted"]["fields besides the stamps"])
    assert {frozenset(event) for event in heard} == {frozenset(always | {"type"})}
    mutating = {cmd for cmd in ASKED if protocol.COMMANDS[cmd].mutates}
    assert {event["cmd"] for event in heard} == mutating


def test_the_order_of_events_is_the_one_that_is_promised(
    visited: tuple[Link, list[dict[str, Any]]],
) -> None:
    _, events = visited
    assert [event["event_seq"] for event in events] == list(range(1, len(events) + 1))
    kinds = [event["type"] for event in events]
    assert "trainStep" not in kinds[kinds.index("paused") : kinds.index("resumed")]
    assert kinds.index("newRun") < kinds.index("trainStep")
    for what, state in (
        ("paused", "paused"),
        ("resumed", "running"),
        ("trainingFinished", "finished"),
    ):
        told = [e["state"] for e in events[: kinds.index(what)] if e["type"] == "state"]
        assert told[-1] == state
