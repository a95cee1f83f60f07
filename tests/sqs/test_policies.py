"""The IAM policies of the page docs/backends/sqs.rst are enough, on a server that checks access."""

from __future__ import annotations

import asyncio
import json
import re
import textwrap
import uuid
from pathlib import Path

import pytest

from events_core import ErrorCode, EventError, EventMessage
from events_sqs.ephemeral import EXPIRES, TOPIC

from ..receiving import take
from .console import Console
from .server import REGION, Server

PAGE = Path(__file__).parents[2] / "docs" / "backends" / "sqs.rst"
ACCOUNT = "000000000000"
BATCHED = (":Publish", ":DeleteMessage", ":ChangeMessageVisibility")
PATIENCE = 60.0


def policy(name: str, topic: str) -> str:
    """Return the policy of the page with this name, for the topic *topic* in place of ``orders``."""
    found = re.search(rf":name: {name}\n\n((?: {{3}}.*\n|\n)+)", PAGE.read_text())
    assert found is not None
    text = textwrap.dedent(found[1]).replace("eu-west-1:123456789012:orders", f"{REGION}:{ACCOUNT}:{topic}")
    found_policy = json.loads(text)
    for statement in found_policy["Statement"]:
        actions = statement["Action"]
        statement["Action"] = actions = [actions] if isinstance(actions, str) else actions
        # On AWS, the permission of an operation covers its batch form.  MiniStack asks for that form.
        actions += [f"{action}Batch" for action in actions if action.endswith(BATCHED)]
    return json.dumps(found_policy)


async def user(console: Console, *policies: str) -> dict[str, str]:
    """Create a user with the *policies* of the page, and return the options of a client that is this user."""
    name = uuid.uuid4().hex
    await console.iam.create_user(UserName=name)
    for each in policies:
        document = policy(each, console.topic)
        await console.iam.put_user_policy(UserName=name, PolicyName=each, PolicyDocument=document)
    made = (await console.iam.create_access_key(UserName=name))["AccessKey"]
    return {"access_key_id": made["AccessKeyId"], "secret_access_key": made["SecretAccessKey"]}


def test_the_policy_of_a_program_is_enough_to_send_and_receive(strict_server: Server) -> None:
    """With it, a program sends, receives, nacks, acknowledges and rejects, and may not delete its subscription."""

    async def scenario() -> None:
        async with Console(strict_server) as console:
            console.subscription = "billing"
            dead = {"dead_letter_topic": f"{console.topic}-dead", "max_delivery_attempts": "5"}
            async with console.client(**dead) as creator:
                await (await creator.subscribe()).close()
            limited = {**await user(console, "sqs-policy-of-a-program"), **dead, "create": "never"}
            async with console.client(**limited) as both, both.subscribe() as receiver:
                await both.send_messages([EventMessage(b"x"), EventMessage(b"y")])
                await receiver.nack(await take(receiver), delay=0)
                await receiver.acknowledge(await take(receiver))
                await receiver.reject(await take(receiver), reason="the test wants a letter")
                with pytest.raises(EventError) as caught:
                    await both.delete_subscription("billing")
                assert caught.value.code is ErrorCode.PERMISSION_DENIED
            assert await console.messages(f"{console.topic}-dead-{console.topic}-dead-letters") == 1

    asyncio.run(scenario())


def test_the_policy_of_a_creator_is_enough_to_create_and_remove(strict_server: Server) -> None:
    """With it, a program creates topics and subscriptions, deletes one, and removes the queue of a killed process."""

    async def scenario() -> None:
        async with Console(strict_server) as console:
            names = ("sqs-policy-of-a-program", "sqs-policy-of-a-creator")
            limited = {**await user(console, *names), "create": "all", "ephemeral_idle": "1"}
            async with console.client(**limited) as both:
                async with both.subscribe("billing") as receiver, both.subscribe(None) as ephemeral:
                    await both.send_message(EventMessage(b"x"))
                    for each in (receiver, ephemeral):
                        await each.acknowledge(await take(each))
                await both.delete_subscription("billing")
                assert not await console.has_queue(f"{console.topic}-billing")
                left = f"{console.topic}-ephemeral-{'0' * 16}"
                await console.sqs.create_queue(QueueName=left, tags={EXPIRES: "1", TOPIC: console.topic})
                async with asyncio.timeout(PATIENCE):
                    while await console.has_queue(left):
                        await asyncio.sleep(0.2)

    asyncio.run(scenario())
