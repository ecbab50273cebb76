"""One rank of two, on gloo: ``python -m tests.own_loop.two_ranks FOLDER HOW RANK``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from otf_core.state.keeper import ResumeError
from tests.own_loop.loops import Bare, Loop


class OfRank(Loop):
    """Under DDP, each rank with its own data."""

    def build(self) -> None:
        self.net = nn.parallel.DistributedDataParallel(self.net)  # type: ignore[assignment]
        self.net.calls = 0  # type: ignore[assignment]
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 3)


def main() -> None:
    folder, how, rank = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/{how}.store", rank=rank, world_size=2
    )
    loop = OfRank(seed=rank)
    said: Any = None
    if how == "bare":
        loop.train(Bare(loop.loader))
    elif how == "resume":
        try:
            loop.run(save_dir=folder / "runs", resume="auto")
        except ResumeError as error:
            said = str(error)
    else:
        loop.run(save_dir=folder / "runs", checkpoint_every=2)
    found = {"digest": repr(loop.digest()), "told": repr(loop.told), "said": said}
    (folder / f"{how}.{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
