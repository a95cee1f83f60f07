"""Contract §1 and O1 to O3: where a configuration comes from, and how errors explain it."""

from __future__ import annotations

import enum
import inspect
import math
import os
import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events_core import (
    BackendNotFoundError,
    ConfigurationError,
    EventClient,
    EventConfig,
    bounded_file,
    create_client,
    load_backend,
    register_backend,
)
from events_core.interface import Location
from events_core.options import CommonOptions, option, read_options

NOTHING: dict[str, str] = {}


class Plain(EventClient):
    """A client that reads URLs as the interface does, and only validates its options."""

    api_version = 1

    def __init__(self, config: EventConfig) -> None:
        """Read the options."""
        read_options(self.options_class, config.options, origins=config.origins)


class Located(Plain):
    """A client whose URL's path is a file, and whose last segment is the topic."""

    @classmethod
    def parse_location(cls, authority: str, path: str) -> Location:
        """Split the path."""
        file, _, topic = path.rpartition("/")
        return Location(topic, options={"subscription": f"{authority}{file}"})


for _cls in (Plain, Located):
    for _name in EventClient.__abstractmethods__ - {"__init__"}:
        setattr(_cls, _name, None)
    _cls.__abstractmethods__ = frozenset()
register_backend("plain", Plain)
register_backend("located", Located)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a configuration file; returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "events.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


ORDERS = """
[clients.orders]
backend = "plain"
topic_name = "orders"
project_id = "acme-prod"
[clients.orders.options]
subscription = "billing"
send_timeout = 60
ack_timeout = 2.5
ordering = true
"""


# The value


def test_only_the_topic_is_required() -> None:
    """Everything else has a default."""
    config = EventConfig("orders")
    assert (config.topic_name, config.project_id, dict(config.options), config.backend) == ("orders", "", {}, "")


@pytest.mark.parametrize("topic_name", ["", None, 7])
def test_a_configuration_without_a_topic_is_refused(topic_name: Any) -> None:
    """A client speaks to one topic, so there must be one."""
    with pytest.raises(ConfigurationError, match="topic_name"):
        EventConfig(topic_name)


def test_a_configuration_is_frozen_and_comparable() -> None:
    """Two configurations with equal parts are equal, from whatever source."""
    config = EventConfig("orders", options={"create": "all"})
    assert config == EventConfig("orders", options={"create": "all"}, origins={"create": "a file"})
    assert config != EventConfig("orders")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.topic_name = "x"  # type: ignore[misc]


def test_options_are_a_read_only_copy() -> None:
    """Changing the caller's mapping changes nothing, and the configuration's mapping cannot be changed."""
    options = {"create": "all"}
    config = EventConfig("orders", options=options)
    options["create"] = "never"
    assert config.options == {"create": "all"}
    with pytest.raises(TypeError):
        config.options["create"] = "never"  # type: ignore[index]


class Colour(enum.StrEnum):
    """A text of an application."""

    RED = "red"


class Level(enum.IntEnum):
    """A number of an application."""

    HIGH = 3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("60", "60"),
        (60, "60"),
        (2.5, "2.5"),
        (1e-7, "1e-07"),
        (True, "true"),
        (False, "false"),
        (timedelta(minutes=1), "60"),
        (timedelta(milliseconds=1500), "1.5"),
        (timedelta(days=10_000, microseconds=1), "864000000.000001"),
        (timedelta(seconds=-1), "-1"),
        (Path("a/b.db"), "a/b.db"),
        (Colour.RED, "red"),
        (Level.HIGH, "3"),
    ],
    ids=repr,
)
def test_an_option_may_be_given_as_what_it_is(value: Any, text: str) -> None:
    """Numbers, booleans, paths and durations become the text that a file or URL would have."""
    assert EventConfig("orders", options={"x": value}).options == {"x": text}
    assert EventConfig.from_mapping({"topic_name": "orders", "options": {"x": value}}).options == {"x": text}
    assert EventConfig.from_url("plain:///orders?x=1", options={"x": value}).options == {"x": text}


