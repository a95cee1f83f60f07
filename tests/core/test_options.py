"""Contract O1 and O2: options are declared once and read from text, and one error explains all mistakes."""

from __future__ import annotations

from typing import Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events_core import ConfigurationError, ErrorCode
from events_core.options import CommonOptions, OptionInfo, describe_options, did_you_mean, option, read_options


@attrs.frozen(kw_only=True)
class Options(CommonOptions):
    """One option of each kind."""

    project: str = option(help="Project.")
    mode: Literal["fast", "safe"] = option(default="safe", help="Mode.")
    workers: int = option(default=4, minimum=1, maximum=64, help="Workers.")
    keepalive: float | None = option(default=None, minimum=0.5, unit="seconds", help="Keep-alive.")
    retention: float = option(default=2678400.0, maximum=2678400.0, unit="seconds", help="Retention.")
    verbose: bool = option(default=False, help="Verbose.")
    token: str | None = option(default=None, secret=True, help="Token.")
    pin: int | None = option(default=None, secret=True, minimum=1000, help="Pin.")


def read(**values: str) -> Options:
    """Return the options that are read from *values* and the required one."""
    return read_options(Options, {"project": "acme", **values})


def refusal(**values: str) -> str:
    """Return the text of the error."""
    with pytest.raises(ConfigurationError) as caught:
        read(**values)
    return str(caught.value)


def info(name: str) -> OptionInfo:
    """Return the description of one option."""
    (found,) = (each for each in describe_options(Options) if each.name == name)
    return found


def test_defaults_are_used_where_nothing_is_given() -> None:
    """Only the required option must be named."""
    assert read() == Options(project="acme")


@given(st.integers(1, 64))
def test_integers_are_read(value: int) -> None:
    """The decimal text of an integer is that integer."""
    assert read(workers=str(value)).workers == value


@given(st.floats(0.5, 1e9))
def test_numbers_are_read(value: float) -> None:
    """The text of a float is that float, without loss."""
    assert read(keepalive=repr(value)).keepalive == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("Yes", True), ("ON", True), ("1", True), ("false", False), ("no", False), ("0", False)],
)
def test_words_of_truth_are_read(text: str, value: bool) -> None:
    """Upper and lower case are equal, and "false" and "0" are false."""
    assert read(verbose=text).verbose is value


def test_choices_and_text_are_read_as_they_are() -> None:
    """Text is not trimmed, split or changed in another way."""
    options = read(mode="fast", project=" a,b ")
    assert (options.mode, options.project) == ("fast", " a,b ")


def test_an_optional_option_is_read_as_its_type() -> None:
    """``float | None`` reads a float.  No text stands for None: leave the option out."""
    assert read(keepalive="3").keepalive == 3.0


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("workers", "many", "'many' is not an integer such as 100"),
        ("workers", "2.9", "'2.9' is not an integer such as 100"),
        ("workers", "0", "'0' is out of range: 1 to 64"),
        ("workers", "65", "'65' is out of range: 1 to 64"),
        ("keepalive", "soon", "'soon' is not a number such as 60 or 0.5"),
        ("keepalive", "nan", "'nan' is not a number such as 60 or 0.5"),
        ("keepalive", "inf", "'inf' is not a number such as 60 or 0.5"),
        ("keepalive", "0.1", "'0.1' is out of range: at least 0.5 seconds"),
        ("retention", "3e6", "'3e6' is out of range: at most 2678400 seconds"),
        ("verbose", "maybe", "'maybe' is not true or false"),
        ("mode", "sfae", "'sfae' is not one of fast, safe; did you mean 'safe'?"),
        ("project", "", "'' is empty; leave the option out to leave it unset"),
    ],
)
def test_what_cannot_be_converted_is_explained(name: str, text: str, reason: str) -> None:
    """The error names the option, the text found, and the expected value with its unit."""
    assert refusal(**{name: text}) == f"option {name!r}: {reason}"


def test_all_problems_are_reported_at_once() -> None:
    """One error has the unknown, the unconvertible and the missing options."""
    with pytest.raises(ConfigurationError) as caught:
        read_options(Options, {"wrokers": "4", "verbose": "maybe"}, backend="acme", topic_name="orders")
    assert str(caught.value) == (
        "the backend 'acme' has no option 'wrokers'; did you mean 'workers'?; "
        "option 'verbose': 'maybe' is not true or false; "
        "option 'project' is required: Project."
    )
    assert caught.value.code is ErrorCode.INVALID
    assert (caught.value.backend, caught.value.topic_name) == ("acme", "orders")


def test_an_unknown_option_without_a_near_name_is_just_unknown() -> None:
    """Only a similar name is suggested."""
    assert refusal(xyzzy="1") == "unknown option 'xyzzy'"


def test_the_error_says_where_a_value_came_from() -> None:
    """The origin is told for unknown and for unconvertible options."""
    origins = {"workers": "EVENTS_ORDERS_URL", "colour": "events.toml [clients.orders]"}
    with pytest.raises(ConfigurationError) as caught:
        read_options(Options, {"project": "a", "workers": "x", "colour": "red"}, origins=origins)
    assert "option 'workers' (from EVENTS_ORDERS_URL): 'x'" in str(caught.value)
    assert "unknown option 'colour' (from events.toml [clients.orders])" in str(caught.value)


