"""Making forks wait while SQLite works, so that no child inherits a lock that SQLite holds at that moment.

SQLite's library has internal locks, for its memory and its lists, apart from the locks on files.  Each call may hold
one for a moment.  If a child is forked at that moment, it has no thread that would release the lock, and it hangs when
it first opens any file.  So each client has a lock under which it calls SQLite, from :func:`await_calls` to
:func:`forget_calls`.  A fork takes all these locks first and releases them afterwards.
"""

from __future__ import annotations

import os
import threading
import time

__all__ = ["await_calls", "forget_calls"]

PATIENCE = 1.0
"""Seconds that a fork waits at most: a disk may never answer."""

# Clients add and remove their locks in their own threads, while another thread copies the set to fork.  Each of these
# steps is one step of the interpreter, so none needs a lock.
_callers: set[threading.RLock] = set()
"""The locks of the clients that use SQLite."""
_taken: dict[int, list[threading.RLock]] = {}
"""The locks that each forking thread has taken, by thread."""


def await_calls(lock: threading.RLock) -> None:
    """Let every fork wait for calls of SQLite, which the caller makes under *lock*."""
    _callers.add(lock)


def forget_calls(lock: threading.RLock) -> None:
    """Let forks no longer wait for *lock*: its client no longer calls SQLite."""
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
    # The child has none of the threads that hold the other locks, and can use none of these clients.
    _taken.clear()
    _callers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
