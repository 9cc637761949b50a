"""`python -m influcoder`: the same as the `influcoder` command."""

from __future__ import annotations

from influcoder.cli import main

main()
