"""The commands of the VS Code extension, one after the other, over its own connection; what each
is answered is a row of ``legacy_commands.jsonl``.

``python -m tests.protocol.legacy`` writes the table anew, from the answers of a Lightning fit.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from otf_core.testing import LegacyDashboard, LoopbackListener
from tests.plugin.rig import PATIENCE_S
from tests.runs.fits import legacy_fit

TABLE = Path(__file__).with_name("legacy_commands.jsonl")
STAMPS = {"type", "run_id", "run_gen", "session_id", "event_seq", "ts"}
FORM = {"lr": 0.001, "batch_size": 32, "patience": 5}
OF_RUN = {"parent_run_id": "$run", "owner_run_id": "$run", "runId": "$run"}
BACK = {"run_id": "$run", "init_ckpt": "$ckpt", "init_step": "$step",
        "fork_counter_init": 0, "merge_counter_init": 0}  # fmt: skip
WORST = {"kind": "quantile", "metric": "per_sample_loss", "from": 0.9, "to": 1.0}
CLUSTERS = {"kind": "kmeans", "k": 4, "target_clusters": [0, 2], "feature": "loss"}
INDICES = {"kind": "indices", "ids": [*range(40)]}
MOVED = ("runTransition", "finalizeRun", "checkpoint_loaded")
FORKED = ("runTransition", "finalizeRun", "newRun", "log", "checkpoint_saved")

# Name of the row, payload, and the events that belong to the answer. What stands before the dot is
# the command. ``$run``, ``$ckpt`` … are of the run at hand.
ASKED: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("server_info", {}, ()),
    ("pause", {}, ("state", "paused", "checkpoint_saved")),
    ("pause.again", {}, ()),
    ("clean_disk", {"scope": "all"}, ()),
    ("set_counter_seeds", {"fork_counter_init": 2, "merge_counter_init": 1}, ()),
    ("save_ckpt", {}, ()),
    ("attach_context", {**BACK, "fork_counter_init": 2, "merge_counter_init": 1}, ()),
    ("test_now", {"label": "final"}, ("state", "testStep", "test_complete")),
    ("test", {"label": "manual", "source": "manual"}, ("testStep", "test_complete")),
    ("generate_report", {"owner_run_id": "$run", "subset_on": "train", "reqId": 1}, ()),
    (
        "generate_report.of_some",
        {"owner_run_id": "$run", "subset_indices": [5, 3], "subset_on": "train", "reqId": 2},
        (),
    ),
    (
        "get_selected_region_indices",
        {"run_id": "$run", "min_loss": 0.1, "max_loss": 99.0},
        (),
    ),
    (
        "export_subset",
        {"run_id": "$run", "format": "csv", "out_path": "$out", "subset_indices": [1, 2],
         "_trace": "t"},
        ("artifact_created",),
    ),
    ("dist_health", {"require_all_ranks": False, "sample_weights": 0}, ()),
    ("throughput_health", {"budget_steps": 2, "micro_backward": False}, ()),
    ("activations_health", {"budget_steps": 2, "topk": 12, "eps": 0.001}, ()),
    ("numerics_health", {"sample_layers": 25}, ()),
    ("determinism_health", {}, ()),
    (
        "fork.region",
        {**OF_RUN, "region": {"minLoss": 0.1, "maxLoss": 99.0}, "hparams": FORM, "mode": "manual",
         "allow_when_paused": True},
        FORKED,
    ),
    ("switch_run", BACK, MOVED),
    ("fork.kmeans", {**OF_RUN, "selection": CLUSTERS, "hparams": FORM}, FORKED),
    ("switch_run.back", BACK, MOVED),
    ("fork.quantile", {**OF_RUN, "selection": WORST, "hparams": FORM, "run_name": "hard"}, FORKED),
    ("switch_run.once_more", BACK, MOVED),
    (
        "fork.from_a_checkpoint",
        {**OF_RUN, "selection": INDICES, "parent_ckpt_path": "$ckpt",
         "hparams": {**FORM, "lr": 0.004, "lr_mul": 0.5}},
        (*FORKED, "param_changed"),
    ),
    ("fork.empty", {**OF_RUN, "region": {"minLoss": 98.0, "maxLoss": 99.0}, "hparams": FORM}, ()),
    ("switch_run.nobody", {"run_id": "nobody", "fork_counter_init": 0, "merge_counter_init": 0},
     ()),
    ("merge", {"parents": ["$run", "hard"], "strategy": "swa"},
     ("runTransition", "finalizeRun", "newRun", "checkpoint_saved")),
    ("prepare_export", {"dir": "spill", "latest_only": True, "owners": ["$run", "hard"]}, ()),
    ("spill_all", {"dir": "spill", "latest_only": True}, ()),
    ("propose_subsets", {}, ()),
    ("load_ckpt", {"path": "$ckpt"}, ("checkpoint_loaded",)),
    ("reset_session", {"reason": "manual"}, ("session_started", "newRun", "log")),
    ("enforce_version", {"message": "too old", "required": "0.1.4", "reported": "0.1.3"}, ()),
    ("resume", {}, ("state", "resumed")),
    ("stop", {}, ("stopping", "trainingFinished")),
)  # fmt: skip
HELD = {"pause": 4, "stop": 8}  # asked within a batch


# What that host reads of an answer, with its type; the rest of a row is ours.
ROWS = {"ckpt_id": "str", "owner": "str", "path": "str", "step": "int"}
HEALTHY = {"ok": "bool", "text": "str"}
CHILD = {"new_run": "str", "subset_indices": ["int"]}
BOUND = {
    "ok": "bool",
    "run_id": "str",
    "paused": "bool",
    "ckpt_loaded": "bool",
    "ckpt_path": "str",
    "step": "int",
    "fork_counter_seed": "int",
    "merge_counter_seed": "int",
}
TESTED = {
    "status": "str",
    "avg_loss": "float",
    "ckpt_path": "str",
    "session_id": "str",
    "run_id": "str",
    "step": "int",
    "label": "str",
    "env_test_label": "str",
}
LOSSES = {
    "losses": ["float"],
    "sample_indices": ["int"],
    "owner_run_id": "str",
    "reqId": "int",
    "meta": {"at_step": "int", "at_epoch": "int", "note": "str"},
}
REQUIRED: dict[str, Any] = {
    "server_info": {"version": "str", "capabilities": ["str"], "device": "str"},
    "enforce_version": {"status": "str", "message": "str"},
    "set_counter_seeds": {"ok": "bool", "fork_counter_seed": "int", "merge_counter_seed": "int",
                          "seed_gen": "int"},
    "attach_context": BOUND,
    "switch_run": BOUND,
    "pause": {"status": "str", "step": "int", "ckpt": "str"},
    "resume": {"status": "str", "step": "int"},
    "save_ckpt": {"path": "str", "step": "int"},
    "test_now": TESTED,
    "test": TESTED,
    "fork": {**CHILD, "child_id": "str", "run_id": "str"},
    "merge": {"new_run": "str", "subset_indices": [], "parents": ["str"], "strategy": "str",
              "paths": ["str"]},
    "generate_report": LOSSES,
    "export_subset": {"ok": "bool", "run_id": "str", "out_path": "str", "rows": "int",
                      "format": "str", "received_indices": "int", "export_all": "bool"},
    "get_selected_region_indices": {"indices": ["int"]},
    "prepare_export": {"ckpt": {"path": "str", "run": "str", "step": "int"}, "snapshots": [ROWS]},
    "spill_all": [ROWS],
    "reset_session": {"ok": "bool", "run_id": "str", "display_name": "str", "project": "str",
                      "session_id": "str"},
    "clean_disk": {"ok": "bool", "removed": [], "root": "str", "failed": []},
    "dist_health": HEALTHY,
    "throughput_health": HEALTHY,
    "activations_health": HEALTHY,
    "numerics_health": HEALTHY,
    "determinism_health": HEALTHY,
    "stop": {"status": "str"},
    "load_ckpt": {"path": "str", "step": "int", "epoch": "int"},
}  # fmt: skip


def command(name: str) -> str:
    """Of a row."""
    return name.partition(".")[0]


@contextlib.contextmanager
def hosted(side: str, save_dir: Path, *at: int) -> Iterator[tuple[LegacyDashboard, Any]]:
    """The extension, with a fit that is held in these batches."""
    with LoopbackListener() as listener, LegacyDashboard(listener) as host:
        there = {
            "ONTHEFLY_DASHBOARD_PORT": str(listener.port),
            "OTF_LEGACY": "",
            "XDG_RUNTIME_DIR": str(save_dir),  # no other dashboard of this machine
        }
        fit, barrier = legacy_fit(side, save_dir / "runs", *at)
        with contextlib.chdir(save_dir), mock.patch.dict(os.environ, there):
            fit.start()
            try:
                host.wait_for_event("session_started", run_id="r")
                host.wait_for(lambda: "clean_disk" in host.requests)
                yield host, barrier
            except BaseException:
                with contextlib.suppress(ConnectionError):
                    host.send("stop", {"save": False})  # else a held fit would never end
                raise
            finally:
                barrier.open()
                fit.wait()
        fit.outcome()


def answers(side: str, save_dir: Path) -> dict[str, dict[str, Any]]:
    """Row -> reply and the events that came with it, of one fit."""
    found: dict[str, dict[str, Any]] = {}
    known: dict[str, Any] = {"$run": "r", "$out": str(save_dir / "subset.csv")}
    with hosted(side, save_dir, *HELD.values()) as (host, barrier):
        for name, payload, events in ASKED:
            if name in HELD:
                barrier.wait_for(HELD[name])
            since = len(host.events)
            asked = host.send(command(name), _filled(payload, known))
            if name in HELD:
                host.ask("ping")  # behind which the other one is heard
                barrier.let_go(HELD[name])
            host.wait_for(lambda: asked in host.replies, PATIENCE_S)  # noqa: B023 -- it is over here
            reply = {k: v for k, v in host.replies[asked].items() if k != "id"}
            told: dict[str, Any] = {}
            for kind in events:
                host.wait_for(lambda: _has(host, since, kind), PATIENCE_S)  # noqa: B023 -- as above
                told[kind] = next(e for e in host.events[since:] if e.get("type") == kind)
            found[name] = {"reply": reply, "events": told}
            if name == "save_ckpt":
                known |= {"$ckpt": reply["data"]["path"], "$step": reply["data"]["step"]}
    return found


def _has(host: LegacyDashboard, since: int, kind: str) -> bool:
    return any(e.get("type") == kind for e in host.events[since:])


def _filled(value: Any, known: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(v, known) for key, v in value.items()}
    if isinstance(value, list):
        return [_filled(v, known) for v in value]
    return known.get(value, value) if isinstance(value, str) else value


def shape(value: Any) -> Any:
    """What two answers have in common that say the same of another run: keys and types."""
    if isinstance(value, dict):
        return {key: shape(v) for key, v in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def alike(one: Any, other: Any) -> bool:
    """Whether two shapes are the same, as far as lists that are empty tell."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(v, other[k]) for k, v in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return not (one and other) or alike(one[0], other[0])
    return bool(one == other)


