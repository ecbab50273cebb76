"""Is a fork on the worst tenth worth it: beside a control fork on all the data, and merged.

Each seed trains a net on 800 of scikit-learn's digits, and forks it when it is young, older and
done. All forks of a place begin from the same checkpoint and take as many steps, at the same
learning rate and batch size. Judged are 700 samples that no arm has trained on and no choice was
made by. The hard ones among them are the tenth with the highest loss under the parent, or under
the parents of the other seeds: what one net happens to get wrong, the next does not, so that any
training helps it there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.figures import Row
from otf_core.runner import Runner
from otf_core.testing import FakeDashboard, LoopbackListener
from otf_lightning.digits import CLASSES, LitDigits

SEEDS: Final = 5
BATCH: Final = 32
TRAINED, VALIDATED, JUDGED = 800, 297, 700
AGES: Final = (50, 200, 750)  # steps; 25 are an epoch
STEPS: Final = (25, 100)  # of each fork
NOISE: Final = (0.0, 0.1)  # share of the training labels that are wrong
SHARE: Final = 0.1
SPECIALIST: Final = "worst tenth"
WEIGHT: Final = 9.0  # of the worst tenth: it makes half of what is drawn
MERGES: Final = ("linear", "linear, recalibrated", "fisher", "ties", "soup")
PATIENCE_S: Final = 60.0

Losses = np.ndarray[Any, np.dtype[np.float64]]
Place = tuple[float, int, int]  # noise, age, steps


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a net says of the samples that are judged, in their order."""

    losses: Losses
    right: np.ndarray[Any, np.dtype[np.bool_]]


Seen = dict[Place, dict[str, Judged]]  # arm -> what it says, "parent" among them


def specialists(*, quick: bool, tmp: Path) -> list[Row]:
    """Three rows of each place: the hard samples, by two definitions, and all samples."""
    seeds, ages, steps, noises = SEEDS, AGES, STEPS, NOISE
    if quick:
        seeds, ages, steps, noises = 2, (10,), (5,), (0.0,)
    told: list[Seen] = []
    for seed in range(seeds):
        seen: Seen = {}
        for noise in noises:
            seen |= _of_a_seed(seed, noise, ages, steps, tmp / f"{seed}-{noise}")
        told.append(seen)
    return [row for place in told[0] for row in rows_of(place, [seen[place] for seen in told])]


def rows_of(place: Place, seeds: Sequence[Mapping[str, Judged]]) -> list[Row]:
    """Losses less the control's, a row for each set of samples."""
    noise, age, steps = place
    sets = {
        "the hard tenth by its parent": [hardest(seen["parent"].losses) for seen in seeds],
        "the hard tenth by the other parents": [
            hardest(np.mean([s["parent"].losses for s in seeds if s is not seen], axis=0))
            for seen in seeds
        ],
        "all": [np.arange(len(seen["parent"].losses)) for seen in seeds],
    }
    rows = []
    for name, chosen in sets.items():
        pairs = [*zip(seeds, chosen, strict=True)]
        loss = {a: np.array([s[a].losses[ids].mean() for s, ids in pairs]) for a in seeds[0]}
        right = {a: float(np.mean([s[a].right[ids].mean() for s, ids in pairs])) for a in loss}
        apart = {arm: found - loss["control"] for arm, found in loss.items()}
        ours = apart.pop(SPECIALIST)
        del apart["control"]
        rows.append(
            Row(
                bench="specialists",
                what=f"{SPECIALIST}: loss less the control's, {name} of {JUDGED} unseen samples; "
                f"{steps} steps, parent of {age} steps, {noise:.0%} of labels wrong",
                unit="nats",
                ours=float(ours.mean()),
                spread={
                    "lowest": float(ours.min()),
                    "highest": float(ours.max()),
                    "seeds": float(len(seeds)),
                    "better in": float((ours < 0).sum()),
                    **{f"right, {arm}, %": 100 * share for arm, share in right.items()},
                },
                rivals={
                    "control's loss": float(loss["control"].mean()),
                    **{arm: float(found.mean()) for arm, found in apart.items()},
                },
            )
        )
    return rows


