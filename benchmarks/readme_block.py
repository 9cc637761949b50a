"""A part of the README that a benchmark writes, between two marks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

README = Path("README.md")


@dataclass(frozen=True)
class Block:
    """What stands between the marks; their text says who writes it."""

    begin: str
    end: str

    def quoted(self, readme: str) -> str:
        """Return what stands between the marks."""
        return readme.split(self.begin, 1)[1].split(self.end, 1)[0].strip("\n") + "\n"

    def write(self, content: str) -> None:
        """Put `content` there."""
        readme = README.read_text()
        before, after = readme.split(self.begin)[0], readme.split(self.end)[1]
        README.write_text(f"{before}{self.begin}\n\n{content}\n{self.end}{after}")


def line(*cells: str) -> str:
    """Return one line of a markdown table."""
    return f"| {' | '.join(cells)} |"
