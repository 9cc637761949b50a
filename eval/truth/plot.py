"""`truth.png`: LDS with intervals, and behaviour against rows removed, one panel each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.plot import COLOURS, LINE
from eval.table import short
from eval.truth.table import ordered
from influcoder.errors import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_plot(path: Path, truth: dict[str, Any]) -> None:
    """Draw the picture; png.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    figures = require("matplotlib.figure", "train")
    blocks = [("lds", truth["lds"])] if "lds" in truth else []
    blocks += list(truth.get("removal", {}).items())
    if not blocks:
        return
    figure = figures.Figure(figsize=(6.2 * len(blocks), 4.6), layout="constrained")
    for panel, (name, block) in zip(figure.subplots(1, len(blocks), squeeze=False).flat, blocks, strict=True):
        if name == "lds":
            _draw_lds(panel, block)
        else:
            _draw_removal(panel, name, block)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _draw_lds(panel: Axes, block: dict[str, Any]) -> None:
    names = ordered(block["methods"], "lds")
    for place, name in enumerate(names):
        method = block["methods"][name]
        value = method["lds"]
        panel.barh(place, value["mean"], height=0.7, color=COLOURS[method["role"]])
        panel.plot([value["low"], value["high"]], [place, place], color="black", linewidth=1)
        panel.annotate(short(value["mean"]), (max(value["high"], 0), place), (5, 0), textcoords="offset points", va="center", fontsize=9)
    if block["ceiling"] is not None:
        panel.axvline(block["ceiling"]["mean"], color=LINE, linewidth=1, linestyle="--", zorder=0)
        panel.set_title(f"-- a second training {short(block['ceiling']['mean'])}", loc="right", fontsize=9, color=LINE)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set_title("Predicts retraining", loc="left", fontweight="bold")
    panel.set_xlabel("linear datamodelling score, 95 % interval", fontsize=9)


def _draw_removal(panel: Axes, name: str, block: dict[str, Any]) -> None:
    for kind, label, style in (("full", "nothing removed", ":"), ("clean", "never saw them", "--")):
        panel.axhline(block[kind]["mean"], color=LINE, linewidth=1, linestyle=style, label=label)
        panel.axhspan(block[kind]["low"], block[kind]["high"], color=LINE, alpha=0.08)
    for method, found in block["methods"].items():
        points = found["behaviour"]
        middle, low, high = ([point[key] for point in points] for key in ("mean", "low", "high"))
        line = panel.plot(block["budgets"], middle, marker="o", markersize=4, label=method)[0]
        panel.fill_between(block["budgets"], low, high, color=line.get_color(), alpha=0.12)
    panel.set_title(f"{name}: removed and retrained", loc="left", fontweight="bold")
    panel.set_xlabel(f"rows removed ({block['positives']} were planted)", fontsize=9)
    panel.set_ylabel("behaviour, nats a token", fontsize=9)
    panel.legend(fontsize=8, frameon=False)