def test_contradictions_between_options_are_reported() -> None:
    """Dead-lettering needs both of its options."""
    assert "go together" in refusal(max_delivery_attempts="5")
    assert "go together" in refusal(dead_letter_topic="dead")
    assert read(max_delivery_attempts="5", dead_letter_topic="dead").max_delivery_attempts == 5


@pytest.mark.parametrize(("name", "text"), [("pin", "hunter2"), ("pin", "17"), ("token", "")])
def test_a_secret_is_not_repeated_when_it_is_wrong(name: str, text: str) -> None:
    """The error says what is expected, and not what was found."""
    message = refusal(**{name: text})
    assert f"option {name!r}: its value " in message
    assert repr(text) not in message


def test_a_secret_is_not_in_the_representation() -> None:
    """Logging an options object shows no secret."""
    assert "hunter2" not in repr(read(token="hunter2"))


def test_options_describe_themselves() -> None:
    """Name, type, default, help, unit, range and secrecy come from the declaration."""
    assert info("keepalive") == OptionInfo(
        name="keepalive",
        type="number",
        default="",
        help="Keep-alive.",
        unit="seconds",
        minimum=0.5,
        maximum=None,
        secret=False,
    )
    assert (info("project").type, info("project").default) == ("text", None)
    assert (info("mode").type, info("mode").default) == ("fast | safe", "safe")
    assert (info("workers").type, info("workers").range) == ("integer", "1 to 64")
    assert (info("verbose").type, info("verbose").default) == ("true or false", "false")
    assert info("token").secret
    assert (info("keepalive").range, info("mode").range) == ("at least 0.5", "")


def test_a_backends_own_options_are_described_first() -> None:
    """The common options follow, so a listing begins with the special ones."""
    names = [each.name for each in describe_options(Options)]
    assert names[:3] == ["project", "mode", "workers"]
    assert names[-1] == "publish_on_limit"


def test_the_common_options_are_those_of_the_contract() -> None:
    """Every backend understands these options."""
    assert [each.name for each in describe_options(CommonOptions)] == [
        "subscription",
        "create",
        "start",
        "ordering",
        "max_outstanding_messages",
        "max_outstanding_bytes",
        "max_lease_duration",
        "max_delivery_attempts",
        "dead_letter_topic",
        "dead_letter_subscription",
        "send_timeout",
        "ack_timeout",
        "connect_timeout",
        "publish_max_messages",
        "publish_max_bytes",
        "publish_on_limit",
    ]


def test_the_common_defaults_are_those_of_the_contract() -> None:
    """Bounds (R5), leases (R6) and timeouts (P7, S5, Q2)."""
    defaults = CommonOptions()
    assert (defaults.max_outstanding_messages, defaults.max_outstanding_bytes) == (1000, 100 * 1024 * 1024)
    assert defaults.max_lease_duration == 3600.0
    assert (defaults.send_timeout, defaults.ack_timeout, defaults.connect_timeout) == (60.0, 60.0, 30.0)
    assert (defaults.create, defaults.start, defaults.publish_on_limit) == ("never", "latest", "wait")


@pytest.mark.parametrize("each", describe_options(Options), ids=lambda each: each.name)
def test_a_default_as_text_reads_back_as_the_default(each: OptionInfo) -> None:
    """You can copy a default from the help or the documentation into a configuration."""
    if each.default:
        assert getattr(read(**{each.name: each.default}), each.name) == getattr(read(), each.name)


def test_did_you_mean_is_silent_when_nothing_is_near() -> None:
    """The result is empty or the end of a sentence."""
    assert did_you_mean("memroy", ["memory", "sqlite"]) == "; did you mean 'memory'?"
    assert did_you_mean("kafka", ["memory", "sqlite"]) == ""


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("max_outstanding_messages", {}),
        ("max_outstanding_bytes", {}),
        ("max_delivery_attempts", {"dead_letter_topic": "failed"}),
    ],
)
def test_a_bound_that_no_broker_can_be_told_is_refused(name: str, others: dict[str, str]) -> None:
    """O1: the error comes from the configuration, and not from the request that would carry the number."""
    assert getattr(read(**{name: str(2**63 - 1)}, **others), name) == 2**63 - 1
    assert f"option '{name}'" in refusal(**{name: str(2**63)}, **others)


def test_a_value_is_checked_as_its_option_says() -> None:
    """An option may have a check of its own, and its objection is reported with all other mistakes."""

    @attrs.frozen(kw_only=True)
    class Checked(CommonOptions):
        zone: str = option(default="eu", check=lambda text: "" if text.islower() else "has capitals", help="Zone.")

    assert read_options(Checked, {"zone": "us"}).zone == "us"
    with pytest.raises(ConfigurationError) as caught:
        read_options(Checked, {"zone": "US", "subscripton": "x"})
    assert "option 'zone': 'US' has capitals" in str(caught.value)
    assert "subscripton" in str(caught.value)
