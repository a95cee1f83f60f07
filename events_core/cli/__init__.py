"""The command line ``events``: list backends, send, receive, ping, check.

Data goes to standard output, everything else to standard error.  A failure is one line, ``events: error: …``, never a
traceback.  Every command ends with one of these codes:

===  ====================================================================================
0    done
1    the operation failed, perhaps in part; the line says what was done
2    nothing was attempted: arguments, configuration, a file or a backend cannot be used
3    receive timed out and no message had come
129  the terminal was closed (SIGHUP)
130  interrupted (Ctrl-C, SIGINT)
141  whoever read standard output is gone (a broken pipe)
143  terminated (SIGTERM)
===  ====================================================================================
"""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line with the arguments of this process; returns its exit code."""
    # While nothing is held, Ctrl-C may end the process at once; a running command takes the signal over.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from events_core.cli import commands
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.stderr.write(f"events: error: {error.name} is not installed: pip install 'events-core[cli]'\n")
        return 2
    return commands.run()
