"""The outbox: order, bound, gaps, and what is left to the log."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from otf_core.outbox import ENTRY_BYTES, Gap, Outbox

LINE = b"x" * 40
COST = len(LINE) + ENTRY_BYTES
ALL = 1 << 30


def test_nothing_is_kept_without_a_stream_and_the_log_is_asked_for_it() -> None:
    box = Outbox(3)
    box.append(4, LINE, droppable=True)
    assert (box.held_bytes, box.missing(), box.pending) == (0, None, False)
    box.begin(1)
    assert (box.missing(), box.pending, box.streaming) == ((1, 4), True, True)
    box.append(5, LINE, droppable=True)
    assert box.missing() == (1, 4)
    assert box.take(ALL) == []
    box.advance(4)
    assert box.missing() is None
    assert box.take(ALL) == [LINE]
    assert (box.cursor, box.pending, box.held_bytes) == (5, False, 0)


def test_the_oldest_droppable_go_and_a_gap_stands_in_their_place() -> None:
    box = Outbox(max_bytes=5 * COST)
    box.begin(0)
    for seq in range(1, 11):
        box.append(seq, LINE if seq != 3 else b"keep" * 10, droppable=seq != 3)
    items = box.take(ALL)
    assert items[0] == Gap(1, 2, "slow_reader")
    assert items[1] == b"keep" * 10
    assert isinstance(items[2], Gap)
    assert items[2].first == 4
    assert items[3:] == [LINE] * (10 - items[2].last)
    assert box.dropped == 2 + items[2].last - 3


def test_what_may_not_be_dropped_is_left_to_the_log_when_nothing_else_is_left() -> None:
    box = Outbox(max_bytes=3 * COST)
    box.begin(0)
    for seq in range(1, 11):
        box.append(seq, LINE, droppable=False)
    assert (box.dropped, box.held_bytes, box.missing()) == (0, 3 * COST, (0, 7))


def test_a_line_of_the_bound_fits_and_one_more_byte_does_not() -> None:
    box = Outbox(max_bytes=COST)
    box.begin(0)
    box.append(1, LINE, droppable=True)
    assert box.take(ALL) == [LINE]
    box.append(2, LINE + b"x", droppable=True)
    assert box.take(ALL) == [Gap(2, 2, "slow_reader")]


def test_an_event_out_of_order_is_left_to_the_log() -> None:
    box = Outbox()
    box.begin(0)
    box.append(2, b"2", droppable=True)
    box.append(1, b"1", droppable=True)
    assert box.missing() == (0, 1)
    box.advance(1)
    assert box.take(ALL) == [b"2"]


def test_a_stream_that_begins_later_passes_over_what_came_before() -> None:
    box = Outbox()
    box.begin(5)  # the log is ahead
    box.append(5, b"5", droppable=True)
    box.append(6, b"6", droppable=True)
    assert box.take(ALL) == [b"6"]


def test_a_batch_ends_with_the_line_that_fills_it() -> None:
    box = Outbox()
    box.begin(0)
    for seq in range(1, 200):
        box.append(seq, LINE, droppable=True)
    assert len(box.take(100 * len(LINE))) == 100
    assert len(box.take(1)) == 1
    assert len(box.take(ALL)) == 98


def test_a_new_start_and_an_end_forget_what_is_held() -> None:
    box = Outbox()
    box.begin(0)
    box.append(1, LINE, droppable=True)
    box.begin(0)
    assert (box.held_bytes, box.missing()) == (0, (0, 1))
    box.append(2, LINE, droppable=True)
    box.end()
    assert (box.held_bytes, box.pending, box.take(ALL)) == (0, False, [])


def test_a_gap_says_what_it_stands_for() -> None:
    assert json.loads(Gap(3, 7, "trimmed").line()) == {
        "type": "gap",
        "from": 3,
        "to": 7,
        "count": 5,
        "reason": "trimmed",
    }


@given(
    events=st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=120),
    takes=st.sets(st.integers(0, 120)),
    bound=st.integers(1, 3000),
)
def test_every_event_comes_once_in_order_or_is_named_by_a_gap(
    events: list[tuple[bool, int]], takes: set[int], bound: int
) -> None:
    box = Outbox(max_bytes=bound)
    box.begin(0)
    log = [b"%d " % seq + b"x" * size for seq, (_, size) in enumerate(events, 1)]
    seen: list[int] = []

    def drain() -> None:
        while box.pending:
            span = box.missing()
            if span is not None:
                seen.extend(range(span[0] + 1, span[1] + 1))
                box.advance(span[1])
            for item in box.take(100):
                if isinstance(item, Gap):
                    assert all(events[s - 1][0] for s in range(item.first, item.last + 1))
                    seen.extend(range(item.first, item.last + 1))
                else:
                    seen.append(int(item.split()[0]))

    for seq, ((droppable, _), line) in enumerate(zip(events, log, strict=True), 1):
        box.append(seq, line, droppable=droppable)
        assert box.held_bytes <= bound
        if seq in takes:
            drain()
    drain()
    assert seen == list(range(1, len(events) + 1))
    assert box.held_bytes == 0
