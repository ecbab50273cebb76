"""``otf doctor``: what otf needs, what is there, and what runs promise. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from otf_core import extras, rendezvous
from otf_core.client import Client, ClientError
from otf_core.client.sentences import exactness_sentence

State = Literal["ok", "note", "bad"]
NEEDED: Final = ("otf-lightning", "msgspec", "torch", "lightning", "rich", "psutil", "nvidia-ml-py")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check: ``note`` is worth knowing, ``bad`` keeps something from working."""

    name: str
    state: State
    said: str
    reasons: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def examine(folder: Path) -> list[Finding]:
    """All checks; main thread, a second at most."""
    return [
        _python(),
        *_versions(),
        *_rendezvous(),
        *_dashboard(),
        _legacy_port(),
        _run_folder(folder),
        _gpu(),
        _page(),
    ]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):  # noqa: UP036 -- a doctor looks at the patient
        return Finding("Python", "bad", f"{version}; at least 3.11 is needed")
    return Finding("Python", "ok", f"{version} at {sys.executable}")


def _versions() -> Iterator[Finding]:
    for name in NEEDED:
        try:
            yield Finding(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "bad", "not installed: pip install otf-lightning")
    for extra in extras.EXTRAS:
        lacks = extras.lacking("it", extra)
        yield Finding(f"extra {extra}", "ok" if lacks is None else "note", lacks or "installed")


def _rendezvous() -> Iterator[Finding]:
    path = rendezvous.path()
    if not path.exists():
        yield Finding("rendezvous", "note", f"no file at {path}: no dashboard has been started")
        return
    found = rendezvous.find()
    if found is None:
        said = f"{path} is not believed: its process is gone, or others may read or write it"
        yield Finding("rendezvous", "note", said)
        return
    yield Finding("rendezvous", "ok", f"{path}: pid {found.pid}, {found.url}")
    try:
        socket.create_connection((found.host, found.port), timeout=1.0).close()
    except OSError as error:
        said = f"{found.host}:{found.port} takes no trainers ({error})"
        yield Finding("control port", "bad", said)
    else:
        yield Finding("control port", "ok", f"{found.host}:{found.port} takes trainers")


def _dashboard() -> Iterator[Finding]:
    try:
        client = Client.from_rendezvous(timeout_s=2.0)
        live = client.live_sessions()
        yield Finding("dashboard", "ok", f"{client.url} answers; {len(live)} live runs")
        for session in live:
            yield _exactness_of_session(client, session)
    except ClientError as error:
        yield Finding("dashboard", "note", str(error))


def _exactness_of_session(client: Client, session: Mapping[str, Any]) -> Finding:
    """What a live run promises; the reasons are in the last event of that kind, if it came."""
    name = f"exactness of {session['run_name'] or session['run_id']}"
    told = client.events(session["session_id"], types=["exactness"])
    last = told[-1] if told else {}
    return _exactness(name, session.get("exactness") or last.get("text"), last)


def _exactness(name: str, text: Any, report: Mapping[str, Any]) -> Finding:
    said = text if isinstance(text, str) else None
    listed = report.get("reasons")
    reasons = tuple(map(str, listed)) if isinstance(listed, list) else ()
    is_exact = report.get("exact") is True or (said or "").strip().lower() == "exact"
    return Finding(name, "ok" if is_exact else "note", exactness_sentence(said), reasons)


def examine_run(path: Path) -> Finding:
    """What the run of a folder promises, as its ``run.json`` says; a file in the folder will do."""
    name = f"exactness of {path.name}"
    places = [path, path.parent, path.parent.parent]
    record = next((p / "run.json" for p in places if (p / "run.json").is_file()), None)
    if record is None:
        return Finding(name, "bad", f"{path} is no run folder: no run.json is there")
    name = f"exactness of {record.parent.name}"
    try:
        said = json.loads(record.read_bytes())
    except (OSError, ValueError) as error:
        return Finding(name, "bad", f"{record} cannot be read ({error})")
    report = said.get("exactness") if isinstance(said, dict) else None
    report = report if isinstance(report, dict) else {}
    return _exactness(name, report.get("text"), report)


def _legacy_port() -> Finding:
    port = os.environ.get("ONTHEFLY_DASHBOARD_PORT", str(rendezvous.LEGACY_PORT))
    try:
        socket.create_connection((rendezvous.LEGACY_HOST, int(port)), timeout=0.5).close()
    except (OSError, ValueError):
        return Finding("VS Code dashboard", "ok", f"none on port {port}")
    return Finding("VS Code dashboard", "note", f"one listens on port {port}; ours goes first")


def _run_folder(folder: Path) -> Finding:
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return Finding("run folder", "bad", f"{folder} cannot be written ({error})")
    free = os.statvfs(there)
    gigabytes = free.f_bavail * free.f_frsize / 1e9
    state: State = "ok" if gigabytes >= 1 else "note"
    return Finding("run folder", state, f"{folder} can be written; {gigabytes:.1f} GB free")


def _gpu() -> Finding:
    if importlib.util.find_spec("pynvml") is None:
        return Finding("GPU", "note", "nvidia-ml-py is not installed; GPU counters stay empty")
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Finding("GPU", "ok", f"none seen ({error}); training on the CPU is fine")
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        names = [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
    except pynvml.NVMLError as error:
        return Finding("GPU", "note", f"the driver answers with an error ({error})")
    finally:
        pynvml.nvmlShutdown()
    return Finding("GPU", "ok", ", ".join(names) or "none")


def _page() -> Finding:
    spec = importlib.util.find_spec("otf_core.dashboard")
    if spec is None or not spec.submodule_search_locations:
        return Finding("page", "bad", "otf_core.dashboard is not installed")
    index = Path(spec.submodule_search_locations[0]) / "web" / "dist" / "index.html"
    if index.is_file():
        return Finding("page", "ok", "built")
    return Finding("page", "note", "not built; in a checkout: make page")
