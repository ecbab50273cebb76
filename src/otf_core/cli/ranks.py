"""A doctor's trial: whether ranks can be held together on these machines. It trains nothing.

``torchrun --nproc-per-node 2 -m otf_core.cli.ranks --pause 30``, on each machine as a run would be.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.distributed as dist

from otf_core.control.agreement import StepAgreement
from otf_core.ranks.mail import NoStoreError, StoreMail

BEFORE: Final = 20  # steps until somebody asks
BEHIND: Final = 20


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 where all stood, and went on."""
    parser = argparse.ArgumentParser(prog="python -m otf_core.cli.ranks", description=__doc__)
    parser.add_argument("--pause", type=float, default=30.0, metavar="SECONDS", help="30")
    parser.add_argument("--backend", help="of the process group; nccl where there are GPUs")
    asked = parser.parse_args(argv)
    if "RANK" not in os.environ:
        parser.error("RANK is not set: begin it with what starts your ranks, as in the first line")
    torch.set_num_threads(1)
    device = torch.device("cpu")
    backend = asked.backend or ("nccl" if torch.cuda.is_available() else "gloo")
    if backend == "nccl":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group(backend)
    try:
        return _Trial(device, asked.pause).run()
    except NoStoreError as error:
        _say("BAD ", f"the ranks cannot be told anything: {error}")
        return 1
    finally:
        dist.destroy_process_group()


class _Trial:
    """One rank's side; training thread."""

    def __init__(self, device: torch.device, pause_s: float) -> None:
        self._device, self._pause_s = device, pause_s
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        mail = StoreMail("trial", self._rank)
        self._agreement = StepAgreement(mail, self._rank, self._size, do=self._do)
        self._step, self._last = 0, sys.maxsize
        self._asked_s = 0.0
        self._wrong: list[str] = []

    def run(self) -> int:
        """Steps of one collective each; held once."""
        try:
            self._steps()
        finally:
            self._agreement.close()
        if self._rank == 0 and not self._wrong:
            _say("ok  ", f"held for {self._pause_s:g} s; {BEHIND} steps went on behind it")
        for wrong in self._wrong:
            _say("BAD ", wrong)
        return 1 if self._wrong else 0

    def _steps(self) -> None:
        while self._step < self._last:
            if self._rank == 0 and self._step == BEFORE:
                self._asked_s = time.monotonic()
                self._agreement.ask()
            self._agreement.boundary(self._attend)
            self._step += 1
            ones = torch.ones(1, device=self._device)
            dist.all_reduce(ones)
            if ones.item() != self._size:
                self._wrong.append(
                    f"step {self._step} summed {ones.item():g} of {self._size} ranks"
                )

    def _do(self, _name: str, _args: list[Any]) -> list[Any]:
        self._last = self._step + BEHIND
        return [self._step, platform.node()]

    def _attend(self) -> bool:
        found = self._agreement.answers(self._agreement.tell("stand"))
        own = self._do("stand", [])
        took_ms = (time.monotonic() - self._asked_s) * 1e3
        hosts = len({host for _, host in [own, *found.values()]})
        machines = f"{hosts} machine{'s' if hosts > 1 else ''}"
        ranks = f"{self._size} ranks of {dist.get_backend()} on {machines}"
        elsewhere = [rank for rank, (step, _) in found.items() if step != own[0]]
        if elsewhere:
            self._wrong.append(f"ranks {elsewhere} stood elsewhere than rank 0")
        else:
            _say("ok  ", f"{ranks} stood at one step {took_ms:.1f} ms after the word")
        threading.Event().wait(self._pause_s)
        return False


def _say(mark: str, said: str) -> None:
    sys.stdout.write(f"{mark} {said}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
