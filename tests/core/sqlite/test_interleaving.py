"""In whatever order receivers act, no message is lost or settled twice, and keys keep their order."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable

import pytest

from events_core import EventMessage
from events_core.backends.sqlite.store import Store
from events_core.backends.sqlite.subscription import Subscription
from events_core.engine import Delivery, Outcome, Settlement

KEYS = (None, "a", "b", "c")


class Broker:
    """Receivers on two connections, and what is known of each message."""

    def __init__(self, stores: list[Store], choose: random.Random) -> None:
        self.stores = stores
        self.choose = choose
        self.subscriptions = [Subscription(store, "s") for store in stores for _ in range(2)]
        self.held: dict[Subscription, list[Delivery]] = defaultdict(list)
        self.keys: dict[str, str | None] = {}
        self.unsettled: dict[str | None, list[int]] = defaultdict(list)

    def publish(self) -> None:
        keys = self.choose.choices(KEYS, k=self.choose.randint(1, 5))
        ids = self.choose.choice(self.stores).publish([EventMessage(b"x", ordering_key=key) for key in keys])
        for message_id, key in zip(ids, keys, strict=True):
            self.unsettled[key].append(int(message_id))

    def take(self) -> None:
        subscription = self.choose.choice(self.subscriptions)
        taken = subscription.take(self.choose.randint(1, 6))
        by_key: dict[str | None, list[int]] = defaultdict(list)
        for delivery in taken:
            by_key[delivery.ordering_key].append(int(delivery.message_id))
        for key, ids in by_key.items():
            assert set(ids) <= set(self.unsettled[key]), "acknowledged, and came again"
            if key is not None:
                assert ids == self.unsettled[key][: len(ids)], "not the first unsettled messages of the key"
                assert not any(each.ordering_key == key for held in self.held.values() for each in held)
        held_ids = [each.message_id for held in self.held.values() for each in held]
        assert not {each.message_id for each in taken} & set(held_ids), "held by two"
        self.held[subscription] += taken

    def settle(self) -> None:
        """Settle one delivery; with a nack, return the later messages of its key too, as the engine does."""
        subscription = self.choose.choice(self.subscriptions)
        held = self.held[subscription]
        if not held:
            return
        first = self.choose.choice(held)
        # Not REJECT: the subscription has no dead-letter topic.
        outcome = self.choose.choice([Outcome.ACK, Outcome.NACK, Outcome.RETURN])
        run = [first]
        if outcome is not Outcome.ACK and first.ordering_key is not None:
            run = [each for each in held if each.ordering_key == first.ordering_key]
            run = run[run.index(first) :]
        told = [Settlement(first, outcome, 0.0), *(Settlement(each, Outcome.RETURN) for each in run[1:])]
        assert subscription.settle(told) == [None] * len(told)
        for each in run:
            held.remove(each)
        if outcome is Outcome.ACK:
            self.unsettled[first.ordering_key].remove(int(first.message_id))

    def die(self) -> None:
        """Let one receiver lapse, and another take over."""
        dead = self.choose.choice(self.subscriptions)
        store = self.stores[0]
        store.connection.execute("UPDATE sessions SET expires_at = 0 WHERE id = ?", (dead._session,))
        lost = self.held.pop(dead, [])
        next(each for each in self.subscriptions if each is not dead).take(0)
        assert all(error is not None for error in dead.settle([Settlement(each, Outcome.ACK) for each in lost]))

    def leave(self) -> None:
        leaving = self.choose.choice(self.subscriptions)
        leaving.leave()
        self.held.pop(leaving, None)
        self.subscriptions.remove(leaving)
        self.subscriptions.append(Subscription(self.choose.choice(self.stores), "s"))

    def drain(self) -> None:
        """Receive everything that is left, in order."""
        for subscription in self.subscriptions:
            subscription.settle([Settlement(each, Outcome.RETURN) for each in self.held.pop(subscription, [])])
        last = self.subscriptions[0]
        while taken := last.take(100):
            for each in taken:
                waiting = self.unsettled[each.ordering_key]
                assert each.ordering_key is None or waiting[0] == int(each.message_id)
                waiting.remove(int(each.message_id))
            last.settle([Settlement(each, Outcome.ACK) for each in taken])
        assert not any(self.unsettled.values())
        assert self.stores[0].connection.execute("SELECT count(*) FROM messages").fetchone() == (0,)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("seed", range(30))
def test_any_interleaving_keeps_the_rules(store: Callable[..., Store], seed: int) -> None:
    """Four receivers of one subscription send, take, settle, die and leave at random."""
    choose = random.Random(seed)
    broker = Broker([store(durability="normal", session_timeout="3600") for _ in range(2)], choose)
    actions = [broker.publish, broker.take, broker.take, broker.settle, broker.settle, broker.settle]
    for _ in range(150):
        choose.choice([*actions, broker.die, broker.leave] if choose.random() < 0.2 else actions)()
    broker.drain()
