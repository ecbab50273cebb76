"""What memory a merge of checkpoints takes, beside loading them all; each in a process of its own.

As a program, ``python -m benchmarks.merging ARM FOLDER WIDTH ...``: merges the checkpoints of a
folder into a live model, and prints what it took, as JSON.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from benchmarks import peers
from benchmarks.figures import Row
from otf_core.runs import merge
from otf_core.runs.merging import Options
from otf_core.runs.weights import Named, put, weights_aside
from otf_core.state.checkpoint_file import write_checkpoint
from otf_core.state.host_pool import available_bytes
from otf_core.state.weights_file import WeightsFile, open_weights

MIB: Final = 1024 * 1024
SOURCES: Final = 4
SMALL: Final = (64, 256, 10)
LARGE: Final = (256, *(2048,) * 25, 10)  # 101 M parameters, none of the tensors above 17 MB
NEEDED_BYTES: Final = 5 * 1024 * MIB  # the rival that loads them all, and the files' pages
OURS: Final = ("linear", "fisher", "ties", "soup", "linear, the live model set aside")
RIVALS: Final = ("torch.load of all", "torch.load of all, mmap")


def merging(*, quick: bool, tmp: Path) -> list[Row]:
    """Peak memory of each strategy; the limit is one model and one tensor of each source."""
    large = not quick and available_bytes() >= NEEDED_BYTES
    widths = LARGE if large else SMALL
    sizes = _write(tmp, widths)
    model_mib, tensor_mib = sum(sizes) / MIB, max(sizes) / MIB
    rivals = {name: _measured(name, tmp, widths) for name in RIVALS}
    beside = {name: found["peak_mib"] for name, found in rivals.items()}
    beside |= {f"{name}, s": found["seconds"] for name, found in rivals.items()}
    rows = []
    for name in OURS:
        found = _measured(name, tmp, widths)
        aside = model_mib if "aside" in name else 0.0
        rows.append(
            Row(
                bench="merging",
                what=f"peak memory of {SOURCES} checkpoints of {model_mib:,.0f} MiB merged into "
                f"the live model, beyond a process without one: {name}",
                unit="MiB",
                ours=found["peak_mib"],
                limit=model_mib + aside + SOURCES * tensor_mib if large else None,
                spread={
                    "beyond the models": found["peak_mib"] - model_mib - aside,
                    "largest tensor": tensor_mib,
                    "s": found["seconds"],
                    "of that verifying, s": found["verified_s"],
                },
                rivals=beside,
            )
        )
    return rows


def _module(widths: tuple[int, ...]) -> nn.Module:
    layers = [nn.Linear(n, m) for n, m in itertools.pairwise(widths)]
    return nn.Sequential(*layers)


def _write(folder: Path, widths: tuple[int, ...]) -> list[int]:
    """The checkpoints, what they began from and Fisher information; the tensors' bytes."""
    torch.manual_seed(0)
    weights = _module(widths).state_dict()
    for name in ("base", *(f"source{n}" for n in range(SOURCES))):
        write_checkpoint({"state_dict": weights, "otf": {}}, folder / f"{name}.ckpt")
        weights = {key: t + 1e-3 * torch.randn_like(t) for key, t in weights.items()}
    squares = {key: t.square() for key, t in weights.items()}
    write_checkpoint({"state_dict": squares, "otf": {}}, folder / "fisher.ckpt")
    return [t.numel() * t.element_size() for t in weights.values()]


def _measured(arm: str, folder: Path, widths: tuple[int, ...]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.merging", arm, str(folder), *map(str, widths)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=peers.ROOT, check=True)
    found: dict[str, float] = json.loads(ended.stdout)
    return found


# The program.


def _main(arm: str, folder: Path, widths: tuple[int, ...]) -> None:
    torch.set_num_threads(1)
    warm = _module((2, 2))
    weights_path = folder / f"warm-{arm[:3]}.ckpt"
    write_checkpoint({"state_dict": warm.state_dict(), "otf": {}}, weights_path)
    with open_weights(weights_path) as one, open_weights(weights_path) as other:
        put({"": warm}, merge.run("linear", [one, other]).tensors())
    before_mib = _status_mib("VmRSS")
    live = _module(widths)
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    began = time.perf_counter()
    verified_s = ARMS[arm](live, folder)
    seconds = time.perf_counter() - began
    peak_mib = _status_mib("VmHWM") - before_mib
    told = {"peak_mib": peak_mib, "seconds": seconds, "verified_s": verified_s}
    sys.stdout.write(json.dumps(told))


def _status_mib(name: str) -> float:
    [found] = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )
    return int(found.split()[1]) / 1024


def _strategy(name: str) -> Callable[[nn.Module, Path], float]:
    def merged(live: nn.Module, folder: Path) -> float:
        began = time.perf_counter()
        with contextlib.ExitStack() as stack:

            def opened(file: str) -> WeightsFile:
                return stack.enter_context(open_weights(folder / f"{file}.ckpt"))

            sources = [opened(f"source{n}") for n in range(SOURCES)]
            options = Options()
            if name == "ties":
                options = Options(base=opened("base"))
            elif name == "fisher":
                options = Options(fishers=[opened("fisher") for _ in sources])
            verified_s = time.perf_counter() - began

            def score(tensors: Iterator[Named]) -> float:
                put({"": live}, tensors)
                return 0.0

            put({"": live}, merge.run(name, sources, options, score).tensors())
        return verified_s

    return merged


def _aside(live: nn.Module, folder: Path) -> float:
    with weights_aside({"": live}):
        return _strategy("linear")(live, folder)


def _loaded(*, mmap: bool) -> Callable[[nn.Module, Path], float]:
    def averaged(live: nn.Module, folder: Path) -> float:
        found = [
            torch.load(folder / f"source{n}.ckpt", weights_only=True, mmap=mmap)["state_dict"]
            for n in range(SOURCES)
        ]
        live.load_state_dict(
            {name: sum(each[name] for each in found) / SOURCES for name in found[0]}
        )
        return 0.0

    return averaged


ARMS: Final[Mapping[str, Any]] = {
    **{name: _strategy(name) for name in OURS[:-1]},
    OURS[-1]: _aside,
    RIVALS[0]: _loaded(mmap=False),
    RIVALS[1]: _loaded(mmap=True),
}


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), tuple(map(int, sys.argv[3:])))
