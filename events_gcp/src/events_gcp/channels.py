"""Channels to Pub/Sub, shared by the clients of a process that speak to one endpoint as one account.

All of them live on the engine's I/O thread, so nothing here needs a lock of threads.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
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
_PROBE_TIMEOUT = 1.0
"""A request, and its seconds, to learn from gRPC why there is no connection.  What the server answers is not read."""

_LOOKING_INTERVAL = 0.1
"""Seconds between two looks for a lost connection."""

_MAX_STREAMS = 80
"""Streams on one channel: HTTP/2 servers allow 100 requests at once on a connection, and more would wait, unseen."""

_OPTIONS = [
    # As google-cloud-pubsub sets them for channels of its own; the third for the answers of exactly-once delivery.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_metadata_size", 4 * 2**20),
    # The engine backs off by itself; gRPC would notice the end of an outage up to two minutes late.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 250),
    # Channels of equal options would else share one connection, whatever _MAX_STREAMS says.
    ("grpc.use_local_subchannel_pool", 1),
]
# The emulator would close a connection that is pinged that often (ENHANCE_YOUR_CALM).
_SERVICE_OPTIONS = [
    *_OPTIONS,
    ("grpc.keepalive_time_ms", 30_000),
    # gRPC 1.85 ignores grpc.keepalive_timeout_ms, and waits a minute for the answer to a ping.
    ("grpc.http2.ping_timeout_ms", 20_000),
]


class _Grpc:
    """What this process knows of gRPC's state."""

    is_used = False
    is_inherited = False
    """Whether a process used it that this one was forked from.  All of 19 children that connected anew then hung or
    crashed (grpcio 1.85.1 on Linux), whatever GRPC_ENABLE_FORK_SUPPORT said."""

    def forked(self) -> None:
        self.is_inherited |= self.is_used


_grpc = _Grpc()
os.register_at_fork(after_in_child=_grpc.forked)


class Channel:
    """One connection."""

    def __init__(self, endpoint: Endpoint, credentials: Any) -> None:
        self.streams = 0
        """Streams and requests to publish that are open on it.  Other requests are few and short."""
        self.methods: dict[str, Any] = {}
        """What calls each method, by its path."""
        self.grpc = (
            grpc.aio.insecure_channel(endpoint.target, options=_OPTIONS)
            if endpoint.is_emulator
            else grpc.aio.secure_channel(endpoint.target, channel_credentials(credentials), options=_SERVICE_OPTIONS)
        )


class Pool:
    """The channels to one endpoint, while somebody uses them."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._users: list[Callable[[], None]] = []
        """What to call when the connection stands again, for each user."""
        self._credentials: Any = None
        self._channels: list[Channel] = []
        self._connecting = asyncio.Lock()
        self._looking_out: asyncio.TimerHandle | None = None

    @classmethod
    async def join(cls, endpoint: Endpoint, restored: Callable[[], None]) -> Pool:
        """Return the pool of *endpoint*, connected.

        :param restored: called when the connection was lost and stands again; :meth:`leave` takes the same.
        :raises BrokerError: when nobody answers in time, or there are no credentials; ``WRONG_PROCESS`` where gRPC
            would hang.
        """
        if _grpc.is_inherited:
            raise BrokerError(
                "this process was forked from one that had connected to Pub/Sub, and gRPC hangs or crashes in such a "
                "child; fork before anything connects, or start processes with multiprocessing's 'spawn'",
                ErrorCode.WRONG_PROCESS,
            )
        pool = _pools.setdefault((endpoint, asyncio.get_running_loop()), cls(endpoint))
        pool._users.append(restored)
        try:
            with translated(f"connect to {endpoint.target!r}"):
                await pool._connect()
        except BaseException:
            await pool.leave(restored)
            raise
        return pool

    async def leave(self, restored: Callable[[], None]) -> None:
        """Use it no more; the last one closes what is open."""
        self._users.remove(restored)
        if not self._users:
            del _pools[self.endpoint, asyncio.get_running_loop()]
            if self._looking_out is not None:
                self._looking_out.cancel()
            for channel in self._channels:
                await channel.grpc.close()

    async def _connect(self) -> None:
        async with self._connecting:
            if not self._channels:
                if not self.endpoint.is_emulator:
                    self._credentials = await off_loop(lambda: load_credentials(self.endpoint))
                _grpc.is_used = True
                self._channels.append(Channel(self.endpoint, self._credentials))
        async with asyncio.timeout(_CONNECT_TIMEOUT):
            await _reached(self.main.grpc)

    def look_out(self) -> None:
        """Reconnect after a failure, and tell the users when the connection stands again."""
        if self._looking_out is None and not _is_ready(self.main.grpc):
            self._look()

    def _look(self) -> None:
        # gRPC can call back at the next change, but cannot be told to forget that when the channel closes.
        if not _is_ready(self.main.grpc):
            self._looking_out = asyncio.get_running_loop().call_later(_LOOKING_INTERVAL, self._look)
            return
        self._looking_out = None
        for restored in tuple(self._users):
            restored()

    def renew_credentials(self) -> bool:
        """Have the next request get a new token, since the service took the last one for none; whether there is one."""
        if self._credentials is None:
            return False
        self._credentials.token = None
        return True

    @property
    def main(self) -> Channel:
        """The channel of all that is no stream."""
        return self._channels[0]

    def for_stream(self) -> Channel:
        """Return a channel with room for a stream, or for a request to publish; count it in and out."""
        for channel in self._channels:
            if channel.streams < _MAX_STREAMS:
                return channel
        self._channels.append(Channel(self.endpoint, self._credentials))
        return self._channels[-1]


def _is_ready(channel: Any) -> bool:
    """Return whether *channel* is connected; if it is not, it begins to connect."""
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
    """Raise the reason why *channel* is not connected; return if it is by now."""
    try:
        await channel.unary_unary(_PROBE)(b"", timeout=_PROBE_TIMEOUT)
    except grpc.aio.AioRpcError:
        if channel.get_state() is not grpc.ChannelConnectivity.READY:
            raise


# Keyed by loop too: a forked child has another, and must not let go of its parent's channels, which would close them.
_pools: dict[tuple[Endpoint, asyncio.AbstractEventLoop], Pool] = {}
