"""The part of the README that quotes `python -m benchmarks.curvature`: written by `python -m benchmarks.curvature_table`, checked by a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.readme_block import Block, line
from eval.table import short

RESULT = Path("benchmarks/results/curvature.json")
BLOCK = Block("<!-- curvature: written by python -m benchmarks.curvature_table -->", "<!-- end of curvature -->")
METHODS = {
    "full": "Gauss-Newton, exact",
    "block": "Gauss-Newton, exact in each layer",
    "ekfac": "**EK-FAC**",
    "diagonal": "Gauss-Newton's diagonal",
    "identity": "inner product of gradients",
}


def table(path: Path) -> str:
    """Return the markdown that stands between the marks."""
    figures = json.loads(path.read_text())
    agreement, lds, flips, brittle = (figures[name] for name in ("agreement", "lds", "flips_in_top_10_percent", "brittleness"))
    lines = [
        line(
            "curvature",
            "PBRF",
            "one row left out",
            "half the rows left out (LDS)",
            "wrong labels in the top 10 %",
            "wrong without its best",
        ),
        "| --- " * 6 + "|",
    ]
    for name, title in METHODS.items():
        low, high = lds[name]["interval"]
        scored = f"{short(lds[name]['value'])} [{short(low)}, {short(high)}]"
        lines.append(
            line(title, _pair(agreement["pbrf"][name]), _pair(agreement["loo"][name]), scored, short(flips[name]), _shares(brittle[name]))
        )
    lines.append(line("PBRF", "", _pair(agreement["loo"]["pbrf"]), "", "", ""))
    lines.append(line("loss of the row", "", "", "", short(flips["loss"]), ""))
    lines.append(line("rows of the same class", "", "", "", "", _shares(brittle["same class"])))
    itself = short(figures["lds_seed_to_seed"])
    lines.append(line("the truth with itself", _pair(agreement["pbrf_linearity"]), _pair(agreement["loo_ceiling"]), itself, "", ""))
    return "\n".join(lines) + "\n"


def _pair(found: dict[str, Any]) -> str:
    return f"{short(found['spearman'])} / {short(found['pearson'])}"


def _shares(found: list[float]) -> str:
    return " / ".join(short(share) for share in found)


def main() -> None:
    """Write the table into the README."""
    BLOCK.write(table(RESULT))


if __name__ == "__main__":
    main()
