"""``events diff``: the promises that a program loses or gains when its configuration names another backend."""

from __future__ import annotations

from typing import Literal

import attrs
import click

from events_core import Capabilities, EventConfig, create_client
from events_core.cli.ndjson import dump
from events_core.cli.output import Output
from events_core.requirements import RULES, Value, at_least, value_of, word

__all__ = ["diff"]


@click.command(short_help="Compare what two backends promise.")
@click.argument("before", metavar="TARGET")
@click.argument("after", metavar="TARGET")
@click.option("--json", "as_json", is_flag=True, help="Print an object for each difference, one per line.")
def diff(before: str, after: str, as_json: bool) -> None:
    """Print what a program loses or gains if it uses the second TARGET in place of the first.

    It compares the capabilities and the limits of the two configurations, and connects to neither broker.  Each line
    names the rule of the contract.
    """
    changes = _changes(_capabilities(before), _capabilities(after))
    Output().put(b"".join(dump(attrs.asdict(each)) for each in changes) if as_json else _table(changes))


@attrs.frozen(kw_only=True)
class _Change:
    """One capability or limit whose value differs."""

    change: Literal["loses", "gains", "changes"]
    capability: str
    before: Value
    after: Value
    rule: str


def _capabilities(url: str) -> Capabilities:
    return create_client(EventConfig.from_url(url)).capabilities


def _changes(before: Capabilities, after: Capabilities) -> list[_Change]:
    """Return the differences: the losses first, because a program may fail for them."""
    found = [
        _change(name, old, new) for name in RULES if (old := value_of(before, name)) != (new := value_of(after, name))
    ]
    return sorted(found, key=lambda each: ("loses", "changes", "gains").index(each.change))


def _change(name: str, old: Value, new: Value) -> _Change:
    worse, better = not at_least(name, new, old), not at_least(name, old, new)
    return _Change(
        # Values of no order, such as "lease" and "disconnect", are each not as good as the other.
        change="changes" if worse and better else "loses" if worse else "gains",
        capability=name,
        before=old,
        after=new,
        rule=RULES[name],
    )


def _table(changes: list[_Change]) -> bytes:
    # rich takes a tenth or more of the time in which a command starts, and most need no table.
    from rich.table import Table
    from rich.text import Text

    from events_core.cli.printing import printed

    if not changes:
        return b"no difference: both promise the same\n"
    colours = {"loses": "red", "gains": "green", "changes": "yellow"}
    table = Table("", "capability", "before", "after", "rule", box=None, pad_edge=False, header_style="bold")
    for each in changes:
        kind = Text(each.change, colours[each.change])
        table.add_row(kind, each.capability, word(each.before), word(each.after), each.rule)
    return printed(table)
