"""The server for the tests of a process: the first that can be found or started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

from .server import Missing

T = TypeVar("T")


@contextmanager
def first(
    variables: Sequence[str], known: Callable[[str], T], *ways: Callable[[], AbstractContextManager[T]]
) -> Iterator[T]:
    """Enter with the server that the environment names, or with the first that can be started.

    :param variables: environment variables; the first one that is set gives an address.
    :param known: makes a server of the address.
    :param ways: ways to start a server, tried in turn; each raises :class:`Missing` if it cannot.
    :raises Missing: with all the reasons.
    """
    for variable in variables:
        if address := os.environ.get(variable):
            yield known(address)
            return
    reasons = [f"{variable} is not set" for variable in variables]
    with ExitStack() as stack:
        for start in ways:
            try:
                server = stack.enter_context(start())
            except Missing as reason:
                reasons.append(str(reason))
            else:
                yield server
                return
    raise Missing("; ".join(reasons))
