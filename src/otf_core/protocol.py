"""The wire, typed: commands, replies, events, and how they become lines.

docs/protocol.md is the authority and the tables here follow it; a test compares the two.

Rule 1: one JSON object, UTF-8, one LF. Non-finite numbers go as null.
Rule 2: a command is a row of ``COMMANDS`` with a struct for its payload; unknown keys are ignored.
Rule 3: nothing here raises on what the user's training logged (``sanitise``), and nothing but
``RemoteProtocolError`` and ``CommandError`` on what the other side sent.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

from otf_core.errors import CommandError, ErrorCode, RemoteProtocolError
from otf_core.sanitise import sanitise

UNSET: Final = msgspec.UNSET
PROTOCOL: Final = "otf/1"
LEGACY_VERSION: Final = "0.1.4"  # the least that the published extension accepts
MAX_LINE_BYTES: Final = 16 * 1024 * 1024
MAX_NOTE_CHARS: Final = 4096

Lane = Literal["control", "queue"]


class Payload(msgspec.Struct, kw_only=True):
    """What all payloads are; unknown keys are ignored."""


class Empty(Payload):
    """A command without arguments."""


class Hello(Payload):
    protocol: str
    token: str | None = None
    session_id: str | None = None
    last_seq: int | None = None
    client: str | None = None


class EnforceVersion(Payload):
    message: str = ""
    required: str | None = None
    reported: str | None = None


class Ping(Payload):
    t: float | None = None


class Ack(Payload):
    seq: int


class ResumeFrom(Payload):
    seq: int
    until: int | None = None


class CounterSeeds(Payload):
    fork_counter_init: int = 0
    merge_counter_init: int = 0


class RunContext(Payload):
    """``attach_context`` and ``switch_run``."""

    run_id: str
    init_ckpt: str | None = None
    init_step: int | None = None
    fork_counter_init: int = 0
    merge_counter_init: int = 0


class Pause(Payload):
    reason: str | None = None
    at_step: int | None = None


class Stop(Payload):
    save: bool = True


class TestNow(Payload):
    """``test_now`` and the older ``test``."""

    label: str = "final"
    source: str | None = None


class Park(Payload):
    back: bool = False


class ValidateNow(Payload):
    limit_batches: int | None = None
    label: str | None = None


class Results(Payload):
    """``results``: without a run those of all that it is kin to."""

    run_id: str | None = None


class SetParam(Payload):
    """One of ``value``, ``mul`` and ``release`` is given; the last gives it back to the script.

    With ``to`` and ``over`` the rest of the schedule is replaced by a curve of so many steps, from
    ``value`` or what stands there. With ``until`` it is the script's again at that step.
    """

    path: str
    value: float | int | bool | str | msgspec.UnsetType | None = msgspec.UNSET
    mul: float | msgspec.UnsetType = msgspec.UNSET
    at_step: int | None = None
    mode: Literal["scale", "override", "replace"] | None = None
    release: bool = False
    until: int | None = None
    to: float | None = None
    over: int | None = None
    shape: Literal["linear", "cosine"] = "linear"


class SetParams(Payload):
    """Several changes as one: all are made at one step, or none is."""

    changes: list[SetParam]
    at_step: int | None = None


class PreviewParams(Payload):
    """What values will be in the coming steps, with changes and without; nothing is changed.

    Attributes:
        steps: how far; to the end of the run if None.
        points: at most so many of each curve.
    """

    changes: list[SetParam] = msgspec.field(default_factory=list)
    steps: int | None = None
    points: int = 600


class Rollback(Payload):
    """One of the two is given."""

    checkpoint: str | None = None
    step: int | None = None


class LoadCkpt(Payload):
    path: str


class ResetSession(Payload):
    reason: str = ""


class Extend(Payload):
    """One of the two is given: a new total."""

    max_steps: int | None = None
    max_epochs: int | None = None


class Undo(Payload):
    """The last that can be taken back, or the one of these that is given."""

    request_id: str | None = None
    restore: bool = False
    change: int | None = None


class ListChanges(Payload):
    """``list_changes``: of the ledger the newest rows; all if None."""

    limit: int | None = None


class SetGuard(Payload):
    """A rule that is there gets other settings; one that is not is made, and needs ``watch``.

    Attributes:
        params: of what watches, as ``{"z": 8}``.
        remove: in place of all the others.
    """

    rule: str
    watch: str | msgspec.UnsetType = msgspec.UNSET
    metric: str | msgspec.UnsetType = msgspec.UNSET
    action: str | msgspec.UnsetType = msgspec.UNSET
    params: dict[str, float | int | str | None] | msgspec.UnsetType = msgspec.UNSET
    lr: float | msgspec.UnsetType = msgspec.UNSET
    back: int | msgspec.UnsetType = msgspec.UNSET
    most: int | msgspec.UnsetType = msgspec.UNSET
    budget: int | msgspec.UnsetType | None = msgspec.UNSET
    then: str | msgspec.UnsetType = msgspec.UNSET
    cool_down: int | msgspec.UnsetType = msgspec.UNSET
    enabled: bool | msgspec.UnsetType = msgspec.UNSET
    remove: bool = False


class Note(Payload):
    text: str
    step: int | None = None


class ListCheckpoints(Payload):
    run_id: str | None = None


class CleanDisk(Payload):
    scope: str = "all"


class Region(Payload):
    """Samples by their loss, both ends included."""

    minLoss: float = float("-inf")  # noqa: N815 -- the extension's name
    maxLoss: float = float("inf")  # noqa: N815 -- as above


class Fork(Payload):
    """``fork``; without any of it the run goes on as another one.

    Attributes:
        checkpoint, parent_ckpt_path: from there; an id or a path. Else from where it stands.
        hparams: lr_mul, wd_mul, lr, wd, batch_size, patience, steps, epochs.
        params: values by path, as ``set_param`` takes them.
        weights: of each chosen sample, how often it is drawn.
    """

    parent_run_id: str | None = None
    owner_run_id: str | None = None
    selection: dict[str, Any] | None = None
    region: Region | None = None
    weights: list[float] | None = None
    hparams: dict[str, Any] | None = None
    params: dict[str, float | int | bool | str] | None = None
    checkpoint: str | None = None
    parent_ckpt_path: str | None = None
    run_name: str | None = None
    batch_size: int | None = None
    patience: int | None = None
    steps: int | None = None
    epochs: int | None = None


class Merge(Payload):
    """``merge`` and ``merge_preview``; the first parent decides where the merge goes on from.

    Attributes:
        parents: runs; one as often as checkpoints of it are named.
        checkpoints, paths: one of each parent, an id or a path; None: where it was left.
        strategy, strategies: see ``runs.merge``; ``merge`` takes one, ``merge_preview`` any number.
        weights: of each parent.
        base: for ``ties``: ``RUN/CHECKPOINT``, or a checkpoint of the first parent; None: where
            the parents parted.
        recalibrate: BatchNorm's statistics are gathered anew over the training set.
        optimizer: "parent": the state of the first goes on; "fresh".
        monitor, mode: what a candidate is judged by, "min" or "max".
    """

    parents: list[str]
    checkpoints: list[str | None] | None = None
    paths: list[str | None] | None = None
    strategy: str | None = None
    strategies: list[str] | None = None
    weights: list[float] | None = None
    base: str | None = None
    density: float = 0.2
    scale: float = 1.0
    recalibrate: bool = False
    optimizer: str = "parent"
    monitor: str = "val_loss"
    mode: Literal["min", "max"] = "min"
    limit_batches: int | None = None
    steps: int | None = None
    epochs: int | None = None
    new_name: str | None = None


class Scan(Payload):
    """``scan``: the loss of each sample of a set, or of some.

    Attributes:
        on: "train", "val" or "test".
        layer: whose activations are kept as features.
        background: while the run trains, in slices between its batches.
        share: of the run's time, for that.
    """

    on: str = "train"
    ids: list[int] | None = None
    layer: str | None = None
    background: bool = False
    share: float | None = None


class Compare(Payload):
    """``compare``: runs on the same samples.

    Attributes:
        runs: run ids, or checkpoints of the run that trains; None: all that the session has had.
        on: "train", "val" or "test".
    """

    runs: list[str] | None = None
    on: str = "val"
    selection: dict[str, Any] | None = None


class SamplesPage(Payload):
    """``samples``: a page of what a scan has found."""

    on: str = "train"
    start: int = 0


class Select(Payload):
    """``select``: what a selection means of what a scan has found; None: what was found."""

    on: str = "train"
    selection: dict[str, Any] | None = None


class ShowSamples(Payload):
    """``show_samples``: what a person sees of some samples of a set."""

    ids: list[int]
    on: str = "train"


class GenerateReport(Payload):
    owner_run_id: str | None = None
    subset_indices: list[int] | None = None
    subset_on: str = "train"
    reqId: int | None = None  # noqa: N815 -- the extension's name


class ExportSubset(Payload):
    """``export_subset``: samples of a set as a file, with what is known of them.

    Attributes:
        format: None: by the ending of ``out_path``, else CSV.
        out_path: None: in the run's folder.
        on: "train", "val" or "test".
    """

    run_id: str | None = None
    format: Literal["csv", "json", "parquet", "feather"] | None = None
    out_path: str | None = None
    subset_indices: list[int] | None = None
    selection: dict[str, Any] | None = None
    on: str = "train"


class PrepareExport(Payload):
    """``prepare_export``; nothing is written into ``dir``.

    Attributes:
        owners: runs; None or none: those of the session.
    """

    dir: str | None = None
    latest_only: bool = True
    owners: list[str] | None = None


class SpillAll(Payload):
    """``spill_all``; as above, of all runs of the session."""

    dir: str | None = None
    latest_only: bool = True


class ExportWeights(Payload):
    """``export_weights``; without a checkpoint those of where the run stands."""

    run_id: str | None = None
    checkpoint: str | None = None
    out_path: str | None = None


class ExportSession(Payload):
    """``export_session``: runs as one file that another machine goes on from.

    Attributes:
        runs: None: the one that trains and all its relatives.
        checkpoints: of each run the one from which it goes on, or all.
    """

    out_path: str | None = None
    runs: list[str] | None = None
    checkpoints: Literal["newest", "all"] = "newest"


class ExportReport(Payload):
    """``export_report``: a run as a page; None: the one that trains."""

    out_path: str | None = None
    run_id: str | None = None


class ExportRecipe(Payload):
    """``export_recipe``: what was done to the run that trains, for a run that begins."""

    out_path: str | None = None


class RegionIndices(Payload):
    run_id: str | None = None
    min_loss: float = float("-inf")
    max_loss: float = float("inf")


class Cancel(Payload):
    request_id: str | None = None


class Health(Payload):
    """The five checks; each takes those that it knows."""

    budget_steps: int | None = None
    micro_backward: bool | None = None
    topk: int | None = None
    eps: float | None = None
    require_all_ranks: bool | None = None
    sample_weights: int | None = None
    sample_layers: int | None = None


class Anything(Payload):
    """The payload of a command that this version does not carry out."""


@dataclasses.dataclass(frozen=True)
class CommandSpec:
    """A row of ``COMMANDS``.

    Attributes:
        payload: the struct that the payload is decoded into before a handler runs.
        lane: "control" is answered by the reader thread, however full the queue is.
        mutates: changes the run, so it is announced by ``accepted`` and its reply carries
            ``applied_step``.
        answered: whether there is a reply at all (``ack`` has none).
    """

    name: str
    payload: type[Payload]
    lane: Lane
    mutates: bool
    answered: bool = True


def _table(*rows: CommandSpec) -> Mapping[str, CommandSpec]:
    return MappingProxyType({row.name: row for row in rows})


COMMANDS: Final[Mapping[str, CommandSpec]] = _table(
    CommandSpec("hello", Hello, "control", mutates=False),
    CommandSpec("server_info", Empty, "control", mutates=False),
    CommandSpec("ack", Ack, "control", mutates=False, answered=False),
    CommandSpec("resume_from", ResumeFrom, "control", mutates=False),
    CommandSpec("enforce_version", EnforceVersion, "control", mutates=False),
    CommandSpec("ping", Ping, "control", mutates=False),
    CommandSpec("status", Empty, "control", mutates=False),
    CommandSpec("pause", Pause, "control", mutates=True),
    CommandSpec("resume", Empty, "control", mutates=True),
    CommandSpec("stop", Stop, "control", mutates=True),
    CommandSpec("park", Park, "queue", mutates=True),
    CommandSpec("list_params", Empty, "queue", mutates=False),
    CommandSpec("list_checkpoints", ListCheckpoints, "queue", mutates=False),
    CommandSpec("set_param", SetParam, "queue", mutates=True),
    CommandSpec("set_params", SetParams, "queue", mutates=True),
    CommandSpec("preview_params", PreviewParams, "queue", mutates=False),
    CommandSpec("list_changes", ListChanges, "queue", mutates=False),
    CommandSpec("list_guards", Empty, "queue", mutates=False),
    CommandSpec("set_guard", SetGuard, "queue", mutates=True),
    CommandSpec("export_recipe", ExportRecipe, "queue", mutates=True),
    CommandSpec("save_ckpt", Empty, "queue", mutates=True),
    CommandSpec("test_now", TestNow, "queue", mutates=True),
    CommandSpec("test", TestNow, "queue", mutates=True),
    CommandSpec("validate_now", ValidateNow, "queue", mutates=True),
    CommandSpec("results", Results, "queue", mutates=False),
    CommandSpec("note", Note, "queue", mutates=True),
    CommandSpec("set_counter_seeds", CounterSeeds, "queue", mutates=True),
    CommandSpec("attach_context", RunContext, "queue", mutates=True),
    CommandSpec("switch_run", RunContext, "queue", mutates=True),
    CommandSpec("clean_disk", CleanDisk, "queue", mutates=True),
    CommandSpec("load_ckpt", LoadCkpt, "queue", mutates=True),
    CommandSpec("rollback", Rollback, "queue", mutates=True),
    CommandSpec("reset_session", ResetSession, "queue", mutates=True),
    CommandSpec("extend", Extend, "queue", mutates=True),
    CommandSpec("undo", Undo, "queue", mutates=True),
    CommandSpec("fork", Fork, "queue", mutates=True),
    CommandSpec("merge", Merge, "queue", mutates=True),
    CommandSpec("merge_preview", Merge, "queue", mutates=True),
    CommandSpec("scan", Scan, "queue", mutates=True),
    CommandSpec("samples", SamplesPage, "queue", mutates=False),
    CommandSpec("select", Select, "queue", mutates=False),
    CommandSpec("compare", Compare, "queue", mutates=True),
    CommandSpec("show_samples", ShowSamples, "queue", mutates=False),
    CommandSpec("cancel", Cancel, "control", mutates=False),
    CommandSpec("generate_report", GenerateReport, "queue", mutates=True),
    CommandSpec("export_subset", ExportSubset, "queue", mutates=True),
    CommandSpec("get_selected_region_indices", RegionIndices, "queue", mutates=False),
    CommandSpec("prepare_export", PrepareExport, "queue", mutates=False),
    CommandSpec("spill_all", SpillAll, "queue", mutates=False),
    CommandSpec("export_weights", ExportWeights, "queue", mutates=True),
    CommandSpec("export_session", ExportSession, "queue", mutates=True),
    CommandSpec("export_report", ExportReport, "queue", mutates=True),
    CommandSpec("propose_subsets", Anything, "queue", mutates=False),
    CommandSpec("dist_health", Health, "queue", mutates=False),
    CommandSpec("throughput_health", Health, "queue", mutates=False),
    CommandSpec("activations_health", Health, "queue", mutates=False),
    CommandSpec("numerics_health", Health, "queue", mutates=False),
    CommandSpec("determinism_health", Health, "queue", mutates=False),
)


# A connection's own business: handled where the connection is, also before there is a run.
ANSWERED_BY_CHANNEL: Final = frozenset(
    {"hello", "server_info", "ack", "resume_from", "enforce_version"}
)


# What a dashboard sends on for those who ask it; the rest is its own business with the trainer.
RELAYED: Final = frozenset(COMMANDS) - ANSWERED_BY_CHANNEL | {"server_info"}


@dataclasses.dataclass(frozen=True)
class EventSpec:
    """A row of ``EVENTS``.

    Attributes:
        journaled: carries ``event_seq``, is kept and replayed. The others belong to a connection.
        legacy: sent on a connection of the published extension.
        droppable: may be left out under pressure, with a ``gap`` that says how many.
    """

    name: str
    journaled: bool = True
    legacy: bool = True
    droppable: bool = False


EVENTS: Final[Mapping[str, EventSpec]] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            EventSpec("hello", journaled=False),
            EventSpec("accepted", journaled=False, legacy=False),
            EventSpec("gap", journaled=False, legacy=False),
            EventSpec("error", journaled=False),
            EventSpec("session_started"),
            EventSpec("newRun"),
            EventSpec("trainStep", droppable=True),
            EventSpec("epoch_end"),
            EventSpec("log"),
            EventSpec("paused"),
            EventSpec("resumed"),
            EventSpec("parked", legacy=False),
            EventSpec("stopping"),
            EventSpec("trainingFinished"),
            EventSpec("checkpoint_saved"),
            EventSpec("checkpoint_loaded"),
            EventSpec("testStep"),
            EventSpec("test_complete"),
            EventSpec("auto_test_complete"),
            EventSpec("runTransition"),
            EventSpec("finalizeRun"),
            EventSpec("artifact_created"),
            EventSpec("state"),
            EventSpec("param_changed"),
            EventSpec("note"),
            EventSpec("guard"),
            EventSpec("stall"),
            EventSpec("ranks", journaled=False, legacy=False),
            EventSpec("rank_state"),
            EventSpec("checkpoint_removed"),
            EventSpec("exactness"),
            EventSpec("progress", legacy=False, droppable=True),
        )
    }
)

# The host of the published extension uses these towards its page; an event of such a type acts
# there as if the host had said it.
RESERVED_EVENT_TYPES: Final = frozenset(
    {
        "status", "runs", "rows", "logs", "testNow", "testRows", "resetOk", "compatError",
        "compatClear", "subsetExported", "sessionSaved", "sessionLoaded", "reportData",
        "reportFromDb", "merge_gating", "warn", "modelNav.select", "fs.session.current",
        "fs.session.list", "distHealth", "throughputHealth", "activationsHealth",
        "numericsHealth", "determinismHealth",
    }
)  # fmt: skip

STATES: Final = (
    "starting", "running", "pausing", "paused", "testing", "validating",
    "finished", "interrupted", "failed",
)  # fmt: skip


class Request(msgspec.Struct, kw_only=True, frozen=True):
    """A command as it came; ``id`` None asks for no answer, ``who`` None is not known."""

    cmd: str
    id: str | None = None
    who: str | None = None
    payload: msgspec.Raw = msgspec.Raw(b"{}")


# As msgspec words it: where a value is of the wrong type, and which one is missing.
_AT_FIELD: Final = re.compile(r"`\$\.([^`]+)`|missing required field `([^`]+)`")

_encoder = msgspec.json.Encoder()
_requests = msgspec.json.Decoder(Request)
_objects = msgspec.json.Decoder()


def encode(message: Mapping[str, Any]) -> bytes:
    """One line with its LF; any thread.

    Values that JSON does not know are made plain by ``sanitise``, so this never raises on user
    data. Non-finite floats become null.
    """
    try:
        return _encoder.encode(message) + b"\n"
    except Exception:  # noqa: BLE001 -- boundary: the user's objects may raise anything
        return _encoder.encode(sanitise(message)) + b"\n"


def decode_request(line: bytes) -> Request:
    """A line of the dashboard; any thread.

    Raises:
        RemoteProtocolError: no JSON object with a string ``cmd``.
    """
    try:
        return _requests.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = (
            f"a line of {len(line):,} bytes is no request ({error}); "
            'allowed: one JSON object {"id", "cmd", "payload"} with a string cmd'
        )
        raise RemoteProtocolError(msg) from error


def decode_message(line: bytes) -> dict[str, Any]:
    """A line of the trainer (reply or event) as a dict; any thread.

    Raises:
        RemoteProtocolError: no JSON object.
    """
    try:
        message = _objects.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = f"a line of {len(line):,} bytes is no JSON ({error}); allowed: one JSON object"
        raise RemoteProtocolError(msg) from error
    if not isinstance(message, dict):
        msg = f"a line holds {type(message).__name__}; allowed: one JSON object"
        raise RemoteProtocolError(msg)
    return message


def decode_payload(request: Request) -> Payload:
    """The typed payload of a request; any thread.

    Raises:
        CommandError: ``unknown_command`` with the known ones, or ``bad_payload``.
    """
    spec = COMMANDS.get(request.cmd)
    if spec is None:
        known = sorted(COMMANDS)
        detail = f"{request.cmd[:60]!r} was asked; there are {', '.join(known)}."
        raise CommandError(ErrorCode.UNKNOWN_COMMAND, detail, field="cmd", allowed=known)
    raw = b"{}" if bytes(request.payload) == b"null" else request.payload
    try:
        return msgspec.json.decode(raw, type=spec.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        detail = f"The payload of {request.cmd} does not fit: {error}."
        place = _AT_FIELD.search(str(error))
        field = place[1] or place[2] if place is not None else None
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field=field) from error


def reply_ok(request_id: str, data: Any) -> bytes:
    """The line that says applied."""
    return encode({"id": request_id, "ok": True, "data": data})


def reply_error(request_id: str, error: CommandError, *, legacy: bool) -> bytes:
    """The line that says refused.

    On a legacy connection ``error`` is the sentence, since that host shows nothing else.
    """
    said = error.to_wire()
    if legacy:
        said["error"] = error.detail
    return encode({"id": request_id, "ok": False, **said})


class LineSplitter:
    """Bytes to lines; the rest of a line waits for the next bytes.

    A line over ``max_bytes`` is skipped to its LF and reported once, so that a peer cannot make
    the run hold what it sends.
    """

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._held = bytearray()
        self._skipped = 0

    def feed(self, data: bytes) -> Iterable[bytes | RemoteProtocolError]:
        """Whole lines without their LF, blank ones left out; an error for each one too long."""
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._add(piece)
            if self._skipped:
                yield self._too_long()
            elif line := bytes(self._held).strip():
                yield line
            self._held, self._skipped = bytearray(), 0
        self._add(rest)

    def _add(self, piece: bytes) -> None:
        if self._skipped or len(self._held) + len(piece) > self._max_bytes:
            self._skipped += len(self._held) + len(piece)
            self._held = bytearray()
        else:
            self._held += piece

    def _too_long(self) -> RemoteProtocolError:
        msg = (
            f"A line of {self._skipped:,} bytes was skipped; at most {self._max_bytes:,} are read."
        )
        return RemoteProtocolError(msg)


def run_name_problem(name: str) -> str | None:
    """Why a name is no run name, or None. 1-120 of letters, digits, ``._#-``, no leading dot."""
    ok = all(c.isascii() and (c.isalnum() or c in "._#-") for c in name)
    if ok and 0 < len(name) <= 120 and not name.startswith("."):
        return None
    return (
        f"{name[:60]!r} is no run name; allowed: 1-120 of letters, digits and ._#-, no leading dot"
    )


def automatic_names(prefix: str) -> Iterable[str]:
    """``prefix``, ``prefix-2``, ``prefix-3`` …"""
    return itertools.chain((prefix,), (f"{prefix}-{n}" for n in itertools.count(2)))
