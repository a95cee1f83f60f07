"""The command line ``events``: list backends, send, receive, ping.

Data goes to standard output, everything else to standard error.  Every command ends with one of these codes; a failure
is one line on standard error, ``events: error: …``, never a traceback:

===  =============================================================================================
0    done
1    the operation failed, perhaps in part; the line says what was done
2    nothing was attempted: the arguments, the configuration, a file or a backend cannot be used
3    ``receive --timeout`` ran out and no message had come
129  the terminal was closed (SIGHUP)
130  interrupted (Ctrl-C, SIGINT)
141  whoever read standard output is gone (a broken pipe)
143  terminated (SIGTERM)
===  =============================================================================================
"""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]

_EXTRA = ("click", "rich")


def main() -> int:
    """Run the command line with the arguments of this process; returns its exit code."""
    # While nothing is held, Ctrl-C may end the process at once; a running command takes the signal over.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from events_core.cli import commands
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        sys.stderr.write(f"events: error: {error.name} is not installed: pip install 'events-core[cli]'\n")
        return 2
    return commands.run()
