"""Checks of health on all ranks; each at a meeting.

Rule 1: every rank looks at itself at the same time, without a collective, since how many batches
one has time for is its own; what is told in full is of rank 0, of the others what they found.
Rule 2: the run is on every rank as it was; see ``health.subject.undisturbed``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch

from otf_core.errors import CommandError
from otf_core.health import checks, dist
from otf_core.health.budget import Budget
from otf_core.health.report import Health
from otf_core.health.subject import Subject, undisturbed
from otf_core.ranks.shares import NoCollectives, refused_or
from otf_core.ranks.together import Others, send

SHOWN: Final = 8  # other ranks
_LONG: Final = 1_000  # characters that another rank may say


class SharedChecks:
    """Rank 0's side of all checks.

    Args:
        others: which stand.
    """

    def __init__(self, others: Others) -> None:
        self._others = others

    def run(
        self,
        name: str,
        subject: Subject,
        payload: Mapping[str, Any],
        *,
        cancelled: Callable[[], bool] = bool,
    ) -> Health:
        """See checks.run."""

        def called_off() -> bool:
            if cancelled():
                self._others.cease()
                return True
            return False

        if name == "dist_health":
            ranks = OtherHashes(self._others)
            return checks.run(name, subject, payload, cancelled=called_off, ranks=ranks)
        with self._others.do("check", name, dict(payload)) as heard:
            own = on_this_rank(name, subject, payload, called_off)
        return of_all(own, heard)


class OtherHashes:
    """See dist.Ranks."""

    def __init__(self, others: Others) -> None:
        self._others = others

    @contextlib.contextmanager
    def totals(self, sample_weights: int) -> Iterator[Mapping[int, Mapping[str, Any]]]:
        """See dist.Ranks."""
        found: dict[int, Mapping[str, Any]] = {}
        with self._others.do("hash_all", sample_weights) as heard:
            yield found
        found.update(heard)

    def digests(self, kind: str) -> Mapping[int, Mapping[str, str]]:
        """See dist.Ranks."""
        with self._others.do("hashes", kind) as heard:
            pass
        return heard

    def apart(
        self, kind: str, name: str, tensor: torch.Tensor
    ) -> Mapping[int, Sequence[float | None]]:
        """See dist.Ranks."""
        with self._others.do("apart", kind, name, list(tensor.shape)) as heard:
            for piece in dist.pieces(tensor):
                send(piece)
            send(None)
        return heard


class ChecksOfOther:
    """Another rank's side; its methods are rows of ``OtherRank.do``; training thread.

    Args:
        subject: its part of the run, as a check sees it.
        ceased: whether rank 0 has called off what it told last.
    """

    def __init__(self, subject: Callable[[], Subject], ceased: Callable[[], bool]) -> None:
        self._subject, self._ceased = subject, ceased
        self._hashes: dist.Hashes | None = None

    def rows(self) -> dict[str, Callable[..., Any]]:
        """By what rank 0 tells."""
        return {
            "check": self._check,
            "hash_all": self._hash_all,
            "hashes": self._hashes_of,
            "apart": self._apart,
        }

    def _check(self, name: str, payload: dict[str, Any]) -> Any:
        def look() -> dict[str, Any]:
            found = on_this_rank(name, self._subject(), payload, self._ceased)
            return {"ok": found.ok, "text": found.text[:_LONG]}

        return refused_or(look)

    def _hash_all(self, sample_weights: int) -> dict[str, Any]:
        self._hashes = None
        subject = self._subject()
        device = str(subject.device)
        budget = Budget(1, checks.CHECKS["dist_health"].limit_s, cancelled=self._ceased)
        try:
            self._hashes = dist.Hashes(subject, budget, sample_weights)
        except (CommandError, RuntimeError) as error:  # no room on host or device, say
            return {"device": device, "failed": f"{type(error).__name__}: {error}"[:_LONG]}
        return {"device": device, "totals": self._hashes.totals}

    def _hashes_of(self, kind: str) -> dict[str, str]:
        return self._hashes.of[kind] if self._hashes is not None else {}

    def _apart(self, kind: str, name: str, shape: list[int]) -> list[float | None]:
        mine = self._hashes.tensor(kind, name) if self._hashes is not None else None
        return dist.apart(mine, shape, iter(lambda: send(None), None))


def on_this_rank(
    name: str, subject: Subject, payload: Mapping[str, Any], cancelled: Callable[[], bool]
) -> Health:
    """A check of one rank alone; a training step that runs a collective is refused.

    Raises:
        CommandError: as ``checks.run``.
    """
    alone = NoCollectives("The training step")
    if name != "throughput_health":
        with alone:
            return checks.run(name, subject, payload, cancelled=cancelled)
    # Looking at every operation takes time, which this one measures: a batch before it.
    if subject.why_no_step is None:
        with undisturbed(subject), alone:
            if (batch := next(iter(subject.batches()), None)) is not None:
                subject.loss_of(subject.to_device(batch))
    return checks.run(name, subject, payload, cancelled=cancelled)


def of_all(own: Health, heard: Mapping[int, Any]) -> Health:
    """What is told of all ranks: rank 0 in full, of each other its first line, or why it has none.

    A rank that has an issue where rank 0 has none is told in full as well.
    """
    rows = []
    for rank, (refusal, found) in sorted(heard.items()):
        if refusal is not None:
            rows.append({"rank": rank, "ok": None, "said": refusal["detail"], "text": ""})
        else:
            said = found["text"].split("\n")[0]
            rows.append({"rank": rank, "ok": found["ok"], "said": said, "text": found["text"]})
    by_need = sorted(rows, key=lambda row: row["ok"] is True)
    lines = [f"Rank 0 of {1 + len(rows)}:", *own.text.splitlines()]
    told_in_full = not own.ok
    for row in by_need[:SHOWN]:
        lines.append(f"Rank {row['rank']}: {row['said']}")
        if row["ok"] is False and not told_in_full:
            told_in_full = True
            lines += row["text"].splitlines()[1:]
    if rest := by_need[SHOWN:]:
        well = sum(row["ok"] is True for row in rest)
        lines.append(f"Of {len(rest)} more ranks {well} are well.")
    others = [{name: row[name] for name in ("rank", "ok", "said")} for row in rows]
    ok = own.ok and all(row["ok"] is not False for row in rows)
    return Health(ok, "\n".join(lines), {**own.fields, "rank": 0, "others": others})
