"""Credentials are wrong, expire or lack a permission, and a clock is wrong."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from events_core import ErrorCode, EventError, EventMessage, PublishError, ReceiveError

from ..receiving import PATIENCE, take
from .console import Console
from .disturbed import disturbed, outcome, refuse_sends, sends
from .faults import FOREVER, faulty
from .server import KEY, SECRET, Server


def script_of(folder: Path, key: str, secret: str, hours: int = 1) -> tuple[Path, Path]:
    """Write a configuration of AWS whose profile *shop* runs a program for its credentials, which end in *hours*.

    Return the file, and a file with a line for each run of the program.
    """
    runs, program, config = folder / "runs", folder / "program.py", folder / "config"
    expires = (datetime.now(UTC) + timedelta(hours=hours)).isoformat()
    given = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": secret, "SessionToken": "", "Expiration": expires}
    program.write_text(f"open({str(runs)!r}, 'a').write('run\\n')\nprint({json.dumps(given)!r})\n")
    config.write_text(f"[profile shop]\nregion = us-east-1\ncredential_process = {sys.executable} {program}\n")
    runs.touch()
    return config, runs


@pytest.mark.parametrize("code", ["ExpiredToken", "ExpiredTokenException"])
def test_expired_credentials_are_fetched_again(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """F1: a send that is refused because its credentials have expired succeeds with new ones."""
    config, runs = script_of(tmp_path, KEY, SECRET)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))

    async def scenario() -> None:
        async with disturbed(console, profile="shop", access_key_id="", secret_access_key="") as (
            proxy,
            both,
            receiver,
        ):
            await both.ping(PATIENCE)
            before = len(runs.read_text().splitlines())
            refuse_sends(proxy, code, 403)
            await both.send_message(EventMessage(b"x"))
            assert (await take(receiver)).data == b"x"
            assert len(runs.read_text().splitlines()) > before

    asyncio.run(scenario())


@pytest.mark.parametrize("is_of_profile", [True, False])
def test_expired_credentials_of_a_role_are_fetched_again(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_of_profile: bool
) -> None:
    """F1: botocore keeps them in a cache, but they are assumed again."""
    role = "arn:aws:iam::000000000000:role/shop"
    config = tmp_path / "config"
    keys = f"[profile keys]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    config.write_text(f"{keys}[profile shop]\nrole_arn = {role}\nsource_profile = keys\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    of_profile = {"profile": "shop", "access_key_id": "", "secret_access_key": ""}

    async def scenario() -> None:
        options = of_profile if is_of_profile else {"role_arn": role}
        async with console, faulty(console.server.url) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL_STS", proxy.url)
            async with console.client(endpoint_url=proxy.url, **options) as both:
                await both.ping(PATIENCE)
                before = proxy.count("AssumeRole")
                assert before > 0
                refuse_sends(proxy, "ExpiredToken", 403)
                await both.send_message(EventMessage(b"x"))
                assert proxy.count("AssumeRole") > before

    asyncio.run(scenario())


def test_credentials_that_are_expired_when_they_are_fetched_are_told(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F1: such as those from a stale cache; botocore has no exception of its own for them."""
    config, _ = script_of(tmp_path, KEY, SECRET, hours=-1)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))

    async def scenario() -> None:
        async with console, console.client(profile="shop", access_key_id="", secret_access_key="") as client:
            with pytest.raises(EventError, match="still expired") as caught:
                await client.ping(PATIENCE)
            assert outcome(caught.value) == (ErrorCode.UNAUTHENTICATED, False)

    asyncio.run(scenario())


def test_credentials_that_stay_expired_are_told(console: Console) -> None:
    """F1, P7: after one refresh, a send raises UNAUTHENTICATED at once, and a receive does too."""

    async def scenario() -> None:
        async with disturbed(console) as (proxy, both, receiver):
            refuse_sends(proxy, "ExpiredToken", 403, FOREVER)
            proxy.refuse("ReceiveMessage", "ExpiredTokenException", status=403, times=FOREVER)
            with pytest.raises(PublishError) as sent:
                await both.send_message(EventMessage(b"x"))
            assert outcome(sent.value) == (ErrorCode.UNAUTHENTICATED, False)
            assert sends(proxy) <= 2
            with pytest.raises(ReceiveError) as received:
                await receiver.receive_message(PATIENCE)
            assert received.value.code is ErrorCode.UNAUTHENTICATED
            proxy.heal()
            await both.send_message(EventMessage(b"y"))
            assert (await take(receiver)).data == b"y"

    asyncio.run(scenario())


@pytest.mark.parametrize("hours", [1, -1])
def test_a_wrong_clock_is_told(console: Console, hours: int) -> None:
    """P7: if the clock of the machine is wrong, the error says so, in place of something about secrets."""

    async def scenario() -> None:
        async with disturbed(console) as (proxy, both, _):
            await both.send_message(EventMessage(b"x"))
            proxy.skew = timedelta(hours=hours)
            with pytest.raises(PublishError, match="clock") as caught:
                await both.send_message(EventMessage(b"x"))
            assert caught.value.code is ErrorCode.UNAUTHENTICATED
            assert SECRET not in str(caught.value).split()

    asyncio.run(scenario())


def test_a_wrong_secret_is_told(strict_server: Server) -> None:
    """F1: a wrong secret raises UNAUTHENTICATED, which does not show it."""

    async def scenario() -> None:
        async with Console(strict_server) as console:
            user = await console.add_user("sqs:*", "sns:*")
            async with console.client(**{**user, "secret_access_key": "not-the-secret"}) as sender:
                with pytest.raises(EventError) as caught:
                    await sender.ping(PATIENCE)
                assert caught.value.code is ErrorCode.UNAUTHENTICATED
                assert "not-the-secret" not in str(caught.value)

    asyncio.run(scenario())


EVERY = (
    *("sns:CreateTopic", "sns:GetTopicAttributes", "sns:ListSubscriptionsByTopic", "sns:Publish", "sns:Subscribe"),
    "sns:PublishBatch",  # MiniStack asks for it, and AWS for sns:Publish
    *("sns:GetSubscriptionAttributes", "sns:SetSubscriptionAttributes", "sns:Unsubscribe"),
    *("sqs:ChangeMessageVisibility", "sqs:CreateQueue", "sqs:DeleteMessage", "sqs:DeleteQueue", "sqs:GetQueueUrl"),
    *("sqs:GetQueueAttributes", "sqs:ListQueues", "sqs:ListQueueTags", "sqs:ReceiveMessage", "sqs:SendMessage"),
    *("sqs:SetQueueAttributes", "sqs:TagQueue"),
)
"""All actions that a client may need."""


@pytest.mark.parametrize("missing", ["sns:Publish", "sqs:ReceiveMessage", "sqs:DeleteMessage"])
def test_a_missing_permission_is_named(strict_server: Server, missing: str) -> None:
    """P3, S5: PERMISSION_DENIED names the action that the account may not do."""

    async def scenario() -> None:
        async with Console(strict_server) as console, console.client() as anybody:
            await (await anybody.subscribe()).close()
            user = await console.add_user(*(action for action in EVERY if not action.startswith(missing)))
            async with console.client(**user) as both, both.subscribe() as receiver:

                async def work() -> None:
                    await both.send_message(EventMessage(b"x"))
                    await receiver.acknowledge(await take(receiver))

                with pytest.raises(EventError, match=missing.partition(":")[2]) as caught:
                    await work()
                assert caught.value.code is ErrorCode.PERMISSION_DENIED

    asyncio.run(scenario())
