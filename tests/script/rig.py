"""Runs scripts, with and without otf, quickly: each in a process of its own that has torch."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from otf_core.testing import FakeDashboard, LoopbackListener

SHAPES = Path(__file__).parent / "shapes"
ROOT = Path(__file__).parents[2]
PATIENCE_S = 50.0


def environment(tmp: Path, **more: str) -> dict[str, str]:
    """That of a script under test: nothing of this machine's."""
    found = {k: v for k, v in os.environ.items() if not k.startswith(("OTF_", "ONTHEFLY"))}
    path = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **found,
        "XDG_RUNTIME_DIR": str(tmp),
        "OTF_DASHBOARD": "off",
        "OTF_LEGACY": "off",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path),
        **more,
    }


@dataclasses.dataclass
class Ran:
    """One run of a script that is over.

    Attributes:
        digest: what the script wrote of its weights and random numbers; None if it did not.
    """

    code: int
    stdout: bytes
    stderr: str
    folder: Path
    digest: dict[str, str] | None

    @property
    def said(self) -> list[str]:
        """Our lines on stderr; a progress bar leaves its line unfinished."""
        return re.findall(r"otf: .*", self.stderr)

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Of the journals, in order."""
        lines = [
            json.loads(line)
            for path in sorted(self.folder.glob("otf_runs/*/*/journal/*.jsonl"))
            for line in path.read_text().splitlines()
        ]
        return [event for event in lines if kind is None or event["type"] == kind]

    def steps(self) -> list[int]:
        """Of all ``trainStep``."""
        return [event["step"] for event in self.events("trainStep")]


class Zygote:
    """The process that forks the others."""

    def __init__(self, tmp: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(tmp),
        )
        assert self._read() == "ready"

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the zygote has died"
        return json.loads(line)

    def start(
        self,
        mode: str,
        argv: list[str],
        folder: Path,
        env: Mapping[str, str] | None = None,
    ) -> Running:
        """Begin to run a script in a folder of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        asked = {
            "mode": mode,
            "argv": argv,
            "cwd": str(folder),
            "env": dict(env or {}),
            "stdout": str(folder / "stdout"),
            "stderr": str(folder / "stderr"),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Running(self._read()["pid"], folder, self)

    def ended(self) -> int:
        """The exit status of what was started last."""
        status: int = self._read()["status"]
        return status

    def run(
        self,
        mode: str,
        argv: list[str],
        folder: Path,
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        """Run a script to its end."""
        return self.start(mode, argv, folder, env).wait()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()


@dataclasses.dataclass
class Running:
    """A script under way."""

    pid: int
    folder: Path
    zygote: Zygote
    code: int | None = None

    def wait(self) -> Ran:
        """Until it is over."""
        if self.code is None:
            self.code = self.zygote.ended()
        return ran(self.code, self.folder)

    def kill(self) -> None:
        """If it is not over yet."""
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            self.code = self.zygote.ended()


def ran(code: int, folder: Path) -> Ran:
    """What a run has left in its folder."""
    digest = folder / "digest.json"
    return Ran(
        code,
        (folder / "stdout").read_bytes(),
        (folder / "stderr").read_text(),
        folder,
        json.loads(digest.read_text()) if digest.exists() else None,
    )


def shape(name: str) -> list[str]:
    """The command of a script in ``shapes``, run in a folder of its own."""
    return [str(SHAPES / f"{name}.py"), "digest.json"]


@contextmanager
def controlled(
    zygote: Zygote,
    argv: list[str],
    folder: Path,
    *options: str,
    env: Mapping[str, str] | None = None,
) -> Iterator[tuple[Running, FakeDashboard]]:
    """A script that holds at its first safe point, and a dashboard that has said hello."""
    with LoopbackListener(legacy_allowed=False) as listener:
        ours = ["--dashboard", f"127.0.0.1:{listener.port}", "--pause-at-start", *options]
        running = zygote.start(
            "otf-fit", [*ours, *argv], folder, {"OTF_DASHBOARD": "", **(env or {})}
        )
        with FakeDashboard.on(listener, patience_s=PATIENCE_S) as dashboard:
            session = dashboard.expect("hello")["session_id"]
            dashboard.hello(session_id=session, last_seq=0)
            try:
                yield running, dashboard
            finally:
                running.kill()
