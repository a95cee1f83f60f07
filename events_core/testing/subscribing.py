"""Q1 to Q4: subscriptions."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time

import pytest

from events_core import ErrorCode, EventClient, EventMessage, EventReceiver, EventRuntimeError, ReceiveError
from events_core.options import describe_options
from events_core.testing.rules import rule
from events_core.testing.skipping import not_shown
from events_core.testing.stage import Stage, numbered, texts

__all__ = ["Subscribing"]


async def _receive_from(client: EventClient, subscription: str, stage: Stage) -> None:
    """Subscribe and receive: either call may raise that something is missing (Q2)."""
    receiver = await client.subscribe(subscription)
    await receiver.receive_message(stage.harness.patience)


class Subscribing:
    """Joining subscriptions, creating and deleting them."""

    @rule("Q1")
    async def test_receivers_of_a_name_compete(self, stage: Stage) -> None:
        """Two receivers of one subscription share its messages: each message goes to one of them."""
        client, first = await stage.open()
        # By another client: the broker must share out the messages, not one client.
        second = await stage.client().subscribe(stage.subscription)
        ids = await client.send_messages(numbered(20))
        received = await stage.drain_together([first, second], 20)
        assert sorted(message.message_id for part in received for message in part) == sorted(ids)
        await stage.silence(first, second)

    @rule("Q1")
    async def test_subscriptions_each_get_everything(self, stage: Stage) -> None:
        """Every subscription, named or ephemeral, gets every message."""
        client, first = await stage.open()
        second = await client.subscribe(stage.name("second"))
        third = await client.subscribe()
        await client.send_messages(numbered(5))
        for receiver in (first, second, third):
            assert sorted(texts(await stage.drain(receiver, 5))) == texts(numbered(5))

    @rule("Q1")
    async def test_what_one_subscription_settles_another_keeps(self, stage: Stage) -> None:
        """A message waits in a subscription although another subscription has settled it."""
        client, first = await stage.open()
        # Joined once, so that it exists when the messages are sent.
        await (await client.subscribe(stage.name("second"))).close()
        await client.send_messages(numbered(5))
        await stage.drain(first, 5)
        second = await client.subscribe(stage.name("second"))
        assert sorted(texts(await stage.drain(second, 5))) == texts(numbered(5))

    @rule("Q1")
    async def test_a_named_subscription_outlives_its_receivers(self, stage: Stage) -> None:
        """Messages that are sent while a named subscription has no receiver wait for the next one."""
        client, receiver = await stage.open()
        await receiver.close()
        await client.close()
        # Another client sends: nothing that the first one keeps in memory may be the reason that the messages wait.
        sender = stage.client()
        await sender.send_messages(numbered(3))
        _, receiver = await stage.open()
        assert sorted(texts(await stage.drain(receiver, 3))) == texts(numbered(3))

    @rule("Q1")
    async def test_an_ephemeral_subscription_ends_with_its_receiver(self, stage: Stage) -> None:
        """An ephemeral subscription has a unique name, and is gone when its receiver has closed."""
        client = stage.client()
        receiver, other = await client.subscribe(), await client.subscribe()
        assert receiver.subscription != other.subscription
        await receiver.close()
        with pytest.raises(ReceiveError) as caught:
            await client.delete_subscription(receiver.subscription)
        assert caught.value.code is ErrorCode.NOT_FOUND
        await client.send_message(EventMessage(b"x"))
        assert texts(await stage.drain(other, 1)) == ["x"]

    @pytest.mark.parametrize("named", [True, False], ids=["named", "ephemeral"])
    @rule("Q1")
    async def test_a_new_subscription_begins_with_what_is_sent_next(self, stage: Stage, named: bool) -> None:
        """A new subscription gets messages sent after ``subscribe`` returned, and none that were sent before."""
        client = stage.client()
        await client.send_message(EventMessage(b"before"))
        receiver = await client.subscribe(stage.subscription if named else None)
        await client.send_message(EventMessage(b"after"))
        assert texts(await stage.drain(receiver, 1)) == ["after"]
        await stage.silence(receiver)

    @rule("Q1")
    async def test_the_option_names_the_subscription(self, stage: Stage) -> None:
        """``subscribe()`` joins the configured subscription, unless an argument names another."""
        client = stage.client(subscription=stage.subscription)
        assert (await client.subscribe()).subscription == stage.subscription
        assert (await client.subscribe(stage.name("other"))).subscription == stage.name("other")

    @rule("Q2")
    async def test_a_program_receives_what_it_sent_before_it_subscribed(self, stage: Stage) -> None:
        """The configured subscription exists before the client's first send."""
        client = stage.client(subscription=stage.subscription)
        await client.send_message(EventMessage(b"x"))
        assert texts(await stage.drain(await client.subscribe(), 1)) == ["x"]

    @pytest.mark.parametrize("create", ["never", "subscription"])
    @rule("Q2")
    async def test_a_missing_topic_is_named(self, stage: Stage, create: str) -> None:
        """If a missing topic may not be created, the error is NOT_FOUND and names the topic."""
        # If the broker is a file, its first topic creates the file.
        await stage.client(stage.name("other")).send_message(EventMessage(b"x"))
        with pytest.raises(ReceiveError) as caught:
            await _receive_from(stage.client(create=create), stage.subscription, stage)
        assert caught.value.code is ErrorCode.NOT_FOUND
        assert stage.topic_name in str(caught.value)

    @rule("Q2")
    async def test_a_missing_subscription_is_named(self, stage: Stage) -> None:
        """If a missing subscription may not be created, the error is NOT_FOUND and names the subscription."""
        await stage.client().send_message(EventMessage(b"x"))
        with pytest.raises(ReceiveError) as caught:
            await _receive_from(stage.client(create="never"), stage.subscription, stage)
        assert caught.value.code is ErrorCode.NOT_FOUND
        assert stage.subscription in str(caught.value)

    @rule("Q2")
    async def test_only_what_is_allowed_is_created(self, stage: Stage) -> None:
        """``create=subscription`` creates a subscription, ``never`` joins it, and ephemeral ones always work."""
        # This creates the topic, which no client below is allowed to do.
        await stage.client().send_message(EventMessage(b"x"))
        await (await stage.client(create="subscription").subscribe(stage.subscription)).close()
        client = stage.client(create="never")
        named, ephemeral = await client.subscribe(stage.subscription), await client.subscribe()
        await client.send_message(EventMessage(b"y"))
        for receiver in (named, ephemeral):
            assert texts(await stage.drain(receiver, 1)) == ["y"]

    @rule("Q2")
    async def test_an_unordered_subscription_is_not_taken_for_an_ordered_one(self, stage: Stage) -> None:
        """With ``ordering=true``, joining a subscription without order is INVALID, or keeps order all the same."""
        await stage.require_ordering()
        await (await stage.client(ordering="false").subscribe(stage.subscription)).close()
        client = stage.client(ordering="true")
        (receiver,) = await asyncio.gather(client.subscribe(stage.subscription), return_exceptions=True)
        if isinstance(receiver, ReceiveError):
            assert receiver.code is ErrorCode.INVALID
            assert stage.subscription in str(receiver)
            return
        assert isinstance(receiver, EventReceiver)
        assert receiver.capabilities.ordering != "none"
        await client.send_messages(numbered(20, key="k"))
        assert texts(await stage.drain(receiver, 20)) == texts(numbered(20))

    @rule("Q2")
    async def test_deleting_a_subscription_deletes_what_it_kept(self, stage: Stage) -> None:
        """A subscription that is deleted and created again is empty; deleting a missing one is NOT_FOUND."""
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"old"))
        await receiver.close()
        await client.delete_subscription(stage.subscription)
        with pytest.raises(ReceiveError) as caught:
            await client.delete_subscription(stage.subscription)
        assert caught.value.code is ErrorCode.NOT_FOUND
        receiver = await client.subscribe(stage.subscription)
        await client.send_message(EventMessage(b"new"))
        assert texts(await stage.drain(receiver, 1)) == ["new"]
        await stage.silence(receiver)

    @rule("F1", "Q2")
    async def test_a_deleted_subscription_is_made_again(self, stage: Stage) -> None:
        """If ``create`` allows it, a receiver creates its deleted subscription again and goes on."""
        client, receiver = await stage.open()
        # Another client deletes it, so the receiver can learn of it only from the broker.
        await stage.client().delete_subscription(stage.subscription)
        receiving = asyncio.create_task(stage.receive(receiver))
        while not receiving.done():  # nothing shows when the subscription is there again
            await client.send_message(EventMessage(b"x"))
            await asyncio.wait([receiving], timeout=0.05)
        await receiver.acknowledge(await receiving)

    @rule("F1")
    async def test_a_deleted_subscription_that_may_not_be_made_is_named(self, stage: Stage) -> None:
        """Otherwise each receive is NOT_FOUND until a client creates the subscription; then the receiver goes on."""
        client, receiver = await stage.open()
        await receiver.close()
        receiver = await stage.client(create="never").subscribe(stage.subscription)
        await client.delete_subscription(stage.subscription)
        for _ in range(2):
            with pytest.raises(ReceiveError) as caught:
                await stage.receive(receiver)
            assert caught.value.code is ErrorCode.NOT_FOUND
        await (await client.subscribe(stage.subscription)).close()
        await client.send_message(EventMessage(b"x"))
        with contextlib.suppress(ReceiveError):  # the receiver had noticed before the subscription was there again
            await stage.receive(receiver)
            return
        await stage.receive(receiver)

    @rule("Q4")
    async def test_a_subscription_can_be_entered(self, stage: Stage) -> None:
        """``async with client.subscribe()`` gives a receiver, and closes it at the end of the block."""
        client = stage.client()
        async with client.subscribe(stage.subscription) as receiver:
            await client.send_message(EventMessage(b"x"))
            assert texts(await stage.drain(receiver, 1)) == ["x"]
        with pytest.raises(EventRuntimeError) as caught:
            await receiver.receive_message(0)
        assert caught.value.code is ErrorCode.CLOSED

    @rule("Q4")
    async def test_subscribing_is_a_coroutine(self, stage: Stage) -> None:
        """Tasks and ``gather`` take what ``subscribe`` returns, and each result is a receiver."""
        client = stage.client()
        first = asyncio.create_task(client.subscribe(stage.subscription))
        receivers = await asyncio.gather(first, client.subscribe(stage.name("second")), client.subscribe())
        await client.send_message(EventMessage(b"x"))
        for receiver in receivers:
            assert texts(await stage.drain(receiver, 1)) == ["x"]

    @rule("Q3", proves=["replay"])
    async def test_start_earliest_begins_with_the_oldest_message(self, stage: Stage) -> None:
        """With ``start=earliest``, a new subscription gets the messages kept; without ``replay`` it is UNSUPPORTED."""
        if not stage.capabilities.replay:
            await stage.refused("replay", lambda: stage.client(start="earliest").subscribe(stage.subscription))
        sender = stage.client(retention="600")
        await sender.send_messages(numbered(3))
        receiver = await stage.client(retention="600", start="earliest").subscribe(stage.subscription)
        await sender.send_message(EventMessage(b"new"))
        assert sorted(texts(await stage.drain(receiver, 4))) == [*texts(numbered(3)), "new"]
        # The topic still keeps all messages.  A subscription with the default start must get none of them.
        latest = await stage.client(retention="600").subscribe(stage.name("latest"))
        await stage.silence(latest)

    @rule("Q3")
    async def test_start_earliest_leaves_an_existing_subscription_as_it_is(self, stage: Stage) -> None:
        """``start=earliest`` does not deliver again what an existing subscription has acknowledged."""
        stage.require("replay")
        options = {"retention": "600", "start": "earliest"}
        await stage.client(**options).send_messages(numbered(3))
        _, receiver = await stage.open(**options)
        await stage.drain(receiver, 3)
        _, other = await stage.open(**options)
        await receiver.close()
        await stage.silence(other)

    @rule("Q3", proves=["replay"])
    async def test_what_is_older_than_its_retention_is_gone(self, stage: Stage) -> None:
        """A new subscription does not begin with messages that are older than their retention."""
        stage.require("replay")
        options_class = type(stage.client()).options_class
        shortest = next(info.minimum for info in describe_options(options_class) if info.name == "retention")
        retention = max(1.0, float(shortest or 0))
        if retention > stage.harness.patience:
            not_shown(f"the end of a retention of {retention:g} s, which is longer than Harness.patience")
        options = {"retention": str(retention)}
        sender = stage.client(**options)
        await sender.send_message(EventMessage(b"old"))
        # The time is the rule here: no event tells that a message has become too old.
        await asyncio.sleep(retention + stage.harness.settle_time)
        # A broker may delete messages some time after their retention is over.
        ends = time.monotonic() + stage.harness.patience
        for number in itertools.count():
            receiver = await stage.client(start="earliest", **options).subscribe(stage.name(f"late-{number}"))
            # A message that must come: a receiver that gets nothing at all would pass otherwise.
            await sender.send_message(EventMessage(b"new"))
            received = [*await stage.drain(receiver, 1), *await stage.rest(receiver)]
            if "old" not in texts(received):
                break
            assert time.monotonic() < ends, f"a message came that is older than its retention: {texts(received)}"
            await receiver.close()
