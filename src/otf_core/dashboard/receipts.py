"""What has become of each command; event loop only.

Rule: the same id is the same command. A reply is kept and given again; only ``busy`` is forgotten,
since the trainer forgets it too.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from otf_core.errors import ErrorCode
from otf_core.protocol import COMMANDS

_QUESTIONS: Final = frozenset(name for name, spec in COMMANDS.items() if not spec.mutates)
_CHECKS: Final = frozenset(name for name in COMMANDS if name.endswith("_health"))
MAX_KEPT: Final = 4096  # as many as a trainer keeps (docs/protocol.md, "same id, same answer")
MAX_BYTES: Final = 64 * 1024 * 1024  # of a session's requests and replies; samples come as images


@dataclasses.dataclass
class Receipt:
    """One command, from sent to answered.

    Attributes:
        by: on which way it came: page, cli, rest.
        client: what its sender calls itself, None for one that does not.
    """

    id: str
    cmd: str
    payload: dict[str, Any]
    by: str
    sent_ts: float
    client: str | None = None
    accepted_ts: float | None = None
    waits_for: str | None = None
    answered_ts: float | None = None
    reply: dict[str, Any] | None = None
    state: str = "sent"  # accepted, applied, refused, unknown
    answered: asyncio.Event = dataclasses.field(default_factory=asyncio.Event, repr=False)
    size: int = 0  # bytes of its lines

    def to_json(self) -> dict[str, Any]:
        """``receipt`` of the live feed."""
        names = [f.name for f in dataclasses.fields(self) if f.name not in ("answered", "size")]
        return {name: getattr(self, name) for name in names}

    def accept(self, event: Mapping[str, Any], ts: float) -> None:
        """Note the event ``accepted``."""
        if self.reply is None:
            self.accepted_ts, self.state = ts, "accepted"
            waits_for = event.get("waits_for")
            self.waits_for = waits_for if isinstance(waits_for, str) else None

    def settle(self, reply: dict[str, Any], ts: float) -> None:
        """Note the reply and wake who waits."""
        self.reply, self.answered_ts = reply, ts
        self.state = "applied" if reply.get("ok") is True else "refused"
        self.answered.set()

    async def wait(self, timeout_s: float) -> bool:
        """Whether the answer is there within so many seconds."""
        if not self.answered.is_set() and timeout_s > 0:
            try:
                async with asyncio.timeout(timeout_s):
                    await self.answered.wait()
            except TimeoutError:
                return False
        return self.answered.is_set()


class ReceiptBook:
    """The receipts of one session."""

    def __init__(self) -> None:
        self._receipts: dict[str, Receipt] = {}
        self._bytes = 0

    def find(self, request_id: str) -> Receipt | None:
        """The receipt of that id; None also for one that was only ``busy``."""
        found = self._receipts.get(request_id)
        if found is not None and (found.reply or {}).get("code") == ErrorCode.BUSY:
            return None
        return found

    def put(self, receipt: Receipt, size: int = 0) -> None:
        """Keep one, whose request has so many bytes; the oldest answered go when it is too much."""
        before = self._receipts.pop(receipt.id, None)
        self._bytes -= before.size if before is not None else 0
        self._receipts[receipt.id] = receipt
        self.add_bytes(receipt, size)

    def add_bytes(self, receipt: Receipt, size: int) -> None:
        """Note that a kept one has grown, by its reply."""
        if self._receipts.get(receipt.id) is not receipt:
            return
        receipt.size += size
        self._bytes += size
        if len(self._receipts) <= MAX_KEPT and self._bytes <= MAX_BYTES:
            return
        for key, kept in list(self._receipts.items()):
            if kept.reply is not None and kept is not receipt:
                self._bytes -= kept.size
                del self._receipts[key]
                if len(self._receipts) <= MAX_KEPT and self._bytes <= MAX_BYTES:
                    return

    def newest(self, count: int) -> list[Receipt]:
        """The last so many that are more than a question, and each check's last; oldest first."""
        asked = [r for r in self._receipts.values() if r.cmd not in _QUESTIONS]
        checks = {r.cmd: r for r in self._receipts.values() if r.cmd in _CHECKS}
        shown = {r.id for r in (*asked[-count:], *checks.values())}
        return [receipt for receipt in self._receipts.values() if receipt.id in shown]

    def open(self) -> list[Receipt]:
        """Those without an answer, oldest first."""
        return [receipt for receipt in self._receipts.values() if receipt.reply is None]

    def pending(self) -> list[dict[str, Any]]:
        """``Session.pending`` of the API."""
        return [
            {
                "request_id": receipt.id,
                "cmd": receipt.cmd,
                "since_ts": receipt.sent_ts,
                "waits_for": receipt.waits_for,
            }
            for receipt in self.open()
        ]
