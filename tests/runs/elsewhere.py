"""A process that imports an archive and goes on with its newest run: what it is at its end.

python -m tests.runs.elsewhere runner | lightning ARCHIVE SAVE_DIR OUT
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import torch

CHOSEN = [*range(3, 40, 2)]
NAMED = {"project": "p", "run_name": "r"}


def of_runner(save_dir: Path) -> Any:
    from tests.exact import digest
    from tests.runner.rig import fitted
    from tests.runner.test_fork import options

    where = {"save_dir": save_dir, "dashboard": "off", "resume": "auto"}
    return digest.of_run(fitted(**where, **NAMED, **options()))


def of_lightning(save_dir: Path) -> Any:
    from otf_lightning import OnTheFlyCallback
    from tests.no_harm import digest
    from tests.plugin.rig import unlogged
    from tests.plugin.test_fork import Seeing, fit

    ours = OnTheFlyCallback(save_dir=save_dir, dashboard="off", resume="auto", **NAMED)  # type: ignore[arg-type]
    return unlogged(digest.of(fit([ours], Seeing(), max_epochs=3)))


def main(kind: str, archive: Path, save_dir: Path, out: Path) -> None:
    from otf_core.runs.unarchive import unpack

    torch.set_num_threads(1)
    unpack(archive, save_dir)
    found = {"runner": of_runner, "lightning": of_lightning}[kind](save_dir)
    out.write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
