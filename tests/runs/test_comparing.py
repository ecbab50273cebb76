"""Runs are compared on the same samples, and the run that trains is bit for bit what it was."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from otf_core.state.checkpoint_file import read_checkpoint
from tests.no_harm.configs import Net, digits
from tests.plugin.rig import pause_in
from tests.plugin.test_fork import asks, refused
from tests.runs.fits import SIDES, Side, fresh

NAMED = {"project": "p"}


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> Side:
    return SIDES[request.param]


def losses_of(path: str | Path) -> tuple[Any, float]:
    """Of the validation set, and the accuracy, by other means than ours."""
    state, _ = read_checkpoint(Path(path))
    weights = state["state_dict"]
    module = fresh()
    module.load_state_dict(weights.get("", weights))
    module.eval()
    x, y = digits(64)[:]
    with torch.no_grad():
        logits = module.net(x)
    found = nn.functional.cross_entropy(logits, y, reduction="none").double().numpy()
    return found, float((logits.argmax(1) == y).double().mean())


def test_each_run_has_its_own_losses_and_pairs_are_counted(side: Side, tmp_path: Path) -> None:
    with side.fitting(tmp_path, fresh(), 2, **NAMED) as (run, barrier):
        parent = pause_in(run, barrier, 2)["ckpt"]
        chosen = {"kind": "indices", "ids": [*range(40)]}
        asks(run, "fork", {"selection": chosen, "run_name": "hard", "steps": 4})
        asks(run, "resume")
        child = run.dashboard.expect("paused", step=7)["ckpt"]
        found = asks(run, "compare", {"runs": ["r", "hard"]})
        every = asks(run, "compare")
        tenth = {"kind": "quantile", "from": 0.75, "to": 1.0}
        hard = asks(run, "compare", {"runs": ["hard", "r"], "selection": tenth})
        by_parent = asks(run, "compare", {"runs": ["r", "hard"], "selection": tenth})
        few = {"kind": "indices", "ids": [5, 9]}
        on_train = asks(run, "compare", {"on": "train", "runs": ["r"], "selection": few})
        asks(run, "stop", {"save": False})
    (r, r_right), (h, h_right) = losses_of(parent), losses_of(child)
    assert (found["on"], found["count"], found["step"]) == ("val", 64, 7)
    assert "cross_entropy" in found["rule"]
    for row, losses, right in zip(found["runs"], (r, h), (r_right, h_right), strict=True):
        assert row["mean"] == pytest.approx(losses.mean(), rel=1e-5)
        assert row["quantiles"][-1]["loss"] == pytest.approx(losses.max(), rel=1e-5)
        assert (row["accuracy"], row["not_finite"]) == (right, 0)
    assert [(row["name"], row["step"], row["checkpoint"]) for row in found["runs"]] == [
        ("r", 3, Path(parent).stem), ("hard", 7, None),
    ]  # fmt: skip
    counts = {"better": int((h < r).sum()), "worse": int((h > r).sum()), "same": 0}
    (pair,) = found["pairs"]
    apart = pair.pop("apart")
    assert pair == {"one": "r", "other": "hard", **counts, "not_finite": 0}
    assert [each["id"] for each in apart] == np.argsort(-abs(h - r), kind="stable")[:10].tolist()
    assert [each["one"] for each in apart] == pytest.approx([r[each["id"]] for each in apart])
    assert [each["other"] for each in apart] == pytest.approx([h[each["id"]] for each in apart])
    assert [row["name"] for row in every["runs"]] == ["r", "hard"]
    worst = np.argsort(h, kind="stable")[48:]
    assert hard["count"] == 16
    assert hard["runs"][0]["mean"] == pytest.approx(h[worst].mean(), rel=1e-5)
    assert hard["runs"][1]["mean"] == pytest.approx(r[worst].mean(), rel=1e-5)
    # Whoever is named first says which are the worst, also where another run trains.
    worst = np.argsort(r, kind="stable")[48:]
    assert by_parent["runs"][0]["mean"] == pytest.approx(r[worst].mean(), rel=1e-5)
    assert by_parent["runs"][1]["mean"] == pytest.approx(h[worst].mean(), rel=1e-5)
    assert (on_train["on"], on_train["count"], on_train["pairs"]) == ("train", 2, [])


def kept_twice(run: Any, barrier: Any) -> str:
    """A checkpoint of an earlier step; the run stands behind batch 6."""
    barrier.wait_for(2)
    saved = run.dashboard.send("save_ckpt")
    run.dashboard.expect("accepted", request_id=saved)
    barrier.let_go(2)
    name: str = run.dashboard.reply_to(saved)["data"]["id"]
    pause_in(run, barrier, 6)
    return name


def test_it_leaves_no_trace(side: Side, tmp_path: Path) -> None:
    expected = side.bare(fresh())
    with side.fitting(tmp_path, fresh(), 2, 6) as (run, barrier):
        earlier = kept_twice(run, barrier)
        tenth = {"kind": "quantile", "from": 0.9, "to": 1.0}
        asks(run, "compare", {"runs": [earlier, "r"], "selection": tenth})
        for on in ("train", "val", "test"):
            found = asks(run, "compare", {"runs": [earlier, "r"], "on": on})
            one, other = found["runs"]
            assert one["mean"] != other["mean"]
            assert (one["step"], one["run_id"], other["step"]) == (3, "r", 7)
        told = [e for e in run.dashboard.events() if e["type"] == "progress"]
        assert (told[-1]["cmd"], told[-1]["done"], told[-1]["eta_s"]) == ("compare", 96, 0)
        assert asks(run, "status")["state"] == "paused"
        asks(run, "resume")
        after = side.digest(run.outcome())
    assert after == expected


class Watched(Net):
    """Tells when it is looked at with other weights than those it had at first; may raise then."""

    raises = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        reached, go, seen = threading.Event(), threading.Event(), list[float]()
        self.events = lambda: (reached, go, seen)

    def per_sample_loss(self, batch: Any) -> Any:
        reached, go, seen = self.events()
        seen.append(float(self.net[0].weight.sum()))
        if seen[-1] != seen[0]:
            if self.raises:
                msg = "no luck"
                raise RuntimeError(msg)
            reached.set()
            assert go.wait(30)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction="none")


class Raising(Watched):
    raises = True


def test_the_weights_are_back_where_somebody_cancels(side: Side, tmp_path: Path) -> None:
    expected = side.bare(fresh(Watched))
    module = fresh(Watched)
    with side.fitting(tmp_path, module, 2, 6) as (run, barrier):
        earlier = kept_twice(run, barrier)
        asked = run.dashboard.send("compare", {"runs": ["r", earlier]})
        reached, go, _ = module.events()
        assert reached.wait(30)  # the other one's weights are in
        assert asks(run, "cancel", {"request_id": asked}) == {"cancelled": asked}
        go.set()
        reply = run.dashboard.reply_to(asked)
        assert (reply["ok"], reply["code"]) == (False, "not_allowed_now")
        assert reply["detail"].endswith("of 128 losses; the run is as it was.")
        asks(run, "resume")
        after = side.digest(run.outcome())
    assert after == expected


def test_the_weights_are_back_where_a_hook_raises(side: Side, tmp_path: Path) -> None:
    expected = side.bare(fresh(Raising))
    with side.fitting(tmp_path, fresh(Raising), 2, 6) as (run, barrier):
        earlier = kept_twice(run, barrier)
        code, detail = refused(run, "compare", {"runs": ["r", earlier]})
        assert (code, "no luck" in detail) == ("internal", True)
        assert asks(run, "status")["state"] == "paused"
        asks(run, "resume")
        after = side.digest(run.outcome())
    assert after == expected


class Wider(Net):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net[0] = nn.Linear(64, 24, bias=False)


def test_what_cannot_be_compared_is_refused_by_name(side: Side, tmp_path: Path) -> None:
    with side.fitting(tmp_path, fresh(Wider), 2, **NAMED) as (other, barrier):
        pause_in(other, barrier, 2)
        asks(other, "stop")
    with side.fitting(tmp_path, fresh(), 2, **NAMED) as (run, barrier):
        assert pause_in(run, barrier, 2)["ckpt"].endswith("/r-2/checkpoints/3-pause.ckpt")
        saved = Path(asks(run, "save_ckpt")["path"])
        code, detail = refused(run, "compare", {"runs": ["r-2", "r"]})
        assert (code, "net.0.bias" in detail) == ("bad_payload", True), detail
        for payload, expected in (
            ({"runs": ["nobody"]}, "not_found"),
            ({"runs": ["../p/r"]}, "not_found"),
            ({"runs": ["\0"]}, "not_found"),
            ({"runs": []}, "bad_payload"),
            ({"runs": ["r-2", "r-2"]}, "bad_payload"),
            ({"on": "nothing"}, "bad_payload"),
            ({"selection": {"kind": "indices", "ids": [64]}}, "bad_payload"),
            ({"selection": {"kind": "indices", "ids": []}}, "bad_payload"),
        ):
            assert refused(run, "compare", payload)[0] == expected, payload
        damaged = bytearray(saved.read_bytes())
        damaged[len(damaged) // 2] ^= 0xFF
        saved.write_bytes(damaged)
        code, detail = refused(run, "compare", {"runs": ["r-2", saved.stem]})
        assert (code, saved.stem in detail) == ("bad_payload", True), detail
        assert asks(run, "compare")["runs"][0]["not_finite"] == 0
        asks(run, "stop", {"save": False})
