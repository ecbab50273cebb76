"""What counts as a step, where a script is met, and that torch is as before afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim import optimizer as torch_optimizer
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from otf_core.script import marks
from otf_core.script.driver import MAX_STEPS_PER_BATCH, PRIVATE, ScriptDriver, frames_to
from otf_core.script.stop import StopScript

torch.set_num_threads(1)


class Tape:
    """What the driver has told."""

    def __init__(self) -> None:
        self.driver: ScriptDriver
        self.told: list[str] = []
        self.points: list[tuple[int, int]] = []  # step, batches done
        self.at_point: Any = lambda _frame: None

    def begins(self, frame: FrameType) -> None:
        self.told.append("begins")

    def before_step(self, optimizer: Optimizer, *, complete: bool) -> None:
        self.told.append("step" if complete else "step inside")

    def after_step(self, optimizer: Optimizer) -> None:
        self.told.append("stepped")

    def fetching(self) -> None:
        self.told.append("fetching")

    def fed(self, batch: Any) -> None:
        self.told.append("fed")

    def evaluates(self) -> None:
        pass

    def pass_ended(self) -> None:
        self.told.append("pass ended")

    def safe_point(self, frame: FrameType) -> None:
        self.told.append("safe point")
        self.points.append((self.driver.step, self.driver.batches_done()))
        self.at_point(frame)


@contextmanager
def driven() -> Iterator[tuple[ScriptDriver, Tape]]:
    tape, said = Tape(), []
    driver = tape.driver = ScriptDriver(tape, said.append)
    driver.said = said  # type: ignore[attr-defined]
    with driver.attached():
        yield driver, tape


def parts(samples: int = 12) -> tuple[torch.nn.Linear, SGD, DataLoader[Any]]:
    model = torch.nn.Linear(2, 1)
    loader = DataLoader(TensorDataset(torch.ones(samples, 2)), batch_size=4)
    return model, SGD(model.parameters(), lr=0.1), loader


def step(model: torch.nn.Linear, optimizer: Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(x).mean().backward()
    optimizer.step()


def script(source: str, **names: Any) -> dict[str, Any]:
    """Run code with its loops marked."""
    space = {"__name__": "__main__", **names}
    marks.begin(os.getcwd())
    exec(marks.compile_marked(source.encode(), "script.py"), space)
    return space


def originals() -> list[Any]:
    return [
        _BaseDataLoaderIter.__next__,
        torch.Tensor.backward,
        dict(torch_optimizer._global_optimizer_pre_hooks),
        dict(torch_optimizer._global_optimizer_post_hooks),
    ]


def test_torch_is_as_before_when_it_is_over_also_after_an_error() -> None:
    before = originals()
    with driven():
        assert originals() != before
    assert originals() == before
    with pytest.raises(RuntimeError, match="mine"), driven():
        raise RuntimeError("mine")
    assert originals() == before
    assert vars(marks.builtins)[marks.DUE] is False


def test_every_private_name_of_torch_is_there() -> None:
    loader = iter(parts()[2])
    owners = {
        "torch.utils.data.dataloader": sys.modules["torch.utils.data.dataloader"],
        "_BaseDataLoaderIter": loader,
        "torch._C._dynamo.eval_frame": torch._C._dynamo.eval_frame,
        "sys": sys,
    }
    assert owners.keys() == PRIVATE.keys()
    for owner, names in PRIVATE.items():
        assert [name for name in names if not hasattr(owners[owner], name)] == []


def test_the_safe_point_of_a_loader_is_before_the_next_batch_and_at_the_end_of_a_pass() -> None:
    with driven() as (driver, tape):
        model, optimizer, loader = parts()
        for _ in range(2):
            for (x,) in loader:
                step(model, optimizer, x)
        assert driver.kind == "loader"
        assert tape.points == [(1, 1), (2, 2), (3, 3), (4, 1), (5, 2), (6, 3)]
        assert driver.passes == 2
        assert not driver.trained
    batch = ["fetching", "fed", "step", "stepped", "safe point"]
    assert tape.told[:3] == ["fetching", "fed", "begins"]
    assert [t for t in tape.told if t != "begins"] == (batch * 3 + ["fetching", "pass ended"]) * 2


def test_an_evaluation_is_no_step_and_no_pass() -> None:
    with driven() as (driver, tape):
        model, optimizer, loader = parts()
        for (x,) in loader:
            step(model, optimizer, x)
            with torch.no_grad():
                for (y,) in loader:
                    model(y)
        assert [n for n, _ in tape.points] == [1, 2, 3]
        assert driver.passes == 1


def test_an_evaluation_with_gradients_on_is_no_safe_point() -> None:
    with driven() as (_, tape):
        model, optimizer, loader = parts()
        other = DataLoader(TensorDataset(torch.ones(12, 2)), batch_size=3)
        for _ in range(2):
            batches = iter(loader)
            x = next(batches, None)
            while x is not None:
                following = next(batches, None)  # the last step has no fetch behind it
                step(model, optimizer, x[0])
                x = following
            for (y,) in other:
                model(y)
        assert tape.points == [(1, 2), (2, 3), (3, 0), (4, 2), (5, 3)]


def test_micro_batches_and_two_optimizers_on_a_batch_are_one_step() -> None:
    with driven() as (driver, tape):
        model, first, loader = parts(24)
        second = SGD(model.parameters(), lr=0.1)
        for n, (x,) in enumerate(loader):
            model(x).mean().backward()
            if n % 3 == 2:
                first.step()
                second.step()
        assert [n for n, _ in tape.points] == [1, 2]
        assert driver.optimizer_steps == 4
        assert driver.optimizers == [first, second]


def test_a_batch_that_is_kept_for_ever_makes_it_a_script_without_a_loader() -> None:
    with driven() as (driver, tape):
        model, optimizer, loader = parts()
        script(
            "x, = next(iter(loader))\nfor n in range(20):\n    step(model, optimizer, x)\n",
            loader=loader, model=model, optimizer=optimizer, step=step,
        )  # fmt: skip
        assert driver.kind == "head"
        assert [n for n, _ in tape.points] == list(range(MAX_STEPS_PER_BATCH + 1, 20))
        driver.count_last()
        assert driver.step == 20
        assert driver.said == ["9 steps on one batch: the loop is met at its head from here on"]  # type: ignore[attr-defined]


def test_the_head_is_of_the_loop_that_encloses_the_step() -> None:
    found: list[tuple[str, int]] = []
    with driven() as (driver, tape):
        model, optimizer, _ = parts()
        tape.at_point = lambda frame: found.append((frame.f_code.co_name, frame.f_lineno))
        script(
            "def train(x):\n"
            "    for part in range(2):\n"
            "        x = x + 0\n"
            "    step(model, optimizer, x)\n"
            "    for part in range(2):\n"
            "        x = x + 0\n"
            "for epoch in range(2):\n"
            "    n = 0\n"
            "    while n < 2:\n"
            "        n += 1\n"
            "        train(x)\n",
            x=torch.ones(4, 2), model=model, optimizer=optimizer, step=step,
        )  # fmt: skip
        assert driver.kind == "head"
    assert found == [("<module>", 10), ("<module>", 8), ("<module>", 10)]


def test_without_any_optimizer_ever_a_backward_is_a_step() -> None:
    code = (
        "import torch\n"
        "from tests.script.test_driver import driven, script\n"
        "with driven() as (driver, tape):\n"
        "    w = torch.ones(2, requires_grad=True)\n"
        "    script('for n in range(4):\\n    w.sum().backward()\\n', w=w)\n"
        "    assert [n for n, _ in tape.points] == [1, 2, 3], tape.points\n"
        "    assert driver.kind == 'head' and driver.optimizers == []\n"
        "    o = torch.optim.SGD([w], lr=0.1)\n"
        "    script('for n in range(3):\\n    w.sum().backward()\\n    o.step()\\n', w=w, o=o)\n"
        "    assert [n for n, _ in tape.points] == [1, 2, 3, 4, 5], tape.points\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)


def test_another_thread_is_not_served() -> None:
    with driven() as (driver, tape):
        model, optimizer, loader = parts()
        for (x,) in loader:
            step(model, optimizer, x)
            other = threading.Thread(target=lambda: [step(*parts()[:2], y) for (y,) in loader])
            other.start()
            other.join()
        assert tape.points == [(1, 1), (2, 2), (3, 3)]
        assert driver.optimizers == [optimizer]


def test_a_forked_child_is_left_alone() -> None:
    with driven() as (_, tape):
        model, optimizer, loader = parts()
        for (x,) in loader:
            step(model, optimizer, x)
            read, write = os.pipe()
            if (pid := os.fork()) == 0:
                tape.told.clear()
                for (y,) in loader:
                    step(model, optimizer, y)
                os.write(write, b"told" if tape.told else b"quiet")
                os._exit(0)
            os.waitpid(pid, 0)
            assert os.read(read, 9) == b"quiet"
            os.close(read)
            os.close(write)


def test_a_step_that_raises_is_not_taken_for_one_around_the_next() -> None:
    class Fails(SGD):
        fails = True

        def step(self, closure: Any = None) -> None:
            if self.fails:
                raise ValueError("no")
            super().step()

    with driven() as (_, tape):
        model, _, loader = parts()
        optimizer = Fails(model.parameters(), lr=0.1)
        for (x,) in loader:
            try:
                step(model, optimizer, x)
            except ValueError:
                optimizer.fails = False
                step(model, optimizer, x)
        assert [n for n, _ in tape.points] == [1, 2, 3]
        assert tape.told.count("stepped") == tape.told.count("step") + tape.told.count(
            "step inside"
        )


def test_an_optimizer_that_the_script_lets_go_of_is_not_kept() -> None:
    with driven() as (driver, _):
        for _ in range(3):
            model, optimizer, loader = parts()
            for (x,) in loader:
                step(model, optimizer, x)
            del model, optimizer
        assert driver.optimizers == []
        assert driver.optimizers_seen == 3


def test_the_loss_is_the_last_backward_s_and_holds_no_graph() -> None:
    with driven() as (driver, _):
        w = torch.nn.Parameter(torch.ones(2))
        SGD([w], lr=0.1)
        loss = (w * 3).sum()
        loss.backward()
        assert driver.loss == torch.tensor(6.0)
        assert driver.loss is not None
        assert driver.loss.grad_fn is None
        (w * 2).backward(torch.ones(2))
        assert driver.loss is None


def test_frames_are_the_script_s_from_its_module_on() -> None:
    names: list[list[str]] = []
    with driven() as (_, tape):
        model, optimizer, loader = parts()
        space: dict[str, Any] = {}
        tape.at_point = lambda frame: names.append(
            [each.f_code.co_name for each in frames_to(frame, space)]
        )
        space.update(loader=loader, model=model, optimizer=optimizer, step=step)
        source = "def main():\n    for x, in loader:\n        step(model, optimizer, x)\nmain()\n"
        exec(compile(source, "script.py", "exec"), space)
    assert names == [["<module>", "main"]] * 3


def test_what_stops_at_the_safe_point_comes_out_of_next() -> None:
    def stop(_frame: FrameType) -> None:
        raise StopScript(4)

    with driven() as (_, tape):
        model, optimizer, loader = parts()
        tape.at_point = stop
        batches = iter(loader)
        left: list[SystemExit] = []
        seen = 0
        while seen < 3 and len(left) < 1:
            try:
                (x,) = next(batches)
            except StopScript as error:
                left.append(error)
                break
            seen += 1
            step(model, optimizer, x)
        assert (seen, [error.code for error in left]) == (1, [4])
        tape.at_point = lambda _frame: None
        assert len(list(batches)) == 2  # the batch was not fetched
