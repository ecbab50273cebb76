"""Scripts that cannot go on where they were saved: each is told so, and nothing is trained."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.script import kill

HEAD: Final = """
import os, sys, torch
from torch import nn
import torch.utils.data as data
torch.manual_seed(0)
net = nn.Linear(2, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
loader = data.DataLoader(data.TensorDataset(torch.randn(8, 2)), batch_size=2)
def fit(epochs):
    for epoch in range(epochs):
        for x, in loader:
            optimizer.zero_grad()
            net(x).sum().backward()
            optimizer.step()
            print("trained", flush=True)
"""
LIBRARY: Final = """
def fit(net, loader, optimizer):
    for x, in loader:
        optimizer.zero_grad()
        net(x).sum().backward()
        optimizer.step()
def fit_for(epochs, *given):
    for epoch in range(epochs):
        fit(*given)
"""


def _edited(folder: Path) -> tuple[str, Callable[[Path], None]]:
    def edit(script: Path) -> None:
        script.write_text(script.read_text().replace("lr=0.1", "lr=0.2"))

    return f"{HEAD}fit(2)\n", edit


def _a_librarys(folder: Path) -> tuple[str, Callable[[Path], None]]:
    library = folder / "site-packages"
    library.mkdir(parents=True)
    (library / "fitter.py").write_text(LIBRARY)
    start = f"{HEAD}sys.path.append({str(library)!r})\nimport fitter\n"
    return f"{start}fitter.fit_for(3, net, loader, optimizer)\n", _nothing


def _second_loop(folder: Path) -> tuple[str, Callable[[Path], None]]:
    return f"{HEAD}fit(1)\nfit(2)\n", _nothing


def _never(folder: Path) -> tuple[str, Callable[[Path], None]]:
    flag = folder / "flag"
    flag.parent.mkdir(parents=True, exist_ok=True)
    flag.touch()
    return f"{HEAD}if os.path.exists({str(flag)!r}):\n    fit(2)\n", lambda _: flag.unlink()


def _catches_all(folder: Path) -> tuple[str, Callable[[Path], None]]:
    code = "while True:\n    try:\n        fit(1)\n    except BaseException:\n        pass\n"
    return f"{HEAD}fit(1)\n{code}", _nothing


def _other_data(folder: Path) -> tuple[str, Callable[[Path], None]]:
    """What is over 1 MiB is made again, and here from seeds of the process."""
    return f"{HEAD}big = torch.full((600, 600), float(os.getpid()))\nfit(2)\n", _nothing


def _another_model(folder: Path) -> tuple[str, Callable[[Path], None]]:
    """The script is the same, what it reads is not."""
    width = folder / "width"
    width.parent.mkdir(parents=True, exist_ok=True)
    width.write_text("2")
    code = f"net = nn.Linear(2, int(open({str(width)!r}).read()))\n"
    again = "optimizer = torch.optim.SGD(net.parameters(), lr=0.1)\nfit(2)\n"
    return f"{HEAD}{code}{again}", lambda _: width.write_text("3") and None


def _nothing(_: Path) -> None:
    pass


# What is refused -> how it is made, and what the sentence says.
REFUSED: Final = {
    "an edited script": (_edited, "script.py was edited since"),
    "a library's own loop": (_a_librarys, "fitter's own checkpoints"),
    "a second training loop": (_second_loop, "SGD trains before the script is at script.py"),
    "a place that is not reached": (_never, "the script never came to script.py"),
    "a script that catches everything": (_catches_all, "SGD trains before the script is at"),
    "large data that is made otherwise": (_other_data, "which the script makes"),
    "another model": (_another_model, "a parameter of shape (2, 2), here (3, 2)"),
}


def faults(folder: Path) -> Iterator[tuple[str, str | None]]:
    """What was refused, and what is wrong with it."""
    for name, (make, said) in REFUSED.items():
        here = folder / name.replace("'", "")
        here.mkdir(parents=True)
        source, change = make(here / "files")
        script = here / "script.py"
        script.write_text(source)
        killed = kill.with_otf(script, here, "killed", kill_at=6)
        change(script)
        if killed.saved is None:
            yield name, f"not saved: {killed.said}"
            continue
        on = kill.with_otf(script, here, "on", origin=killed.saved)
        right = on.code == 3 and "trained" not in on.out and on.steps == 0
        sentence = [line for line in on.said if said in line]
        told_once = len(sentence) == 1 and sentence[0].endswith("nothing was trained")
        yield name, None if right and told_once else f"{on.code}, {on.steps}, {on.said}, {on.out}"


def main() -> None:
    """``python -m tests.script.refusals folder``."""
    kill.warm_up()
    for name, fault in faults(Path(sys.argv[1])):
        sys.stdout.write(f"{name}: {fault}\n")


if __name__ == "__main__":
    main()
