"""What scripts do that is hard to follow works, or is said in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.script.rig import SHAPES, Ran, Zygote, shape
from tests.script.test_attaching_changes_nothing import compare


def pair(zygote: Zygote, argv: list[str], tmp_path: Path) -> tuple[Ran, Ran]:
    bare = zygote.run("python", argv, tmp_path / "bare")
    return bare, zygote.run("otf-fit", argv, tmp_path / "under")


def test_a_script_that_never_trains_is_told_so(zygote: Zygote, tmp_path: Path) -> None:
    bare, under = pair(zygote, shape("never"), tmp_path)
    compare(bare, under)
    [said] = under.said
    assert said == "otf: no training was seen: no optimizer has stepped, and there was no backward"
    assert under.events() == []


def test_a_script_that_trains_in_a_child_is_told_so(zygote: Zygote, tmp_path: Path) -> None:
    bare, under = pair(zygote, shape("in_child"), tmp_path)
    compare(bare, under)
    [said] = under.said
    assert "its child processes are plain python, otf is not in them" in said


def test_a_thread_that_trains_is_served_and_others_are_not(zygote: Zygote, tmp_path: Path) -> None:
    bare, under = pair(zygote, shape("in_thread"), tmp_path)
    compare(bare, under)
    assert under.steps() == [1, 2, 3, 4, 5, 6]
    [end] = under.events("trainingFinished")
    assert end["status"] == "completed"


def test_a_script_that_catches_everything_trains_as_ever(zygote: Zygote, tmp_path: Path) -> None:
    bare, under = pair(zygote, shape("catches_all"), tmp_path)
    compare(bare, under)
    assert under.steps() == list(range(1, 11))


@pytest.mark.parametrize(
    ("how", "status", "error"),
    [
        ("exit", "failed", "exit code 3"),
        ("zero", "completed", None),
        ("words", "failed", "no more data"),
        ("error", "failed", "RuntimeError: a step has failed"),
        ("interrupt", "stopped", None),
        ("term", None, None),
    ],
)
def test_the_end_in_mid_epoch_is_the_script_s_own_and_is_told(
    how: str, status: str | None, error: str | None, zygote: Zygote, tmp_path: Path
) -> None:
    bare, under = pair(zygote, [str(SHAPES / "leaves.py"), how], tmp_path)
    assert (under.code, under.stdout) == (bare.code, bare.stdout)
    theirs = [line for line in under.stderr.splitlines() if not line.startswith("otf: ")]
    assert theirs == without_runpy(bare.stderr)
    ends = [(e["status"], e.get("error"), e["step"]) for e in under.events("trainingFinished")]
    assert ends == ([(status, error, 4)] if status is not None else [])
    assert under.steps() == ([1, 2, 3, 4] if status is not None else under.steps())


@pytest.mark.parametrize("where", ["loader", "backward"])
def test_an_error_through_what_is_hooked_shows_none_of_our_frames(
    where: str, zygote: Zygote, tmp_path: Path
) -> None:
    bare, under = pair(zygote, [str(SHAPES / "fails_inside.py"), where], tmp_path)
    assert (under.code, under.stdout) == (bare.code, bare.stdout)
    theirs = [line for line in under.stderr.splitlines() if not line.startswith("otf: ")]
    assert theirs == without_runpy(bare.stderr)
    [end] = under.events("trainingFinished")
    assert end["status"] == "failed"


def without_runpy(stderr: str) -> list[str]:
    """The process that python's part of a comparison runs in shows how it came to the script."""
    kept: list[str] = []
    skip = False
    for line in stderr.splitlines():
        if line.startswith("  File "):
            skip = "zygote.py" in line or "<frozen runpy>" in line
        elif not line.startswith("    "):
            skip = False
        if not skip:
            kept.append(line)
    return kept
