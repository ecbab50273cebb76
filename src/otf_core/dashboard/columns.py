"""The trainStep numbers of one run in one session, as compact columns.

Rule 1: a row is a trainStep; a missing or non-finite value is NaN here and null outside.
Rule 2: bounded. Over ``max_rows`` rows, or ``MAX_CELLS`` cells, the older half is thinned: of each
two neighbours the one with more values stays, so rare values such as val_loss outlive dense ones.
Repeated, the past grows coarser the older it is, and the newest half is always whole.
Rule 3: a step that was done again counts once, as it was done last. A row is superseded by a later
generation (``run_gen``) that begins at its step or before, by a checkpoint that was loaded, and by
a later session; it stays in its column and is left out by ``pick``.
Rule 4: the event loop alone writes. A ``View`` may be read by another thread meanwhile: arrays only
grow, and thinning or sorting puts new ones in their place.
Rule 5: rows that the database has may be missing here (``partial``): whoever reads puts the two
together (``reading.py``). Rows that it has not are here, or wait in blocks to be written.
"""

from __future__ import annotations

import dataclasses
import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, compress, islice, pairwise
from operator import le
from typing import Any, Final, TypeGuard

MAX_ROWS: Final = 1_000_000
MAX_CELLS: Final = 24_000_000  # 192 MB of doubles: a million rows of two dozen metrics
MAX_NAMES: Final = 256  # a script that logs a new name each step must not eat the memory
NAN: Final = math.nan

# Stamps and coordinates; all else in a trainStep that is a number is a metric.
NOT_METRICS: Final = frozenset({"type", "step", "event_seq", "ts", "run_gen", "run_id", "replay"})
AXES: Final = ("epoch", "global_step")


def is_count(value: Any) -> TypeGuard[int]:
    """Whether this is an integer that a column holds; a trainer may send any."""
    return type(value) is int and -(2**62) < value < 2**62


MAX_UNSAVED_ROWS: Final = 200_000  # of one session in one run; over it, it is kept in memory alone
Cut = tuple[int, int]  # event_seq, step: earlier events from that step on are superseded


@dataclasses.dataclass(frozen=True)
class Block:
    """Some rows; any thread may read it. A name that is not there had no value in them.

    Attributes:
        rises: they are known to be in order of event_seq.
    """

    seq: array[int]
    step: array[int]
    ts: array[float]
    gen: array[int]
    values: Mapping[str, array[float]]
    rises: bool = False

    def __len__(self) -> int:
        return len(self.seq)

    def events(
        self, rows: Iterable[int], stamps: Mapping[str, Any], logged: frozenset[str]
    ) -> list[dict[str, Any]]:
        """Rows as trainStep events again: numbers only, null where there was none."""
        made = []
        for row in rows:
            event: dict[str, Any] = {"type": "trainStep", "step": self.step[row], "metrics": {}}
            for name, column in self.values.items():
                value = column[row]
                into = event["metrics"] if name in logged else event
                into[name] = None if value != value else value
            if event.get("epoch") is not None:
                event["epoch"] = int(event["epoch"])
            ts, gen = self.ts[row], self.gen[row]
            made.append({**event, **stamps, "run_gen": gen, "ts": ts, "event_seq": self.seq[row]})
        return made


def joined(blocks: Sequence[Block], names: Iterable[str]) -> Block:
    """One block of several, in order of event_seq; every name has a column."""
    whole = end_to_end(blocks, names)
    if _follow(blocks):
        return dataclasses.replace(whole, rises=True)
    order = sorted(range(len(whole)), key=whole.seq.__getitem__)
    seq, step = _picked(whole.seq, order), _picked(whole.step, order)
    ts, gen = _picked(whole.ts, order), _picked(whole.gen, order)
    values = {name: _picked(column, order) for name, column in whole.values.items()}
    return Block(seq, step, ts, gen, values, rises=True)


