"""The ways in which a run is disturbed, each compared with the run that nobody has disturbed.

Every function here runs in the process that keeps one configuration's runs, and forks them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from otf_core.errors import CommandError
from otf_core.state import run_folder
from otf_core.state.checkpoint_file import read_checkpoint
from tests.exact import digest, forked, native, runs
from tests.exact.configs import Config
from tests.exact.runs import Ended, Gate
from tests.exact.tape import KINDS, Line, Tape, read, stitched
from tests.exact.verdict import Verdict

PROJECT, RUN = "exact", "run"
SIDES: Final[dict[str, Any]] = {"lightning": runs, "runner": native}
Attach = Callable[[Tape], Any]  # what is added to a fit; the side knows it


class Bare(NamedTuple):
    """The run without us."""

    ended: Ended
    lines: list[Line]

    @property
    def batches(self) -> int:
        return sum(line[0] == "batch" for line in self.lines)


class WentWrong(Exception):  # noqa: N818 -- it is no error of ours
    """A process ended as it should not have."""


class Story:
    """The processes of one run after another, in one folder of their own.

    Args:
        config: what they train.
        folder: made here.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.config, self.folder, self.side = config, folder, SIDES[config.side]
        self.told: list[tuple[list[Line], int | None]] = []
        self.kills = 0

    def process(
        self,
        attach: Attach | None,
        *,
        resumed_at: int | None = None,
        kill_at: tuple[str, int] | None = None,
        ckpt_path: str | None = None,
    ) -> Ended | None:
        """One process; None when it was killed.

        Args:
            resumed_at: batches that are done in the snapshot it goes on from. Its seed is another
                one then: nothing may come from the script having drawn the same again.
        """
        name = f"{len(self.told)}"
        lines = self.folder / f"{name}.jsonl"

        def main() -> Ended:
            tape = Tape(lines, kill_at=kill_at, on_kill=forked.kill_myself)
            told: Ended = self.side.fit(
                self.config,
                self.folder,
                tape,
                attach(tape) if attach is not None else None,
                seed=runs.SEED if resumed_at is None else runs.OTHER_SEED,
                ckpt_path=ckpt_path,
            )
            return told

        outcome = forked.run(main, self.folder, name)
        self.told.append((read(lines), resumed_at))
        if outcome.how == "killed" and kill_at is not None:
            self.kills += 1
            return None
        if outcome.how != "done":
            msg = f"process {name} {outcome.how}: {outcome.told()}"
            raise WentWrong(msg)
        ended: Ended = outcome.result
        return ended

    def verdict(self, bare: Bare, ended: Ended) -> Verdict:
        """Compare its end, and all that it told, with the run without us."""
        found = digest.differences(bare.ended.digest, ended.digest)
        told = stitched(self.told)
        if told != bare.lines:
            found.append(_first_difference(bare.lines, told))
        return Verdict("inexact" if found else "exact", "; ".join(found), self.kills)


def _first_difference(wanted: list[Line], found: list[Line]) -> str:
    pairs = zip(wanted, found, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(wanted), len(found)))
    a, b = wanted[place : place + 1], found[place : place + 1]
    return f"line {place} of {len(wanted)}: {a} became {b}"


def bare(config: Config, folder: Path) -> Bare:
    """The run without us."""
    story = Story(config, folder)
    ended = story.process(None)
    assert ended is not None
    return Bare(ended, story.told[0][0])


# ------------------------------------------------------------- within one process


def _one_process(config: Config, folder: Path, bare: Bare, act: Gate) -> Verdict:
    story = Story(config, folder)
    ended = story.process(functools.partial(story.side.AtGate, act))
    assert ended is not None
    return story.verdict(bare, ended)


def capture(config: Config, folder: Path, bare: Bare, rng: random.Random) -> Verdict:
    """Captured at every third batch, and nothing else."""

    def act(held: Any) -> None:
        if held.gates % 3 == 0:
            held.delegate.check(runs.loaded(held.save()))

    return _one_process(config, folder, bare, act)


def fork(config: Config, folder: Path, bare: Bare, rng: random.Random) -> Verdict:
    """The state that was just captured is applied, at two places."""
    places = rng.sample(range(bare.batches), 2)

    def act(held: Any) -> None:
        if held.gates in places:
            held.load(held.save())

    return _one_process(config, folder, bare, act)


def rollback(config: Config, folder: Path, bare: Bare, rng: random.Random) -> Verdict:
    """Back to an earlier place, on, and twice more from the file; the last time from further on."""
    place, *later = sorted(rng.sample(range(bare.batches), 3))
    first, second = later
    kept: list[bytes] = []
    back_at = {first, first + 1 + (first - place), first + 1 + (first - place) + second - place}

    def act(held: Any) -> None:
        if held.gates == place:
            kept.append(held.save())
        elif held.gates in back_at and kept:
            held.load(kept[0])

    return _one_process(config, folder, bare, act)


# ------------------------------------------------------- the whole plugin, several processes


def plugin(story: Story, *, every: int, resume: str | None, **more: Any) -> Attach:
    """The whole of it, as a user has it."""
    return functools.partial(
        story.side.plugin,
        project=PROJECT,
        run_name=RUN,
        save_dir=story.folder / "runs",
        resume=resume,
        checkpoint_every=every,
        keep_checkpoints=3,
        **more,
    )


class Kept(NamedTuple):
    """The newest checkpoint of a run."""

    path: Path
    batches: int


