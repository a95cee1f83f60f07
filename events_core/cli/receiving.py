"""``events receive``."""

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
_DEFAULT_OUTSTANDING = 1000


def joining(config: EventConfig, subscription: str, *, create: bool) -> EventConfig:
    """Return *config* with *subscription* in place of its own; a mistyped name must not become a subscription.

    :param create: whether the subscription is created if it is missing.  Otherwise nothing is created.
    """
    allowed = "never"
    if create:
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
    """Write messages to standard output, and acknowledge each once it has been written.

    :param limit: messages after which to end.
    :param timeout: seconds without a message after which to end.
    :param raw: whether a terminal gets the bytes as they are.
    :raises CommandError: ``NOTHING`` when no message came; ``READER_GONE``.
    """
    output = Output(raw=raw)
    if is_watched():  # the engine logs the end of an outage as INFO
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
            await finish(_hand_over(receiver, batch, output, render))
            received += len(batch)
    if not received:
        raise CommandError("", ExitCode.NOTHING)


async def _hand_over(receiver: EventReceiver, batch: Sequence[ReceivedMessage], output: Output, render: Render) -> None:
    await output.write(b"".join(map(render, batch)))
    await output.taken()
    await receiver.acknowledge_messages(batch)


def _batch_size(received: int, limit: int | None) -> int:
    """Never more than has been written before: a reader such as ``head`` that soon ends then takes little with it."""
    size = min(max(1, received), _LARGEST_BATCH)
    return size if limit is None else min(size, limit - received)


def _bounded(config: EventConfig, limit: int | None) -> EventConfig:
    """*config* that fetches no more than *limit*, since each message handed back may count an attempt."""
    if limit is None or limit >= _DEFAULT_OUTSTANDING or "max_outstanding_messages" in config.options:
        return config
    return attrs.evolve(config, options={**config.options, "max_outstanding_messages": str(limit)})
