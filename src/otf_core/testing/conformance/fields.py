"""What events carry, as docs/protocol.md has it; a test of the house compares the two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_NUMBER: Final = (int, float, type(None))

TRAIN_STEP: Final[Mapping[str, tuple[type, ...]]] = {
    "step": (int,),
    "global_step": (int,),
    "epoch": (int,),
    "loss": _NUMBER,
    "val_loss": _NUMBER,
    "accuracy": _NUMBER,
    "lr": _NUMBER,
    "lrs": (list,),
    "grad_norm": _NUMBER,
    "weight_norm": _NUMBER,
    "activation_zero_frac": _NUMBER,
    "throughput": _NUMBER,
    "batches_per_s": _NUMBER,
    "data_wait_frac": _NUMBER,
    "mem_vram": _NUMBER,
    "gpu_util": _NUMBER,
    "ram_mb": _NUMBER,
    "metrics": (dict,),
}

STAMPS: Final = frozenset({"type", "run_id", "run_gen", "session_id", "event_seq", "ts"})

# Those that a run of one process sends, without the stamps; a "?" may be missing.
EVENT_FIELDS: Final[Mapping[str, str]] = {
    "session_started": "project run_name version run_dir",
    "newRun": "parents project run_name meta",
    "runTransition": "from to prev_step",
    "artifact_created": "path rows?",
    "progress": "request_id cmd done total eta_s found?",
    "finalizeRun": "next_run last_step",
    "trainStep": " ".join(TRAIN_STEP),
    "epoch_end": "epoch val_loss",
    "log": "level phase text",
    "paused": "step request ckpt",
    "resumed": "step",
    "parked": "parked step moved_bytes freed_bytes seconds request_id",
    "stopping": "step",
    "trainingFinished": "status step error?",
    "checkpoint_saved": "path step id kind bytes exact",
    "checkpoint_loaded": "path step id from_step?",
    "testStep": "step loss?",
    "test_complete": (
        "status avg_loss? step label ckpt_path env_test_label source metrics seconds"
    ),
    "auto_test_complete": (
        "status avg_loss? step label ckpt_path env_test_label source metrics seconds"
    ),
    "state": "state previous step epoch reason request_id",
    "stall": "step seconds limit_s where stack over ranks? unheard? flight?",
    "rank_state": "rank state seconds exit_code why step checkpoint resume",
    "param_changed": (
        "id path old new mode until step epoch applied_step who by cause cmd request_id undone_by"
    ),
    "note": "note_id step text removed?",
    "guard": (
        "rule step metric value bound action did request_id requests at_step budget_left text"
    ),
    "checkpoint_removed": "id path step kind reason",
    "exactness": "exact text reasons",
}


def missing_or_strange(event: Mapping[str, Any]) -> set[str]:
    """Fields that an event should have and has not, or has and should not."""
    words = EVENT_FIELDS[event["type"]].split()
    always = {word for word in words if not word.endswith("?")}
    optional = {word.rstrip("?") for word in words} - always
    there = event.keys() - STAMPS
    return (always - there) | (there - always - optional)