def newest(story: Story) -> Kept | None:
    """What the next process goes on from; every checkpoint there has to be readable.

    Raises:
        WentWrong: one is not.
    """
    found = run_folder.find_checkpoint(story.folder / "runs", PROJECT, RUN)
    if found is None:
        return None
    _, _, newest_path = found
    for path in newest_path.parent.glob("*.ckpt"):
        if not path.with_suffix(".json").exists():
            continue  # the kill came before it was complete: it does not exist
        try:
            read_checkpoint(path)
        except CommandError as error:
            msg = f"unreadable: {path.name}: {error}"
            raise WentWrong(msg) from error
    state, _ = read_checkpoint(newest_path)
    return Kept(newest_path, story.side.batches_done(state))


def exactness(folder: Path) -> dict[str, Any] | None:
    """What the run has said of itself so far, in ``run.json``; None: nothing yet."""
    for file in (folder / "runs").glob("*/*/run.json"):
        said: dict[str, Any] | None = json.loads(file.read_text()).get("exactness")
        if said is not None:
            return said
    return None


def session(config: Config, folder: Path, bare: Bare, rng: random.Random) -> Verdict:
    """The callback held before the first batch, and saving at every third; it says what it is."""
    story = Story(config, folder)
    ended = story.process(plugin(story, every=3, resume=None, pause_at_start=True, max_pause=0.05))
    assert ended is not None
    verdict = story.verdict(bare, ended)
    return dataclasses.replace(verdict, said=exactness(folder))


def draw_event(bare: Bare, rng: random.Random, share: float = 1.0) -> tuple[str, int]:
    """Kind and number of an event that a run has.

    Args:
        share: how much of the run is left.
    """
    kinds = [kind for kind in KINDS if bare.ended.events[kind] or kind == "disk"]
    kind = rng.choice(kinds)
    number = bare.ended.events[kind] if kind != "disk" else bare.batches
    return kind, rng.randint(1, max(1, int(number * share)))


def killed(config: Config, folder: Path, bare: Bare, rng: random.Random, kills: int = 1) -> Verdict:
    """SIGKILL at an event, a new process, and so on until one comes to its end."""
    story = Story(config, folder)
    ended, said = None, None
    every = rng.choice((1, 1, 2, 3))
    while ended is None:
        kept = newest(story)
        share = 1.0 if kept is None else max(0.0, 1 - kept.batches / bare.batches)
        kill_at = draw_event(bare, rng, share)
        if config.inexact is not None and kept is None:  # what draws shows in the first batches
            steps = bare.ended.events["step"]
            kill_at = "step", rng.randint(steps // 2, steps)
        ended = story.process(
            plugin(story, every=every, resume="auto"),
            resumed_at=None if kept is None else kept.batches,
            kill_at=kill_at if story.kills < kills else None,
        )
        if ended is None or config.inexact is None:
            said = said or exactness(folder)
    return dataclasses.replace(story.verdict(bare, ended), said=said)


def killed_twice(config: Config, folder: Path, bare: Bare, rng: random.Random) -> Verdict:
    """A resumed run that dies is another state than a fresh one."""
    return killed(config, folder, bare, rng, kills=2)


def ckpt_path(config: Config, folder: Path, bare: Bare, rng: random.Random) -> Verdict:
    """Killed, and resumed by ``fit(ckpt_path=)`` with a checkpoint of ours."""
    story = Story(config, folder)
    half = draw_event(bare, rng, 0.5)
    while half[0] == "disk":
        half = draw_event(bare, rng, 0.5)
    ended = story.process(plugin(story, every=1, resume=None), kill_at=half)
    kept = newest(story)
    if ended is None:
        ended = story.process(
            plugin(story, every=1, resume=None),
            resumed_at=None if kept is None else kept.batches,
            ckpt_path=None if kept is None else str(kept.path),
        )
    assert ended is not None
    return story.verdict(bare, ended)


Way = Callable[[Config, Path, Bare, random.Random], Verdict]
WAYS: Final[dict[str, Way]] = {
    "capture": capture,
    "session": session,
    "fork": fork,
    "rollback": rollback,
    "kill": killed,
    "kill twice": killed_twice,
    "ckpt_path": ckpt_path,
}


def judged(way: str, config: Config, folder: Path, bare: Bare, rng: random.Random) -> Verdict:
    """The verdict on one way; what goes wrong is one too."""
    try:
        return WAYS[way](config, folder, bare, rng)
    except WentWrong as wrong:
        return Verdict("FAILED", str(wrong))


def all_of(
    config: Config, folder: Path, chosen: Iterable[str], kills: int, seed: int
) -> Iterator[tuple[str, Verdict]]:
    """Every way of one configuration, then so many kills more."""
    try:
        told = bare(config, folder / "bare")
    except WentWrong as wrong:
        yield "bare", Verdict("FAILED", str(wrong))
        return
    for way in (way for way in chosen if way not in SIDES[config.side].WITHOUT):
        rng = random.Random(f"{seed} {config.name} {way}")
        yield way, judged(way, config, folder / way.replace(" ", "-"), told, rng)
    if kills:
        yield "kills", many_kills(config, folder / "kills", told, kills, seed)
    if left := forked.leftovers():
        yield "processes left over", Verdict("FAILED", " ".join(left))


def many_kills(config: Config, folder: Path, bare: Bare, kills: int, seed: int) -> Verdict:
    """Runs that are killed once or twice, until there were so many kills."""
    done = stories = 0
    while done < kills:
        stories += 1
        rng = random.Random(f"{seed} {config.name} {stories}")
        way = "kill twice" if kills - done > 1 and stories % 3 == 0 else "kill"
        verdict = judged(way, config, folder / f"{stories}", bare, rng)
        done += verdict.kills
        if verdict.how != "exact":
            return dataclasses.replace(verdict, why=f"story {stories}: {verdict.why}", kills=done)
    return Verdict("exact", kills=done)
