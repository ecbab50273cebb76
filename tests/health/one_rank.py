"""One of several processes that compare their parameters: rank, world size, file of the group."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed

from otf_core.health import dist
from tests.health.subjects import Plain, budget, net


def main(rank: int, world_size: int, file: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=world_size
    )
    subject = Plain(net())
    subject.world_size, subject.rank = world_size, rank
    for differs in (False, True):
        if differs and rank:
            with torch.no_grad():
                subject.module.get_parameter("1.weight")[0, 0] += 1
        found = dist.check(subject, budget(), gather=dist.all_ranks)
        sys.stdout.write(json.dumps(found.to_wire()) + "\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
