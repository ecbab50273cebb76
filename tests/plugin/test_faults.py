"""Bad input, full disks, many commands, forked workers, two ranks: the run trains on."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from otf_core.telemetry import stalls
from otf_lightning import OnTheFlyCallback
from tests.conftest import open_files
from tests.no_harm import digest
from tests.no_harm.configs import Augmented, Net, _fit, _trainer, _val
from tests.plugin.rig import Barrier, fitting

GARBAGE = [
    b"not json\n",
    b"\x00\xff\xfe\x80 binary \n",
    b"[1,2]\nnull\n42\n",
    b'{"id":"w1","cmd":7}\n',
    b'{"id":"w2","cmd":"set_param","payload":{"path":["lr"],"value":{}}}\n',
    b'{"id":"w3","cmd":"set_param","payload":{"path":"lr"}}\n',
    b'{"id":"w4","cmd":"set_param","payload":{"path":"lr","value":-1}}\n',
    b'{"id":"w5","cmd":"no_such_thing"}\n',
    b'{"id":"w6","cmd":"pause","payload":{"at_step":"soon"}}\n',
    b'{"id":"w7","cmd":"list_checkpoints","payload":{"run_id":"nobody"}}\n',
    b'{"id":"half", "cmd":',  # the rest comes in the next piece
    b'"ping"}\n',
]


def test_garbage_is_answered_and_changes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = digest.of(_fit([]))
    barrier = Barrier(3)
    torch.manual_seed(3)
    with fitting(_fit, tmp_path, barrier) as fit:
        dashboard = fit.dashboard
        barrier.wait_for(3)
        for piece in GARBAGE:
            dashboard.send_bytes(piece)
        dashboard.send_bytes(b"x" * (17 * 1024 * 1024) + b"\n")
        too_long = dashboard.expect("error", code="bad_payload")
        assert dashboard.request("ping")["ok"]
        barrier.open()
        codes = {n: dashboard.reply_to(f"w{n}")["code"] for n in (2, 3, 4, 5, 6, 7)}
        assert dashboard.reply_to("half")["ok"]
        found = digest.of(fit.outcome())
        texts = [m["text"] for m in dashboard.messages if m.get("type") == "error"]
    assert codes == {
        2: "bad_payload", 3: "bad_payload", 4: "bad_payload", 5: "unknown_command",
        6: "bad_payload", 7: "not_found",
    }  # fmt: skip
    assert too_long["request_id"] is None
    assert any("17,825,792 bytes was skipped; at most 16,777,216" in text for text in texts)
    for part, value in expected.items():
        assert found[part] == value, part


def test_1500_commands_at_once_have_one_answer_each(tmp_path: Path) -> None:
    barrier = Barrier(3)
    with fitting(_fit, tmp_path, barrier) as fit:
        dashboard = fit.dashboard
        barrier.wait_for(3)
        lines = [
            json.dumps({"id": f"n{n}", "cmd": "note", "payload": {"text": f"note {n}"}})
            for n in range(1500)
        ]
        dashboard.send_bytes(("\n".join(lines) + "\n").encode())
        assert dashboard.request("ping")["ok"]  # the control lane, however full the queue is
        barrier.open()
        replies = [dashboard.reply_to(f"n{n}") for n in range(1500)]
        fit.outcome()
        answers = [m["id"] for m in dashboard.messages if str(m.get("id", "")).startswith("n")]
    assert sorted(answers) == sorted(f"n{n}" for n in range(1500))
    assert [r["ok"] for r in replies] == [True] * 1000 + [False] * 500
    assert {r["code"] for r in replies[1000:]} == {"busy"}
    assert all(r["retry_after_s"] > 0 for r in replies[1000:])


def test_a_folder_that_cannot_be_written_costs_the_files_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    in_its_place = tmp_path / "runs"
    in_its_place.write_text("a file")
    barrier = Barrier(3)
    with fitting(_fit, in_its_place, barrier) as fit:
        barrier.wait_for(3)
        saving = fit.dashboard.send("save_ckpt")
        pausing = fit.dashboard.send("pause")
        barrier.open()
        refused = fit.dashboard.reply_to(saving)
        paused = fit.dashboard.reply_to(pausing)
        assert fit.dashboard.request("resume")["ok"]
        trainer = fit.outcome()
        seqs = fit.dashboard.seqs()
    assert trainer.global_step == 24
    assert refused["code"] == "not_allowed_now"
    assert paused["ok"]
    assert paused["data"]["ckpt"] is None
    assert seqs == list(range(1, len(seqs) + 1))
    said = [line for line in capfd.readouterr().err.splitlines() if "no run folder" in line]
    assert len(said) == 1


def test_a_full_disk_is_said_once_and_the_run_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    barrier = Barrier(3)
    write = os.write

    def full(descriptor: int, data: Any) -> int:
        if threading.current_thread().name == "otf-journal" and full_now.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    full_now = threading.Event()
    monkeypatch.setattr(os, "write", full)
    with fitting(_fit, tmp_path, barrier) as fit:
        barrier.wait_for(3)
        full_now.set()
        barrier.open()
        trainer = fit.outcome()
        steps = [e["step"] for e in fit.dashboard.events() if e["type"] == "trainStep"]
    assert trainer.global_step == 24
    assert steps == list(range(1, 25))
    said = [line for line in capfd.readouterr().err.splitlines() if "No space left" in line]
    assert len(said) == 1, said


class Nosy(Augmented):
    """Looks at what its worker has inherited."""

    def __init__(self, folder: Path) -> None:
        super().__init__(64)
        self._folder = folder

    def __getitem__(self, i: int) -> Any:
        seen = {
            "pid": os.getpid(),
            "threads": sorted(t.name for t in threading.enumerate()),
            "files": list(open_files().values()),
        }
        (self._folder / f"{os.getpid()}.json").write_text(json.dumps(seen))
        return super().__getitem__(i)


def test_forked_workers_inherit_no_socket_no_journal_no_thread(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    ours: list[str] = []
    barrier = Barrier(2)

    def run(callbacks: list[Any]) -> Any:
        trainer = _trainer(callbacks, max_epochs=3)
        trainer.fit(Net(), DataLoader(Nosy(seen), 16, num_workers=2), _val())
        return trainer

    with fitting(run, tmp_path / "runs", barrier) as fit:
        barrier.wait_for(2)
        journals = [str(p) for p in (tmp_path / "runs").glob("*/*/journal/*.jsonl")]
        ours = [os.readlink(f"/proc/self/fd/{fd}") for fd in _sockets_of(fit.dashboard)]
        barrier.open()
        fit.outcome()
        assert fit.dashboard.events()[-1]["type"] == "trainingFinished"
    assert journals
    workers = [json.loads(path.read_text()) for path in seen.glob("*.json")]
    workers = [w for w in workers if w["pid"] != os.getpid()]
    assert len(workers) >= 2
    # Those of the second epoch were forked while the dashboard was connected.
    for worker in workers:
        assert not set(worker["files"]) & set(journals)
        assert not [name for name in worker["threads"] if name.startswith("otf-")]
    trainers = [set(w["files"]) & set(ours) for w in workers]
    assert not any(trainers)


def _sockets_of(dashboard: Any) -> list[int]:
    """Descriptors of the trainer's end: the socket whose peer the dashboard's end is."""
    import socket

    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(fd))) as copy:
                if f"{copy.getsockname()[0]}:{copy.getsockname()[1]}" == dashboard.transport.name:
                    found.append(int(fd))
        except (OSError, IndexError, ValueError):
            continue
    assert found, "the trainer's socket was not found"
    return found


RANKS = """
import sys
import torch
torch.set_num_threads(1)
from otf_lightning import OnTheFlyCallback
from tests.no_harm.configs import Net, _trainer, _train, _val

