"""All ranks of a run stand between the same two batches, with no collective per step.

A *boundary* is one passage of the safe point; every rank passes 0, 1, 2, … A *meeting* is a
boundary at which all ranks stand: rank 0 does what was asked of the run and tells the others what
to do with it, until it lets them go. Three messages bring it about:

    propose  rank 0 asks; each rank's watch thread closes its gate, looks where its training thread
             is, and promises the earliest boundary at which that can still stop
    commit   the meeting is at the latest of the promises
    go       rank 0 lets the others go

Rule 1: promises are made by watch threads, so a rank that hangs in a collective answers as well:
training waits for a commit, a commit for watch threads, and those for nothing but messages.
Rule 2: at a meeting all have the same collectives behind them, so collectives are allowed there.
Nobody may wait for a person inside one.
Rule 3: a passage that nobody asks for costs one write and one comparison. Training writes where it
is and then reads the limit; the watch thread writes the limit and then reads where training is.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

from otf_core.control.leaving import Leaving
from otf_core.errors import OtfError

PROMISE_S: Final = 10.0  # so long rank 0 waits for promises, then it lets all go and says so
LOOK_S: Final = 0.5  # a signal's handler wakes nobody
LEAVE_S: Final = 2.0  # so long rank 0 stays for the others: letters may lie in its process

Message = list[Any]


class PeerLostError(OtfError):
    """Other ranks can no longer be heard; what they were asked for will not happen."""


class Mail(Protocol):
    """How ranks reach each other; every method may be called from several threads."""

    def push(self, rank: int, letter: bytes) -> None:
        """Put a letter behind those that the rank has; does not wait for it to be read."""

    def pop(self) -> bytes:
        """The next letter to this rank, as soon as there is one; the watch thread only.

        Raises:
            ConnectionError: there will be no more.
        """

    def close(self) -> None:
        """No letters any more; ends ``pop``."""


class Place:
    """Where one rank stands and may pass; see the table in the tests.

    The training thread passes and enters, the watch thread promises and commits.
    """

    def __init__(self, wakeup: threading.Condition) -> None:
        self.wakeup = wakeup
        self.reached = -1  # the last boundary that training came to
        self.limit: float = math.inf  # a boundary from which on training has to look
        self._promised: float = math.inf
        self._meetings: deque[int] = deque()  # rank 0 may be one ahead
        self._inside: int | None = None

    def passes(self, boundary: int) -> bool:
        """Whether training may go on without looking; the whole cost of a passage."""
        self.reached = boundary
        return boundary < self.limit

    def promise(self) -> int:
        """The earliest boundary at which training can still stop; it will not pass it unseen."""
        self.limit = -1  # first, then look: whoever comes now finds the gate closed
        with self.wakeup:
            inside = self._inside
            self._promised = self.reached + 1 if inside is None else inside
            self._set_limit()
            return int(self._promised)

    def commit(self, boundary: int | None) -> None:
        """The meeting is there; None: there will be none."""
        with self.wakeup:
            self._promised = math.inf
            if boundary is not None:
                self._meetings.append(boundary)
            self._set_limit()
            self.wakeup.notify_all()

    def look(self, boundary: int) -> Literal["meet", "go", "wait"]:
        """What training is to do at a boundary from which it has to look; under ``wakeup``."""
        self._inside = boundary
        if self._meetings and boundary >= self._meetings[0]:
            return "meet"
        if boundary >= self._promised:
            return "wait"
        self._inside = None
        return "go"

    def part(self) -> None:
        """The meeting is over; training looks again before it goes on."""
        with self.wakeup:
            self._meetings.popleft()
            self._set_limit()
            self.wakeup.notify_all()  # whoever has asked meanwhile

    def _set_limit(self) -> None:
        self.limit = min(self._promised, self._meetings[0] if self._meetings else math.inf)


class StepAgreement:
    """One rank's side.

    ``boundary`` is called by the training thread at every passage, on every rank in the same order.
    On rank 0 ``ask`` has all stand at one, from any thread; ``tell`` has the others do something.

    Args:
        mail: closed with this.
        do: carries out what rank 0 tells; training thread of the other ranks. What it returns is
            what rank 0 is told, a plain value.
        leave: asked while standing, every ``LOOK_S``; True ends it.
        say: for rank 0: something that a person should know.
        place: what a rank answers when rank 0 asks where its training is (``places``); a plain
            value, found on otf-watch, so also while training hangs.
    """

    def __init__(
        self,
        mail: Mail,
        rank: int,
        world_size: int,
        *,
        do: Callable[[str, list[Any]], Any] = lambda _name, _args: None,
        leave: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda _: None,
        place: Callable[[str | None], Any] = lambda _: None,
        promise_s: float = PROMISE_S,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self._mail, self._do, self._leave, self.say = mail, do, leave, say
        self._place_of = place
        self._promise_s = promise_s
        self._wakeup = threading.Condition(threading.Lock())
        self._place = Place(self._wakeup)
        self._count = -1  # boundaries that training came to
        self._todo: deque[Message] = deque()  # told, not done yet
        self._answers: dict[int, dict[int, Any]] = {}  # request -> rank -> answer
        self._doing: tuple[int, str] | None = None  # the request that is waited for
        self._asking: dict[int, dict[int, Any]] = {}  # question -> rank -> its place
        self._promises: dict[int, int] = {}  # rank -> boundary, of the proposal under way
        self._round = 0
        self.leaving = Leaving(self._wakeup)
        self._leaves: dict[int, Any] = {}  # rank -> its promise, of the attempt under way
        self._attempt = 0
        self.wished: str | None = None  # why another rank is about to end; rank 0
        self._told = 0
        self._followed = (0, 0)  # requests that all have answered, and how many ranks that were
        self._gone: set[int] = set()
        self._serving = self._called_off = 0  # requests of rank 0
        self._asked = self._closing = self._proposing = False
        self._said: list[int] = []  # who gave no promise, as was said
        self.meeting = self.waiting = False
        self.silent: frozenset[int] = frozenset()  # as whoever judges beats has found
        self.lost: str | None = None
        self.deaf = False  # no letters come or go any more
        threads = [threading.Thread(target=self._watch, name="otf-watch", daemon=True)]
        if rank == 0:
            call = threading.Thread(target=self._call, name="otf-caller", daemon=True)
            threads.append(call)
        self._threads = threads
        for thread in threads:
            thread.start()

    # Training thread.

    def boundary(self, attend: Callable[[], bool] = lambda: False, *, here: bool = False) -> bool:
        """Pass, or stand with all others; True, on every rank, when the run is to stop here.

        Args:
            attend: what rank 0 does while all stand; True when the run is to stop.
            here: stand unasked, as every rank has found by counting.

        Raises:
            PeerLostError: while it had to stand.
        """
        # Before the boundary is reached: whoever promises meanwhile promises this one.
        if here and self.meet_here(attend):
            return True
        self._count = at = self._count + 1
        if self._place.passes(at):
            return False
        while self._stands(at):
            try:
                if self._meet(attend):
                    return True
            finally:
                self._place.part()
        return False

    def meet_here(self, attend: Callable[[], bool] = lambda: False) -> bool:
        """Stand with all others at a place to which all come unasked, as the end of the run."""
        self.meeting = True
        return self._meet(attend)

    def _meet(self, attend: Callable[[], bool]) -> bool:
        stop = False
        try:
            stop = attend() if self.rank == 0 else self._serve()
        finally:
            self.meeting = False
            if self.rank == 0:
                with contextlib.suppress(ConnectionError):  # then they know it as well
                    self._send(["go", stop])
                with self._wakeup:
                    self._wakeup.notify_all()
        self.check()
        return stop

    def _stands(self, at: int) -> bool:
        """Wait until it is clear whether all meet here."""
        try:
            return self._stands_until(at)
        finally:
            self.waiting = False

    def _stands_until(self, at: int) -> bool:
        while True:
            with self._wakeup:
                found = self._place.look(at)
                if found == "go":
                    return False
                if found == "meet":
                    self.meeting = True
                    self._asked = False  # what was asked so far is seen to here
                    return True
                self.check()
                if self._leave():
                    return False
                self.waiting = True
                self._wakeup.wait(LOOK_S)

    def tell(self, name: str, *args: Any) -> int:
        """Have every other rank do something now; rank 0, at a meeting. For ``answers``."""
        self._told += 1
        number = self._told
        with self._wakeup:
            self._answers[number] = {}
            self._doing = number, name
        try:
            self._send(["do", number, name, list(args)])
        except ConnectionError as error:
            self._hears_nobody(error)
            self.check()
        return number

    def answers(self, number: int, *, broken: bool = False) -> Mapping[int, Any]:
        """What each other rank has answered, once all have; rank 0, at a meeting.

        Args:
            broken: this rank could not do it. A rank that is silent as well is lost then.

        Raises:
            PeerLostError: they cannot be heard any more.
            RankError: one of them failed.
        """
        while (missing := self._missing(number)) is not None:
            gone = sorted(self.silent.intersection(missing)) if broken else []
            if gone:
                who = ranks_in_words(gone)
                self.fail(f"what all ranks did together broke, and {who} cannot be heard")
        with self._wakeup:
            found = self._answers.pop(number)
            self._doing = None
        for rank, (ok, value) in sorted(found.items()):
            if not ok:
                raise RankError(rank, value)
        self._followed = self._followed[0] + 1, 1 + len(found)
        return {rank: value for rank, (_, value) in sorted(found.items())}

    @property
    def mark(self) -> int:
        """For ``followed``; training thread of rank 0."""
        return self._followed[0]

    def followed(self, mark: int) -> dict[str, Any]:
        """What a reply says of the ranks that have done what was told since ``mark``.

        Empty where nothing was told: then it is of this process alone.
        """
        requests, ranks = self._followed
        return {} if requests == mark else {"applied_on": {"ranks": ranks, "of": self.world_size}}

    def _missing(self, number: int) -> tuple[int, ...] | None:
        """Who has not answered after some time; None: all have."""
        with self._wakeup:
            if not self._without(self._answers[number]):
                return None
            self.check()
            self._wakeup.wait(LOOK_S)
            return self._without(self._answers[number])

    def leave_evaluation(self, done: int, total: int | None) -> int | None:
        """Have all ranks leave the evaluation that is under way; rank 0, behind a batch of it.

        Returns:
            Behind which batch; None: it cannot be agreed here.
        """
        if total is None:
            return None
        with self._wakeup:
            self._attempt += 1
            self._leaves = {}
        try:
            self._send(["leave", self._attempt])
        except ConnectionError as error:
            self._hears_nobody(error)
            self.check()
        self._wait_for_all(self._leaves)
        found = [self._leaves.get(rank) for rank in range(1, self.world_size)]
        known = [each for each in found if each is not None]
        at = max(done, *(each[0] for each in known)) if len(known) == len(found) else None
        if at is not None and at > min(total, *(each[1] for each in known)):
            at = None
        with contextlib.suppress(ConnectionError):  # who hears nobody is told where it waits
            self._send(["left", at])
        return at

    def cease(self) -> None:
        """What was told last is wanted no more; rank 0, at a meeting. It is answered still."""
        try:
            self._send(["cease", self._told])
        except ConnectionError as error:
            self._hears_nobody(error)

    def ceased(self) -> bool:
        """Whether what this rank is doing for rank 0 is wanted no more."""
        return self._called_off >= self._serving > 0

    def _serve(self) -> bool:
        """What rank 0 tells, until it lets go; whether the run is to stop."""
        while True:
            with self._wakeup:
                while not self._todo:
                    self.check()
                    if self._leave():
                        return False
                    self._wakeup.wait(LOOK_S)
                kind, *rest = self._todo.popleft()
            if kind == "go":
                return bool(rest[0])
            number, name, args = rest
            self._serving = number
            try:
                answer = [True, self._do(name, args)]
            except Exception as error:  # noqa: BLE001 -- border: rank 0 is told, and decides
                answer = [False, f"{type(error).__name__}: {error}"[:2000]]
            try:
                self._mail.push(0, _letter(["done", number, self.rank, *answer]))
            except ConnectionError as error:
                self._hears_nobody(error)

    # Any thread.

    def check(self) -> None:
        """Raises PeerLostError once other ranks are lost."""
        if self.lost is not None:
            raise PeerLostError(self.lost)

    def wish(self, why: str) -> None:
        """Have rank 0 lead all out of the run; another rank."""
        self._mail.push(0, _letter(["wish", why]))

    @property
    def stands(self) -> bool:
        """Whether training stands at a boundary, for others or for what is done there."""
        return self.meeting or self.waiting

    def awaited(self) -> tuple[str, tuple[int, ...]]:
        """What waits for other ranks now, and for which; ``("", ())``: nothing. Rank 0."""
        with self._wakeup:
            if self._proposing:
                return "what was asked", self._without(self._promises)
            if self._doing is not None:
                number, name = self._doing
                return name, self._without(self._answers.get(number, {}))
            if self._place.limit != math.inf and not self.meeting:
                return "what was asked", self._without({})  # this rank cannot come without them
        return "", ()

    def _without(self, heard: Mapping[int, Any]) -> tuple[int, ...]:
        return tuple(rank for rank in range(1, self.world_size) if rank not in heard)

    def places(self, folder: str | None, timeout_s: float) -> dict[int, Any]:
        """Where the training of the other ranks is, of those that answer in time; rank 0.

        Their watch threads answer, so those that hang do as well. Not for otf-watch.

        Args:
            folder: told to each rank's ``place``.
        """
        with self._wakeup:
            self._told += 1
            number = self._told
            self._asking[number] = {}
        try:
            with contextlib.suppress(ConnectionError):
                self._send(["stacks", number, folder])
                with self._wakeup:
                    self._wakeup.wait_for(
                        lambda: self._closing or not self._without(self._asking[number]), timeout_s
                    )
            return dict(self._asking[number])
        finally:
            with self._wakeup:
                del self._asking[number]

    def ask(self) -> None:
        """Have all ranks stand at the next boundary at which they can; rank 0."""
        with self._wakeup:
            self._asked = True
            self._wakeup.notify_all()

    def fail(self, why: str) -> None:
        """The others can no longer be heard; whoever stands or waits is told."""
        with self._wakeup:
            first = self.lost is None and not self._closing
            if first:
                self.lost = why
            self._wakeup.notify_all()
        self.leaving.end(why)
        if first and self.rank == 0:
            with contextlib.suppress(ConnectionError):
                self._send(["lost", why])

    def _hears_nobody(self, error: ConnectionError) -> None:
        if not self._closing:
            self.deaf = True
        self.fail(f"the ranks cannot hear each other any more: {error}")

    def close(self) -> None:
        """End the threads; also when training fails. On every rank, once nothing is awaited.

        Rank 0 waits for the others, ``LEAVE_S`` at most.
        """
        if self.rank:
            with contextlib.suppress(ConnectionError):
                self._mail.push(0, _letter(["gone", self.rank]))
        with self._wakeup:
            if self.rank == 0 and not self._closing:
                self._wakeup.wait_for(self._left_alone, LEAVE_S)
            self._closing = True
            self._wakeup.notify_all()
        self._mail.close()
        for thread in self._threads:
            thread.join()

    def _left_alone(self) -> bool:
        return self.lost is not None or len(self._gone) == self.world_size - 1

    def _send(self, message: Message) -> None:
        letter = _letter(message)
        for rank in range(1, self.world_size):
            self._mail.push(rank, letter)

    # otf-watch.

    def _watch(self) -> None:
        with contextlib.suppress(_Ended):
            while True:
                self._answer(self._next())

    def _answer(self, message: Message) -> None:
        try:
            self._take(message)
        except ConnectionError as error:
            self._hears_nobody(error)
            raise _Ended from error

    def _next(self) -> Message:
        try:
            letter = self._mail.pop()
        except ConnectionError as error:
            self._hears_nobody(error)
            raise _Ended from error
        found: Message = json.loads(letter)
        return found

    def _take(self, message: Message) -> None:
        kind, *rest = message
        if kind == "propose":
            self._mail.push(0, _letter(["promise", rest[0], self.rank, self._place.promise()]))
        elif kind == "commit":
            self._place.commit(rest[0])
        elif kind == "stacks":
            number, folder = rest
            self._mail.push(0, _letter(["stack", number, self.rank, self._place_of(folder)]))
        elif kind == "lost":
            self.fail(rest[0])
        elif kind == "leave":
            said = ["leaves", rest[0], self.rank, self.leaving.promise()]
            self._mail.push(0, _letter(said))
        elif kind == "left":
            self.leaving.commit(rest[0])
        else:
            with self._wakeup:
                if kind == "promise" and rest[0] == self._round:
                    self._promises[rest[1]] = rest[2]
                elif kind == "leaves" and rest[0] == self._attempt:
                    self._leaves[rest[1]] = rest[2]
                elif kind == "done" and rest[0] in self._answers:
                    self._answers[rest[0]][rest[1]] = rest[2:]
                elif kind == "wish":
                    self.wished, self._asked = self.wished or rest[0], True
                elif kind == "gone":
                    self._gone.add(rest[0])
                elif kind == "stack" and rest[0] in self._asking:
                    self._asking[rest[0]][rest[1]] = rest[2]
                elif kind == "cease":
                    self._called_off = rest[0]
                elif kind in ("do", "go"):
                    self._todo.append(message)
                self._wakeup.notify_all()

    # otf-caller, on rank 0.

    def _call(self) -> None:
        while self._wait_for_call():
            missing = self._propose()
            if missing and missing != self._said and self.lost is None:
                self.say(
                    f"{ranks_in_words(missing)} gave no answer in {self._promise_s:g} s; "
                    "what was asked waits for it"
                )
            self._said = missing

    def _wait_for_call(self) -> bool:
        """Until somebody asks and no meeting is under way; False: it is over."""
        with self._wakeup:
            while not self._closing:
                free = not self.meeting and self._place.limit == math.inf
                if self._asked and free and self.lost is None:
                    self._asked = False
                    return True
                self._wakeup.wait()
            return False

    def _propose(self) -> list[int]:
        """Bring a meeting about; the ranks that did not promise, and then there is none."""
        with self._wakeup:
            self._round += 1
            self._promises = {}
            self._proposing = True
        own = self._place.promise()
        try:
            self._send(["propose", self._round])
        except ConnectionError as error:
            self._hears_nobody(error)
        self._wait_for_all(self._promises)
        with self._wakeup:
            missing = [*self._without(self._promises)]
            at = None if missing else max(own, *self._promises.values())
            self._asked = self._asked or bool(missing)
            self._proposing = bool(missing) and not self._closing
        with contextlib.suppress(ConnectionError):
            self._send(["commit", at])
        self._place.commit(at)
        return [] if self._closing else missing

    def _wait_for_all(self, promises: Mapping[int, Any]) -> None:
        """Until each other rank has its promise there, or for so long."""
        end_s = time.monotonic() + self._promise_s
        with self._wakeup:
            while self._without(promises) and not self._closing:
                left_s = end_s - time.monotonic()
                if left_s <= 0 or self.lost is not None:
                    break
                self._wakeup.wait(left_s)


def ranks_in_words(ranks: Sequence[int]) -> str:
    """``rank 3``, ``ranks 1, 3``; of many the first eight, and how many."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    rest = f" and {len(ranks) - 8:,} more" if len(ranks) > 8 else ""
    return f"ranks {', '.join(map(str, ranks[:8]))}{rest}"


class RankError(OtfError):
    """Another rank could not do what rank 0 told it."""

    def __init__(self, rank: int, said: str) -> None:
        super().__init__(f"rank {rank}: {said}")
        self.rank, self.said = rank, said


class _Ended(Exception):  # noqa: N818 -- no error
    """The watch thread is through."""


def _letter(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
