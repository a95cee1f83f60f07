"""A link to the repository at the foot of each page, if the checkout knows where it came from.

The address is that of the remote ``origin``, so that a fork links to itself and no address stands in a file.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["footer_icons", "page_of"]

_SSH = re.compile(r"(?:ssh://)?[\w.-]+@([\w.-]+)(?::\d+/|[:/])(.+)")
"""``git@host:owner/name`` and ``ssh://git@host:port/owner/name``."""


def page_of(remote: str) -> str | None:
    """Return the web page of a repository with the git address *remote*; ``None`` if it has none.

    The page of a code host has the same host and path as the address.  A user name or a password in it is left out.
    """
    ssh = _SSH.fullmatch(remote)
    if ssh is not None:
        host, path = ssh.groups()
    else:
        parts = urlsplit(remote)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return None  # for example a folder of this machine
        host, path = parts.hostname, parts.path
    return f"https://{host}/{path.strip('/').removesuffix('.git')}"


def footer_icons(folder: Path) -> list[dict[str, Any]]:
    """Return furo's option ``footer_icons``: a link to the repository that *folder* was cloned from."""
    if shutil.which("git") is None:
        return []
    asked = subprocess.run(["git", "-C", folder, "remote", "get-url", "origin"], capture_output=True, text=True)
    page = page_of(asked.stdout.strip())
    return [{"name": "Repository", "url": escape(page), "html": "Repository", "class": ""}] if page else []
