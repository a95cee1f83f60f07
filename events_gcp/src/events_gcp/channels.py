"""Channels to Pub/Sub.  The clients of a process that use one endpoint and one account share them.

A client joins the pool of its endpoint and leaves it when it closes; the last one closes the channels.  Everything here
runs on the engine's I/O loop, so nothing needs a lock of threads.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc.aio  # type: ignore[import-untyped]

from events_core import ErrorCode
from events_core.engine import BrokerError, off_loop
from events_gcp.credentials import channel_credentials, load_credentials
from events_gcp.endpoint import Endpoint
from events_gcp.errors import translated

__all__ = ["Channel", "Pool"]

_CONNECT_TIMEOUT = 5.0
"""Seconds."""

_PROBE = "/grpc.health.v1.Health/Check"
"""A request that makes gRPC say why there is no connection.  The server's answer does not matter."""
_PROBE_TIMEOUT = 1.0
"""Seconds."""

_LOOKING_INTERVAL = 0.1
"""Seconds between two looks whether a lost connection is back."""

_MAX_STREAMS = 80
"""Streams on one channel.  HTTP/2 servers usually allow 100 requests at once on a connection; further requests would
wait without a sign."""

_OPTIONS = [
    # google-cloud-pubsub sets the first three too.  The third is for the long answers of exactly-once delivery.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_metadata_size", 4 * 2**20),
    # The engine has its own backoff.  With gRPC's, the end of an outage would be noticed up to two minutes late.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 250),
    # Otherwise channels with equal options share one connection, and _MAX_STREAMS has no effect.
    ("grpc.use_local_subchannel_pool", 1),
]
# Not for the emulator: it closes a connection that is pinged this often (ENHANCE_YOUR_CALM).
_SERVICE_OPTIONS = [
    *_OPTIONS,
    ("grpc.keepalive_time_ms", 30_000),
    # gRPC 1.85 ignores grpc.keepalive_timeout_ms, and would wait a minute for the answer to a ping.
    ("grpc.http2.ping_timeout_ms", 20_000),
]


class _Grpc:
    """The state of gRPC in this process, as far as a fork makes it unusable."""

    is_used = False
    is_inherited = False
    """Whether a parent process used gRPC before the fork.  In that case all of 19 children that connected again hung or
    crashed (grpcio 1.85.1 on Linux), with every value of GRPC_ENABLE_FORK_SUPPORT."""

    def forked(self) -> None:
        self.is_inherited |= self.is_used


_grpc = _Grpc()
os.register_at_fork(after_in_child=_grpc.forked)


class Channel:
    """One connection to Pub/Sub."""

    def __init__(self, endpoint: Endpoint, credentials: Any) -> None:
        self.streams = 0
        """Streams, pulls and publish requests that are open.  Other requests are few and short: they do not count."""
        self.methods: dict[str, Any] = {}
        """The callable of each method, by the path of the method."""
        self.grpc = (
            grpc.aio.insecure_channel(endpoint.target, options=_OPTIONS)
            if endpoint.is_emulator
            else grpc.aio.secure_channel(endpoint.target, channel_credentials(credentials), options=_SERVICE_OPTIONS)
        )


