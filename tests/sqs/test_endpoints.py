"""Requests go to the endpoint that is meant for them, and the password of a proxy stays secret."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from events_core import ErrorCode, EventConfig, EventError
from events_core.engine import BrokerError
from events_sqs import SQSClient
from events_sqs.options import SQSOptions
from events_sqs.session import Services, endpoint_of

from ..receiving import PATIENCE
from .console import LOGIN, PATIENT
from .server import KEY, REGION, SECRET

VPC = "https://vpce-0a1b.sqs.us-east-1.vpce.amazonaws.com"
AWS = "https://{}.us-east-1.amazonaws.com"


def test_an_endpoint_of_aws_is_for_one_service() -> None:
    """An endpoint of SQS does not answer for SNS and STS."""

    async def scenario() -> None:
        options = SQSOptions(region=REGION, endpoint_url=VPC, access_key_id=KEY, secret_access_key=SECRET)
        services = await Services.open(options)
        try:
            found = [services.sqs.meta.endpoint_url, services.sns.meta.endpoint_url]
            async with services._client("sts") as sts:
                found.append(sts.meta.endpoint_url)
        finally:
            await services.close()
        assert found == [VPC, AWS.format("sns"), AWS.format("sts")]

    asyncio.run(scenario())


def test_an_endpoint_of_the_environment_that_cannot_be_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """O1: botocore refuses names with '_', which are usual in Compose."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://local_stack:4566")

    async def scenario() -> None:
        with pytest.raises(BrokerError, match="local_stack") as caught:
            await Services.open(SQSOptions(region=REGION, access_key_id=KEY, secret_access_key=SECRET))
        assert caught.value.code is ErrorCode.INVALID

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("url", "services"),
    [
        (None, ""),
        ("http://localhost:4566", "sqs sns sts"),
        ("http://sqs.us-east-1.localhost.localstack.cloud:4566", "sqs sns sts"),
        ("http://ec2-1-2-3-4.compute-1.amazonaws.com:4566", "sqs sns sts"),
        (VPC, "sqs"),
        ("https://sqs-fips.us-east-1.amazonaws.com", "sqs"),
        ("https://us-east-1.queue.amazonaws.com", "sqs"),
        ("https://sns.us-east-1.amazonaws.com", "sns"),
        ("https://sqs.cn-north-1.amazonaws.com.cn", "sqs"),
        ("https://sqs.us-east-1.api.aws", "sqs"),
    ],
)
def test_the_name_of_an_endpoint_says_what_it_has(url: str | None, services: str) -> None:
    """A host of another name is an emulator with all services."""
    given = [service for service in ("sqs", "sns", "sts") if endpoint_of(service, url) is not None]
    assert given == services.split()


@asynccontextmanager
async def refusing_proxy() -> AsyncIterator[str]:
    """Serve a proxy that refuses the credentials of every request; yield its address."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"


def test_the_password_of_a_proxy_is_in_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """F1: the error says that the proxy refuses it, at once."""

    async def scenario() -> None:
        async with refusing_proxy() as address:
            options = {"region": REGION, "proxy": f"http://user:hunter2@{address}", **LOGIN, **PATIENT}
            async with SQSClient(EventConfig("orders", options=options, backend="sqs")) as client:
                with pytest.raises(EventError, match="option proxy") as caught:
                    await client.ping(PATIENCE)
        assert caught.value.code is ErrorCode.UNAUTHENTICATED
        assert "hunter2" not in "".join(traceback.format_exception(caught.value))
        assert "hunter2" not in caplog.text

    asyncio.run(asyncio.wait_for(scenario(), 120))
