"""Errors of redis-py and of the server, as the application sees them."""

from __future__ import annotations

import asyncio
import ssl

import pytest
from redis import Redis, exceptions

from events_core import ConfigurationError, ErrorCode, EventConfig, EventError, EventMessage, create_client
from events_core.engine import BrokerError
from events_redis import RedisClient
from events_redis.errors import translated

from .servers import Server

PERMANENT = {
    exceptions.AuthenticationError("invalid username-password pair"): ErrorCode.UNAUTHENTICATED,
    exceptions.NoPermissionError("this user has no permissions to run 'evalsha'"): ErrorCode.PERMISSION_DENIED,
    exceptions.ResponseError("NOGROUP No such key 'x' or consumer group 'y'"): ErrorCode.NOT_FOUND,
    exceptions.ResponseError("WRONGTYPE Operation against a key"): ErrorCode.INVALID,
    exceptions.ResponseError("ERR unknown command"): ErrorCode.INTERNAL,
}
TEMPORARY = {
    exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'"): ErrorCode.EXHAUSTED,
    exceptions.ReadOnlyError("You can't write against a read only replica."): ErrorCode.UNAVAILABLE,
    exceptions.BusyLoadingError("Redis is loading the dataset in memory"): ErrorCode.UNAVAILABLE,
    exceptions.TimeoutError("Timeout reading from socket"): ErrorCode.TIMEOUT,
    exceptions.ConnectionError("Error 111 connecting to localhost:6379"): ErrorCode.UNAVAILABLE,
    exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"): ErrorCode.EXHAUSTED,
    ssl.SSLError("handshake failure"): ErrorCode.UNAVAILABLE,
}


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        *((error, code, False) for error, code in PERMANENT.items()),
        *((error, code, True) for error, code in TEMPORARY.items()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_error_has_its_code(error: Exception, code: ErrorCode, retryable: bool) -> None:
    """Only errors that may be over soon are retried, and the native error is the cause."""
    with pytest.raises(BrokerError, match=r"^look: ") as caught, translated("look"):
        raise error
    assert (caught.value.code, caught.value.retryable) == (code, retryable)
    assert caught.value.__cause__ is error


def failure(config: EventConfig) -> EventError:
    """Return the error of a ping."""

    async def ping() -> None:
        async with RedisClient(config) as client:
            await client.ping(60)  # it connects too, and the machine may be busy

    with pytest.raises(EventError) as caught:
        asyncio.run(ping())
    return caught.value


def test_a_missing_topic_is_named(server: Server) -> None:
    """With create=never nothing is created, and the error says what to do."""
    error = failure(EventConfig("typo", options={"server": server.address}, backend="redis"))
    assert error.code is ErrorCode.NOT_FOUND
    assert "topic 'typo' does not exist" in str(error)
    assert "create=all" in str(error)


@pytest.mark.parametrize("option", [{"start": "earliest"}, {"dead_letter_topic": "d", "max_delivery_attempts": "3"}])
def test_what_is_not_offered_is_refused(server: Server, option: dict[str, str]) -> None:
    """A program that needs it learns so when it connects."""
    config = EventConfig("orders", options={"server": server.address, "create": "all", **option}, backend="redis")
    error = failure(config)
    assert error.code is ErrorCode.UNSUPPORTED
    assert next(iter(option)) in str(error)


def test_a_key_of_another_program_is_left_alone(server: Server) -> None:
    """A topic whose stream would have the name of another key is refused."""
    with Redis.from_url(f"redis://{server.address}") as redis:
        redis.set("events:{taken}", "x")
        try:
            config = EventConfig("taken", options={"server": server.address, "create": "all"}, backend="redis")

            async def send() -> None:
                async with RedisClient(config) as client:
                    await client.send_message(EventMessage(b"x"))

            with pytest.raises(EventError, match="another prefix") as caught:
                asyncio.run(send())
            assert caught.value.code is ErrorCode.INVALID
            assert redis.get("events:{taken}") == b"x"
        finally:
            redis.delete("events:{taken}")


def test_a_server_that_confirms_too_early_is_refused(server: Server) -> None:
    """With durable=process_crash a send must not be confirmed before it is in the server's file."""
    options = {"server": server.address, "create": "all", "durable": "process_crash"}
    with Redis.from_url(f"redis://{server.address}") as redis:
        redis.config_set("appendfsync", "everysec")
        try:
            error = failure(EventConfig("orders", options=options, backend="redis"))
        finally:
            redis.config_set("appendfsync", "always")
    assert error.code is ErrorCode.INVALID
    assert "appendfsync=always" in str(error)


def test_a_url_names_the_server() -> None:
    """The authority is the server, and a user in it is refused without repeating the password."""
    client = create_client(EventConfig.from_url("redis://example.org:6380/orders"))
    assert client.topic_name == "orders"
    with pytest.raises(ConfigurationError, match="username and password") as caught:
        EventConfig.from_url("redis://me:hush@example.org:6380/orders")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":port", "localhost:http"])
def test_an_address_needs_a_port(address: str) -> None:
    """A server that cannot be meant is refused before it is asked."""
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        RedisClient(EventConfig("orders", options={"server": address}, backend="redis"))
