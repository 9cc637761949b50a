"""The explorer's page, and what it may do."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources


def explorer() -> tuple[str, str]:
    """Return the page, and a policy that lets it run its own script, ask this server, and nothing else."""
    page = resources.files("influcoder.serving").joinpath("explorer.html").read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return page, (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
