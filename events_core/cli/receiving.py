"""The command ``events receive``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import attrs

from events_core import EventConfig, EventReceiver, ReceivedMessage, load_backend
from events_core.cli.ending import Ending, finish, opened
from events_core.cli.outcome import CommandError, ExitCode, is_watched, say
from events_core.cli.output import Output
from events_core.options import describe_options

__all__ = ["joining", "receive"]

Render = Callable[[ReceivedMessage], bytes]

_LARGEST_BATCH = 100
"""Messages that are written before they are acknowledged together."""
_DEFAULT_OUTSTANDING = 1000
"""The default of the option ``max_outstanding_messages``."""


def joining(config: EventConfig, subscription: str, *, create: bool) -> EventConfig:
    """Return *config* with *subscription* in the place of its subscription.

    :param create: create the subscription if it is missing.  Otherwise create nothing, because the name may be a
        mistyped one.
    """
    allowed = "never"
    if create:
        # What else the target may create, it may create now too: "all" stays "all".
        given = config.options.get("create", _default_create(config.backend) if config.backend else "")
        allowed = "subscription" if given in ("", "never") else given
    options = {"subscription": subscription, "create": allowed}
    origins = {"subscription": "--subscription", "create": "--create" if create else "--subscription"}
    return attrs.evolve(config, options={**config.options, **options}, origins={**config.origins, **origins})


def _default_create(backend: str) -> str:
    options = describe_options(load_backend(backend).options_class)
    return next((info.default or "" for info in options if info.name == "create"), "")


async def receive(
    config: EventConfig,
    ending: Ending,
    *,
    limit: int | None,
    timeout: float | None,
    render: Render,
    raw: bool,
) -> None:
    """Write messages to standard output, and acknowledge each message after its line was written.

    :param limit: end after this number of messages.
    :param timeout: end after this number of seconds without a message.
    :param render: return the line of a message.
    :param raw: write unchanged bytes to a terminal.
    :raises CommandError: ``NOTHING`` if no message came; ``READER_GONE`` if the reader of standard output ended.
    """
    output = Output(raw=raw)
    if is_watched():  # a person also wants to see the end of an outage, which the engine logs as INFO
        logging.getLogger("events_core.engine").setLevel(logging.INFO)
    async with opened(_bounded(config, limit)) as client, await client.subscribe() as receiver:
        output.watch(ending)
        if is_watched():
            say("info", f"waiting for messages from {receiver.subscription!r}; Ctrl-C ends")
        received = 0
        while limit is None or received < limit:
            batch = await receiver.receive_messages(_batch_size(received, limit), timeout)
            if not batch:
                break
            # A signal must not come between writing the lines and acknowledging their messages.
            await finish(_hand_over(receiver, batch, output, render))
            received += len(batch)
    if not received:
        raise CommandError("", ExitCode.NOTHING)


async def _hand_over(receiver: EventReceiver, batch: Sequence[ReceivedMessage], output: Output, render: Render) -> None:
    await output.write([render(message) for message in batch])
    # What is in the pipe when its reader ends is lost, so only what was taken out may be acknowledged.
    await output.taken()
    await receiver.acknowledge_messages(batch)


def _batch_size(received: int, limit: int | None) -> int:
    """Return how many messages to receive next, of *received* so far.

    The batches begin with one message and double.  A reader such as ``head`` may take a whole batch from the pipe, use
    one line of it and end.  Batches that are not larger than everything before them keep that loss small.
    """
    size = min(max(1, received), _LARGEST_BATCH)
    return size if limit is None else min(size, limit - received)


def _bounded(config: EventConfig, limit: int | None) -> EventConfig:
    """Return *config* with a receiver that fetches at most *limit* messages.

    Messages beyond the limit would go back to the broker, and some brokers count that as a failed attempt.
    """
    if limit is None or limit >= _DEFAULT_OUTSTANDING or "max_outstanding_messages" in config.options:
        return config
    return attrs.evolve(config, options={**config.options, "max_outstanding_messages": str(limit)})
