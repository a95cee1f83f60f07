"""The position of a partition, against a simple model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events_kafka.position import MAX_METADATA, Position


def seen(*offsets: int, start: int = 0, metadata: str = "") -> Position:
    """Return a position at which *offsets* have come."""
    position = Position(start, metadata)
    for offset in offsets:
        position.see(offset)
    return position


def test_nothing_was_seen() -> None:
    """The position is the start."""
    position = Position(7)
    assert (position.offset, position.gap, position.metadata()) == (7, 0, "")


def test_everything_is_settled() -> None:
    """The position is the offset after the last record."""
    position = seen(7, 8, start=7)
    position.settle(8)
    position.settle(7)
    assert (position.offset, position.gap, position.metadata()) == (9, 0, "")


def test_one_record_is_not_settled() -> None:
    """It keeps the position, and the metadata names all that is settled beyond it."""
    position = seen(100, 101, 102, 104, 105)
    for offset in (101, 102, 105):
        position.settle(offset)
    assert position.offset == 100
    assert position.gap == 3
    # 103 is a hole, and may be named or not.
    assert position.metadata() == "events 1 100 1+3 1+1"


def test_a_record_that_comes_twice_is_delivered_once() -> None:
    """A record that was seen before is not to be delivered, whether it is settled or not."""
    position = seen(1, 2)
    position.settle(2)
    assert not position.see(1)
    assert not position.see(2)
    assert position.is_unsettled(1)
    assert not position.is_unsettled(2)


def test_the_gap_counts_records_and_not_offsets() -> None:
    """Holes of a compacted topic are not counted."""
    position = seen(0, 1000, 2000, 3000)
    position.settle(1000)
    position.settle(3000)
    assert position.gap == 2


def test_the_next_receiver_skips_what_was_acknowledged() -> None:
    """The metadata keeps acknowledged records from coming again."""
    first = seen(0, 1, 2, 3)
    first.settle(1)
    first.settle(3)
    second = Position(first.offset, first.metadata())
    assert [offset for offset in range(5) if second.see(offset)] == [0, 2, 4]


def test_the_next_receiver_commits_at_once() -> None:
    """A commit before anything has come says the same as the one before."""
    first = seen(0, 1, 2, 3)
    first.settle(1)
    first.settle(3)
    second = Position(first.offset, first.metadata())
    assert (second.offset, second.metadata()) == (first.offset, first.metadata())


def test_the_position_passes_what_was_acknowledged_before() -> None:
    """When the first record is settled too, the position passes the known ones before they come."""
    first = seen(0, 1, 2)
    first.settle(1)
    first.settle(2)
    second = seen(0, start=first.offset, metadata=first.metadata())
    second.settle(0)
    assert second.offset == 3


@pytest.mark.parametrize(
    "metadata",
    [
        "consumer-7",
        "events 1",
        "events 1 5",
        "events 1 5 ",
        "events 1 6 1+1",
        "events 1 5 1+",
        "events 1 5 1+0 x",
        "events 2",
    ],
)
def test_foreign_metadata_is_ignored(metadata: str) -> None:
    """Metadata of another program, or of another offset, says nothing about records."""
    position = Position(5, metadata)
    assert all(position.see(offset) for offset in range(5, 20))


def test_metadata_has_a_limit() -> None:
    """What does not fit is left out at the end, and comes again."""
    first = seen(*range(10_000))
    for offset in range(1, 10_000, 2):
        first.settle(offset)
    metadata = first.metadata()
    assert len(metadata) <= MAX_METADATA
    second = Position(first.offset, metadata)
    again = [offset for offset in range(10_000) if second.see(offset)]
    assert set(range(0, 10_000, 2)) <= set(again)
    assert len(again) < 10_000 - 500


@given(
    offsets=st.sets(st.integers(0, 60), min_size=1).map(sorted),
    steps=st.lists(st.one_of(st.just("see"), st.just("crash"), st.just("commit"), st.integers(0, 60)), max_size=120),
    limit=st.one_of(st.just(MAX_METADATA), st.integers(0, 40)),
)
def test_no_record_is_lost_or_comes_again(offsets: list[int], steps: list[str | int], limit: int) -> None:
    """A record comes until it is acknowledged, and never after a commit that tells of its acknowledgement.

    A number settles that offset.  A crash forgets all since the last commit.
    """
    committed = (0, "")
    position = Position(*committed)
    at = 0  # where the consumer reads: in front of the first offset that is not below
    acknowledged: set[int] = set()  # since the last crash, with what was committed before
    told: set[int] = set()
    out: set[int] = set()
    for step in steps:
        if step == "see":
            offset = next((each for each in offsets if each >= at), None)
            if offset is None:
                continue
            at = offset + 1
            comes = position.see(offset)
            assert comes is (offset not in acknowledged)
            if comes:
                out.add(offset)
        elif step == "commit":
            committed = (position.offset, position.metadata(limit))
            told = set(acknowledged)
            if limit < MAX_METADATA:  # what the metadata has no room for comes again
                told = {each for each in told if each < committed[0] or not Position(*committed).see(each)}
        elif step == "crash":
            position = Position(*committed)
            at, acknowledged, out = committed[0], set(told), set()
        elif isinstance(step, int) and step in out:
            position.settle(step)
            acknowledged.add(step)
            out.discard(step)
        first_open = next((each for each in offsets if each not in acknowledged), 61)
        assert position.offset <= first_open
        assert len(position.metadata(limit)) <= max(limit, 0)
        behind = next((each for each in sorted(out)), None)
        if behind is not None:
            assert position.offset == behind
            assert position.gap == len([each for each in offsets if behind < each < at and each not in out])
    # All that is open comes to a receiver that begins at the commit.
    last = Position(position.offset, position.metadata(limit))
    comes_again = {each for each in offsets if each >= position.offset and last.see(each)}
    assert comes_again >= {each for each in offsets if each not in acknowledged}
    if limit == MAX_METADATA:
        assert comes_again == {each for each in offsets if each not in acknowledged}
