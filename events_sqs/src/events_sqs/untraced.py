"""Keeping OpenTelemetry's instrumentation of aiobotocore out of the requests of this library.

``opentelemetry-instrument`` changes aiobotocore for the whole process.  It would put a context of its own into each
message that is published to SNS, in place of the one that the application or this library has put there.  It would also
make a span of each request, in a trace of its own: a request carries messages of several callers.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["keep_untraced"]


def keep_untraced(client: Any) -> None:
    """Let the instrumentation make nothing of the requests of *client*, a client of aiobotocore."""
    # The instrumentation looks here too.  There is no public way to wrap a request.
    request = client._make_api_call

    async def untraced(*args: Any) -> Any:
        tracing = sys.modules.get("opentelemetry.instrumentation.utils")
        if tracing is None:
            return await request(*args)
        with tracing.suppress_instrumentation():
            return await request(*args)

    client._make_api_call = untraced
