"""Run folders as a process leaves them, made by hand; no torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec

from otf_core.state.manifest import Manifest, write_manifest
from otf_core.state.run_folder import RunRecord, write_record


def run_folder(
    project_dir: Path,
    run_id: str,
    *,
    checkpoints: dict[str, bytes] | None = None,
    events: list[dict[str, Any]] | None = None,
    **record: Any,
) -> Path:
    """A run, with checkpoints by their id and one session's journal."""
    folder = project_dir / run_id
    (folder / "checkpoints").mkdir(parents=True)
    for n, (name, data) in enumerate((checkpoints or {}).items()):
        step, kind = name.split("-")[:2]
        manifest = Manifest(
            id=name, run_id=run_id, step=int(step), epoch=0, ts=100.0 + n, kind=kind, exact=True,
            bytes=len(data), sha256=hashlib.sha256(data).hexdigest(),
        )  # fmt: skip
        (folder / "checkpoints" / f"{name}.ckpt").write_bytes(data)
        write_manifest(folder / "checkpoints", manifest)
    session = f"sess-{run_id}"
    if events is not None:
        (folder / "journal").mkdir()
        lines = (msgspec.json.encode({"session_id": session, **each}) for each in events)
        (folder / "journal" / f"{session}.jsonl").write_bytes(b"".join(b"%b\n" % x for x in lines))
    given = {"run_name": "digits", "project": project_dir.name, "session_ids": [session]}
    write_record(folder, RunRecord(**{"run_id": run_id, **given, "started_ts": 50.0, **record}))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """All that lies below, but for locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def record_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_bytes())
    return found
