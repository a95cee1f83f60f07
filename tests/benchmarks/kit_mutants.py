"""Seconds that the whole conformance kit needs to find each broken broker of ``tests/core/broken_brokers.py``.

Run ``python tests/benchmarks/kit_mutants.py [-x] [NAME …]``.  For each broker it prints the seconds until each test
failed, the seconds until the whole run was over, and the notes of the kit.  With ``-x`` a run ends with its first
failure.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CORE = Path(__file__).parents[1] / "core"
BOUND = 900.0
"""Seconds after which a run is given up."""

SUITE = """
import broken_brokers
TestWhole = broken_brokers.suite({name!r}, harness=broken_brokers.{harness})
"""


def main(names: list[str]) -> None:
    """Run the kit on each broker of *names*, or on all."""
    sys.path.insert(0, str(CORE))
    from broken_brokers import MUTANTS

    flags = [name for name in names if name == "-x"]
    for name in [name for name in names if name not in flags] or ["Sound", *MUTANTS]:
        rules = MUTANTS.get(name, ())
        print(f"{name} ({', '.join(rules) or 'breaks nothing'})", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            _try(name, flags, Path(folder))


def _try(name: str, flags: list[str], folder: Path) -> None:
    harness = os.environ.get("EVENTS_MUTANTS_HARNESS", "FileHarness")
    (folder / "test_whole.py").write_text(SUITE.format(name=name, harness=harness))
    command = [sys.executable, "-m", "pytest", "test_whole.py", "-v", "--tb=line", "-c", os.devnull, *flags]
    command += ["--rootdir", str(folder), "-p", "no:cacheprovider", "-p", "events_core.testing.plugin"]
    began = time.monotonic()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(CORE), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
    }
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        failures, said, in_summary = 0, [], False
        for line in run.stdout:
            in_summary |= "rules of the contract" in line
            if " FAILED" in line and not in_summary:
                failures += 1
                print(f"  {time.monotonic() - began:6.1f} s  {line.split(' FAILED')[0].partition('::')[2]}", flush=True)
            if in_summary and any(mark in line for mark in ("BROKEN:", "declared, not proven", "gave up")):
                said.append(line.rstrip())
            if time.monotonic() - began > BOUND:
                run.kill()
    print(f"  {time.monotonic() - began:6.1f} s  over: {failures} failed, exit code {run.returncode}")
    for line in said:
        print(f"           {line[:180]}")


if __name__ == "__main__":
    main(sys.argv[1:])
