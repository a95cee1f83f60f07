"""Contract §6: a backend promises only the capabilities that it declares."""

from __future__ import annotations

import pickle

import attrs
import pytest

from events_core import Capabilities, Limits


def test_nothing_is_promised_by_default() -> None:
    """A backend that does not know a capability does not have it, so a new capability breaks no backend."""
    promised = attrs.asdict(Capabilities(), recurse=False)
    assert promised.pop("redelivery") == "lease"
    assert promised.pop("limits") == Limits()
    assert set(promised.values()) == {"none", False}


def test_there_are_no_limits_by_default() -> None:
    """A limit that a backend does not state is None."""
    assert set(attrs.astuple(Limits())) == {None}


def test_the_names_are_those_of_the_contract() -> None:
    """Programs and listings rely on the names."""
    assert {field.name for field in attrs.fields(Capabilities)} == {
        "durable",
        "ordering",
        "replay",
        "dead_letter",
        "reject",
        "delivery_attempts",
        "ack_confirmed",
        "exactly_once",
        "idempotent_publish",
        "handback_counts",
        "redelivery",
        "limits",
    }
    assert {field.name for field in attrs.fields(Limits)} == {
        "max_message_bytes",
        "max_attributes",
        "max_attribute_key_bytes",
        "max_attribute_value_bytes",
        "max_ordering_key_bytes",
        "max_nack_delay",
    }


def test_capabilities_are_frozen_values() -> None:
    """They can be compared, hashed, pickled and copied with changes, but not changed."""
    one = Capabilities(ordering="subscription", limits=Limits(max_message_bytes=10))
    assert attrs.evolve(one, replay=True) == Capabilities(
        ordering="subscription", replay=True, limits=Limits(max_message_bytes=10)
    )
    assert pickle.loads(pickle.dumps(one)) == one
    assert hash(one) == hash(attrs.evolve(one))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        one.replay = True  # type: ignore[misc]


def test_capabilities_are_given_by_name() -> None:
    """A positional argument would change its meaning with the next capability."""
    with pytest.raises(TypeError):
        Capabilities("none")  # type: ignore[misc]
