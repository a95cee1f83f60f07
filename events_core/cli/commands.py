"""The commands, arguments and options of ``events``."""

from __future__ import annotations

import logging
import math
import os
import sys
from functools import partial
from typing import Any

import attrs
import click
import rich  # needed for the tables only; if it is missing, that must show before a message is sent

from events_core import ErrorCode, EventError, EventMessage, ReceivedMessage, ReceiveError
from events_core.cli import ending, ndjson
from events_core.cli.comparing import diff
from events_core.cli.lines import Lines
from events_core.cli.outcome import HOW_TO_TRACE, CommandError, ExitCode, exit_code, log_to_stderr, refusal, say
from events_core.cli.output import Output
from events_core.cli.receiving import joining
from events_core.cli.receiving import receive as receive_messages
from events_core.cli.sending import Parse, Report, send_data, send_lines
from events_core.cli.target import configured, read_config, usage_error
from events_core.engine import BrokerError

__all__ = ["run"]
del rich

# \b keeps click from joining the lines of the table.
_EPILOG = "\b\nExit codes:\n" + "\n".join(f"{code.value:4}  {code.meaning}" for code in ExitCode)


def run() -> int:
    """Run the command line of this process.  Return the exit code."""
    log_to_stderr()
    # standalone_mode=False, because click would print a usage error in several lines and exit by itself.
    try:
        return events.main(prog_name="events", standalone_mode=False) or ExitCode.DONE
    except click.ClickException as error:
        say("error", error.format_message().rstrip(".") + _help_hint(error))
        return ExitCode.UNUSABLE
    except (CommandError, EventError, BrokerError) as error:
        if str(error):
            say("error", str(error))
        return exit_code(error)
    except SystemExit:  # click raises it for a broken pipe
        return ExitCode.READER_GONE
    except OSError as error:
        # Every expected OSError has become a CommandError.  So this one is about the process, such as too many files.
        say("error", refusal(error))
        _drop_output()
        return ExitCode.FAILED
    except Exception as error:
        # A user cannot use a traceback; a developer asks for it with "python -X dev".
        if sys.flags.dev_mode:
            raise
        say("error", f"a defect, {error!r}{HOW_TO_TRACE}")
        return ExitCode.FAILED


def _drop_output() -> None:
    """Drop what is left in the buffer of standard output.  Otherwise Python fails on it once more at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _help_hint(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f" (see '{context.command_path} --help')" if context else ""


@click.group(epilog=_EPILOG, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="events-core", message="events-core %(version)s")
@click.pass_context
def events(context: click.Context) -> None:
    """Send and receive messages through any broker.

    TARGET is a URL such as sqlite:events.db/orders?subscription=billing; or give --config FILE --client NAME instead,
    for the table [clients.NAME] of a TOML file.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


events.add_command(diff)


