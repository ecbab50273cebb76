"""``show()``: which run it means, and what it says of it; what notebooks and browsers make of it is
tested in ``tests/examples`` and ``tests/page``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import otf_lightning
from otf_core.client import Client, NoDashboardError
from otf_core.runs import told
from otf_core.runs.picture import picture
from otf_lightning import OnTheFlyCallback, notebook, show
from tests.runs.folders import run_folder

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"


def a_run(folder: Path, run_id: str = "digits", *, steps: int = 120, **record: Any) -> Path:
    events: list[dict[str, Any]] = [
        {"type": "trainStep", "run_id": run_id, "event_seq": n, "ts": 100.0 + n, "step": n,
         "loss": 2.0 / n, "lr": 0.001, "val_loss": 3.0 / n if n % 40 == 0 else None,
         "metrics": {HOSTILE: 1.0}}
        for n in range(1, steps + 1)
    ]  # fmt: skip
    given: dict[str, Any] = {"status": "completed", "step": steps, **record}
    return run_folder(folder / "p", run_id, events=events, **given)


def test_the_newest_run_is_shown_or_the_one_that_is_named(tmp_path: Path) -> None:
    a_run(tmp_path, "old", steps=40, started_ts=10.0)
    folder = a_run(tmp_path, "new", run_name="digits", started_ts=20.0)
    for asked in (None, "new", "digits", folder, str(folder)):
        said = repr(show(asked, folder=tmp_path))
        assert said.startswith("Finished new — 120 steps, best val loss 0.025 at step 120\n"), asked
        assert said.endswith("no dashboard runs; start one with: otf dashboard")
    assert repr(show("old", folder=tmp_path)).startswith("Finished old — 40 steps")


def test_a_run_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    a_run(tmp_path)
    with pytest.raises(ValueError, match=r"no run 'digit' in .*; there are: digits\.$"):
        show("digit", folder=tmp_path)
    with pytest.raises(ValueError, match="is no folder of a run"):
        show(tmp_path)


def test_before_the_first_run_it_says_that_there_is_none(tmp_path: Path) -> None:
    assert repr(show(folder=tmp_path)).startswith("No run yet\n")
    assert repr(show(OnTheFlyCallback(save_dir=str(tmp_path)))).startswith("No run yet\n")


def test_a_callback_knows_its_run_after_the_fit_too(tmp_path: Path) -> None:
    callback = OnTheFlyCallback(save_dir=str(tmp_path))
    callback._run_dir = a_run(tmp_path)
    assert repr(show(callback)).startswith("Finished digits — 120 steps")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"status": "stopped"}, "Stopped digits at step 120"),
        ({"status": "failed"}, "Failed digits at step 120 — no reason given"),
        ({"status": None, "ended_ts": 60.0}, "Journal of digits — last written "),
    ],
)
def test_how_it_ended_is_said(tmp_path: Path, record: dict[str, Any], said: str) -> None:
    a_run(tmp_path, **record)
    assert repr(show(folder=tmp_path)).startswith(said)


def test_what_a_run_is_called_is_only_shown(tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "|")
    a_run(tmp_path, name)
    shown = show(folder=tmp_path)
    bundle = shown._repr_mimebundle_()
    assert "<script" not in bundle["text/html"]
    assert "&lt;script&gt;" in bundle["text/html"]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", bundle["text/html"])
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", bundle["text/plain"])
    assert set(re.findall(r"<(\w+)", bundle["text/html"])) == {
        *("div", "p", "b", "svg", "rect", "text", "tspan", "path", "g"),
    }


@pytest.mark.parametrize("steps", [0, 1, 5, 39, 1000])
def test_a_picture_is_made_of_any_number_of_steps(tmp_path: Path, steps: int) -> None:
    a_run(tmp_path, steps=steps)
    drawn = picture(told.read(tmp_path / "p", "digits").run, "digits")
    assert drawn.startswith("<svg ")
    assert drawn.endswith("</svg>")
    assert "nan" not in drawn
    assert ("no step yet" in drawn) is (steps == 0)
    assert len(drawn) < 40_000


class _Dashboard(Client):
    """One that gives out a ticket."""

    def ticket(self) -> str:
        return "open/abc"


@pytest.mark.parametrize(
    ("prefix", "base_url", "address"),
    [
        (None, None, "http://localhost:4567/open/abc"),
        ("/user/me/", None, "/user/me/proxy/4567/open/abc"),
        ("/user/me/", "https://box/otf/", "https://box/otf/open/abc"),
        (None, "/proxy/4567/", "/proxy/4567/open/abc"),
    ],
)
def test_the_page_is_where_the_browser_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str | None, base_url: str | None,
    address: str,
) -> None:  # fmt: skip
    a_run(tmp_path)
    if prefix is not None:
        monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", prefix)
    there = _Dashboard("http://127.0.0.1:4567/", "s3cret")
    monkeypatch.setattr(notebook, "_dashboard", lambda: there)
    shown = show(folder=tmp_path, base_url=base_url, height=300)
    html = shown._repr_mimebundle_()["text/html"]
    assert f'<object data="{address}" type="text/html" width="100%" height="300"' in html
    assert html.index("<svg") > html.index("<object")
    assert html.index("<svg") < html.index("</object>")
    assert "s3cret" not in html + repr(shown)
    assert "live at http://127.0.0.1:4567/ — otf dashboard --url prints" in repr(shown)
    assert "<object" not in show(folder=tmp_path, live=False)._repr_mimebundle_()["text/html"]


def test_a_dashboard_that_has_gone_meanwhile_leaves_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(Client):
        def ticket(self) -> str:
            msg = "gone"
            raise NoDashboardError(msg)

    a_run(tmp_path)
    monkeypatch.setattr(notebook, "_dashboard", lambda: Gone("http://127.0.0.1:1/", "s3cret"))
    html = show(folder=tmp_path)._repr_mimebundle_()["text/html"]
    assert "<svg" in html
    assert "<object" not in html


def test_it_is_loaded_when_it_is_asked_for() -> None:
    code = (
        "import otf_lightning, sys; assert 'otf_lightning.notebook' not in sys.modules; "
        "otf_lightning.show; assert 'otf_lightning.notebook' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=50)
    assert "show" in otf_lightning.__all__
    with pytest.raises(AttributeError, match="no attribute 'shew'"):
        otf_lightning.shew  # type: ignore[attr-defined]  # noqa: B018
