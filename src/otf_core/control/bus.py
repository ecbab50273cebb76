"""The control bus: from the reader thread to the training thread, nothing lost on the way.

Rule 1: every request with an id is answered exactly once, whoever asks again and over whichever
connection.
Rule 2: a full queue is said (``busy``), never silently dropped from.
Rule 3: the control lane is carried out on the reader thread, however full the queue is.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from otf_core import protocol
from otf_core.errors import CommandError, ErrorCode, RemoteProtocolError

if TYPE_CHECKING:
    from otf_core.control.router import CommandRouter

MAX_QUEUE: Final = 1000
MAX_ANSWERS: Final = 4096  # how many answers are kept for those who ask again
MAX_WHO_CHARS: Final = 80


class Link(Protocol):
    """A connection as the bus sees it; every method may be called from any thread."""

    @property
    def legacy(self) -> bool:
        """Whether the other side is the published extension."""

    def reply(self, line: bytes) -> None:
        """Hand over one line; dropped if the connection is gone."""

    def event(self, message: Mapping[str, Any]) -> None:
        """An event of the connection, without ``event_seq``."""


class Ticket:
    """One request on its way to its one answer; any thread may answer it, the first one counts."""

    def __init__(
        self,
        request: protocol.Request,
        link: Link,
        *,
        on_answer: Callable[[Ticket], None],
        by: str = "user",
        cause: str | None = None,
    ) -> None:
        self.request, self.link = request, link
        self.by, self.cause = by, cause  # as the ledger has them
        self.payload: Any = None
        self.waits_for = "safe_point"
        self.since_ts = time.time()
        self.kept = True  # whether whoever asks again gets the same answer; ``busy`` is not kept
        self._error: CommandError | None = None
        self._line: bytes | None = None  # of the answer, encoded once, so that it stays the same
        self._on_answer = on_answer
        self._lock = threading.Lock()
        self._answered = False

    @property
    def id(self) -> str | None:
        """The request's id; None when no answer was asked for."""
        return self.request.id

    @property
    def who(self) -> str | None:
        """Whoever has given it, in one line."""
        who = self.request.who
        return None if who is None else " ".join(who.split())[:MAX_WHO_CHARS]

    @property
    def answered(self) -> bool:
        """Whether it has its answer."""
        return self._answered

    def reply(self, data: Any) -> None:
        """Applied; sent once, later calls change nothing."""
        if not self._answered:
            line = protocol.reply_ok(self.id, data) if self.id is not None else None
            self._settle(line, None)

    def fail(self, error: CommandError) -> None:
        """Refused; sent once, later calls change nothing."""
        self._settle(None, error)

    def send(self, link: Link) -> None:
        """Send the answer that there is to a connection."""
        error = self._error
        if self.id is None:
            if error is not None:
                said = {"code": error.code.value, "text": error.detail}
                link.event({"type": "error", **said, "request_id": None})
        elif error is not None:
            link.reply(protocol.reply_error(self.id, error, legacy=link.legacy))
        elif self._line is not None:
            link.reply(self._line)

    def for_memory(self) -> Ticket:
        """The answer alone, without what was asked, which may be large; once it is answered."""
        request = protocol.Request(cmd=self.request.cmd, id=self.id)
        small = Ticket(request, self.link, on_answer=lambda _: None)
        small._line, small._error, small._answered = self._line, self._error, True
        return small

    def move_to(self, link: Link) -> None:
        """Asked again over another connection: the one that asked last gets the answer."""
        with self._lock:
            self.link = link
            answered = self._answered
        if answered:
            self.send(link)

    def _settle(self, line: bytes | None, error: CommandError | None) -> None:
        with self._lock:
            if self._answered:
                return
            self._line, self._error, self._answered = line, error, True
            if error is not None and error.code is ErrorCode.BUSY:
                self.kept = False
            link = self.link
        self._on_answer(self)
        self.send(link)


