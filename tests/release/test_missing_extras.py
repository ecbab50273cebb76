"""Without its extras the package works, and what is missing says how it comes to be."""

from __future__ import annotations

import subprocess
import sys

import pytest

from otf_core import extras, spawn

ABSENT = sorted({name for names in extras.EXTRAS.values() for name in names} | {"pandas"})


def _without(code: str, *absent: str) -> subprocess.CompletedProcess[str]:
    gone = f"import sys; sys.modules.update(dict.fromkeys({list(absent or ABSENT)}))\n"
    return subprocess.run(
        [sys.executable, "-c", gone + code],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            ["dashboard"],
            "The dashboard needs starlette, uvicorn and websockets: "
            "pip install 'otf-lightning[dashboard]'",
        ),
        (["mcp"], "otf mcp needs mcp: pip install 'otf-lightning[agents]'"),
    ],
)
def test_a_command_says_which_extra_it_needs(asked: list[str], said: str) -> None:
    done = _without(f"from otf_core.cli.otf import main; sys.exit(main({asked}))")
    assert (done.returncode, done.stdout) == (3, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(180)
def test_what_needs_no_extra_does_without() -> None:
    code = (
        "import otf_core, otf_lightning, otf_core.client, otf_core.runner, otf_core.own_loop\n"
        "import otf_core.testing\n"
        "from otf_core.cli.otf import main\n"
        "assert callable(otf_core.attach)\n"
        "from otf_lightning import demo\n"
        "assert demo.main(['--headless']) == 3\n"
        "sys.exit(main(['doctor']))"
    )
    done = _without(code)
    assert done.returncode == 0, done.stderr
    for extra in extras.EXTRAS:
        assert f"note extra {extra}: " in done.stdout
    needs = "otf demo needs starlette, uvicorn, websockets and scikit-learn: "
    assert needs + "pip install 'otf-lightning[demo]'" in done.stderr


def test_a_run_that_starts_its_dashboard_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(RuntimeError, match=r"needs uvicorn: pip install 'otf-lightning\[dash"):
        spawn.launch(spawn.Path("nowhere"))


def test_what_is_there_lacks_nothing() -> None:
    assert [extras.lacking("it", extra) for extra in extras.EXTRAS] == [None] * len(extras.EXTRAS)
