"""Every example does what it says, in a place of its own with nothing but the package."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from otf_core import rendezvous
from otf_core.protocol import decode_message

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def _read(notebook: Path) -> Any:
    return nbformat.reads(notebook.read_text(), as_version=4)  # type: ignore[no-untyped-call]


def _events(save_dir: Path) -> list[dict[str, Any]]:
    [journal] = save_dir.glob("*/*/journal/*.jsonl")
    return [decode_message(line) for line in journal.read_bytes().splitlines()]


@pytest.mark.timeout(120)
def test_the_script_trains_and_leaves_its_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "lightning_digits.py", "--epochs", "1", "--dashboard", "off"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"test accuracy 0\.\d+ after 40 steps\n", done.stdout)
    events = _events(tmp_path / "otf_runs")
    assert [e["step"] for e in events if e["type"] == "trainStep"] == list(range(1, 41))
    assert events[-1] | {"status": "completed", "step": 40} == events[-1]


@pytest.mark.timeout(120)
def test_a_script_without_a_trace_of_us_does_what_it_does_under_python(tmp_path: Path) -> None:
    script = [EXAMPLES / "plain_digits.py", "--epochs", "1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    python, otf_fit = (
        subprocess.run(
            [sys.executable, *options, *script],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=True,
            timeout=110,
        )
        for options in ((), ("-m", "otf_core.cli.otf_fit", "--dashboard", "off"))
    )
    assert otf_fit.stdout == python.stdout
    assert "accuracy 0." in python.stdout
    [found, *rest] = otf_fit.stderr.splitlines()
    assert found == (
        "otf: training found: Adam over 1 parameter group of Sequential as 'net', "
        "loader 1 of 3 ('train'), CosineAnnealingLR"
    )
    assert not rest
    events = _events(tmp_path / "otf_runs")
    assert [e["step"] for e in events if e["type"] == "trainStep"] == list(range(1, 41))
    assert events[-1] | {"status": "completed", "step": 40} == events[-1]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_what_it_printed(notebook: Path) -> None:
    cells = [cell for cell in _read(notebook).cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def _executed(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after_each: Callable[..., None] | None = None,
) -> Any:
    """The notebook with its outputs, run by this interpreter in a folder of its own."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    for variable, value in {
        "XDG_RUNTIME_DIR": str(runtime),
        "OMP_NUM_THREADS": "1",
        "OTF_LEGACY": "off",
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }.items():
        monkeypatch.setenv(variable, value)
    notebook = _read(EXAMPLES / name)
    client = nbclient.NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.on_cell_executed = after_each
    manager = client.create_kernel_manager()
    assert manager.kernel_spec is not None
    # This interpreter, whatever kernel the machine has under that name.
    manager.kernel_spec.argv[0] = sys.executable
    try:
        asyncio.run(client.async_execute())  # a loop that is closed afterwards
        assert not (runtime / "otf" / "dashboard.json").exists(), "the dashboard was not ended"
    finally:
        manager.context.destroy(linger=0)
        if (left := rendezvous.find(runtime / "otf" / "dashboard.json")) is not None:
            os.kill(left.pid, signal.SIGTERM)
    return notebook


def _printed(notebook: Any) -> str:
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    return "".join(out.text for out in outputs if out.output_type == "stream")


@pytest.mark.timeout(150)
def test_a_killed_run_draws_the_curve_that_it_would_have_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = _executed("02_kill_and_resume.ipynb", tmp_path, monkeypatch)

    said = _printed(notebook)
    assert "ended by signal 9" in said
    [went_on] = re.findall(r"resumed from step (\d+) ", said)
    assert 10 <= int(went_on) <= 57  # a busy disk may be behind
    assert len(set(re.findall(r"weights (\w+)", said))) == 1
    assert "120 steps, no difference" in said
    drawn = [out for cell in notebook.cells for out in cell.get("outputs", ()) if "data" in out]
    assert any("<polyline" in out.data.get("image/svg+xml", "") for out in drawn)