@pytest.mark.parametrize("value", [None, b"60", ["60"], object(), 10**5000], ids=lambda value: type(value).__name__)
def test_a_value_that_no_option_can_have_is_refused(value: Any) -> None:
    """The error names the option and what it may be, and does not repeat the value."""
    with pytest.raises(ConfigurationError, match=r"option 'pin'.* (a number, true or false|digits)") as caught:
        EventConfig("orders", options={"pin": value})
    assert "60" not in str(caught.value)


def test_option_values_are_not_in_the_representation() -> None:
    """O2: any value may be a secret."""
    assert "hunter2" not in repr(EventConfig("orders", options={"token": "hunter2"}))


def test_a_configuration_can_be_pickled() -> None:
    """A worker process gets its configuration so, with the origins."""
    config = EventConfig.from_mapping({"topic_name": "orders", "options": {"create": "all"}})
    again = pickle.loads(pickle.dumps(config))
    assert again == config
    assert again.origins == config.origins


# From a file


def test_a_client_is_read_from_a_file(write: Any) -> None:
    """Numbers and booleans of TOML become text."""
    assert EventConfig.from_file(write(ORDERS), "orders", environ=NOTHING) == EventConfig(
        "orders",
        "acme-prod",
        {"subscription": "billing", "send_timeout": "60", "ack_timeout": "2.5", "ordering": "true"},
        "plain",
    )


def test_a_file_may_leave_out_all_but_the_topic(write: Any) -> None:
    """The other fields have the defaults of EventConfig."""
    config = EventConfig.from_file(write('[clients.a]\ntopic_name = "t"'), "a", environ=NOTHING)
    assert config == EventConfig("t")


def test_a_value_may_point_at_the_environment_or_a_file(write: Any, tmp_path: Path) -> None:
    """A file's path is relative to the configuration file; its last line break is not part of the value."""
    (tmp_path / "token").write_text("hunter2\n")
    path = write(
        '[clients.a]\ntopic_name = "t"\n[clients.a.options]\nuser = { env = "USER_NAME" }\ntoken = { file = "token" }'
    )
    config = EventConfig.from_file(path, "a", environ={"USER_NAME": "ada"})
    assert config.options == {"user": "ada", "token": "hunter2"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no table [clients.orders] and no other client"),
        ("clients = 3", "has no table [clients.orders] and no other client"),
        ("[clients.oders]", "has no table [clients.orders]; its clients are: 'oders'; did you mean 'oders'?"),
        ("[clients.orders", "is not valid TOML"),
        ("[clients.orders]", "'topic_name' is required"),
        ("[clients.orders]\ntopic_name = 3", "'topic_name' must be text, not 3"),
        ('[clients.orders]\ntopic_name = "t"\ntopicname = "t"', "unknown key 'topicname'; did you mean 'topic_name'?"),
        ('[clients.orders]\ntopic_name = "t"\npath = "p"', "unknown key 'path'; options go into the table 'options'"),
        ('[clients.orders]\ntopic_name = "t"\noptions = 3', "'options' must be a table"),
        ('[clients.orders]\ntopic_name = "t"\noptions.hosts = ["a"]', "option 'hosts'"),
        ('[clients.orders]\ntopic_name = "t"\noptions.x = { env = 3 }', "neither text, { env = … } nor { file = … }"),
        ('[clients.orders]\ntopic_name = "t"\noptions.x = { env = "GONE" }', "environment variable GONE is not set"),
        ('[clients.orders]\ntopic_name = "t"\noptions.x = { file = "gone" }', "cannot read file '"),
    ],
)
def test_a_wrong_file_is_explained(write: Any, text: str, reason: str) -> None:
    """The error names the file and the client, and says what was found and what to do."""
    path = write(text)
    with pytest.raises(ConfigurationError) as caught:
        EventConfig.from_file(path, "orders", environ=NOTHING)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_told_with_its_whole_path(write: Any, tmp_path: Path) -> None:
    """The reader of the error need not know the folder to which the path is relative."""
    path = write('[clients.a]\ntopic_name = "t"\noptions.x = { file = "gone" }')
    with pytest.raises(ConfigurationError) as caught:
        EventConfig.from_file(path, "a", environ=NOTHING)
    assert f"cannot read file '{tmp_path}/gone': No such file" in str(caught.value)


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    """The text has the reason of the operating system, whose error is chained."""
    with pytest.raises(ConfigurationError, match="No such file") as caught:
        EventConfig.from_file(tmp_path / "gone.toml", "orders")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_the_error_of_a_clients_options_names_the_file(write: Any) -> None:
    """O1: the error of the client's constructor says where the wrong value stands."""
    config = EventConfig.from_file(write(ORDERS.replace("60", '"soon"')), "orders", environ=NOTHING)
    with pytest.raises(ConfigurationError, match=r"'send_timeout' \(from .*events.toml \[clients.orders\]\): 'soon'"):
        create_client(config)


