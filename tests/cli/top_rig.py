"""``otf top`` on a real dashboard, with a trainer that speaks the protocol."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from textual.pilot import Pilot
from textual.widgets import Static

from otf_core.cli.top.app import Top
from otf_core.client import Client, NoDashboardError
from otf_core.client.band import Control, controls
from tests.dashboard.bench import TOKEN, Bench, dashboard
from tests.dashboard.trainer_double import TrainerDouble

CAN = ["pause", "resume", "save_ckpt", "validate_now", "test_now", "rollback", "stop", "journal"]


@dataclass
class Screen:
    """The app and hands to hold it by."""

    app: Top
    pilot: Pilot[int]

    async def cut_off(self, bench: Bench) -> Callable[[], None]:
        """Take the dashboard away, for this page only; what is returned gives it back."""
        found = self.app._find
        self.app._find = _none
        for page in list(bench.dashboard.live._pages):
            await page._socket.close()

        def back() -> None:
            self.app._find = found

        return back

    async def until(self, fits: Callable[[], object]) -> None:
        """Wait until this is true; the app draws meanwhile."""
        async with asyncio.timeout(15):
            while not fits():
                await self.pilot.pause(0.02)

    async def until_says(self, words: str) -> None:
        """Wait until they stand on the screen."""
        try:
            await self.until(lambda: words in self.said())
        except TimeoutError as error:
            raise AssertionError(f"no {words!r} on\n{self.text()}") from error

    def text(self) -> str:
        """What the board shows."""
        return str(self.app.query_one("#board", Static).content)

    def said(self) -> str:
        """The same as one line, however it is broken and spaced."""
        return " ".join(self.text().split())

    def dialog(self) -> str:
        """What is open over it."""
        return "\n".join(str(one.content) for one in self.app.screen.query(Static))

    def control(self, cmd: str) -> Control:
        """One of the key verbs as it stands."""
        found = controls(self.app.board, self.app.board.current())
        return next(control for control in found if control.cmd == cmd)


def learning(**options: object) -> TrainerDouble:
    """A trainer with curves."""
    trainer = TrainerDouble(token=TOKEN, **options)  # type: ignore[arg-type]
    trainer.begin()
    learn(trainer, 600)
    return trainer


def learn(trainer: TrainerDouble, steps: int) -> None:
    for _ in range(steps):
        trainer.step += 1
        step = trainer.step
        trainer.emit(
            "trainStep", step=step, epoch=step // 100, loss=2 * math.exp(-step / 200),
            val_loss=1.5 * math.exp(-step / 250) + 0.1 if step % 50 == 0 else None, lr=0.001,
            grad_norm=1 + math.sin(step), throughput=900 + step % 50, ram_mb=1200 + step / 3,
            metrics={},
        )  # fmt: skip


@asynccontextmanager
async def served(
    tmp_path: Path, *trainers: TrainerDouble, **options: object
) -> AsyncIterator[Bench]:
    """A dashboard that has heard all that these say."""
    async with dashboard(tmp_path / "otf_runs", **options) as bench:
        for trainer in trainers:
            await trainer.dial(bench.port)
        try:
            for trainer in trainers:
                key = trainer.session_id
                session = await bench.until_has(key, len(trainer.events))
                await bench.until(lambda key=key: bench.store.sessions[key].status is not None)  # type: ignore[misc]
                session.capabilities[:] = CAN
            yield bench
        finally:
            for trainer in trainers:
                await trainer.hang_up()


def client_of(bench: Bench, token: str = TOKEN) -> Client:
    return Client(bench.dashboard.url, token, timeout_s=5)


def _none() -> Client:
    raise NoDashboardError("No dashboard runs; start one with: otf dashboard")


@asynccontextmanager
async def shown(
    bench: Bench | None, width: int = 80, height: int = 24, token: str = TOKEN
) -> AsyncIterator[Screen]:
    """The page of a dashboard; of none, if there is none."""

    app = Top(_none if bench is None else lambda: client_of(bench, token))
    async with app.run_test(size=(width, height)) as pilot:
        yield Screen(app, pilot)