@pytest.mark.timeout(150)
def test_the_first_run_is_paused_changed_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _executed("01_first_run.ipynb", tmp_path, monkeypatch)

    events = _events(tmp_path / "otf_runs")
    [paused] = [e for e in events if e["type"] == "paused"]
    [resumed] = [e for e in events if e["type"] == "resumed"]
    [change] = [e for e in events if e["type"] == "param_changed"]
    [note] = [e for e in events if e["type"] == "note"]
    held = paused["step"]
    assert held >= 50
    assert held == change["applied_step"] == note["step"] == resumed["step"]
    assert change["new"] == pytest.approx(change["old"] / 2)
    states = [e["state"] for e in events if e["type"] == "state"]
    assert states == [
        *("running", "pausing", "paused", "validating", "paused", "running", "finished"),
    ]
    last = events[-1]
    assert (last["type"], last["status"]) == ("trainingFinished", "stopped")
    steps = [e["step"] for e in events if e["type"] == "trainStep"]
    assert steps == list(range(1, last["step"] + 1))


@pytest.mark.timeout(240)
def test_a_script_a_runner_and_a_loop_are_runs_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = _executed("03_plain_pytorch.ipynb", tmp_path, monkeypatch)

    said = _printed(notebook)
    assert re.search(r"held at step \d+, between two batches; checkpoint: True", said)
    assert re.search(r"used 0\.0005, asked by the script 0\.00\d+", said)
    assert "the script ended with exit code 0" in said
    assert "training found: Adam over 1 parameter group of Sequential as 'net'" in said
    assert "ended by signal 9" in said
    assert len(set(re.findall(r"weights (\w+)", said))) == 1
    assert len(re.findall(r"epoch 5: mean loss", said)) == 2  # python's, and the resumed one's
    assert re.search(r"runner +step +72 +finished\ntick +step +72 +finished", said)
    journals = (tmp_path / "otf_runs").glob("*/*/journal/*.jsonl")
    ends = [decode_message(path.read_bytes().splitlines()[-1]) for path in journals]
    assert sorted(str(end.get("status")) for end in ends if end["type"] == "trainingFinished") == [
        *("completed", "completed", "completed", "stopped"),
    ]


@pytest.mark.timeout(240)
def test_a_specialist_is_forked_merged_and_goes_on_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = _executed("04_fork_and_merge.ipynb", tmp_path, monkeypatch)

    said = _printed(notebook)
    assert "held at step 200\n" in said
    assert "held at step 300; its data: {'chosen': 80, 'of': 800, 'drawn': 80}" in said
    for strategy in ("linear", "fisher", "ties", "soup"):
        assert re.search(rf"{strategy} +val_loss 0\.\d+\n", said)
    assert re.search(r"both is hard and digits, by (linear|fisher|ties|soup)\n", said)
    drawn = [out for cell in notebook.cells for out in cell.get("outputs", ()) if "data" in out]
    assert sum("<rect" in out.data.get("image/svg+xml", "") for out in drawn) == 3
    made = {
        e["run_id"]: e["parents"] for e in _events(tmp_path / "otf_runs") if e["type"] == "newRun"
    }
    forks = {name: ["digits"] for name in ("hard", "control", "often")}
    assert made == {"digits": [], **forks, "both": ["hard", "digits"]}
    assert "digits, hard, control, often, both in one file" in said
    # The other process says the number that this one has said.
    assert len(set(re.findall(r"val_loss (0\.\d{6,})", said))) == 1
    went_on = re.search(r"both at step 300; .*\nwent on to step (\d+)", said)
    assert went_on is not None
    assert int(went_on[1]) >= 310


@pytest.mark.timeout(150)
def test_a_run_is_watched_from_anywhere_and_the_file_holds_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    found = rendezvous.find

    def noted(**_: Any) -> None:
        said = found(tmp_path / "runtime" / "otf" / "dashboard.json")
        seen.extend([said.token] if said is not None else [])

    notebook = _executed("05_watch_from_anywhere.ipynb", tmp_path, monkeypatch, noted)

    [token] = set(seen)
    kept = nbformat.writes(notebook)  # type: ignore[no-untyped-call]
    assert token not in kept
    assert rendezvous.read_only_token(token) not in kept
    shown = [
        out.data for cell in notebook.cells for out in cell.get("outputs", ()) if "data" in out
    ]
    assert len(shown) == 2  # each once, though the second is the value of its cell as well
    live, still = (data["text/html"] for data in shown)
    assert re.search(
        r'<object data="http://localhost:\d+/open/[\w-]{43}\?run=anywhere%2Fdigits" ', live
    )
    assert 'height="520"' in live
    for html in (live, still):
        assert re.search(r"<svg [^>]*aria-label=\"\w+ digits ", html)
        assert "<script" not in html
    assert "<object" not in still
    assert re.match(r"Training digits — step \d+", shown[0]["text/plain"])
    said = _printed(notebook)
    place = r"(Training digits —|Validating digits at) step \d+"
    assert re.search(place, said), said
    assert "Space Pause        at step end" in said
    assert re.search(r"http://127\.0\.0\.1:\d+/#token=…\n", said)
    assert "watches digits\n" in said
    assert "not with a link that only watches" in said
    assert re.search(r"Stopped digits at step \d+\nno dashboard runs", said)