class Within:
    """A link for who asks from within the process: a guard, a recipe.

    Args:
        then: called with the reply as a dict, on the thread that answers.
    """

    legacy = False

    def __init__(self, then: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
        self._then = then

    def reply(self, line: bytes) -> None:
        """The answer."""
        self._then(protocol.decode_message(line))

    def event(self, message: Mapping[str, Any]) -> None:
        """What a connection is told beside is not heard."""


class ControlBus:
    """The bounded queue, the control lane, and the memory of answers.

    Args:
        router: carries commands out.
        wake: called when the training thread has something to look at; any thread.
        step: the number of steps done, as of the last safe point.
    """

    def __init__(
        self,
        router: CommandRouter,
        *,
        wake: Callable[[], None],
        step: Callable[[], int],
        max_queue: int = MAX_QUEUE,
    ) -> None:
        self._router, self._wake, self._step = router, wake, step
        self._max_queue = max_queue
        self._lock = threading.Lock()
        self._queue: deque[Ticket] = deque()
        self._scheduled: list[tuple[int, Ticket]] = []
        self._open: dict[int, Ticket] = {}  # by identity: those without an id as well
        self._asked: dict[str, Ticket] = {}  # the open ones that have an id
        self._answers: OrderedDict[str, Ticket] = OrderedDict()  # oldest answer first
        self._closed: CommandError | None = None

    def receive(
        self,
        request: protocol.Request,
        link: Link,
        *,
        by: str = "user",
        cause: str | None = None,
    ) -> None:
        """One request; otf-reader, or whoever asks from within. Returns at once for what is queued.

        Args:
            by, cause: as the ledger has them.
        """
        ticket = Ticket(request, link, on_answer=self._answered, by=by, cause=cause)
        if not self._claim(ticket):
            return
        try:
            ticket.payload = protocol.decode_payload(request)
            self._router.check(ticket)
        except CommandError as error:
            ticket.fail(error)
            return
        spec = protocol.COMMANDS[request.cmd]
        at_step = getattr(ticket.payload, "at_step", None)
        if at_step is not None:
            ticket.waits_for = f"step {at_step}"
        if spec.lane == "control":
            if spec.mutates:
                self._accept(ticket)
            self._router.run(ticket)
        else:
            self._enqueue(ticket, mutates=spec.mutates)

    def malformed(self, error: RemoteProtocolError, link: Link) -> None:
        """A line that is no request; otf-reader. The connection is kept."""
        event = {"type": "error", "code": "bad_payload", "text": str(error), "request_id": None}
        link.event(event)

    def schedule(self, ticket: Ticket, at_step: int) -> None:
        """Carry the ticket out when ``at_step`` steps are done; any thread."""
        with self._lock:
            self._scheduled.append((at_step, ticket))
            # Stable: commands for one step run in the order in which they came.
            self._scheduled.sort(key=lambda due: due[0])
        self._wake()

    def take(self) -> Ticket | None:
        """The next command that is due, or None; training thread."""
        step = self._step()
        with self._lock:
            if self._scheduled and self._scheduled[0][0] <= step:
                return self._scheduled.pop(0)[1]
            return self._queue.popleft() if self._queue else None

    @property
    def waiting(self) -> bool:
        """Whether a command waits for a later step, so that the next safe point must look."""
        return bool(self._scheduled)

    def scheduled(self, cmd: str) -> list[tuple[int, Ticket]]:
        """What waits for a later step under this name, soonest first; any thread."""
        with self._lock:
            return [due for due in self._scheduled if due[1].request.cmd == cmd]

    @property
    def queue_len(self) -> int:
        """Commands in the queue."""
        return len(self._queue)

    def withdraw(self, cmd: str, error: CommandError) -> int:
        """Refuse what waits for a later step under this name; any thread. How many there were."""
        with self._lock:
            gone = [ticket for _, ticket in self._scheduled if ticket.request.cmd == cmd]
            self._scheduled = [due for due in self._scheduled if due[1] not in gone]
        for ticket in gone:
            ticket.fail(error)
        return len(gone)

    def withdraw_one(self, request_id: str) -> Ticket | None:
        """Take back what waits for a later step; any thread. The ticket, still to be answered."""
        with self._lock:
            found = [ticket for _, ticket in self._scheduled if ticket.id == request_id]
            self._scheduled = [due for due in self._scheduled if due[1] not in found]
        return found[0] if found else None

    def pending(self) -> list[dict[str, Any]]:
        """The accepted and unanswered, as ``status.pending`` has them; any thread."""
        with self._lock:
            tickets = list(self._open.values())
        return [
            {
                "request_id": ticket.id,
                "cmd": ticket.request.cmd,
                "since_ts": ticket.since_ts,
                "waits_for": ticket.waits_for,
            }
            for ticket in tickets
            if protocol.COMMANDS.get(ticket.request.cmd) is not None
            and protocol.COMMANDS[ticket.request.cmd].mutates
            and not ticket.answered
        ]

    def close(self, error: CommandError) -> None:
        """Answer every open command with this refusal, and every later one; any thread."""
        with self._lock:
            self._closed = error
            tickets = list(self._open.values())
            self._queue.clear()
            self._scheduled.clear()
        for ticket in tickets:
            ticket.fail(error)

    def _claim(self, ticket: Ticket) -> bool:
        """Whether it is a new one; where its id is known: same id, same answer."""
        with self._lock:
            name = ticket.id
            known = None if name is None else self._asked.get(name) or self._answers.get(name)
            closed = self._closed
            if known is None:
                self._open[id(ticket)] = ticket
                if name is not None:
                    self._asked[name] = ticket
        if known is not None:
            known.move_to(ticket.link)
            return False
        if closed is not None:
            ticket.fail(closed)
            return False
        return True

    def _enqueue(self, ticket: Ticket, *, mutates: bool) -> None:
        # Accepted before it can be seen by the training thread, so that the event comes first.
        with self._lock:
            if self._closed is not None:
                return  # answered by close, which found it among the open ones
            full = len(self._queue) >= self._max_queue
            if not full:
                if mutates:
                    self._accept(ticket)
                self._queue.append(ticket)
        if full:
            detail = (
                f"{ticket.request.cmd} was asked; {self._max_queue:,} commands are waiting, "
                "which is all the queue holds."
            )
            ticket.fail(CommandError(ErrorCode.BUSY, detail, retry_after_s=1.0))
            return
        self._wake()

    def _accept(self, ticket: Ticket) -> None:
        if ticket.id is not None:
            ticket.link.event(
                {
                    "type": "accepted",
                    "request_id": ticket.id,
                    "cmd": ticket.request.cmd,
                    "step": self._step(),
                    "waits_for": ticket.waits_for,
                }
            )

    def _answered(self, ticket: Ticket) -> None:
        with self._lock:
            self._open.pop(id(ticket), None)
            if ticket.id is None:
                return
            self._asked.pop(ticket.id, None)
            if ticket.kept:
                self._answers[ticket.id] = ticket.for_memory()
            # By the time of the answer: one that took long is the newest, however early it was
            # asked for.
            while len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)