def end_to_end(blocks: Sequence[Block], names: Iterable[str]) -> Block:
    """One block of several, as they come; every name has a column."""
    seq = _end_to_end("q", [block.seq for block in blocks])
    step = _end_to_end("q", [block.step for block in blocks])
    ts = _end_to_end("d", [block.ts for block in blocks])
    gen = _end_to_end("q", [block.gen for block in blocks])
    values = {}
    for name in names:
        parts = [b.values.get(name) or array("d", [NAN]) * len(b) for b in blocks]
        values[name] = _end_to_end("d", parts)
    return Block(seq, step, ts, gen, values)


def _follow(blocks: Sequence[Block]) -> bool:
    """Whether event_seq rises from block to block and in each of them."""
    held = [block for block in blocks if len(block)]
    return all(a.seq[-1] <= b.seq[0] for a, b in pairwise(held)) and all(
        block.rises or rises(block.seq) for block in held
    )


def _end_to_end(code: str, parts: Sequence[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    whole: Any = array(code)
    for part in parts:
        whole.extend(part)
    return whole


def _picked(column: Any, rows: Iterable[int]) -> Any:
    return array(column.typecode, map(column.__getitem__, rows))


def rises(numbers: array[int]) -> bool:
    """Whether no number is less than the one before it."""
    return all(map(le, numbers, islice(numbers, 1, None)))


@dataclasses.dataclass(frozen=True)
class View:
    """The first ``rows`` rows of some columns; any thread may read it.

    Attributes:
        cuts: in order of event_seq.
        lowest: the first step that this session has told anew; earlier sessions end before it.
    """

    rows: int
    seq: array[int]
    step: array[int]
    ts: array[float]
    values: Mapping[str, array[float]]
    cuts: Sequence[Cut] = ()
    lowest: int | None = None
    thinned: bool = False


class Columns:
    """See the module; event loop only."""

    def __init__(self, max_rows: int = MAX_ROWS, *, saves: bool = False) -> None:
        self._max_rows = max_rows
        self.saves = saves  # somebody writes the rows into a database
        self.saved = 0  # rows that the database has
        self.shelved = 0  # of them, those that are not here
        self._taken = 0  # rows here that are saved, or wait to be
        self._waiting: list[Block] = []
        self._seq: array[int] = array("q")
        self._step: array[int] = array("q")
        self._ts: array[float] = array("d")
        self._gen: array[int] = array("q")
        self._values: dict[str, array[float]] = {}
        self._logged: set[str] = set()  # names that came under "metrics"
        self._sorted = True
        self._first_of: dict[int, Cut] = {}  # run_gen -> where it begins
        self._turns: list[Cut] = []  # what else supersedes
        self._last: tuple[int, int, int] | None = None  # event_seq, step, run_gen of the newest
        self.lowest: int | None = None
        self.thinned = False

    def __len__(self) -> int:
        return self.shelved + len(self._seq)

    @property
    def in_memory(self) -> int:
        """Rows that are here."""
        return len(self._seq)

    @property
    def partial(self) -> bool:
        """Whether the database has rows that are not here."""
        return self.shelved > 0 or (self.thinned and self.saved > 0)

    @property
    def unsaved_rows(self) -> int:
        """Rows that the database has not, as far as is known."""
        return sum(map(len, self._waiting)) + len(self._seq) - self._taken

    @property
    def turned(self) -> bool:
        """Whether rows of this session supersede earlier ones of it."""
        return bool(self._cuts())

    @property
    def logged(self) -> frozenset[str]:
        """Names that came under "metrics"."""
        return frozenset(self._logged)

    @property
    def names(self) -> list[str]:
        """Metrics that have ever had a value, in order of appearance."""
        return [name for name in self._values if name not in AXES]

    def add(self, event: Mapping[str, Any]) -> bool:
        """Append one trainStep; out of order is allowed and sorted when read.

        Returns whether steps that were told before may be superseded now.
        """
        seq, step = event.get("event_seq"), event.get("step")
        if not is_count(step):
            return False
        row = len(self._seq)
        number = seq if is_count(seq) else (self._seq[-1] + 1 if row else 1)
        gen = event.get("run_gen")
        gen = gen if is_count(gen) else 0
        is_turn = self._note_turn(number, step, gen)
        if row and number < self._seq[-1]:
            self._sorted = False
        if self._last is None or number > self._last[0]:
            self._last = number, step, gen
        ts = event.get("ts")
        self._seq.append(number)
        self._step.append(step)
        self._ts.append(ts if type(ts) is float or is_count(ts) else NAN)
        self._gen.append(gen)
        filled = self._put_all(event, row)
        logged = event.get("metrics")
        if isinstance(logged, dict):
            own = {name: value for name, value in logged.items() if name not in event}
            self._logged.update(own.keys() - NOT_METRICS)
            filled += self._put_all(own, row)
        if filled < len(self._values):
            for column in self._values.values():
                if len(column) == row:
                    column.append(NAN)
        if row + 1 > self._limit():
            self.thin()
        return is_turn

    def _note_turn(self, seq: int, step: int, gen: int) -> bool:
        is_turn = self._note_lowest(step)
        begins = self._first_of.get(gen)
        if begins is None or seq < begins[0]:
            self._first_of[gen] = (seq, step)
            return True
        # A trainer that knows no generations, turned back: later than all and lower than the last.
        last = self._last
        if last is not None and seq > last[0] and gen == last[2] and step < last[1]:
            self._turns.append((seq, step))
            return True
        return is_turn

    def _note_lowest(self, step: int) -> bool:
        if self.lowest is not None and step >= self.lowest:
            return False
        self.lowest = step
        return True

    def turn_back(self, seq: int, step: int) -> None:
        """The run was put back to a step: what earlier events told of later ones is undone."""
        self._turns.append((seq, step + 1))
        self._note_lowest(step + 1)

    def _cuts(self) -> list[Cut]:
        first = min(self._first_of, default=0)
        cuts = [cut for gen, cut in self._first_of.items() if gen != first]
        return sorted(cuts + self._turns)

    def _put_all(self, fields: Mapping[str, Any], row: int) -> int:
        """Append the numbers among the fields; how many there were."""
        values, filled = self._values, 0
        for name, value in fields.items():
            # One look for the common case: this runs for every field of every step.
            if type(value) is not float and not is_count(value):
                continue
            column = values.get(name)
            if column is None:
                if name in NOT_METRICS or len(values) >= MAX_NAMES:
                    continue
                column = values[name] = array("d", [NAN]) * row
            column.append(value)
            filled += 1
        return filled

    def _limit(self) -> int:
        return min(self._max_rows, MAX_CELLS // (4 + len(self._values)))

    def thin(self) -> None:
        """Halve the older half; see rule 2."""
        self.sort()
        self._take()
        half = len(self._seq) // 2 // 2 * 2
        filled = [0] * half
        for column in self._values.values():
            for row, value in enumerate(column[:half]):
                filled[row] += value == value
        keep = bytearray(b"\x01\x00" * (half // 2))
        for row in range(0, half, 2):
            if filled[row + 1] > filled[row]:
                keep[row], keep[row + 1] = 0, 1
        self._seq = array("q", compress(self._seq[:half], keep)) + self._seq[half:]
        self._step = array("q", compress(self._step[:half], keep)) + self._step[half:]
        self._ts = array("d", compress(self._ts[:half], keep)) + self._ts[half:]
        self._gen = array("q", compress(self._gen[:half], keep)) + self._gen[half:]
        for name, column in self._values.items():
            self._values[name] = array("d", compress(column[:half], keep)) + column[half:]
        self.thinned = True
        self._taken = len(self._seq)

    def sort(self) -> None:
        """Rows in order of event_seq; new arrays if they were not."""
        if self._sorted:
            return
        self._take()
        order = sorted(range(len(self._seq)), key=self._seq.__getitem__)
        self._seq, self._step = _picked(self._seq, order), _picked(self._step, order)
        self._ts, self._gen = _picked(self._ts, order), _picked(self._gen, order)
        for name, column in self._values.items():
            self._values[name] = _picked(column, order)
        self._sorted = True

    # -- what a database keeps --------------------------------------------------------------------

    def _take(self) -> None:
        """Set rows aside that nobody has taken to be saved, before they change their places."""
        if self.saves and self._taken < len(self._seq):
            self._waiting.append(self._rows_from(self._taken))
            if sum(map(len, self._waiting)) > MAX_UNSAVED_ROWS:
                self.saves = False
                self._waiting.clear()
        self._taken = len(self._seq)

    def _rows_from(self, row: int) -> Block:
        values = {name: column[row:] for name, column in self._values.items()}
        return Block(self._seq[row:], self._step[row:], self._ts[row:], self._gen[row:], values)

    def unsaved(self) -> tuple[Block, ...]:
        """The rows that the database has not; ``note_saved`` when it has them."""
        self._take()
        return tuple(self._waiting)

    def note_saved(self, blocks: Sequence[Block]) -> None:
        """Those of ``unsaved`` are in the database."""
        self.saved += sum(map(len, blocks))
        del self._waiting[: len(blocks)]

    def note_lost(self) -> None:
        """The database is gone; what is here is all there is."""
        self.saved = self.shelved = self._taken = 0
        self._waiting.clear()

    def shelve(self, keep_rows: int) -> None:
        """Let go of all but the newest rows, of those that the database has."""
        self.sort()
        gone = min(self._taken, len(self._seq) - keep_rows)
        if self._waiting or not self.saves or gone <= 0:
            return
        self._seq, self._step = self._seq[gone:], self._step[gone:]
        self._ts, self._gen = self._ts[gone:], self._gen[gone:]
        for name, column in self._values.items():
            self._values[name] = column[gone:]
        self._taken -= gone
        self.shelved = max(1, self.saved - self._taken)

    def meta(self) -> dict[str, Any]:
        """All but the rows, as JSON."""
        return {
            "names": list(self._values),
            "logged": sorted(self._logged),
            "first_of": [[gen, *cut] for gen, cut in self._first_of.items()],
            "turns": [list(cut) for cut in self._turns],
            "lowest": self.lowest,
            "last": self._last,
        }

    @classmethod
    def shelved_as(cls, meta: Mapping[str, Any], rows: int, max_rows: int) -> Columns:
        """Those whose rows are all in the database."""
        made = cls(max_rows, saves=True)
        made.saved = made.shelved = rows
        made._values = {name: array("d") for name in meta["names"]}
        made._logged = set(meta["logged"])
        made._first_of = {gen: (seq, step) for gen, seq, step in meta["first_of"]}
        made._turns = [(seq, step) for seq, step in meta["turns"]]
        made.lowest = meta["lowest"]
        made._last = tuple(meta["last"]) if meta["last"] else None
        return made

    def view(self, names: Sequence[str] | None = None) -> View:
        """What to read, for any thread; unknown names are left out."""
        self.sort()
        chosen = self._values if names is None else {n: self._values.get(n) for n in names}
        held = {name: column for name, column in chosen.items() if column is not None}
        rows = len(self._seq)
        return View(
            rows, self._seq, self._step, self._ts, held, self._cuts(), self.lowest, self.thinned
        )

    def view_of(self, block: Block) -> View:
        """Rows that were put together elsewhere, as those of these columns."""
        return View(
            len(block), block.seq, block.step, block.ts, block.values, self._cuts(), self.lowest
        )

    def events(self, rows: Iterable[int], stamps: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows as trainStep events again: numbers only, null where there was none."""
        block = Block(self._seq, self._step, self._ts, self._gen, self._values)
        return block.events(rows, stamps, self.logged)

    def rows_after(self, seq: int) -> range:
        """The rows with a higher event_seq."""
        self.sort()
        low, high = 0, len(self._seq)
        while low < high:
            middle = (low + high) // 2
            if self._seq[middle] <= seq:
                low = middle + 1
            else:
                high = middle
        return range(low, len(self._seq))


@dataclasses.dataclass(frozen=True)
class Picked:
    """Thinned rows of several views, as the metrics endpoint answers them."""

    columns: dict[str, list[Any]]
    total: int
    thinned: bool


def pick(
    views: Sequence[View], names: Sequence[str], *, low: int, high: int | None, points: int
) -> Picked:
    """Rows with ``low <= step <= high``, at most about ``points``; any thread.

    The views are those of a run's sessions in order; what was superseded is left out. Too many: the
    rows are cut into buckets of equal count, and of each bucket the rows that hold the least and
    the greatest value of each column stay (whole rows, as they were sent), with the first and the
    last row of all. One grid for all columns, so that peaks of charts line up.
    """
    out: dict[str, list[Any]] = {key: [] for key in ("event_seq", "step", "ts", "session")}
    out |= {name: [] for name in names}
    ranges = [_rows_between(view, kept, low, high) for view, kept in kept_rows(views)]
    total = sum(len(rows) for rows in ranges)
    thinned = total > points
    for index, (view, rows) in enumerate(zip(views, ranges, strict=True)):
        share = max(2, points * len(rows) // total) if total else 2
        chosen = _extremes(view, rows, names, share) if thinned else rows
        out["event_seq"] += [view.seq[row] for row in chosen]
        out["step"] += [view.step[row] for row in chosen]
        out["ts"] += [_plain(view.ts[row]) for row in chosen]
        out["session"] += [index] * len(chosen)
        for name in names:
            column = view.values.get(name)
            if column is None:
                out[name] += [None] * len(chosen)
            else:
                out[name] += [_plain(column[row]) for row in chosen]
    return Picked(out, total, thinned)


def _plain(value: float) -> float | None:
    return None if value != value else value


def kept_rows(views: Sequence[View]) -> list[tuple[View, list[range]]]:
    """Of each session the rows that no later event has superseded; steps rise within a range."""
    below = 2**63
    kept: list[tuple[View, list[range]]] = []
    for view in reversed(views):
        kept.append((view, _kept_in(view, below)))
        if view.lowest is not None:
            below = min(below, view.lowest)
    return kept[::-1]


def _kept_in(view: View, below: int) -> list[range]:
    """From the last generation to the first: each ends before those after it begin."""
    ranges = []
    end = view.rows
    for seq, step in reversed(((0, 2**63), *view.cuts)):
        start = bisect_left(view.seq, seq, 0, end)
        ranges.append(range(start, bisect_left(view.step, below, start, end)))
        below, end = min(below, step), start
    return [rows for rows in reversed(ranges) if rows]


def _rows_between(view: View, kept: Sequence[range], low: int, high: int | None) -> Sequence[int]:
    found = [
        range(
            bisect_left(view.step, low, rows.start, rows.stop),
            rows.stop if high is None else bisect_right(view.step, high, rows.start, rows.stop),
        )
        for rows in kept
    ]
    return found[0] if len(found) == 1 else list(chain.from_iterable(found))


def _extremes(view: View, rows: Sequence[int], names: Sequence[str], points: int) -> list[int]:
    columns = [view.values[name] for name in names if name in view.values]
    buckets = max(1, points // max(2, 2 * len(columns)))
    if len(rows) <= points:
        return list(rows)
    kept = {rows[0], rows[-1]}
    for column in columns:
        values = (
            column[rows.start : rows.stop]
            if isinstance(rows, range)
            else array("d", map(column.__getitem__, rows))
        )
        for bucket in range(buckets):
            start, stop = bucket * len(rows) // buckets, (bucket + 1) * len(rows) // buckets
            part: Any = values[start:stop]
            lowest = min(part, default=NAN)
            if lowest != lowest:
                real = [value for value in part if value == value]
                if not real:
                    continue
                lowest, greatest = min(real), max(real)
            else:
                greatest = max(part)
            kept.add(rows[start + part.index(lowest)])
            kept.add(rows[start + part.index(greatest)])
    return sorted(kept)