trainer = _trainer(
    [OnTheFlyCallback("p", "ranks", save_dir=sys.argv[1], dashboard=sys.argv[2])],
    strategy="ddp", devices=2, max_epochs=3,
)
trainer.fit(Net(), _train(), _val())
"""


@pytest.mark.timeout(150)
def test_with_two_ranks_rank_0_reports(tmp_path: Path) -> None:
    from otf_core.testing import FakeDashboard, LoopbackListener

    with LoopbackListener(legacy_allowed=False) as listener:
        address = f"127.0.0.1:{listener.port}"
        script = tmp_path / "ranks.py"
        script.write_text(RANKS)
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), address],
            env=env,
            stderr=subprocess.DEVNULL,
        )
        try:
            with FakeDashboard(listener.accept(90.0), patience_s=60.0) as dashboard:
                dashboard.hello(session_id=dashboard.expect("hello")["session_id"], last_seq=0)
                assert dashboard.request("status")["data"]["world_size"] == 2
                dashboard.expect("trainingFinished", status="completed")
                steps = [e["step"] for e in dashboard.events() if e["type"] == "trainStep"]
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
    assert steps == list(range(1, len(steps) + 1))
    assert len(list(tmp_path.glob("p/*/run.json"))) == 1


def test_nothing_of_ours_stays_on_the_trainer(tmp_path: Path) -> None:
    trainer = _fit([OnTheFlyCallback(save_dir=tmp_path, dashboard="off")])
    loops = (trainer, trainer.fit_loop, trainer.fit_loop.epoch_loop, trainer.strategy)
    assert not [name for loop in loops for name in vars(loop) if name in ("advance", "fit")]
    assert not any(
        getattr(value, "__module__", "").startswith("otf_")
        for loop in loops
        for value in vars(loop).values()
        if callable(value)
    )


def test_a_batch_that_does_not_end_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("LOOK_S", 0.02), ("LIMIT_S", 0.1), ("FIRST_LIMIT_S", 0.1)):
        monkeypatch.setattr(stalls, name, seconds)
    monkeypatch.setattr(stalls, "SLOW", 0)
    barrier = Barrier(5)
    with fitting(lambda callbacks: _fit(callbacks, Net()), tmp_path, barrier) as fit:
        barrier.wait_for(5)
        stall = fit.dashboard.expect("stall", over=False, step=5)
        assert stall["where"].startswith("rig.py:")
        assert stall["where"].endswith(" in on_train_batch_start")
        assert any("training_epoch_loop.py" in line for line in stall["stack"])
        barrier.let_go(5)
        fit.dashboard.expect("stall", over=True, where=None)
