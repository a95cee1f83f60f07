"""Tables of what each backend promises and keeps, made from the records of what the kit proved.

``python docs/extensions/guarantees.py`` prints the table of README.rst.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RECORDS = Path(__file__).parents[1] / "backends" / "proof"

EMBEDDED = ("memory", "sqlite")
"""The backends whose columns come first.  The others follow in alphabetical order."""

PROMISES: Mapping[str, tuple[str, Mapping[object, str]]] = {
    "durable": (
        "a confirmed message survives",
        {"none": "nothing", "process_crash": "a crash of the process", "power_loss": "a power loss"},
    ),
    "ordering": (
        "messages of a key stay in order",
        {"none": "no", "receiver": "within one receiver", "subscription": "over all receivers"},
    ),
    "exactly_once": ("an acknowledged message never comes again", {}),
    "idempotent_publish": ("a send that is tried again is stored once", {}),
    "delivery_attempts": ("delivery attempts are counted", {}),
    "dead_letter": ("a message that fails too often becomes a dead letter", {}),
    "reject": ("a handler can make a dead letter at once", {}),
    "replay": ("a new subscription can start with old messages", {}),
    "redelivery": (
        "an unsettled message comes again after the end of",
        {"lease": "its lease", "disconnect": "its connection"},
    ),
}
"""A sentence for each capability, and the words for its values.  Those of a capability without words are yes and no."""

OWN_WORDS = {("kafka", "redelivery"): "its membership in the group"}
"""Cells that need other words than those of their values: Kafka's deliveries outlive a connection."""

MARKS = {"kept": "✓", "partly": "✓", "excepted": "(✓)", "not declared": "–", "not shown": "?", "not applicable": "·"}
"""The signs in the table of rules."""

ALWAYS_NOTED = ("excepted", "not shown")
"""The states of single tests whose reasons are notes below that table.  The others are noted if all tests have them."""


class Record(NamedTuple):
    """The record of a suite, and its name."""

    name: str
    content: Mapping[str, Any]

    @property
    def backend(self) -> str:
        """The name of the backend."""
        return str(self.content["backend"])


def read(folder: Path = RECORDS) -> list[Record]:
    """Return all records in the order of their columns."""
    found = [Record(file.stem, json.loads(file.read_text())) for file in folder.glob("*.json")]
    return sorted(found, key=lambda each: (each.backend not in EMBEDDED, each.backend, each.name))


def promises(records: Sequence[Record], head: Callable[[str], str] = str) -> Iterator[str]:
    """Yield the lines of a table with a row for each capability and a column for each backend."""
    backends = list(dict.fromkeys(each.backend for each in records))
    of_each = [[each for each in records if each.backend == backend] for backend in backends]
    rows = [["", *map(head, backends)]]
    for capability, (sentence, _) in PROMISES.items():
        rows.append([sentence, *(_promise(capability, found) for found in of_each)])
    width = 72 // len(backends)
    yield from _table(rows, [100 - width * len(backends), *(width for _ in backends)])


def _promise(capability: str, records: Sequence[Record]) -> str:
    """Return the cell of a capability: its usual value, and the most that the backend can do if that is more."""
    usual, most = (records[0].content[which][capability] for which in ("capabilities", "full_capabilities"))
    if most is False:
        return "no"
    words = PROMISES[capability][1]
    said = OWN_WORDS.get((records[0].backend, capability)) or words.get(most, "yes")
    if usual != most:
        said = f"{words[usual]} … {said}" if words else "by option"
    claims = {capability, f"{capability}={most}"}
    proven, unproven = (any(claims & set(each.content[what]) for each in records) for what in ("proven", "unproven"))
    # The tests of a value that the usual configuration lacks set the option themselves.  No test makes a power loss.
    is_declared = not proven and (unproven or most == "power_loss")
    return f"{said} (declared)" if is_declared else said


def rules(records: Sequence[Record], sentences: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of a table with a row for each rule and a column for each record, and of the notes below it."""
    notes = Notes()
    rows = [["", "", *(each.name.replace("-", " ") for each in records)]]
    for rule, sentence in sentences.items():
        states = [each.content["rules"].get(rule, {}) for each in records]
        rows.append([rule, sentence, *(_state(state, notes) for state in states)])
    width = min(9, 60 // len(records))
    yield from _table(rows, [8, 92 - width * len(records), *(width for _ in records)])
    yield from notes.lines()


def _state(found: Mapping[str, Any], notes: Notes) -> str:
    if not found:
        return ""
    noted = {found["state"], *ALWAYS_NOTED}
    numbers = [notes.number(why["state"], why["reason"]) for why in found.get("why", ()) if why["state"] in noted]
    return " ".join([MARKS[found["state"]], *(f"[{number}]_" for number in numbers)])


class Notes:
    """The reasons of states, each with one number."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}

    def number(self, state: str, reason: str) -> int:
        """Return the number of a reason."""
        return self._numbers.setdefault((state, reason), len(self._numbers) + 1)

    def lines(self) -> Iterator[str]:
        """Yield the lines of all notes."""
        for (state, reason), number in self._numbers.items():
            yield f".. [{number}] *{state}*: {reason}"


def versions(records: Iterable[Record]) -> Iterator[str]:
    """Yield the lines of a table that says what was tested."""
    rows = [["record", "configuration", "versions"]]
    for each in records:
        tested = ", ".join(f"{name} {version}" for name, version in each.content["versions"].items())
        rows.append([each.name, each.content["suite"], tested])
    yield from _table(rows, [20, 40, 40])


def _table(rows: Iterable[Sequence[str]], widths: Sequence[int]) -> Iterator[str]:
    yield ".. list-table::"
    yield "   :header-rows: 1"
    yield f"   :widths: {' '.join(map(str, widths))}"
    yield ""
    for first, *others in rows:
        yield f"   * - {first}".rstrip()
        yield from (f"     - {cell}".rstrip() for cell in others)
    yield ""


def setup(app: Any) -> dict[str, bool]:
    """Add the directive; Sphinx calls this."""
    from docutils import nodes
    from docutils.statemachine import StringList
    from sphinx.util.docutils import SphinxDirective

    from events_core.testing import RULES

    class Guarantees(SphinxDirective):
        """``.. guarantees:: promises`` shows one of the tables: *promises*, *rules* or *versions*."""

        required_arguments = 1

        def run(self) -> list[nodes.Node]:
            records = read()
            for file in RECORDS.glob("*.json"):
                self.env.note_dependency(str(file))
            tables = {
                "promises": lambda: promises(records, lambda backend: f":doc:`{backend} </backends/{backend}>`"),
                "rules": lambda: rules(records, RULES),
                "versions": lambda: versions(records),
            }
            container = nodes.container()
            lines = StringList(list(tables[self.arguments[0]]()), source=self.arguments[0])
            self.state.nested_parse(lines, 0, container)
            return container.children

    app.add_directive("guarantees", Guarantees)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    print("\n".join(promises(read())))