class Pool:
    """The channels to one endpoint, open while at least one client uses them."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._users: list[Callable[[], None]] = []
        """For each client, the function to call when a lost connection is back."""
        self._credentials: Any = None
        self._channels: list[Channel] = []
        self._connecting = asyncio.Lock()
        self._looking_out: asyncio.TimerHandle | None = None

    @classmethod
    async def join(cls, endpoint: Endpoint, restored: Callable[[], None]) -> Pool:
        """Return the pool of *endpoint*, connected.

        :param restored: called when the connection was lost and is back.  Pass the same function to :meth:`leave`.
        :raises BrokerError: if the server does not answer in time, or there are no credentials; ``WRONG_PROCESS`` if
            gRPC would hang.
        """
        if _grpc.is_inherited:
            raise BrokerError(
                "this process was forked from one that had connected to Pub/Sub, and gRPC hangs or crashes in such a "
                "child; fork before anything connects, or start processes with multiprocessing's 'spawn'",
                ErrorCode.WRONG_PROCESS,
            )
        pool = _pools.setdefault((endpoint, asyncio.get_running_loop()), cls(endpoint))
        # Before the first wait: a client that leaves during it must not close the channels under this one.
        pool._users.append(restored)
        try:
            with translated(f"connect to {endpoint.target!r}"):
                await pool._connect()
        except BaseException:
            await pool.leave(restored)
            raise
        return pool

    async def leave(self, restored: Callable[[], None]) -> None:
        """Leave the pool.  The last client closes the channels."""
        self._users.remove(restored)
        if not self._users:
            # Out of the table first, so that a client which joins while channels close gets a new pool.
            del _pools[self.endpoint, asyncio.get_running_loop()]
            if self._looking_out is not None:
                self._looking_out.cancel()
            for channel in self._channels:
                await channel.grpc.close()

    async def _connect(self) -> None:
        # Several clients may join at once; the first one loads the credentials and opens the channel for all.
        async with self._connecting:
            if not self._channels:
                if not self.endpoint.is_emulator:
                    self._credentials = await off_loop(lambda: load_credentials(self.endpoint))
                _grpc.is_used = True
                self._channels.append(Channel(self.endpoint, self._credentials))
        async with asyncio.timeout(_CONNECT_TIMEOUT):
            await _reached(self.main.grpc)

    def look_out(self) -> None:
        """Reconnect after a failure, and call the functions of all clients when the connection is back."""
        if self._looking_out is None and not _is_ready(self.main.grpc):
            self._look()

    def _look(self) -> None:
        # gRPC could call back at the next change, but that call cannot be cancelled when the channel closes.
        if not _is_ready(self.main.grpc):
            self._looking_out = asyncio.get_running_loop().call_later(_LOOKING_INTERVAL, self._look)
            return
        self._looking_out = None
        for restored in tuple(self._users):
            restored()

    def renew_credentials(self) -> bool:
        """Drop the token that the service refused, so that the next request gets a new one.

        Return whether there are tokens: an emulator has none.
        """
        if self._credentials is None:
            return False
        self._credentials.token = None
        return True

    @property
    def main(self) -> Channel:
        """The channel of short requests."""
        return self._channels[0]

    def for_stream(self) -> Channel:
        """Return a channel with room for a stream.  The caller counts it in ``streams``."""
        for channel in self._channels:
            if channel.streams < _MAX_STREAMS:
                return channel
        self._channels.append(Channel(self.endpoint, self._credentials))
        return self._channels[-1]

    @contextmanager
    def long_request(self) -> Iterator[Channel]:
        """Enter with a channel for a request that may take long, which counts like a stream until the exit."""
        channel = self.for_stream()
        channel.streams += 1
        try:
            yield channel
        finally:
            channel.streams -= 1


def _is_ready(channel: Any) -> bool:
    """Return whether *channel* is connected; if it is not, let it connect."""
    return bool(channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY)


async def _reached(channel: Any) -> None:
    """Return when *channel* is connected.

    :raises grpc.aio.AioRpcError: with the reason, as soon as an attempt to connect has failed.
    """
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            await _probe(channel)
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


async def _probe(channel: Any) -> None:
    """Raise the reason why *channel* is not connected, or return if it is connected by now."""
    try:
        await channel.unary_unary(_PROBE)(b"", timeout=_PROBE_TIMEOUT)
    except grpc.aio.AioRpcError:
        if channel.get_state() is not grpc.ChannelConnectivity.READY:
            raise


# The loop is part of the key.  A forked child has another loop, and must not drop the channels of its parent: that
# would close them.
_pools: dict[tuple[Endpoint, asyncio.AbstractEventLoop], Pool] = {}
