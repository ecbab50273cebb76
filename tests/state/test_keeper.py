"""What a run says of how it goes on."""

from __future__ import annotations

import sys

import pytest

from otf_core.state.keeper import resume_command


@pytest.mark.parametrize(
    ("env", "command"),
    [
        ({}, "python 'my script.py' -n 3"),
        ({"SLURM_NTASKS": "1"}, "python 'my script.py' -n 3"),
        ({"SLURM_NTASKS": "4"}, "before the command that started the ranks"),
        ({"TORCHELASTIC_RUN_ID": "none"}, "before the command that started the ranks"),
    ],
)
def test_the_command_is_that_of_the_process_or_said_not_to_be(
    env: dict[str, str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "my script.py", "-n", "3"])
    for name in ("SLURM_NTASKS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert resume_command("/runs/a b.ckpt") == f"OTF_RESUME='/runs/a b.ckpt' {command}"