def lacks(found: Any, required: Any) -> bool:
    """Whether a shape is without something of another."""
    if isinstance(required, dict) and isinstance(found, dict):
        return any(key not in found or lacks(found[key], v) for key, v in required.items())
    if required and isinstance(required, list) and isinstance(found, list):
        return not found or lacks(found[0], required[0])
    return bool(found != required)


def example(value: Any, folder: str) -> Any:
    """A short one, that names no place on a disk."""
    if isinstance(value, dict):
        return {key: example(v, folder) for key, v in value.items()}
    if isinstance(value, list):
        return [example(v, folder) for v in value[:2]]
    if isinstance(value, float):
        return round(value, 4)
    if not isinstance(value, str):
        return value
    return value.replace(f"{folder}/runs", "otf_runs").replace(f"{folder}/", "")


def rows() -> dict[str, dict[str, Any]]:
    """The table, by name."""
    lines = TABLE.read_text().splitlines()
    return {row["name"]: row for row in map(json.loads, lines)}


def write() -> None:
    """Anew."""
    with tempfile.TemporaryDirectory() as folder:
        found = answers("Lightning", Path(folder))
        lines = []
        for name, payload, _ in ASKED:
            row = {"name": name, "payload": payload, **example(found[name], folder)}
            lines.append(json.dumps(row))
    TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    write()
