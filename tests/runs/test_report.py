"""The page of a run says what it was, from its folder alone, and nothing in it acts."""

from __future__ import annotations

import html.parser
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from otf_core.runs import report_chart
from otf_core.runs.archive import ArchiveError
from otf_core.runs.report import report
from otf_core.runs.report_chart import Curve, Mark, chart, short, text
from otf_core.runs.told import MAX_NAMES, read
from otf_core.state.run_folder import this_process
from tests.runs.folders import run_folder

EVIL = "<img src=x onerror=alert(1)>'\"&</style><script>alert(1)</script>"


def step(n: int, run: str = "base", **fields: Any) -> dict[str, Any]:
    return {"type": "trainStep", "run_id": run, "step": n, "ts": 100.0 + n, **fields}


def event(kind: str, run: str = "base", **fields: Any) -> dict[str, Any]:
    return {"type": kind, "run_id": run, **fields}


def page(project_dir: Path, run_id: str = "base", **more: Any) -> str:
    return report(project_dir, run_id, now_ts=1e9, **more)


class Seen(html.parser.HTMLParser):
    """Every tag, every attribute, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.said = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "path", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "path", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.said += f"{data} "


def said(source: str) -> str:
    return " ".join(Seen(source).said.split())


def test_it_says_what_the_run_was(tmp_path: Path) -> None:
    at = tmp_path / "demo"
    events = [
        event("log", text="base: cuda:0, process 7", level="info", ts=100),
        *(step(n, loss=2 / n, val_loss=1.5 / n if n % 5 == 0 else None) for n in range(1, 11)),
        event("paused", step=10, ts=111),
        event("param_changed", path="lr", old=0.1, new=0.05, applied_step=10, by="user", ts=112),
        event("note", note_id="n1", text="look here", step=10, ts=113),
        event("note", note_id="n2", text="a mistake", step=10, ts=113),
        event("note", note_id="n2", text="a mistake", step=10, ts=114, removed=True),
        event("resumed", step=10, ts=131),
        *(step(n, loss=0.1) for n in range(11, 15)),
        event("checkpoint_loaded", step=12, from_step=14, id="12-ring", ts=140),
        step(13, loss=0.05, metrics={"f1": 0.5, "train_loss": 1}),
        event("test_complete", step=13, avg_loss=0.3, label="final", metrics={"acc": 0.9}, ts=150),
        event("log", text="the disk is slow", level="warning", ts=151),
        event("trainingFinished", status="failed", step=13, error="ValueError: no luck", ts=160),
    ]
    run_folder(
        at, "base", events=events, checkpoints={"12-ring": b"x" * 2000}, status="failed",
        host="node7", versions={"torch": "2.13.0"}, ended_ts=160.0,
        exactness={"exact": False, "text": "not exact because of x", "reasons": ["x draws"]},
    )  # fmt: skip
    made = {"from": "base", "at_step": 12, "subset_count": 40}
    run_folder(at, "fork1", kind="fork", parents=["base"], journal="base", made=made)
    found = said(page(at))
    for sentence in (
        "Failed 13 steps in 1 min", "ValueError: no luck", "node7, cuda:0", "torch 2.13.0",
        "not exact because of x", "x draws", "Undone 2 steps", "Stood still 20 s",
        "lr 0.1 → 0.05", "look here", "Paused for 20 s", "f1 0.5", "the disk is slow",
        "Put back from step 14 to step 12, 12-ring , 2 steps undone", "12-ring 12 ring", "2 kB",
        "Forked into fork1 , on 40 chosen samples", "fork at step 12 · to step 0",
        "Test final 13 0.3 acc 0.9",
        "least 0.15 at step 10",
    ):  # fmt: skip
        assert sentence in found, sentence
    assert "a mistake" not in found
    of_fork = said(page(at, "fork1"))
    assert "a fork of base at step 12, on 40 chosen samples" in of_fork
    assert "Forked from base" in of_fork
    assert "node7, cuda:0" not in of_fork
    assert "cuda:0" in of_fork
    with pytest.raises(ArchiveError, match="No run named 'none'"):
        page(at, "none")


def test_whether_it_was_left_or_broke_off_is_told(tmp_path: Path) -> None:
    at = tmp_path / "demo"
    left = event("runTransition", to="b", step=3)
    back = event("paused", step=3)
    here = this_process()
    for name, events, record, verb in (
        ("killed", [step(3)], {"ended_ts": 9.0}, "Broken off"),
        ("left", [step(3), left, event("log", text="x")], here, "Left"),
        ("back", [step(3), left, back], here, "Paused"),
        ("on", [step(3), back, event("resumed", step=3)], here, "Training"),
        ("over", [step(3), left], {**here, "status": "stopped"}, "Stopped"),
    ):
        run_folder(at, name, events=[{**each, "run_id": name} for each in events], **record)
        assert f"{name} {verb} 3 steps" in said(page(at, name)), name


def test_what_was_undone_is_told_by_what_came_later(tmp_path: Path) -> None:
    at = tmp_path / "demo"
    events = [
        *(step(n, loss=1.0) for n in range(1, 9)),
        event("checkpoint_loaded", step=4, from_step=8, id="4-ring"),
        *(step(n, loss=2.0) for n in range(5, 7)),
    ]
    run_folder(at, "base", events=events, session_ids=["sess-base", "sess-2"])
    again = [event("checkpoint_loaded", step=5, id="5-x"), step(6, loss=3.0), step(7, loss=3.0)]
    lines = "".join(json.dumps(each) + "\n" for each in again)
    (at / "base/journal/sess-2.jsonl").write_text(lines)
    run = read(at, "base").run
    assert list(run.series["loss"].steps) == [1, 2, 3, 4, 5, 6, 7]
    assert list(run.series["loss"].values) == [1, 1, 1, 1, 2, 3, 3]
    assert run.undone == 5


def test_nothing_in_it_acts_whatever_a_run_is_called(tmp_path: Path) -> None:
    at = tmp_path / "demo"
    events = [
        event("log", text=f"base: {EVIL}, process 7", level="info"),
        event("log", text=EVIL, level="error"),
        *(step(n, loss=n, metrics={EVIL: n, "x" * 400: 1}) for n in range(1, 50)),
        event("param_changed", path=EVIL, old=EVIL, new=[EVIL], applied_step=3, by=EVIL),
        event("note", note_id=EVIL, text=EVIL, step=3),
        event("checkpoint_loaded", step=30, from_step=EVIL, id=EVIL),
        event("checkpoint_loaded", step=30, id=EVIL),
        event("stall", seconds=EVIL),
        event("test_complete", step=4, avg_loss=EVIL, label=EVIL, metrics={EVIL: 1.0}),
        event("trainingFinished", status=EVIL, error=EVIL, step=49),
    ]
    run_folder(
        at, "base", events=events, host=EVIL, versions={EVIL: EVIL}, kind=EVIL, project=EVIL,
        parents=[EVIL, "base"], made={"at_step": EVIL, "subset_count": EVIL}, status=EVIL,
        exactness={"text": EVIL, "reasons": [EVIL], "exact": EVIL},
    )  # fmt: skip
    run_folder(at, "fork1", parents=["base", EVIL], kind=EVIL, made={"at_step": EVIL})
    row = {"id": EVIL, "loss": EVIL, "label": EVIL, "prediction": EVIL}
    figures = {
        "count": EVIL, "mean": EVIL, "worst": [row], "classes": [row],
        "histogram": {"edges": [0, 1, 2], "counts": [EVIL, 1]},
    }  # fmt: skip
    source = page(at, figures={EVIL: {"rule": EVIL, "figures": figures}})
    seen = Seen(source)
    assert not seen.tags & {"img", "script", "iframe", "object", "link", "base", "form", "image"}
    assert seen.open == []
    assert "<img src=x onerror=alert(1)>" in seen.said
    for name, value in seen.attributes:
        assert not name.startswith("on"), name
        assert name not in ("src", "data", "action", "formaction", "xlink:href")
        assert name != "href" or re.fullmatch(r"#do-\d+", value)
    assert "default-src 'none'" in source
    assert "url(" not in source
    assert "@import" not in source


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe", b"[]", b"null", b'{"type": "trainStep"', b'{"type": 5}', b"{}", b"[" * 5000,
        b'{"type":"trainStep","run_id":"base","step":1e999,"loss":1}',
        b'{"type":"trainStep","run_id":"base","step":-1,"loss":1}',
        b'{"type":"trainStep","run_id":"base","step":"7","loss":1}',
        b'{"type":"trainStep","run_id":"base","step":7,"loss":"x","metrics":[1]}',
        b'{"type":"trainStep","run_id":"base","step":7,"loss":1e308,"lr":1e-320}',
        b'{"type":"trainStep","run_id":"base","step":' + b"9" * 400 + b',"loss":1}',
        b'{"type":"paused","run_id":"base","ts":"x"}', b'{"type":"resumed","run_id":"base"}',
        b'{"type":"checkpoint_loaded","run_id":"base","step":[]}',
        b'{"type":"param_changed","run_id":"base","path":{},"old":[[[]]],"new":{"a":1}}',
        b'{"type":"test_complete","run_id":"base","metrics":5,"step":null}',
        b'{"type":"note","run_id":"base","ts":1e300,"text":{}}',
        b'{"type":"note","run_id":"base","ts":-1e15,"note_id":[1],"removed":1}',
    ],
)  # fmt: skip
def test_a_line_that_is_no_event_costs_that_line(line: bytes, tmp_path: Path) -> None:
    at = tmp_path / "demo"
    run_folder(at, "base", events=[step(n, loss=0.5) for n in range(1, 4)])
    path = at / "base/journal/sess-base.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes() + line + b"\n" + b'{"half')
    (at / "base/results.jsonl").write_bytes(line + b'\n{"kind": "test", "step": 3}\n')
    seen = Seen(page(at))
    assert seen.open == []
    assert "Training loss" in seen.said


def test_a_run_of_a_million_steps_stays_small(tmp_path: Path) -> None:
    """The folder is read line by line, so that the page is what is tested here."""
    at = tmp_path / "demo"
    run_folder(at, "base", events=[])
    names = [f"metric_{n}" for n in range(60)]
    with (at / "base/journal/sess-base.jsonl").open("w") as file:
        for n in range(1, 40_001):
            value = math.sin(n / 997) + (n * 7919 % 1000) / 1000
            logged = dict.fromkeys(names, value)
            fields = {"loss": value + 2, "lr": 0.1, "accuracy": value, "grad_norm": value}
            file.write(
                json.dumps(step(n * 25, **fields, metrics=logged if n < 5000 else {})) + "\n"
            )
        for n in range(2000):
            file.write(json.dumps(event("note", note_id=n, text="n" * 3000, step=n)) + "\n")
    source = page(at)
    assert len(source) < 2_000_000
    found = said(source)
    assert "1,000,000 steps" in found
    assert "1,700 older are not listed" in found
    assert len(read(at, "base").run.series) == MAX_NAMES


# Charts.


def test_a_curve_keeps_its_least_and_greatest_however_long_it_is() -> None:
    steps = range(1, 100_001)
    values = [1.0] * 100_000
    values[41_000], values[77_777] = 9.0, -9.0
    found = chart("t", [Curve("A", "r", steps, values)], (0, 100_000))
    raw = re.search(r'class="A raw" d="M([^"]+)"', found)
    assert raw is not None
    ys = [int(pair.split()[1]) for pair in raw[1].split("L")]
    assert (ys.count(min(ys)), ys.count(max(ys))) == (1, 1)
    assert len(ys) < 2 * report_chart.BUCKETS
    assert max(ys) - min(ys) > 850
    assert len(found) < 20_000


def test_a_chart_bears_any_values() -> None:
    for values in (
        [0.0],
        [5.0] * 3,
        [-1e99, 1e99],
        [1e-300, 1e99],
        [1e-99, 1e99],
        [0, 0, 0],
        [1e-9, 1.0],
    ):
        curve = Curve("A", "r", range(1, len(values) + 1), values)
        for log in (None, False, True):
            found = chart("t", [curve], (0, len(values)), log=log, marks=[Mark(1, 1)], tall=True)
            assert "nan" not in found
            assert "inf" not in found
    assert chart("t", [Curve("A", "r", [], [])], (0, 1)) == ""


def test_marks_that_are_near_share_a_badge() -> None:
    marks = [Mark(10, 1), Mark(11, 2), Mark(12, 3), Mark(90, 4)]
    found = chart("t", [Curve("A", "r", [0, 100], [0, 1])], (0, 100), marks=marks, tall=True)
    assert re.findall(r'href="#do-\d+"[^>]*>([^<]+)<', found) == ["1-3", "4"]


def test_numbers_and_texts_are_short() -> None:
    numbers = {0.0: "0", 1.5: "1.5", 12_000: "12k", 3e6: "3M", 0.0005: "0.0005", 2e-7: "2e-7"}
    assert {value: short(value) for value in numbers} == numbers
    assert text("a\u202eb\x00c<'\">") == "abc&lt;&#x27;&quot;&gt;"
    assert text("x" * 400, 10) == "x" * 10 + "…"
