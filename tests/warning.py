"""WARNINGs in the log of a test."""

from __future__ import annotations

import pytest


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the WARNINGs, without those of a close that took too long on a busy machine."""
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    return [text for text in told if not text.startswith("closing")]