# From a mapping


def test_a_client_is_read_from_a_mapping() -> None:
    """The mapping has the form of a table in a file, and may also point at variables and files."""
    mapping = {"backend": "plain", "topic_name": "orders", "options": {"ordering": False, "user": {"env": "WHO"}}}
    config = EventConfig.from_mapping(mapping, environ={"WHO": "ada"})
    assert config == EventConfig("orders", options={"ordering": "false", "user": "ada"}, backend="plain")


def test_a_wrong_mapping_is_explained_all_at_once() -> None:
    """One error has every problem."""
    with pytest.raises(ConfigurationError) as caught:
        EventConfig.from_mapping({"topik_name": "t", "project_id": 3, "options": []})
    assert str(caught.value) == (
        "the mapping: unknown key 'topik_name'; did you mean 'topic_name'?; 'project_id' must be text, not 3; "
        "'options' must be a table; 'topic_name' is required"
    )


@pytest.mark.parametrize("option", ["send_timeout", "create", "ordering", "publish_max_bytes"])
@pytest.mark.parametrize("source", ['{ env = "TOKEN" }', '{ file = "token" }'])
def test_what_a_reference_points_at_is_never_shown(write: Any, tmp_path: Path, option: str, source: str) -> None:
    """O2: a value from another file or a variable may be a secret, even if a wrong option got it."""
    (tmp_path / "token").write_text("hunter2")
    path = write(f'[clients.a]\nbackend = "plain"\ntopic_name = "t"\noptions.{option} = {source}')
    config = EventConfig.from_file(path, "a", environ={"TOKEN": "hunter2"})
    for same in (config, pickle.loads(pickle.dumps(config)), attrs.evolve(config, topic_name="u")):
        with pytest.raises(ConfigurationError, match=rf"'{option}' \(from {path} \[clients.a\]\): its value") as caught:
            create_client(same)
        assert "hunter2" not in str(caught.value)


REFERENCE = '[clients.a]\ntopic_name = "t"\noptions.token = { file = "token" }'


def test_a_file_without_an_end_is_refused(write: Any, tmp_path: Path) -> None:
    """A configuration file cannot fill the memory, and neither can a file that it points at."""
    (tmp_path / "token").symlink_to("/dev/zero")
    with pytest.raises(ConfigurationError, match=r"option 'token': cannot read file '.*token': it has more than 1 MiB"):
        EventConfig.from_file(write(REFERENCE), "a", environ=NOTHING)
    with pytest.raises(ConfigurationError, match="cannot read configuration file '/dev/zero': it has more than 1 MiB"):
        EventConfig.from_file("/dev/zero", "a")


def test_a_file_of_the_largest_size_is_read(write: Any, tmp_path: Path) -> None:
    """A file of 1 MiB is read, and a file of one byte more is refused."""
    (tmp_path / "token").write_bytes(b"x" * 2**20)
    path = write(REFERENCE)
    assert len(EventConfig.from_file(path, "a", environ=NOTHING).options["token"]) == 2**20
    (tmp_path / "token").write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(ConfigurationError, match="1 MiB"):
        EventConfig.from_file(path, "a", environ=NOTHING)


