"""Credentials come from the options, the environment, a profile or a role; without any, the error says so."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path

import pytest

from events_core import ErrorCode, EventConfig, EventError, EventMessage
from events_sqs import SQSClient

from ..receiving import PATIENCE, take
from .console import PATIENT, Console
from .server import KEY, REGION, SECRET, Server


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the credentials of whoever runs the tests, and those of the machine."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ROLE_ARN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


async def works(client: SQSClient) -> None:
    """Check that *client* sends and receives."""
    async with client, client.subscribe() as receiver:
        await client.send_message(EventMessage(b"x"))
        message = await take(receiver)
        await receiver.acknowledge(message)


def without_keys(console: Console, **options: str) -> SQSClient:
    return console.client(**{"access_key_id": "", "secret_access_key": "", **options})


def test_the_environment_gives_credentials_and_the_region(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for the command line of AWS and for boto3."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    asyncio.run(asyncio.wait_for(works(without_keys(console, region="")), 120))


def test_a_profile_gives_credentials_and_the_region(console: Console, tmp_path: Path) -> None:
    """The option names it."""
    (tmp_path / "config").write_text(f"[profile shop]\nregion = {REGION}\n")
    (tmp_path / "credentials").write_text(f"[shop]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    asyncio.run(asyncio.wait_for(works(without_keys(console, region="", profile="shop")), 120))


def test_a_role_is_assumed(strict_server: Server) -> None:
    """The account of the keys may do nothing else, and the role may do all."""
    role = f"role-{uuid.uuid4().hex}"

    async def scenario() -> None:
        async with Console(strict_server) as console:
            user = await console.add_user("sts:AssumeRole")
            trust = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
            allowed = {"Effect": "Allow", "Action": ["sqs:*", "sns:*", "sts:*"], "Resource": "*"}
            version = "2012-10-17"
            arn = (
                await console.iam.create_role(
                    RoleName=role, AssumeRolePolicyDocument=json.dumps({"Version": version, "Statement": [trust]})
                )
            )["Role"]["Arn"]
            policy = json.dumps({"Version": version, "Statement": [allowed]})
            await console.iam.put_role_policy(RoleName=role, PolicyName="p", PolicyDocument=policy)
            async with console.client(**user) as alone:
                with pytest.raises(EventError) as caught:
                    await alone.ping(PATIENCE)
                assert caught.value.code is ErrorCode.PERMISSION_DENIED
            await works(console.client(**user, role_arn=arn))

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        ({"region": REGION}, "credentials", ErrorCode.UNAUTHENTICATED),
        ({"region": REGION, "role_arn": "arn:aws:iam::123456789012:role/r"}, "credentials", ErrorCode.UNAUTHENTICATED),
        ({"region": REGION, "profile": "absent"}, "absent", ErrorCode.UNAUTHENTICATED),
        ({"access_key_id": KEY, "secret_access_key": SECRET}, "option region", ErrorCode.INVALID),
    ],
    ids=["credentials", "source of a role", "profile", "region"],
)
def test_what_is_missing_is_named(console: Console, options: dict[str, str], words: str, code: ErrorCode) -> None:
    """F1: at once, and not after a time in which the library tries again."""
    given = {"endpoint_url": console.server.url, **PATIENT, **options}

    async def scenario() -> None:
        async with SQSClient(EventConfig(console.topic, options=given, backend="sqs")) as client:
            with pytest.raises(EventError, match=words) as caught:
                await client.send_message(EventMessage(b"x"))
            assert caught.value.code is code

    asyncio.run(asyncio.wait_for(scenario(), 120))
