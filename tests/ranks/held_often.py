"""One rank of a process group that is held again and again, without a framework:
``python -m tests.ranks.held_often FOLDER [GROUP_S]``, RANK and the rest in the environment.

Notes at which boundary it stood at each pause, and at which each part ended. With a time-out of
the process group it is held once, four times longer; then rank 0 alone waits as long.
"""

from __future__ import annotations

import dataclasses
import os
import random
import sys
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from otf_core.control.agreement import StepAgreement
from otf_core.ranks.mail import StoreMail
from tests.ranks.rig import be_impatient, note


@dataclasses.dataclass(frozen=True)
class Part:
    """How the ranks drift, and how they are held.

    Attributes:
        reduced_every: batches from one collective to the next; 0 for none at all.
        slower: the last rank's delays are so many times longer.
        early: the share of pauses that are over before the others can have come.
        held_s: so long each other pause takes, and up to a fifth longer.
    """

    name: str
    pauses: int
    reduced_every: int
    slower: float = 1.0
    early: float = 0.3
    held_s: float = 0.002


PARTS = (
    Part("skewed", 120, reduced_every=1),
    Part("a slow rank", 50, reduced_every=8, slower=5.0),
    Part("no collective", 30, reduced_every=0, slower=3.0, early=0.5),
)
DELAY_S = 0.002


class Rank:
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.draw = random.Random(7 * size + rank)
        self.at = -1
        self.stood: list[int] = []
        self.sums: list[bool] = []
        self.agreement = StepAgreement(StoreMail("often", rank), rank, size, do=self.do)
        self.standing, self.let_go = threading.Semaphore(0), threading.Semaphore(0)
        self.answered = self.last = self.over = False

    def wait(self, longest_s: float) -> None:
        threading.Event().wait(self.draw.uniform(0, longest_s))

    def do(self, name: str, args: list[Any]) -> int:
        self.stood.append(self.at)
        self.over = bool(args[0])
        return self.at

    def attend(self) -> bool:
        number = self.agreement.tell("note", self.last)
        self.do("note", [self.last])
        if self.answered:
            assert set(self.agreement.answers(number).values()) == {self.at}
        self.standing.release()
        assert self.let_go.acquire(timeout=60)
        return False

    def person(self, part: Part) -> None:
        """Asks for pauses, and ends some before the others stand; a thread of rank 0."""
        draw = random.Random(part.name)
        for n in range(part.pauses):
            early = draw.random() < part.early
            self.answered, self.last = not early, n == part.pauses - 1
            if early:
                self.let_go.release()
            self.agreement.ask()
            assert self.standing.acquire(timeout=60)
            if not early:
                threading.Event().wait(draw.uniform(part.held_s, 1.2 * part.held_s))
                self.let_go.release()
            threading.Event().wait(draw.uniform(0, 4 * DELAY_S))

    def train(self, part: Part) -> None:
        slower = part.slower if self.rank == self.size - 1 else 1.0
        person = threading.Thread(target=self.person, args=(part,))
        if self.rank == 0:
            person.start()
        self.over = False
        while not self.over:
            self.at += 1
            self.agreement.boundary(self.attend)
            self.wait(slower * DELAY_S)
            if part.reduced_every and self.at % part.reduced_every == 0:
                total = torch.tensor(float(self.at))
                dist.all_reduce(total)
                self.sums.append(float(total) == self.size * self.at)
        if self.rank == 0:
            person.join()


def alone(rank: int, group_s: float) -> str:
    """What a rank is told that waits in a collective while rank 0 stands alone."""
    if rank == 0:
        threading.Event().wait(4 * group_s)
        return ""
    try:
        dist.all_reduce(torch.zeros(()))
    except RuntimeError as error:
        return str(error)
    return ""


def main(folder: Path, group_s: float | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    if group_s is not None:
        be_impatient(group_s)
    rank = Rank(dist.get_rank(), dist.get_world_size())
    found: dict[str, Any] = {"stood": [], "ended": []}
    long = () if group_s is None else (Part("long", 1, 1, early=0, held_s=4 * group_s),)
    for part in long or PARTS:
        rank.train(part)
        found["stood"].append(rank.stood)
        found["ended"].append(rank.at)
        rank.stood = []
    found["alike"] = all(rank.sums) and len(rank.sums) > 0
    if group_s is not None:
        found["alone"] = alone(rank.rank, group_s)
    rank.agreement.close()
    note(folder, rank.rank, found)
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else None)
