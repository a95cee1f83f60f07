"""Writes ``docs/backends/gcp-faults.rst``: what each fault comes to, as measured.

Run it as ``python -m tests.gcp.fault_table`` in the folder of the checkout, after a change of the outcomes.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import calls
from .problems import PROBLEMS

OFFICIAL = "2.44.0"
"""The version of Google's client with which the page was written."""

PAGE = Path(__file__).parents[2] / "docs/backends/gcp-faults.rst"

TOP = f"""\
Faults of Pub/Sub, and what your program sees
=============================================

This page says what your program sees when Pub/Sub, the network or the credentials fail.  Use it to decide which errors
your program handles.  The script ``tests/gcp/fault_table.py`` measured the outcomes here, on a server that fails on
purpose, and a test compares them with the current code.  Three parts are not measured by the script:

* The lines about an emulator that is killed are fixed text.  A test of its own kills one.
* The outcomes of Google's client were measured once, with version {OFFICIAL}.  No test compares them, because that
  client does not always do the same.
* The table of reported problems is fixed text, and names a test for each line.

Status codes
------------

Each table is about one call.  "Once" means that the first request gets the status, and the next one succeeds.
"Longer" means that every request gets the status until the time of the call is up; ``send_timeout`` and
``ack_timeout`` were set to 5 s.  *At once* means after a single request.

You never need a new client or a new receiver: when the fault is over, the next call succeeds.
"""

PROBLEMS_TOP = """\
Problems of other clients
-------------------------

People reported these problems for other clients of Pub/Sub, most of them for ``google-cloud-pubsub``.  The test in the
third column fails if this backend has the problem.

"""


def section(call: str, outcomes: calls.Outcomes) -> str:
    """Return the part of the page that is about *call*; statuses with the same outcomes share a line."""
    groups: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for status, pair in outcomes.items():
        groups[pair].append(f"``{status.name}``")
    rows = [
        (", ".join(sorted(names)), once, "the same" if once == longer else longer)
        for (once, longer), names in groups.items()
    ]
    method = calls.CALLS[call][0]
    title = f"{_marked(call)} (``{method}``)"
    return _titled(title, "~") + table(("status", "once", "longer"), (40, 30, 30), sorted(rows))


def table(head: Sequence[str], widths: Sequence[int], rows: Iterable[Sequence[str]]) -> str:
    """Return a ``list-table``."""
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {' '.join(map(str, widths))}", ""]
    for row in (head, *rows):
        lines += [f"   {'*' if not index else ' '} - {cell}" for index, cell in enumerate(row)]
    return "\n".join([*lines, ""])


def _titled(title: str, line: str) -> str:
    return f"{title}\n{line * len(title)}\n\n"


def _marked(call: str) -> str:
    """Return the name of a call with what is code in it marked as such."""
    return " ".join(
        f"``{word.rstrip(',')}``{',' * word.endswith(',')}" if _is_code(word) else word for word in call.split()
    )


_CALLS = ("subscribe", "acknowledge", "nack", "reject", "ping")


def _is_code(word: str) -> bool:
    return any(mark in word for mark in "_=") or word.rstrip(",") in _CALLS


CONNECTIONS_TOP = """\
Connections and credentials
---------------------------

These faults were tried on a connection like the one to the service: with TLS, with tokens from an authority, and with
pings.  During the fault, a client sent and received.

An emulator that is killed and started again has forgotten all topics and subscriptions.  A client with ``create=all``
creates its own again.  The next send is confirmed, and its message comes.

"""

OFFICIAL_TOP = f"""\
Next to Google's client
-----------------------

The same server failed in the same way for this backend and for ``google-cloud-pubsub`` {OFFICIAL}.  A send or an
acknowledgement may take 2 s.  Google's client got this limit by the arguments ``retry`` and ``timeout`` of
``publish``.  Its acknowledgements have no such arguments; ``ack_with_response`` gave their outcome.

"""


def connections(outcomes: Mapping[str, str]) -> str:
    """Return the part of the page that is about what is between a client and Pub/Sub."""
    return CONNECTIONS_TOP + table(("fault", "outcome"), (45, 55), outcomes.items())


def official(outcomes: Mapping[str, Sequence[str]]) -> str:
    """Return the part of the page that compares with Google's client."""
    rows = [(fault, *pair) for fault, pair in outcomes.items()]
    return OFFICIAL_TOP + table(("fault", "here", "``google-cloud-pubsub``"), (40, 30, 30), rows)


def measured(program: str) -> Mapping[str, Any]:
    """Run a program of this package that prints outcomes as JSON."""
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-m", f"tests.gcp.{program}"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    if ran.returncode:
        raise RuntimeError(ran.stderr)
    outcomes: Mapping[str, Any] = json.loads(ran.stdout)
    return outcomes


def problems() -> str:
    """Return the part of the page that is about problems of other clients."""
    rows = [
        (
            problem.text,
            problem.here,
            "; ".join(f"``{test}``" for test in problem.tests) or "none is needed",
            problem.reported,
        )
        for problem in PROBLEMS
    ]
    return PROBLEMS_TOP + table(("reported", "here", "test", "source"), (23, 25, 33, 19), rows)


async def page() -> str:
    """Measure everything; the text of the page."""
    sections = [section(call, await calls.measure(call)) for call in calls.CALLS]
    parts = [connections(measured("connections")), official(measured("official")), problems()]
    return "\n".join([TOP, *sections, *parts])


if __name__ == "__main__":
    PAGE.write_text(asyncio.run(page()))
