"""The command line ``events`` lists and compares backends, sends, receives, pings a broker and checks it.

Data goes to standard output, and everything else to standard error.  A failure is one line, ``events: error: …``, and
never a traceback.  Every command ends with one of these codes:

===  ====================================================================================
0    done
1    the operation failed, perhaps in part; the error says what was done
2    nothing was tried, because arguments, configuration, a file or a backend cannot be used
3    receive timed out before a message came
129  the terminal was closed (SIGHUP)
130  interrupted (Ctrl-C, SIGINT)
141  the reader of standard output is gone (a broken pipe)
143  terminated (SIGTERM)
===  ====================================================================================
"""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line with the arguments of this process.  Return its exit code."""
    # Ctrl-C may end the process at once as long as no command runs.  A running command installs a handler of its own,
    # because it has to give messages back first.  Without this line, Ctrl-C during an import would print a traceback.
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