def test_a_file_that_nobody_writes_is_given_up(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program does not wait without end for a FIFO that has no writer, or whose writer writes nothing."""
    join = bounded_file._Reading.join

    def join_soon(reading: bounded_file._Reading, timeout: float) -> None:
        # Only here: a busy machine may need longer for the configuration file.
        join(reading, 0.2 if reading._path.endswith("token") else timeout)

    monkeypatch.setattr(bounded_file._Reading, "join", join_soon)
    os.mkfifo(tmp_path / "token")
    path = write(REFERENCE)
    with pytest.raises(ConfigurationError, match=r"option 'token': cannot read file '.*token': it did not end within"):
        EventConfig.from_file(path, "a", environ=NOTHING)
    with pytest.raises(ConfigurationError, match=r"cannot read configuration file '.*token': it did not end within"):
        EventConfig.from_file(tmp_path / "token", "a", environ=NOTHING)
    reader = os.open(tmp_path / "token", os.O_RDWR)  # lets go of the threads that wait to open it
    with pytest.raises(ConfigurationError, match="it did not end within"):
        EventConfig.from_file(path, "a", environ=NOTHING)
    os.write(reader, b"x")
    os.close(reader)


def test_a_pipe_is_read_to_its_end() -> None:
    """A pipe that a shell makes with <(…) is a configuration file, also if its writer has ended."""
    reader, writer = os.pipe()
    os.write(writer, ORDERS.encode())
    os.close(writer)
    assert EventConfig.from_file(f"/dev/fd/{reader}", "orders", environ=NOTHING).project_id == "acme-prod"
    os.close(reader)


def test_a_byte_order_mark_is_no_part_of_a_file(write: Any) -> None:
    """Some editors write a byte order mark."""
    assert EventConfig.from_file(write("\ufeff" + ORDERS), "orders", environ=NOTHING).topic_name == "orders"


# From a URL


def test_a_client_is_read_from_a_url() -> None:
    """The scheme is the backend, the authority the project, the path the topic, and the query has the options."""
    config = EventConfig.from_url("plain://acme-prod/orders?subscription=billing&send_timeout=60")
    options = {"subscription": "billing", "send_timeout": "60"}
    assert config == EventConfig("orders", "acme-prod", options, "plain")


SEGMENT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
TOPIC = SEGMENT.filter(lambda text: "/" not in text)


@given(TOPIC, SEGMENT, st.dictionaries(SEGMENT, st.text(st.characters(codec="utf-8"), max_size=12), max_size=3))
def test_every_text_can_be_written_in_a_url(topic_name: str, project_id: str, options: dict[str, str]) -> None:
    """A text that is percent-encoded comes back unchanged."""
    url = f"plain://{quote(project_id, safe='')}/{quote(topic_name, safe='')}?{urlencode(options)}"
    assert EventConfig.from_url(url) == EventConfig(topic_name, project_id, options, "plain")


def test_a_backend_says_what_its_location_means() -> None:
    """Authority and path may become options, and the query overrides those."""
    assert EventConfig.from_url("located:///var/db/orders") == EventConfig(
        "orders", "", {"subscription": "/var/db"}, "located"
    )
    assert EventConfig.from_url("located:///var/db/orders?subscription=x").options == {"subscription": "x"}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("orders", "names no backend; write backend://project/topic?option=value"),
        ("", "names no backend"),
        ("plain://[acme/orders", "is malformed"),
        ("plain://acme/orders?hunter2", "each option is name=value"),
        ("plain://acme/orders?a=1&b=2&a=3", "gives the option 'a' more than once"),
        ("plain://acme/orders#part", "has a fragment"),
        ("plain://acme", "write backend://project/topic"),
        ("plain://acme/orders/eu", "the path of the URL is '/orders/eu'"),
    ],
)
def test_a_wrong_url_is_explained(url: str, reason: str) -> None:
    """The error says what is wrong, and repeats no part that may be a secret."""
    with pytest.raises(ConfigurationError) as caught:
        EventConfig.from_url(url)
    assert reason in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_url_of_an_unknown_backend_is_a_backend_error() -> None:
    """Only the backend knows what its URL means."""
    with pytest.raises(BackendNotFoundError, match="did you mean 'plain'"):
        EventConfig.from_url("plian://acme/orders")


# From the environment


def test_a_client_is_read_from_the_environment() -> None:
    """The name is in upper case, with an underscore for each character that a variable cannot have."""
    environ = {"EVENTS_NEW_ORDERS_2_URL": "plain://acme/orders"}
    assert EventConfig.from_env("new-orders.2", environ) == EventConfig("orders", "acme", backend="plain")


def test_the_process_environment_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call reads the environment, not the import."""
    monkeypatch.setenv("EVENTS_ORDERS_URL", "plain://acme/orders")
    assert EventConfig.from_env("orders").project_id == "acme"


@pytest.mark.parametrize("environ", [{}, {"EVENTS_ORDERS_URL": ""}])
def test_a_missing_variable_is_named(environ: dict[str, str]) -> None:
    """A variable that is empty counts as missing."""
    with pytest.raises(ConfigurationError, match="the environment variable EVENTS_ORDERS_URL is not set"):
        EventConfig.from_env("orders", environ)


@pytest.mark.parametrize("url", ["plain//acme", "plain://acme/orders?a=1&a=2"])
def test_a_wrong_variable_is_named(url: str) -> None:
    """The error names the variable, because a program may have several URLs."""
    with pytest.raises(ConfigurationError, match="EVENTS_ORDERS_URL"):
        EventConfig.from_env("orders", {"EVENTS_ORDERS_URL": url})


# Precedence


def test_the_environment_goes_before_the_file(write: Any) -> None:
    """The URL gives backend, project and topic; the other options come from the file."""
    environ = {"EVENTS_ORDERS_URL": "plain://acme-test/orders-2?subscription=audit"}
    config = EventConfig.from_file(write(ORDERS), "orders", environ=environ)
    assert (config.topic_name, config.project_id) == ("orders-2", "acme-test")
    assert config.options == {
        "subscription": "audit",
        "send_timeout": "60",
        "ack_timeout": "2.5",
        "ordering": "true",
    }


def test_options_of_one_backend_are_not_given_to_another(write: Any) -> None:
    """If the environment names another backend, the options of the file do not apply."""
    environ = {"EVENTS_ORDERS_URL": "located:///db/orders"}
    config = EventConfig.from_file(write(ORDERS), "orders", environ=environ)
    assert config.backend == "located"
    assert config.options == {"subscription": "/db"}


@pytest.mark.parametrize("url", ["located:///db/orders", "plain://acme/orders?secret=s"], ids=["all", "one"])
def test_what_the_environment_replaces_is_not_looked_up(write: Any, url: str) -> None:
    """A test on another backend, or with its own secret, does not need the secrets of the file."""
    path = write('[clients.a]\nbackend = "plain"\ntopic_name = "t"\noptions.secret = { env = "GONE" }')
    config = EventConfig.from_file(path, "a", environ={"EVENTS_A_URL": url})
    assert config == EventConfig.from_url(url)


def test_what_an_argument_replaces_is_not_looked_up(write: Any) -> None:
    """An explicit option replaces one whose file or variable does not exist."""
    path = write('[clients.a]\ntopic_name = "t"\noptions.secret = { env = "GONE" }')
    config = EventConfig.from_file(path, "a", environ=NOTHING, options={"secret": "s"})
    assert config.options == {"secret": "s"}


def test_an_empty_variable_leaves_the_file_as_it_is(write: Any) -> None:
    """It counts as missing, because compose files and CI settings write a missing variable so."""
    config = EventConfig.from_file(write(ORDERS), "orders", environ={"EVENTS_ORDERS_URL": ""})
    assert config.project_id == "acme-prod"


def test_an_argument_goes_before_everything(write: Any) -> None:
    """Each explicit option replaces the one of the source, and the others stay."""
    environ = {"EVENTS_ORDERS_URL": "plain://acme-test/orders-2?subscription=audit&create=all"}
    config = EventConfig.from_file(
        write(ORDERS), "orders", environ=environ, project_id="mine", options={"create": "never"}
    )
    assert (config.topic_name, config.project_id) == ("orders-2", "mine")
    assert (config.options["create"], config.options["subscription"]) == ("never", "audit")


@pytest.mark.parametrize(
    "read",
    [
        lambda **given: EventConfig.from_url("plain://acme/orders?create=all", **given),
        lambda **given: EventConfig.from_env("a", {"EVENTS_A_URL": "plain://acme/orders?create=all"}, **given),
        lambda **given: EventConfig.from_mapping({"topic_name": "orders", "options": {"create": "all"}}, **given),
    ],
    ids=["url", "environment", "mapping"],
)
def test_every_source_takes_arguments(read: Any) -> None:
    """Topic, project, backend and options may be given together with any source."""
    config = read(topic_name="t", project_id="p", backend="plain", options={"start": "earliest"})
    assert config == EventConfig("t", "p", {"create": "all", "start": "earliest"}, "plain")


def test_each_option_remembers_its_source(write: Any) -> None:
    """The error about a wrong value names its source."""
    environ = {"EVENTS_ORDERS_URL": "plain://acme/orders?create=all"}
    path = write(ORDERS)
    config = EventConfig.from_file(path, "orders", environ=environ, options={"start": "earliest"})
    assert config.origins["create"] == "EVENTS_ORDERS_URL"
    assert config.origins["start"] == "an argument"
    assert config.origins["ordering"] == f"{path} [clients.orders]"


# A client that is configured nowhere


def test_a_client_may_be_configured_by_the_environment_alone(write: Any) -> None:
    """The file need not have a table for it."""
    environ = {"EVENTS_AUDIT_URL": "plain:///audit"}
    config = EventConfig.from_file(write(ORDERS), "audit", environ=environ, project_id="p")
    assert config == EventConfig("audit", "p", backend="plain")


def test_the_error_says_where_a_name_was_looked_for(write: Any) -> None:
    """Both places are named: the variable and the table."""
    path = write(ORDERS)
    with pytest.raises(ConfigurationError) as caught:
        EventConfig.from_file(path, "audit", environ=NOTHING)
    assert str(caught.value) == (
        f"client 'audit' is configured nowhere: the environment variable EVENTS_AUDIT_URL is not set, "
        f"and '{path}' has no table [clients.audit]; its clients are: 'orders'"
    )


def test_a_variable_of_a_similar_name_is_suggested(write: Any) -> None:
    """Its value is not shown, as it may have a secret.  An empty variable or another name is not suggested."""
    environ = {"EVENTS_ORDER_URL": "plain:///orders?token=hunter2", "EVENTS_ORDERSS_URL": "", "XEVENTS_ORDERS_URL": "x"}
    for read in (
        lambda: EventConfig.from_env("orders", environ),
        lambda: EventConfig.from_file(write(""), "orders", environ=environ),
    ):
        with pytest.raises(ConfigurationError, match=r"; did you mean 'EVENTS_ORDER_URL'\?$") as caught:
            read()
        assert "hunter2" not in str(caught.value)


def test_a_variable_of_another_name_is_not_suggested() -> None:
    """The beginning and the end that all variables share do not make two names similar."""
    with pytest.raises(ConfigurationError) as caught:
        EventConfig.from_env("orders", {"EVENTS_BILLING_URL": "plain:///bills"})
    assert "did you mean" not in str(caught.value)


# Options as an object


@attrs.frozen(kw_only=True)
class TypedOptions(CommonOptions):
    """Options of the backend ``typed``."""

    path: str = option(help="Path.")
    pause: float | None = option(default=5.0, minimum=1, unit="seconds", help="Pause.")
    workers: int = option(default=4, minimum=1, maximum=8, help="Workers.")
    pin: int | None = option(default=None, secret=True, minimum=1000, help="Pin.")
    prefix: str = option(default="", help="Prefix.")
    longest: float = option(default=math.inf, minimum=0, help="Longest.")


class Typed(Plain):
    """A client that keeps its options."""

    options_class = TypedOptions

    def __init__(self, config: EventConfig) -> None:
        """Read the options."""
        self.read = read_options(self.options_class, config.options, origins=config.origins, backend=config.backend)


register_backend("typed", Typed)


def read_typed(options: Any) -> TypedOptions:
    """Options that a client is given as *options*."""
    client = create_client(EventConfig("orders", backend="typed", options=options))
    assert isinstance(client, Typed)
    return client.read


def test_options_may_be_given_as_an_object() -> None:
    """The backend gets an equal object, also where None differs from the default."""
    for given_ in (TypedOptions(path="p"), TypedOptions(path="p", pause=None, workers=2, create="all", ordering=False)):
        assert read_typed(given_) == given_


def test_an_options_object_may_hold_what_a_mapping_may() -> None:
    """Paths and durations are converted to the type of the option."""
    options: Any = TypedOptions(path=Path("p"), pause=timedelta(seconds=2))  # type: ignore[arg-type]
    assert read_typed(options) == TypedOptions(path="p", pause=2.0)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"workers": 9}, r"option 'workers' \(from TypedOptions\): '9' is out of range: 1 to 8"),
        ({"pause": 0.5}, r"option 'pause' \(from TypedOptions\): '0.5' is out of range: at least 1 seconds"),
        ({"workers": None}, r"option 'workers' \(from TypedOptions\) must not be None"),
        ({"workers": object()}, r"option 'workers' \(from TypedOptions\) is of type object"),
        ({"create": "some"}, r"option 'create' \(from TypedOptions\): 'some' is not one of never, subscription, all"),
        ({"path": ""}, r"option 'path' \(from TypedOptions\): '' is empty"),
        ({"pause": math.inf}, r"option 'pause' \(from TypedOptions\): 'inf' is not a number"),
        ({"max_delivery_attempts": 5}, "'max_delivery_attempts' and 'dead_letter_topic' go together"),
    ],
)
def test_an_options_object_is_checked(wrong: Any, reason: str) -> None:
    """Types, ranges and contradictions are found before any I/O, as in text."""
    with pytest.raises(ConfigurationError, match=reason):
        read_typed(TypedOptions(**{"path": "p", **wrong}))


