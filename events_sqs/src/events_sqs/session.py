"""Credentials, and the clients of SQS and SNS that one driver uses.

botocore's chain finds the credentials: those of the options, of the environment, of a profile, or of the machine.  It
also renews them.  The engine alone retries, so the clients make one attempt for each request.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import quote_plus, urlsplit

from aiobotocore.config import AioConfig
from aiobotocore.credentials import (
    AioAssumeRoleCredentialFetcher,
    AioDeferredRefreshableCredentials,
    AioRefreshableCredentials,
)
from aiobotocore.session import AioSession
from botocore.awsrequest import AWSRequest
from botocore.credentials import CachedCredentialFetcher
from botocore.exceptions import NoCredentialsError, UnknownRegionError
from botocore.loaders import create_loader

from events_core import ErrorCode
from events_core.engine import BrokerError, off_loop
from events_sqs.errors import translated
from events_sqs.options import SQSOptions
from events_sqs.untraced import keep_untraced

__all__ = ["Services"]

_log = logging.getLogger("events_sqs")

_CONNECT_TIMEOUT = 5
"""Seconds for a connection.  A region answers within one."""
_ANSWER_TIMEOUT = 10
"""Seconds for which an answer may be late, after the time for which SQS was asked to wait."""
_CONNECTIONS = 10_000
"""Connections of each client: more than are ever out.  The engine bounds the requests, and each receiver has a long
poll.  With fewer connections, all other requests would wait until a poll has ended."""

_LARGE = 2**20
"""Bytes of a body from which on aiohttp warns (``aiohttp.payload.TOO_LARGE_BYTES_BODY``)."""

_loader = create_loader()
"""The descriptions of AWS's services, for all sessions.  Reading them takes 0.2 seconds, and 10 MB of memory."""


