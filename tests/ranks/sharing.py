"""Ranks of one process, one after the other: what rank 0 tells is done when it listens.

What rank 0 sends waits in a list, so that each of the others finds it in its own order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otf_core.errors import CommandError, ErrorCode

Rows = dict[str, Callable[..., Any]]


class FakeOthers:
    """See ``ranks.together.Others``; ``send`` and ``gathered`` beside it.

    Attributes:
        told: names, in their order.
    """

    stand = True

    def __init__(self, rows: list[Rows]) -> None:
        self._rows = rows
        self.world_size = 1 + len(rows)
        self.told: list[str] = []
        self.ceased = 0
        self._under_way: tuple[str, tuple[Any, ...]] | None = None
        self._sent: list[Any] = []
        self._taken = 0
        self._at: int | None = None  # the rank that works now; None: rank 0
        self._parts: list[Any] = []
        self._heard: dict[int, Any] = {}

    @contextlib.contextmanager
    def do(self, name: str, *args: Any) -> Iterator[dict[int, Any]]:
        self.told.append(name)
        self._under_way, self._sent, self._heard = (name, args), [], {}
        heard: dict[int, Any] = {}
        yield heard
        self._run()
        heard.update(self._heard)

    def cease(self) -> None:
        self.ceased += 1

    def send(self, given: Any) -> Any:
        if self._at is None:
            self._sent.append(given)
            return given
        self._taken += 1
        return self._sent[self._taken - 1]

    def gathered(self, part: Any) -> list[Any]:
        if self._at is not None:
            self._parts.append(part)
            return []
        self._parts = [part]
        self._run()
        return self._parts

    def _run(self) -> None:
        under_way, self._under_way = self._under_way, None
        if under_way is None:
            return
        name, args = under_way
        for rank, rows in enumerate(self._rows, start=1):
            self._at, self._taken = rank, 0
            try:
                self._heard[rank] = rows[name](*args)
            except CommandError:
                raise
            except Exception as error:
                detail = f"Rank {rank} could not follow in {name}: {error}."
                raise CommandError(ErrorCode.INTERNAL, detail) from error
            finally:
                self._at = None
            assert self._taken == len(self._sent), "somebody would wait for what was sent"


def among(monkeypatch: pytest.MonkeyPatch, module: Any, others: FakeOthers) -> None:
    """The collectives of a module are between these."""
    for name in ("send", "gathered"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, getattr(others, name))