def hardest(losses: Losses) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Which samples are the tenth with the highest loss."""
    return np.argsort(losses, kind="stable")[-round(SHARE * len(losses)) :]


# One seed.


def _of_a_seed(
    seed: int, noise: float, ages: Sequence[int], steps: Sequence[int], tmp: Path
) -> Seen:
    seen: Seen = {}
    with _fit(seed, noise, tmp) as run:
        before = 0
        for age in ages:
            # A fork in which nothing is other is its parent going on, to that very step.
            run.forks(f"parent-{age}", steps=age - before)
            before = age
            for number in steps:
                seen[noise, age, number] = _arms(run, f"parent-{age}", number)
            run.goes_to(f"parent-{age}")
        run.asks("stop", {"save": False})
    return seen


def _arms(run: Fit, parent: str, steps: int) -> dict[str, Judged]:
    """Forks of a parent as it stands, and merges of the specialist with it."""
    found, tenth = {}, {"kind": "quantile", "from": 1.0 - SHARE, "to": 1.0}
    run.goes_to(parent)
    found["parent"] = run.judged()
    run.forks(f"{parent}-control-{steps}", steps=steps)
    found["control"] = run.judged()
    run.goes_to(parent)
    special = f"{parent}-special-{steps}"
    chosen = run.forks(special, steps=steps, selection=tenth)["subset_indices"]
    found[SPECIALIST] = run.judged()
    run.goes_to(parent)
    slower = {"selection": tenth, "hparams": {"lr_mul": 0.1}}
    run.forks(f"{parent}-slower-{steps}", steps=steps, **slower)
    found["worst tenth, lr / 10"] = run.judged()
    run.goes_to(parent)
    weights = torch.ones(TRAINED)
    weights[chosen] = WEIGHT
    run.forks(f"{parent}-weighs-{steps}", steps=steps, weights=weights.tolist())
    found[f"worst tenth weighs {WEIGHT:g}"] = run.judged()
    run.goes_to(parent)
    undoubted = {"kind": "complement", "of": {"kind": "label_noise"}}
    run.forks(f"{parent}-undoubted-{steps}", steps=steps, selection=undoubted)
    found["without doubtful labels"] = run.judged()
    for name in MERGES:
        strategy, _, recalibrated = name.partition(", ")
        payload = {"strategy": strategy, "recalibrate": bool(recalibrated)}
        run.asks("merge", {"parents": [special, parent], **payload})
        found[f"merged, {name}"] = run.judged()
    return found


class Fit:
    """A fit that is under way, driven through its session."""

    def __init__(self, dashboard: FakeDashboard) -> None:
        self._dashboard = dashboard
        self._at = ""

    def asks(self, cmd: str, payload: dict[str, Any]) -> dict[str, Any]:
        """The reply's data, once it is applied."""
        reply = self._dashboard.request(cmd, payload)
        assert reply["ok"], reply
        data: dict[str, Any] = reply["data"]
        self._at = data.get("run_id", self._at)
        return data

    def goes_to(self, run_id: str) -> None:
        """That run is the one that is held."""
        if self._at != run_id:
            self.asks("switch_run", {"run_id": run_id})

    def forks(self, run_name: str, **payload: Any) -> dict[str, Any]:
        """A fork of the run that is held, which has trained all of its steps."""
        said = self.asks("fork", {"run_name": run_name, **payload})
        self.asks("resume", {})
        self._dashboard.expect("resumed")
        held = self._dashboard.expect("paused")
        assert held["step"] == said["at_step"] + payload["steps"], held
        return said

    def judged(self) -> Judged:
        """Of the test set."""
        self.asks("scan", {"on": "test"})
        page = self.asks("samples", {"on": "test"})
        right = np.array(page["labels"]) == np.array(page["predictions"])
        return Judged(np.array(page["losses"]), right)


@contextlib.contextmanager
def _fit(seed: int, noise: float, tmp: Path) -> Iterator[Fit]:
    """Held before its first batch."""

    def train() -> None:
        torch.manual_seed(seed)
        train, val, test = _loaders(seed, noise)
        runner = Runner(
            device="cpu",
            max_epochs=10_000,  # the cosine is flat
            progress=False,
            save_dir=tmp,
            run_name="base",
            dashboard=f"127.0.0.1:{listener.port}",
            telemetry="off",
            pause_at_start=True,
        )
        runner.fit(LitDigits(width=4), train, val, test_loader=test)

    with LoopbackListener(legacy_allowed=False) as listener:
        thread = threading.Thread(target=train, name="fit")
        thread.start()
        try:
            with FakeDashboard.on(listener, patience_s=PATIENCE_S) as dashboard:
                dashboard.hello(session_id=dashboard.expect("hello")["session_id"], last_seq=0)
                dashboard.expect("paused")
                try:
                    yield Fit(dashboard)
                except BaseException:
                    dashboard.send("stop", {"save": False})
                    raise
        finally:
            thread.join()


def _loaders(seed: int, noise: float) -> list[DataLoader[Any]]:
    """Judged are always the same; what is left is split by the seed."""
    from sklearn.datasets import load_digits

    images, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    images = images.float().reshape(-1, 1, 8, 8) / 16
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1234))
    judged, rest = order[:JUDGED], order[JUDGED:]
    split = torch.Generator().manual_seed(seed)
    rest = rest[torch.randperm(len(rest), generator=split)]
    train, val = rest[:TRAINED], rest[TRAINED:]
    wrong = torch.rand(TRAINED, generator=split) < noise
    others = torch.randint(1, CLASSES, (TRAINED,), generator=split)
    noisy = torch.where(wrong, (labels[train] + others) % CLASSES, labels[train])
    return [
        DataLoader(TensorDataset(images[train], noisy), BATCH, shuffle=True),
        DataLoader(TensorDataset(images[val], labels[val]), 99),
        DataLoader(TensorDataset(images[judged], labels[judged]), 100),
    ]
