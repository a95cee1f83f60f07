"""No fork while SQLite works: in the child, a lock that SQLite held at that moment stays taken for ever.

SQLite's library has locks of its own, for its memory and its lists, apart from those on files.  Whoever calls it may
hold one for a moment.  A child that is forked in that moment has no thread that would let the lock go, and hangs when
it first opens a file, whichever.  So each client calls SQLite under a lock of its own, from :func:`await_calls` to
:func:`forget_calls`, and a fork takes all of these first and lets go of them afterwards.
"""

from __future__ import annotations

import os
import threading
import time

__all__ = ["await_calls", "forget_calls"]

PATIENCE = 1.0
"""Most seconds for which a fork waits: a disk may never answer."""

_callers: set[threading.RLock] = set()
"""The locks of the clients that use SQLite.  Each change and each copy of it is one step of the interpreter."""
_taken: dict[int, list[threading.RLock]] = {}
"""What each thread that is forking has taken of them."""


def await_calls(lock: threading.RLock) -> None:
    """Let every fork wait for calls of SQLite, which the caller makes under *lock*."""
    _callers.add(lock)


def forget_calls(lock: threading.RLock) -> None:
    """Know that SQLite is called no more under *lock*."""
    _callers.discard(lock)


def _before_fork() -> None:
    ends = time.monotonic() + PATIENCE
    taken = _taken[threading.get_ident()] = []
    for lock in tuple(_callers):
        if lock.acquire(timeout=max(0.0, ends - time.monotonic())):
            taken.append(lock)  # noqa: PERF401 - Ctrl-C may end the next wait, and must not lose this lock


def _after_fork() -> None:
    for lock in _taken.pop(threading.get_ident(), ()):
        lock.release()


def _after_fork_in_child() -> None:
    _after_fork()
    _taken.clear()
    _callers.clear()  # none of these clients can be used here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