def test_all_that_is_wrong_in_an_options_object_is_told_at_once() -> None:
    """O1: and a secret is not shown."""
    with pytest.raises(ConfigurationError, match=r"'workers'.*; .*'pin'.*its value is out of range") as caught:
        read_typed(TypedOptions(path="p", workers=0, pin=471))
    assert "471" not in str(caught.value)


def test_an_options_object_of_another_backend_is_refused() -> None:
    """The error names the backend, the class found and the class that it takes."""
    with pytest.raises(ConfigurationError, match=r"'typed' takes TypedOptions, not CommonOptions; pass options="):
        read_typed(CommonOptions())


def test_an_options_object_replaces_all_options(write: Any) -> None:
    """Nothing of the file or the URL is left, and the file's secrets are not looked up."""
    path = write(f'{ORDERS.replace("plain", "typed")}secret = {{ env = "GONE" }}')
    options = TypedOptions(path="p", start="earliest")
    for config in (
        EventConfig.from_file(path, "orders", environ=NOTHING, options=options),
        EventConfig.from_url("typed://acme-prod/orders?create=all", options=options),
    ):
        assert config == EventConfig("orders", "acme-prod", options, "typed")
        client = create_client(config)
        assert isinstance(client, Typed)
        assert client.read == options


def test_an_options_object_is_never_merged() -> None:
    """Single options on top of an object are refused, and the error says what to do."""
    config = EventConfig("orders", backend="typed", options=TypedOptions(path="p"))
    with pytest.raises(ConfigurationError, match=r"TypedOptions.* attrs\.evolve"):
        create_client(config, options={"create": "all"})
    again = create_client(config, options=TypedOptions(path="q"))
    assert isinstance(again, Typed)
    assert again.read.path == "q"