@pytest.mark.timeout(300)
def test_two_ranks_are_held_at_one_step_and_go_on_when_one_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = _printed(_executed("06_two_ranks.ipynb", tmp_path, monkeypatch))

    stood = re.search(r"2 ranks stand at step (\d+): \{'min': (\d+), 'max': (\d+)\}\n", said)
    assert stood is not None
    assert len({*stood.groups()}) == 1
    assert int(stood[1]) >= 20
    assert re.search(r"rank 1 on \S+ ended with exit code -9 \(SIGKILL\)\n", said)
    ends = re.findall(r"rank (\d) at step 300: weights (\w{16})\n", said)
    assert sorted(rank for rank, _ in ends) == ["0", "0", "1", "1"]
    assert len({weights for _, weights in ends}) == 1
    assert "resumed from step" in (tmp_path / "said.txt").read_text()


def test_the_map_names_every_example() -> None:
    said = (EXAMPLES / "README.md").read_text()
    there = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert not [name for name in there if f"({name})" not in said and Path(name).stem not in said]
    linked = set(re.findall(r"\]\((\w+\.(?:py|ipynb))\)", said))
    assert linked <= there


@pytest.mark.timeout(240)
def test_a_program_and_an_agent_steer_a_run_within_their_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = _printed(_executed("08_agents.ipynb", tmp_path, monkeypatch))

    assert "taught is held at step 0\n" in said
    assert "lr 0.002 -> 0.004, applied at step 0, until 40\n" in said
    assert "[('weight_decay', 0.02), ('lr', 0.003)]\nlr is 0.004 again\n" in said
    assert re.search(r"halved at step \d+: 0\.0020 -> 0\.0010\n", said)
    assert re.search(r"bad_payload - lr was asked to be 1000, .*allowed: 0\.0 to 10\.0", said)
    assert re.search(r"\w+ at step \d+ with \d+ values of the loss\n", said)
    assert "set is among them: False\n" in said
    assert "dry run: otf set lr 0.002 --run taught - applied: False\n" in said
    assert re.search(r"set: 0\.002 at step \d+ - applied: True\n", said)
    assert "out_of_bounds - lr was asked to be 0.5; allowed here: 1e-05 to 0.01." in said
    assert "needs_person - a person types: otf stop --run taught\n" in said
    assert re.findall(r"note (\w+) - (\w+)\n", said) == [
        *(("one", "applied"), ("two", "applied"), ("three", "too_many")),
    ]
    agents = r"lr 0\.00\d+ -> 0\.002   user, tutor by mcp, \S+@\S+   taken back by (\d+)\n"
    [undone_by] = re.findall(agents, said)
    assert re.search(
        rf"^ +{undone_by} +step +\d+  lr 0\.002 -> .*   undo, notebook 08$", said, re.M
    )
    assert re.search(r"lr is 0\.00\d+ by undo\n", said)
    events = _events(tmp_path / "otf_runs")
    assert (events[-1]["type"], events[-1]["status"]) == ("trainingFinished", "stopped")


@pytest.mark.timeout(240)
def test_a_run_is_steered_undone_by_another_process_and_done_again_by_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = _printed(_executed("07_steer_and_undo.ipynb", tmp_path, monkeypatch))

    assert re.search(r"^model\.dropout +0\.3 +next batch$", said, re.M)
    assert "held at step 200; 200 rates are those of the preview: True\n" in said
    assert re.search(r"^ +5 +200 +ada +model\.frozen", said, re.M), said
    assert "ended by signal 9\n" in said
    assert re.search(r"goes on from step 200 with 6 changes\ntaken back: .*0\.3\}\n", said)
    assert "at step 200 again, lr 0.001\n" in said
    assert "at step 200: extend {'max_steps': 300}\n" in said
    [weights, again] = re.findall(r"step 300: weights (\w{16})\n", said)
    assert weights == again
    assert re.search(r"step \d of the recipe \(merge at step 250\) cannot be replayed: ", said)
