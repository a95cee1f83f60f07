"""O1, O2, O4, §6: options and capabilities, before any I/O."""

from __future__ import annotations

import asyncio
import threading

import attrs
import pytest

from events_core import (
    ConfigurationError,
    ErrorCode,
    EventMessage,
    EventReceiver,
    EventRuntimeError,
    create_client,
)
from events_core.options import describe_options, read_options
from events_core.testing.rules import rule
from events_core.testing.skipping import not_declared
from events_core.testing.stage import Stage

__all__ = ["Configuring"]

_SECRET = "hush-4711"


class Configuring:
    """Clients and their configurations."""

    @rule("O1")
    def test_wrong_options_are_reported_all_at_once(self, stage: Stage) -> None:
        """One error names the unknown option with the nearest known one, and every unconvertible value."""
        with pytest.raises(ConfigurationError) as caught:
            stage.client(subscripton="x", max_outstanding_messages="many", start="yesterday", ack_timeout="soon")
        text = str(caught.value)
        assert caught.value.code is ErrorCode.INVALID
        assert "did you mean 'subscription'" in text
        for piece in ("'subscripton'", "'max_outstanding_messages'", "'many'", "'yesterday'", "'soon'"):
            assert piece in text

    @rule("O1")
    def test_values_out_of_range_are_refused(self, stage: Stage) -> None:
        """Each option with a range refuses a value beyond it, and the error names the option."""
        for info in describe_options(type(stage.client()).options_class):
            beyond = [info.minimum - 1] if info.minimum is not None else []
            beyond += [info.maximum + 1] if info.maximum is not None else []
            for value in beyond:
                with pytest.raises(ConfigurationError, match=repr(info.name)):
                    # An integer is written without a fraction, or the option would refuse it for that reason.
                    stage.client(**{info.name: f"{value:.0f}" if info.type == "integer" else f"{value}"})

    @rule("O1")
    async def test_options_may_be_given_as_an_object(self, stage: Stage) -> None:
        """An object of the backend's options class works as text does, and its ranges are checked."""
        config = stage.config()
        options = read_options(type(stage.client()).options_class, config.options)
        client = stage.added(create_client(config, options=options))
        assert client.capabilities == stage.client().capabilities
        await client.send_message(EventMessage(b"x"))
        with pytest.raises(ConfigurationError, match="'max_outstanding_messages'"):
            create_client(config, options=attrs.evolve(options, max_outstanding_messages=0))

    @rule("O1")
    def test_constructing_starts_nothing(self, stage: Stage) -> None:
        """A client is constructed without a running loop, and starts no thread."""
        # This test is no coroutine: a running loop would hide that the constructor needs one.
        before = threading.enumerate()
        client = stage.client()
        assert not set(threading.enumerate()).difference(before)
        assert not client.is_connected

    @rule("O2")
    def test_option_values_are_not_shown(self, stage: Stage) -> None:
        """The representations of a configuration and of a client show no option value."""
        config = stage.config(subscription=_SECRET)
        assert _SECRET not in repr(config)
        assert _SECRET not in repr(stage.client(subscription=_SECRET))

    @rule("O2")
    def test_secrets_are_not_in_errors(self, stage: Stage) -> None:
        """An error about the options does not show the value of a secret one."""
        secrets = [info.name for info in describe_options(type(stage.client()).options_class) if info.secret]
        if not secrets:
            not_declared("a secret option")
        for name in secrets:
            with pytest.raises(ConfigurationError) as caught:
                # The unknown option causes the error, which must not show the other options.
                stage.client(**{name: _SECRET, "no_such_option": "x"})
            assert _SECRET not in str(caught.value)

    @rule("O4")
    async def test_what_is_declared_may_be_required(self, stage: Stage) -> None:
        """A client may require all that it declares; its receiver keeps that, or subscribing is refused."""
        config = stage.config()
        capabilities = stage.client().capabilities
        require = [
            *(name for name in _FLAGS if getattr(capabilities, name)),
            *(f"{name}:{getattr(capabilities, name)}" for name in _SCALES),
        ]
        client = stage.added(create_client(config, require=require))
        # The broker may keep less for this subscription than the configuration could know.  Then joining is refused.
        (receiver,) = await asyncio.gather(client.subscribe(stage.subscription), return_exceptions=True)
        if isinstance(receiver, EventRuntimeError):
            assert receiver.code is ErrorCode.UNSUPPORTED
            return
        assert isinstance(receiver, EventReceiver)
        for name in _FLAGS:
            assert getattr(receiver.capabilities, name) >= getattr(capabilities, name), name
        for name, scale in _SCALES.items():
            kept, required = getattr(receiver.capabilities, name), getattr(capabilities, name)
            assert scale.index(kept) >= scale.index(required), name

    @rule("O4")
    def test_what_is_not_declared_cannot_be_required(self, stage: Stage) -> None:
        """The error comes before any I/O, and names the requirement and the backend."""
        config = stage.config()
        capabilities = stage.client().capabilities
        require = [name for name in _FLAGS if not getattr(capabilities, name)]
        require += [
            f"{name}:{scale[-1]}" for name, scale in _SCALES.items() if getattr(capabilities, name) != scale[-1]
        ]
        if capabilities.limits.max_message_bytes is not None:
            require.append(f"max_message_bytes:{capabilities.limits.max_message_bytes + 1}")
        for requirement in require:
            with pytest.raises(ConfigurationError) as caught:
                create_client(config, require=[requirement])
            assert caught.value.code is ErrorCode.UNSUPPORTED
            assert requirement in str(caught.value)
            assert config.backend in str(caught.value)

    @rule("§6")
    async def test_capabilities_are_constant(self, stage: Stage) -> None:
        """Capabilities are the same before and after connecting, and frozen."""
        client = stage.client()
        before = client.capabilities
        await client.send_message(EventMessage(b"x"))
        assert client.capabilities == before
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            before.replay = True  # type: ignore[misc]

    @rule("§6")
    async def test_capabilities_are_within_what_the_class_can_do(self, stage: Stage) -> None:
        """No configuration, nor the broker, promises more than ``full_capabilities``."""
        client, receiver = await stage.open()
        full = attrs.asdict(type(client).full_capabilities, recurse=False)
        for promised in (client.capabilities, receiver.capabilities):
            for name in _FLAGS:
                assert getattr(promised, name) <= full[name], name
            for name, scale in _SCALES.items():
                assert scale.index(getattr(promised, name)) <= scale.index(full[name]), name


_FLAGS = ("replay", "dead_letter", "reject", "delivery_attempts", "ack_confirmed", "exactly_once", "idempotent_publish")
_SCALES = {"durable": ("none", "process_crash", "power_loss"), "ordering": ("none", "receiver", "subscription")}