def test_an_options_object_reads_as_text() -> None:
    """A backend that reads the mapping by itself finds what is set."""
    options = EventConfig("orders", options=TypedOptions(path="p", pause=2.5, pin=4711)).options
    assert (options["path"], options["pause"], options["create"], "subscription" in options) == (
        "p",
        "2.5",
        "never",
        False,
    )
    assert len(options) == len(list(options))
    assert "4711" not in repr(options)


def test_a_configuration_with_an_options_object_can_be_pickled() -> None:
    """The copy has the object too."""
    config = EventConfig("orders", backend="typed", options=CommonOptions(create="all", ordering=None))
    again = pickle.loads(pickle.dumps(config))
    assert again == config
    with pytest.raises(ConfigurationError, match="not CommonOptions"):
        create_client(again)


# Creating the client


def test_a_configuration_creates_the_client_it_names() -> None:
    """create_client makes a client of the backend that the configuration names."""
    assert type(create_client(EventConfig("orders", backend="plain"))) is Plain
    assert load_backend("plain") is Plain


def test_a_configuration_without_a_backend_is_refused() -> None:
    """The error lists the backends."""
    with pytest.raises(ConfigurationError, match=r"names no backend; set backend to one of: .*plain"):
        create_client(EventConfig("orders"))


def created(*arguments: Any, **more: Any) -> EventConfig:
    """The configuration with which a client is created."""
    client = create_client(*arguments, **more)
    assert isinstance(client, Kept)
    return client.config


