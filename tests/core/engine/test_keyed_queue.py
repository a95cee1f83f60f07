"""The keyed queue: first in, first out, in the order of each key."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from events_core.engine import KeyedQueue


class Item:
    """An item of the queue."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ordering_key = name[0] if name[0].isalpha() else None
        self.order = 0
        self.due = 0.0

    def __repr__(self) -> str:
        return self.name


def queue_of(*names: str) -> KeyedQueue[Item]:
    queue: KeyedQueue[Item] = KeyedQueue()
    for name in names:
        queue.push(Item(name))
    return queue


def names(items: list[Item]) -> list[str]:
    return [item.name for item in items]


def test_one_pop_takes_a_run_of_a_key() -> None:
    """One caller gets all waiting items of a key."""
    assert names(queue_of("a1", "a2", "1", "b1").pop(10, 0.0)) == ["a1", "a2", "1", "b1"]


def test_a_busy_key_gives_nothing() -> None:
    """While a1 is popped, a2 stays; other keys and items without a key go on."""
    queue = queue_of("a1", "a2", "b1", "1")
    assert names(queue.pop(1, 0.0)) == ["a1"]
    assert names(queue.pop(10, 0.0)) == ["b1", "1"]
    assert list(queue.blocked()) == ["a"]


def test_release_frees_the_key() -> None:
    """When all popped items of a key are released, its next item is ready."""
    queue = queue_of("a1", "a2")
    (first,) = queue.pop(1, 0.0)
    queue.release(first)
    assert names(queue.pop(10, 0.0)) == ["a2"]


def test_restored_items_go_back_to_their_place() -> None:
    """A restored item is popped before the items that were pushed after it."""
    queue = queue_of("a1", "a2", "a3", "a4")
    run = queue.pop(3, 0.0)
    queue.restore(run)
    assert names(queue.pop(10, 0.0)) == ["a1", "a2", "a3", "a4"]


def test_pieces_of_a_run_restored_backwards_keep_their_order() -> None:
    """A run may be restored item by item, and is ready when the last one is back."""
    queue = queue_of("a1", "a2", "a3")
    first, second = queue.pop(2, 0.0)
    queue.restore([second])
    assert names(queue.pop(10, 0.0)) == []
    queue.restore([first])
    assert names(queue.pop(10, 0.0)) == ["a1", "a2", "a3"]


def test_a_delayed_item_holds_its_key_back() -> None:
    """The later items of the key wait for the delayed one; other keys do not."""
    queue = queue_of("a1", "a2", "b1")
    queue.restore([queue.pop(1, 0.0)[0]], due=5.0)
    assert names(queue.pop(10, 4.9)) == ["b1"]
    assert queue.next_due() == 5.0
    assert names(queue.pop(10, 5.0)) == ["a1", "a2"]


def test_a_delayed_key_stands_in_line_once() -> None:
    """Items that are pushed behind a delayed one add no entry to the delayed ones."""
    queue = queue_of("a1")
    queue.restore(queue.pop(1, 0.0), due=5.0)
    for number in range(2, 100):
        queue.push(Item(f"a{number}"))
    assert len(queue._delayed) == 1
    assert len(queue.pop(100, 5.0)) == 99


def test_a_key_that_is_delayed_again_waits_for_the_new_time() -> None:
    """The entry of an earlier delay is ignored, whether that delay was shorter or longer."""
    queue = queue_of("a1", "a2")
    first, second = queue.pop(2, 0.0)
    queue.restore([second], due=9.0)
    for due in (5.0, 7.0):
        queue.restore([first], due=due)
        assert names(queue.pop(10, due - 0.1)) == []
        assert names(queue.pop(10, due)) == ["a1"]
    queue.release(first)
    assert names(queue.pop(10, 8.9)) == []
    assert names(queue.pop(10, 9.0)) == ["a2"]


def test_without_its_delayed_item_a_key_is_ready() -> None:
    """The later items of the key do not wait for the due time of a removed one."""
    queue = queue_of("a1", "a2")
    queue.restore([queue.pop(1, 0.0)[0]], due=5.0)
    queue.remove(queue.waiting("a")[:1])
    assert names(queue.pop(10, 0.0)) == ["a2"]


def test_a_run_stops_before_an_item_that_is_not_due() -> None:
    """A delayed item stays, although an earlier one of its key came back without a delay."""
    queue = queue_of("a1", "a2")
    first, second = queue.pop(2, 0.0)
    queue.restore([second], due=5.0)
    queue.restore([first])
    assert names(queue.pop(10, 1.0)) == ["a1"]
    queue.release(first)
    assert names(queue.pop(10, 1.0)) == []
    assert names(queue.pop(10, 5.0)) == ["a2"]


def test_delayed_unkeyed_items_come_by_due_time() -> None:
    """Items without a key do not wait for each other: the one that is due first comes first."""
    queue = queue_of("1", "2")
    first, second = queue.pop(2, 0.0)
    queue.restore([first], due=9.0)
    queue.restore([second], due=3.0)
    assert names(queue.pop(10, 3.0)) == ["2"]
    assert names(queue.pop(10, 9.0)) == ["1"]


def test_removed_items_are_gone() -> None:
    """A removed item is gone, whether it had a key or not."""
    queue = queue_of("a1", "a2", "1", "2")
    queue.remove(queue.waiting("a")[:1])
    assert len(queue) == 3
    assert names(queue.pop(10, 0.0)) == ["a2", "1", "2"]
    assert len(queue) == 0


steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from(["a", "b", "-"])),
        st.tuples(st.just("pop"), st.integers(1, 4)),
        st.tuples(st.sampled_from(["release", "restore", "delay"]), st.integers(0, 20)),
    ),
    max_size=60,
)


@given(steps)
def test_order_per_key_holds_under_any_interleaving(todo: list[tuple[str, int | str]]) -> None:
    """No item is popped while an earlier one of its key is popped or waits; none is lost or doubled."""
    queue: KeyedQueue[Item] = KeyedQueue()
    waiting: list[Item] = []
    out: list[Item] = []
    pushed = now = 0
    done = 0
    for what, argument in todo:
        now += 1
        if what == "push":
            item = Item(f"{argument}{pushed}")
            pushed += 1
            queue.push(item)
            waiting.append(item)
        elif what == "pop":
            before = {item.ordering_key for item in out}
            popped = queue.pop(int(argument), float(now))
            for item in popped:
                if item.ordering_key:
                    assert item.ordering_key not in before
                    same = [other for other in waiting if other.ordering_key == item.ordering_key]
                    assert item is min(same, key=lambda other: other.order)
                waiting.remove(item)
                out.append(item)
        elif out:
            # Runs go back whole from some item on, as the ledger gives them back.
            chosen = out[int(argument) % len(out)]
            key = chosen.ordering_key
            run = [i for i in out if key and i.ordering_key == key and i.order >= chosen.order] or [chosen]
            if what == "release":
                run = [chosen]
                queue.release(chosen)
                done += 1
            else:
                queue.restore(run, due=now + 3.0 if what == "delay" else 0.0)
                waiting += run
            out = [item for item in out if item not in run]
        assert len(queue) == len(waiting)
        busy = {item.ordering_key for item in out if item.ordering_key}
        assert queue.blocked_size == sum(item.ordering_key in busy for item in waiting)
    assert done + len(out) + len(waiting) == pushed
    for item in out:
        queue.release(item)
    rest: list[Item] = []
    while popped := queue.pop(3, now + 100.0):
        rest += popped
        for item in popped:
            queue.release(item)
    assert sorted(names(rest)) == sorted(names(waiting))
