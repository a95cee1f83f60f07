"""Contract O4: the least that a configuration asks of the capabilities."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from events_core import (
    Capabilities,
    ConfigurationError,
    ErrorCode,
    EventConfig,
    EventRuntimeError,
    Limits,
    create_client,
    load_backend,
    register_backend,
)
from events_core.backends.memory import MemoryClient, MemoryDriver, MemorySource
from events_core.requirements import RULES, Requirements, at_least
from events_core.testing.configured import ConfiguredHarness

from .test_joining import PlainClient

NOTHING: dict[str, str] = {}


def objection(requirement: str, **capabilities: Any) -> str:
    """Return the objection to *capabilities*, ``""`` if they meet the requirement."""
    return Requirements.read([requirement], "acme").objection(Capabilities(**capabilities))


@pytest.mark.parametrize(
    ("requirement", "name", "good", "bad"),
    [
        ("ordering:receiver", "ordering", ["receiver", "subscription"], ["none"]),
        ("ordering:subscription", "ordering", ["subscription"], ["none", "receiver"]),
        ("ordering:none", "ordering", ["none", "receiver"], []),
        ("durable:process_crash", "durable", ["process_crash", "power_loss"], ["none"]),
        ("durable:power_loss", "durable", ["power_loss"], ["none", "process_crash"]),
        ("replay", "replay", [True], [False]),
        ("dead_letter:true", "dead_letter", [True], [False]),
        ("exactly_once:false", "exactly_once", [True, False], []),
        ("handback_counts:false", "handback_counts", [False], [True]),
        ("handback_counts:true", "handback_counts", [True, False], []),
        ("redelivery:lease", "redelivery", ["lease"], ["disconnect"]),
    ],
)
def test_a_value_is_met_by_itself_and_by_stronger_ones(
    requirement: str, name: str, good: list[Any], bad: list[Any]
) -> None:
    """At least this, on the scale of the capability."""
    assert not any(objection(requirement, **{name: value}) for value in good)
    assert all(objection(requirement, **{name: value}) for value in bad)


def test_a_limit_is_met_by_larger_ones_and_by_none() -> None:
    """The backend accepts at least so much."""
    wanted = "max_message_bytes:1000000"
    assert not objection(wanted, limits=Limits(max_message_bytes=1_000_000))
    assert not objection(wanted, limits=Limits())
    assert "has 'max_message_bytes:999999'" in objection(wanted, limits=Limits(max_message_bytes=999_999))


def test_no_limit_can_be_required() -> None:
    """The word is the one that errors and ``events diff`` show."""
    wanted = "max_nack_delay:unlimited"
    assert EventConfig("orders", require=[wanted]).require == (wanted,)
    assert not objection(wanted, limits=Limits())
    assert "has 'max_nack_delay:600'" in objection(wanted, limits=Limits(max_nack_delay=600))


def test_the_error_names_rule_and_backend() -> None:
    """The error says what was asked, what was found, and which rule of the contract is meant."""
    assert objection("ordering:subscription", ordering="receiver") == (
        "the configuration requires 'ordering:subscription', but the backend 'acme' has 'ordering:receiver' "
        "(rule R8: order per key)"
    )


def test_every_capability_can_be_required() -> None:
    """A new capability or limit needs a scale and a rule."""
    fields = {field.name for cls in (Capabilities, Limits) for field in attrs.fields(cls)}
    assert set(RULES) == fields - {"limits"}
    for name in RULES:
        weakest: Any = getattr(Capabilities(), name, None)
        assert at_least(name, weakest, weakest)


@pytest.mark.parametrize(
    ("requirement", "reason"),
    [
        ("order:subscription", "there is no such capability; did you mean 'ordering'?"),
        ("xyzzy", "there is no such capability; known are durable, ordering, "),
        ("ordering", "write 'ordering:none' or 'ordering:receiver' or 'ordering:subscription'"),
        ("ordering:subscripton", "; did you mean 'subscription'?"),
        ("replay:yes", "write 'replay:false' or 'replay:true'"),
        ("handback_counts", "write 'handback_counts:true' or 'handback_counts:false'"),
        ("max_message_bytes", "write a number, as in 'max_message_bytes:1000'"),
        ("max_message_bytes:inf", "write a number, as in 'max_message_bytes:1000', or 'max_message_bytes:unlimited'"),
        (7, "a requirement is text, such as 'ordering:subscription'"),
    ],
)
def test_a_wrong_requirement_is_explained(requirement: Any, reason: str) -> None:
    """Before any backend is loaded."""
    with pytest.raises(ConfigurationError) as caught:
        EventConfig("orders", require=[requirement])
    assert reason in str(caught.value)


def test_all_wrong_requirements_are_told_at_once() -> None:
    """One error has them together with the other mistakes of the same place."""
    with pytest.raises(ConfigurationError, match=r"^the mapping: .*'topicname'.*require 'a': .*; require 'b': "):
        EventConfig.from_mapping({"topic_name": "t", "topicname": "t", "require": ["a", "b"]})


def test_text_is_no_list() -> None:
    """One requirement in place of a list would be read letter by letter."""
    with pytest.raises(ConfigurationError, match=r"require must be a list such as \['ordering:subscription'\]"):
        EventConfig("orders", require="replay")


# Where they come from


def test_requirements_stand_next_to_the_backend(tmp_path: Path) -> None:
    """In a file, a mapping and as an argument, which replaces the others."""
    file = tmp_path / "events.toml"
    file.write_text('[clients.a]\nbackend = "memory"\ntopic_name = "t"\nrequire = ["replay", "ordering:receiver"]')
    config = EventConfig.from_file(file, "a", environ=NOTHING)
    assert config.require == ("replay:true", "ordering:receiver")
    assert pickle.loads(pickle.dumps(config)) == config
    assert EventConfig.from_file(file, "a", environ=NOTHING, require=["dead_letter"]).require == ("dead_letter:true",)
    assert EventConfig.from_mapping({"topic_name": "t", "require": ["replay"]}) == EventConfig("t", require=["replay"])
    assert EventConfig("t") != EventConfig("t", require=["replay"])


def test_requirements_stay_when_the_environment_names_another_backend(tmp_path: Path) -> None:
    """They say what the program needs from any backend."""
    file = tmp_path / "events.toml"
    file.write_text('[clients.a]\nbackend = "sqlite"\ntopic_name = "t"\nrequire = ["durable:power_loss"]')
    with pytest.raises(ConfigurationError, match="requires 'durable:power_loss', but the backend 'memory' has"):
        create_client("a", file=file, environ={"EVENTS_A_URL": "memory:///t"})


# When they are checked


@pytest.mark.parametrize(
    "construct", [create_client, lambda config: load_backend("memory")(config)], ids=["create_client", "the class"]
)
def test_they_are_checked_when_the_client_is_constructed(construct: Callable[[EventConfig], Any]) -> None:
    """The check needs no I/O, and comes from create_client and from the class."""
    config = EventConfig("orders", backend="memory", require=["ordering:subscription", "durable:process_crash"])
    with pytest.raises(ConfigurationError, match=r"'durable:process_crash', .* 'memory' .*\(rule F3: ") as caught:
        construct(config)
    error = caught.value
    assert (error.code, error.backend, error.topic_name) == (ErrorCode.UNSUPPORTED, "memory", "orders")
    construct(attrs.evolve(config, require=["ordering:subscription"]))


def test_a_backend_that_knows_nothing_of_requirements_is_checked() -> None:
    """create_client does it for a client without the engine."""
    register_backend("unaware", PlainClient)
    with pytest.raises(ConfigurationError, match=r"'unaware' has 'replay:false'"):
        create_client(EventConfig("orders", backend="unaware", require=["replay"]))


class WeakDriver(MemoryDriver):
    """A driver whose broker keeps less than it could."""

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> MemorySource:
        source = await super().subscribe(subscription, wake)
        source.capabilities = Capabilities(durable="process_crash")
        return source


class WeakClient(MemoryClient):
    """A client that learns on joining what the broker keeps."""

    driver_class = WeakDriver


register_backend("weak", WeakClient)


def test_they_are_checked_again_when_a_subscription_is_joined() -> None:
    """The receiver is closed, and the error names backend, subscription and rule."""

    async def scene() -> None:
        async with create_client("memory:///orders", backend="weak", require=["ordering:receiver"]) as client:
            with pytest.raises(EventRuntimeError) as caught:
                await client.subscribe("billing")
            assert (caught.value.code, caught.value.backend) == (ErrorCode.UNSUPPORTED, "weak")
            assert str(caught.value) == (
                "subscription 'billing': the configuration requires 'ordering:receiver', but the backend 'weak' has "
                "'ordering:none' (rule R8: order per key)"
            )
            assert isinstance(client, WeakClient)
            assert not client._receivers
        client = create_client("memory:///orders", backend="weak", require=["ordering:none"])
        async with client, client.subscribe("billing") as receiver:
            assert receiver.capabilities.ordering == "none"

    asyncio.run(scene())


def test_the_kit_requires_nothing_of_its_own_clients() -> None:
    """``events check`` also tries configurations that promise less, such as one without order."""
    config = EventConfig("orders", backend="memory", require=["ordering:subscription"])
    tried = ConfiguredHarness(config).config("trial", {"ordering": "false"})
    assert create_client(tried).capabilities.ordering == "none"