class Kept(Plain):
    """A client that keeps its configuration."""

    def __init__(self, config: EventConfig) -> None:
        """Keep it."""
        super().__init__(config)
        self.config = config


register_backend("kept", Kept)
KEPT = ORDERS.replace("plain", "kept")


def test_a_client_is_created_from_a_url() -> None:
    """It means what EventConfig.from_url makes of it."""
    assert created("kept://acme/orders?create=all") == EventConfig("orders", "acme", {"create": "all"}, "kept")


def test_a_client_is_created_from_a_name_in_a_file(write: Any) -> None:
    """It means what EventConfig.from_file makes of it, the environment first."""
    path = write(KEPT)
    environ = {"EVENTS_ORDERS_URL": "kept://acme-test/orders"}
    assert created("orders", file=path, environ=NOTHING) == EventConfig.from_file(path, "orders", environ=NOTHING)
    assert created("orders", file=str(path), environ=environ).project_id == "acme-test"


def test_a_client_is_created_from_a_name_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the environment is that of the process."""
    monkeypatch.setenv("EVENTS_ORDERS_URL", "kept:///orders")
    assert created("orders") == EventConfig("orders", backend="kept")


@pytest.mark.parametrize(
    "source", ["kept:///orders?create=all", "orders", EventConfig("orders", "", {"create": "all"}, "kept")]
)
def test_arguments_go_before_every_source(source: Any) -> None:
    """create_client takes those of the other constructors."""
    environ = {"EVENTS_ORDERS_URL": "kept:///orders?create=all"}
    config = created(source, environ=environ, project_id="p", options={"send_timeout": timedelta(seconds=5)})
    assert config == EventConfig("orders", "p", {"create": "all", "send_timeout": "5"}, "kept")


def test_a_name_without_a_file_is_explained() -> None:
    """The error says where it looked, and how else a client is named."""
    with pytest.raises(ConfigurationError) as caught:
        create_client("orders", environ=NOTHING)
    assert str(caught.value) == (
        "client 'orders' is configured nowhere: the environment variable EVENTS_ORDERS_URL is not set, and no file is "
        "given, as in file='events.toml'"
    )


@pytest.mark.parametrize("source", ["kept:///orders?token=hunter2", EventConfig("orders", backend="kept")])
def test_a_file_goes_with_a_name(write: Any, source: Any) -> None:
    """A URL or a configuration has everything; the URL, which may hold a secret, is not shown."""
    with pytest.raises(ConfigurationError, match=r"file=.* goes with the name of a client") as caught:
        create_client(source, file=write(KEPT))
    assert "hunter2" not in str(caught.value)


def test_an_option_as_an_argument_is_refused() -> None:
    """The TypeError names the argument and shows where options go."""
    more: Any = {"subscription": "billing"}
    with pytest.raises(TypeError, match=r"no argument 'subscription'; .*options=\{"):
        create_client("memory:///orders", **more)


@pytest.mark.parametrize("source", [None, 7, b"memory:///orders", ["orders"], Path("events.toml")])
def test_what_names_no_client_is_refused(source: Any) -> None:
    """A client comes from a configuration, a URL or a name."""
    with pytest.raises(ConfigurationError, match="an EventConfig, a URL or the name of a client, not"):
        create_client(source)


@pytest.mark.parametrize(
    "function", [create_client, EventConfig.from_env, EventConfig.from_file, EventConfig.from_mapping]
)
def test_help_does_not_show_the_environment(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    """O2: a signature, in help() or a published page, has no value of a variable."""
    monkeypatch.setenv("EVENTS_TOKEN", "hunter2")
    assert "hunter2" not in str(inspect.signature(function))
