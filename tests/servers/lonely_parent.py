"""A process that starts a server and is killed: ``python -m tests.servers.lonely_parent FOLDER``.

It prints the process id of the server, which is paused, and then waits for ever.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from .process import Process

if __name__ == "__main__":
    log = Path(sys.argv[1]) / "log"
    process = Process([sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"], log)
    process.start()
    while not (number := log.read_text()).endswith("\n"):
        time.sleep(0.01)
    process.pause()
    print(number, end="", flush=True)
    time.sleep(600)
