"""What can be typed: commands, arguments and options."""

from __future__ import annotations

import logging
import math
import os
import sys
from functools import partial
from typing import Any

import attrs
import click
import rich  # not needed before the tables, but its absence must show before anything is done

from events_core import ErrorCode, EventError, EventMessage, ReceivedMessage, ReceiveError
from events_core.cli import ending, ndjson
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

_EPILOG = "\b\nExit codes:\n" + "\n".join(f"{code.value:4}  {code.meaning}" for code in ExitCode)


def run() -> int:
    """Run the command line of this process; returns the exit code."""
    log_to_stderr()
    try:
        return events.main(prog_name="events", standalone_mode=False) or ExitCode.DONE
    except click.ClickException as error:
        say("error", error.format_message().rstrip(".") + _help_hint(error))
        return ExitCode.UNUSABLE
    except (CommandError, EventError, BrokerError) as error:
        if str(error):
            say("error", str(error))
        return exit_code(error)
    except SystemExit:  # click's answer to a broken pipe
        return ExitCode.READER_GONE
    except OSError as error:
        say("error", refusal(error))
        _drop_output()
        return ExitCode.FAILED
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        say("error", f"a defect, {error!r}{HOW_TO_TRACE}")
        return ExitCode.FAILED


def _drop_output() -> None:
    """Drop what standard output does not take, so that the interpreter does not fail on it once more at its end."""
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


def _seconds(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise click.BadParameter("must be a positive number of seconds")
    return value


@events.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="An object for each backend, one per line.")
def backends(name: str | None, as_json: bool) -> None:
    """List the installed backends, or describe one.

    With NAME: its capabilities, and its options with type, default, range and meaning.  The list tells also which
    backends are broken, and why.
    """
    from events_core.cli.listing import describe_backend, list_backends

    Output().put(describe_backend(name, as_json=as_json) if name else list_backends(as_json=as_json))


@events.command(short_help="Send data, or lines of a file or of standard input.")
@click.argument("arguments", nargs=-1, metavar="[TARGET] [DATA]")
@configured
@click.option("--file", "path", metavar="PATH", help="Send each line of a file; '-' is standard input.")
@click.option("--ndjson", "as_ndjson", is_flag=True, help="Lines are JSON objects with data, attributes, ordering_key.")
@click.option("-a", "--attribute", "pairs", multiple=True, metavar="KEY=VALUE", help="May be repeated.")
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

    With --ndjson a line is {"data": "text, or any JSON", "attributes": {"key": "value"}, "ordering_key": "key"}.
    A string is sent as its text, other JSON exactly as the line has it; "data_base64" in place of "data" carries bytes.
    What a line says goes before --attribute and --ordering-key.  DATA that begins with '-' comes after '--'.

    Sending stops at the first line that is bad or refused; those before it are stored.
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
        message = _plain(os.fsencode(data), defaults)
        ending.run(lambda _: send_data(config, message, report))


def _target_and_data(arguments: tuple[str, ...], *, has_target: bool) -> tuple[str | None, str | None]:
    target, data = (arguments[:1], arguments[1:]) if has_target else ((), arguments)
    if len(data) > 1:
        raise usage_error(
            "more than TARGET and DATA; quote DATA where it has spaces"
            if has_target
            else "give either TARGET, or --config FILE with --client NAME, not both; quote DATA where it has spaces"
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
    if path is None and not dash and sys.stdin is not None and sys.stdin.isatty():
        raise usage_error("give DATA, --file, or lines on standard input ('-' reads them from this terminal)")
    return Lines.of_file("-" if path is None else path)


@events.command()
@click.argument("target", required=False)
@configured
@click.option("-s", "--subscription", metavar="NAME", help="Join this subscription, which must exist.")
@click.option("--create", is_flag=True, help="With --subscription: create it if it does not exist.")
@click.option("-n", "--limit", type=click.IntRange(min=1), help="End after so many messages.")
@click.option("-t", "--timeout", type=float, callback=_seconds, help="End after so many seconds without a message.")
@click.option("--json", "as_json", is_flag=True, help="Print an object for each message, instead of its data.")
@click.option("--raw", is_flag=True, help="Write the bytes as they are, also to a terminal, which obeys what they say.")
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
    r"""Print messages as they come, a line each, until Ctrl-C.

    A message is acknowledged once its line has been written; the others go back to the broker.  Without a
    subscription, here or in TARGET, it gets what is sent from now on.

    On a terminal, control characters in the data are shown as escapes, such as \x1b.
    """
    if raw and as_json:
        raise usage_error("--raw and --json exclude each other")
    if subscription == "":
        raise usage_error("--subscription must not be empty; leave it out for an ephemeral one")
    if create and subscription is None:
        raise usage_error("--create goes with --subscription; that of the target follows the option 'create'")
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
        raise CommandError(f"{error}; to have it created, give --create") from error


def _data_line(message: ReceivedMessage) -> bytes:
    return message.data + b"\n"


@events.command()
@click.argument("target", required=False)
@configured
@click.option("-t", "--timeout", type=float, default=5.0, show_default=True, callback=_seconds, help="Seconds to wait.")
def ping(target: str | None, file: str | None, client: str | None, timeout: float) -> None:
    """Ask the broker for a sign of life, and print how long it took."""
    config = read_config(target, file, client)
    # A file or a topic whose name was mistyped is not created by looking for it.
    config = attrs.evolve(config, options={"create": "never", **config.options})
    output = Output()

    logging.disable()  # how it fails is the answer, told once

    async def command(_ending: Any) -> None:
        async with ending.opened(config) as broker:
            seconds = await broker.ping(timeout)
        output.put(f"{seconds * 1000:.1f} ms\n".encode())

    ending.run(command)


@events.command(short_help="Try whether a broker keeps the contract.")
@click.argument("target", required=False)
@configured
@click.option("-k", "--rule", "rules", multiple=True, metavar="RULE", help="Only this rule, such as R7; repeatable.")
@click.option("--json", "json_path", metavar="FILE", help="Write an object for each rule; '-' in place of the table.")
@click.option(
    "-t",
    "--timeout",
    type=float,
    default=10.0,
    show_default=True,
    callback=_seconds,
    help="Seconds within which whatever must come does come; other waits grow and shrink with it.",
)
@click.option(
    "--lease", type=float, callback=_seconds, help="Seconds after which what a dead process held comes again."
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
    """Run the conformance kit on a broker, and print which rules of the contract are kept.

    It works on topics of its own, named events-check-…, which it creates; the configured topic is not touched.  The
    subscriptions that it makes are deleted; topics stay where the backend has no scratch place for such a trial.
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