def _seconds(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise click.BadParameter("must be a positive number of seconds")
    return value


@events.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print an object for each backend, one per line.")
def backends(name: str | None, as_json: bool) -> None:
    """List the installed backends, or describe one.

    With NAME, it prints the capabilities of the backend, and its options with type, default, range and meaning.  The
    list also says which backends cannot be used, and why.
    """
    from events_core.cli.listing import describe_backend, list_backends

    Output().put(describe_backend(name, as_json=as_json) if name else list_backends(as_json=as_json))


@events.command(short_help="Send data, or lines of a file or of standard input.")
@click.argument("arguments", nargs=-1, metavar="[TARGET] [DATA]")
@configured
@click.option("--file", "path", metavar="PATH", help="Send each line of a file; '-' is standard input.")
@click.option("--ndjson", "as_ndjson", is_flag=True, help="Lines are JSON objects with data, attributes, ordering_key.")
@click.option("-a", "--attribute", "pairs", multiple=True, metavar="KEY=VALUE", help="Add an attribute.  Repeatable.")
@click.option("-k", "--ordering-key", metavar="KEY", help="Messages of one key keep their order.")
@click.option("-q", "--quiet", is_flag=True, help="Print only how many messages were stored.")
@click.option("--json", "as_json", is_flag=True, help="Print an object for each line, instead of its id.")
def send(
    arguments: tuple[str, ...],
    file: str | None,
    client: str | None,
    path: str | None,
    as_ndjson: bool,
    pairs: tuple[str, ...],
    ordering_key: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Send DATA, or each line of --file or of standard input, and print the message ids.

    With --ndjson, a line is {"data": "text, or any JSON", "attributes": {"key": "value"}, "ordering_key": "key"}.
    A string is sent as its text, and other JSON exactly as it stands in the line.  "data_base64" instead of "data"
    carries bytes.  The keys of a line take precedence over --attribute and --ordering-key.

    Sending stops at the first line that is bad or refused.  The lines before it are stored.

    If DATA begins with '-', write '--' before it.
    """
    if quiet and as_json:
        raise usage_error("--quiet and --json exclude each other")
    target, data = _target_and_data(arguments, has_target=file is None and client is None)
    config = read_config(target, file, client)
    report: Report = "count" if quiet else "json" if as_json else "ids"
    defaults = EventMessage(b"", dict(map(_pair, pairs)), ordering_key=ordering_key)
    if data in (None, "-"):
        lines = _lines(path, dash=data == "-")
        parse: Parse = partial(ndjson.parse_message if as_ndjson else _plain, defaults=defaults)
        ending.run(lambda _: send_lines(config, lines, parse, report))
    elif path is not None or as_ndjson:
        raise usage_error("DATA excludes --file and --ndjson")
    else:
        # The bytes that were typed: Python decodes arguments, and keeps bytes that are no UTF-8 as surrogates.
        message = _plain(os.fsencode(data), defaults)
        ending.run(lambda _: send_data(config, message, report))


def _target_and_data(arguments: tuple[str, ...], *, has_target: bool) -> tuple[str | None, str | None]:
    # One list for both, because click cannot know that TARGET is left out with --config.
    target, data = (arguments[:1], arguments[1:]) if has_target else ((), arguments)
    if len(data) > 1:
        raise usage_error(
            "more than TARGET and DATA; quote DATA if it has spaces"
            if has_target
            else "give either TARGET, or --config FILE with --client NAME, not both; quote DATA if it has spaces"
        )
    return next(iter(target), None), next(iter(data), None)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise usage_error(f"--attribute takes KEY=VALUE, not {text!r}")
    return key, value


def _plain(line: bytes, defaults: EventMessage) -> EventMessage:
    return EventMessage(line, defaults.attributes, ordering_key=defaults.ordering_key)


def _lines(path: str | None, *, dash: bool) -> Lines:
    if path is not None and dash:
        raise usage_error("give either --file or '-', not both")
    # A command that waits for a keyboard without saying so looks as if it hung.
    if path is None and not dash and sys.stdin is not None and sys.stdin.isatty():
        raise usage_error("give DATA, --file, or lines on standard input ('-' reads them from this terminal)")
    return Lines.of_file("-" if path is None else path)


@events.command()
@click.argument("target", required=False)
@configured
@click.option("-s", "--subscription", metavar="NAME", help="Join this subscription, which must exist.")
@click.option("--create", is_flag=True, help="With --subscription: create it if it does not exist.")
@click.option("-n", "--limit", type=click.IntRange(min=1), help="End after N messages.", metavar="N")
@click.option("-t", "--timeout", type=float, callback=_seconds, help="End after that many seconds without a message.")
@click.option("--json", "as_json", is_flag=True, help="Print an object for each message, instead of its data.")
@click.option("--raw", is_flag=True, help="Write unchanged bytes to a terminal, where they may control it.")
def receive(
    target: str | None,
    file: str | None,
    client: str | None,
    subscription: str | None,
    create: bool,
    limit: int | None,
    timeout: float | None,
    as_json: bool,
    raw: bool,
) -> None:
    r"""Print each message as a line, until Ctrl-C.

    A message is acknowledged after its line was written.  All other messages go back to the broker.  Without a
    subscription, here or in TARGET, you get the messages that are sent from now on.

    On a terminal, control characters in the data are shown as escapes, for example \x1b.
    """
    if raw and as_json:
        raise usage_error("--raw and --json exclude each other")
    if subscription == "":
        raise usage_error("--subscription must not be empty; leave it out for an ephemeral subscription")
    if create and subscription is None:
        raise usage_error("--create goes with --subscription; for the subscription of TARGET, use its option 'create'")
    config = read_config(target, file, client)
    if subscription is not None:
        config = joining(config, subscription, create=create)
    render = ndjson.dump_message if as_json else _data_line
    command = partial(receive_messages, limit=limit, timeout=timeout, render=render, raw=raw)
    try:
        ending.run(partial(command, config))
    except ReceiveError as error:
        if error.code is not ErrorCode.NOT_FOUND or subscription is None or create:
            raise
        raise CommandError(f"{error}; to create it, give --create") from error


def _data_line(message: ReceivedMessage) -> bytes:
    return message.data + b"\n"


@events.command()
@click.argument("target", required=False)
@configured
@click.option("-t", "--timeout", type=float, default=5.0, show_default=True, callback=_seconds, help="Seconds to wait.")
def ping(target: str | None, file: str | None, client: str | None, timeout: float) -> None:
    """Ask the broker for a sign of life, and print how long it took."""
    config = read_config(target, file, client)
    # To look for a file or a topic must not create it, because its name may be mistyped.
    config = attrs.evolve(config, options={"create": "never", **config.options})
    output = Output()

    logging.disable()  # the error says why the broker cannot be reached; a log line would say it twice

    async def command(_ending: Any) -> None:
        async with ending.opened(config) as broker:
            seconds = await broker.ping(timeout)
        output.put(f"{seconds * 1000:.1f} ms\n".encode())

    ending.run(command)


@events.command(short_help="Test whether a broker keeps the contract.")
@click.argument("target", required=False)
@configured
@click.option(
    "-k", "--rule", "rules", multiple=True, metavar="RULE", help="Test only this rule, for example R7.  Repeatable."
)
@click.option("--json", "json_path", metavar="FILE", help="Write an object for each rule; '-' prints it.")
@click.option(
    "-t",
    "--timeout",
    type=float,
    default=10.0,
    show_default=True,
    callback=_seconds,
    help="Seconds to wait for a message that must come.  The other waits are in proportion.",
)
@click.option(
    "--lease", type=float, callback=_seconds, help="Seconds until the broker delivers what a dead process held."
)
def check(
    target: str | None,
    file: str | None,
    client: str | None,
    rules: tuple[str, ...],
    json_path: str | None,
    timeout: float,
    lease: float | None,
) -> None:
    """Run the conformance kit on a broker, and print which rules of the contract the broker keeps.

    The command creates topics named events-check-… and does not touch the configured topic.  It deletes the
    subscriptions that it made.  Its topics stay if the backend has no place for such a trial.
    """
    config = read_config(target, file, client)
    try:
        from events_core.cli import checking
    except ModuleNotFoundError as error:
        if error.name != "pytest":
            raise
        text = "pytest is not installed: pip install 'events-core[cli,testing]'"
        raise CommandError(text, ExitCode.UNUSABLE) from None
    checking.check(config, rules=rules, patience=timeout, lease=lease, json_path=json_path)