class Services:
    """The clients of one driver.

    ``run_native`` gives it to the application, which may use its attributes ``sqs`` and ``sns``.
    """

    def __init__(self, options: SQSOptions) -> None:
        self._options = options
        self._stack = AsyncExitStack()
        self._account = options.account_id
        self._is_checked = False
        """True if :meth:`check_account` need not ask again."""
        self.sqs: Any = None
        self.sns: Any = None
        """``None`` with ``topology=queue``."""

    @classmethod
    async def open(cls, options: SQSOptions) -> Self:
        """Make the clients.  Nothing is asked yet, except for credentials of a role.

        :raises BrokerError: if there is no region, or no such profile.
        """
        services = cls(options)
        try:
            with translated("make a client of AWS"):
                await services._open()
        except BaseException:
            await services.close()
            raise
        return services

    async def _open(self) -> None:
        names = ["sqs", "sts"] if self._options.topology == "queue" else ["sqs", "sns", "sts"]
        self._session = await off_loop(lambda: _session(self._options, names))
        if self._options.role_arn is not None:
            await self._assume(self._options.role_arn)
        self.sqs = await self._enter("sqs")
        if "sns" in names:
            self.sns = await self._enter("sns")
        self.region: str = self.sqs.meta.region_name

    async def _enter(self, service: str) -> Any:
        client = await self._stack.enter_async_context(self._client(service))
        client.meta.events.register(f"before-send.{service}", _stream)
        client.meta.events.register("needs-retry", self._renew)
        if service == "sns":
            client.meta.events.register("before-sign.sns.PublishBatch", _encode_form)
        keep_untraced(client)
        return client

    async def _renew(self, response: Any, attempts: int, **_: Any) -> float | None:
        """Get new credentials if AWS says that those of a request have expired; botocore then signs it again, once.

        Clocks differ, and a role may be revoked.  So botocore may think that they are still valid.

        :returns: the seconds until the next attempt; ``None`` for no other attempt.
        """
        if response is None or attempts > 1:
            return None
        code = response[1].get("Error", {}).get("Code", "")
        credentials = await self._session.get_credentials()
        if not code.startswith("ExpiredToken") or not isinstance(credentials, AioRefreshableCredentials):
            return None
        # There is no public way to renew what has not expired by this machine's clock.
        credentials._expiry_time = datetime.now(UTC)
        # Those of a role come from a cache, which goes by this clock too.
        fetcher = getattr(credentials._refresh_using, "__self__", None)
        if isinstance(fetcher, CachedCredentialFetcher):
            fetcher._cache.clear()
        return 0.0

    def _client(self, service: str, **credentials: Any) -> Any:
        options = self._options
        config = AioConfig(
            connect_timeout=_CONNECT_TIMEOUT,
            read_timeout=options.wait_time + _ANSWER_TIMEOUT,
            max_pool_connections=_CONNECTIONS,
            parameter_validation=False,  # it would take a large part of the time of a request
            proxies=None if options.proxy is None else {"http": options.proxy, "https": options.proxy},
            retries={"total_max_attempts": 1, "mode": "standard"},
            tcp_keepalive=True,
            # Given once, because botocore would put it together for each request, of 16 parts.
            user_agent=f"{self._session.user_agent()} events-sqs",
        )
        url = endpoint_of(service, options.endpoint_url)
        return self._session.create_client(
            service, region_name=options.region, endpoint_url=url, config=config, **credentials
        )

    async def _assume(self, role_arn: str) -> None:
        """Let the session use a role, with credentials that it renews before they end."""
        source = await self._session.get_credentials()
        if source is None:
            raise NoCredentialsError
        fetcher = AioAssumeRoleCredentialFetcher(
            self._client, source, role_arn, extra_args={"RoleSessionName": "events-sqs"}
        )
        # A session has no public way to take credentials that are renewed.
        self._session._credentials = AioDeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")

    async def account(self) -> str:
        """Return the account that owns topics and queues."""
        if self._account is None:
            self._account = await self._own_account()
        return self._account

    async def _own_account(self) -> str:
        with translated("ask STS for the account of the credentials"):
            async with self._client("sts") as sts:
                keep_untraced(sts)
                account: str = (await sts.get_caller_identity())["Account"]
                return account

    async def check_account(self) -> None:
        """Call this before anything is created: AWS does that in the account of the credentials, whatever was asked.

        If STS cannot be asked, the option ``account_id`` is believed.

        :raises BrokerError: ``INVALID`` if the option ``account_id`` is another account.
        """
        asked = self._options.account_id
        if asked is None or self._is_checked:
            return
        try:
            own = await self._own_account()
        except BrokerError as error:
            _log.debug("the option account_id is not checked: %s", error)
            own = asked
        if own != asked:
            raise BrokerError(
                f"option 'account_id' is {asked!r}, but the credentials are of account {own!r}, and AWS creates topics "
                "and queues only there; create them with credentials of the other account, or leave out account_id",
                ErrorCode.INVALID,
            )
        self._is_checked = True

    async def arn(self, service: str, name: str) -> str:
        """Return the name of a topic or queue in all of AWS."""
        try:
            partition = self._session.get_partition_for_region(self.region)
        except UnknownRegionError:  # an emulator takes any
            partition = "aws"
        return f"arn:{partition}:{service}:{self.region}:{await self.account()}:{name}"

    async def close(self) -> None:
        """Close all connections."""
        await self._stack.aclose()


def endpoint_of(service: str, url: str | None) -> str | None:
    """Return the URL for requests to *service*, or ``None`` for AWS's own.

    :param url: the option ``endpoint_url``.  An endpoint of AWS, such as a VPC endpoint, is for one service, and its
        name says for which.  Any other host is an emulator, which has all services.
    """
    host = urlsplit(url or "").hostname or ""
    if not host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws")):
        return url
    named = {"sqs" if part == "queue" else part.removesuffix("-fips") for part in host.split(".")}
    return url if service in named or not named & {"sqs", "sns", "sts"} else None


def _encode_form(request: AWSRequest, **_: Any) -> None:
    """Encode the body of a request to SNS, which is a form.

    botocore would do so twice, to sign it and to send it, and would look for characters to quote in the names of all
    fields.  For a batch of messages that is half the cost of the request.
    """
    if isinstance(request.data, dict):
        # The names have letters, digits and dots.
        request.data = "&".join([f"{name}={quote_plus(value)}" for name, value in request.data.items()]).encode()


def _stream(request: Any, **_: Any) -> None:
    """Let a large body be read in pieces, because aiohttp warns of one that would hold up the loop."""
    if isinstance(request.body, bytes) and len(request.body) > _LARGE:
        request.body = io.BytesIO(request.body)


def _session(options: SQSOptions, services: Iterable[str]) -> AioSession:
    """Return a session that has read all files, so that nothing blocks the loop later; call it in a thread."""
    session = AioSession(profile=options.profile)
    session.register_component("data_loader", _loader)
    for service in services:
        session.warm_up_loader_caches(service)
    if options.access_key_id is not None:
        session.set_credentials(options.access_key_id, options.secret_access_key, options.session_token)
    return session
