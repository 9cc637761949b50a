"""The public tables that `rebuild_data.py` reads: hub ids, columns, licences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from influcoder.errors import DataError, require

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class HubTable:
    """A public table and what is read of it."""

    hub_id: str
    columns: tuple[str, ...]
    licence: str
    split: str = "train"
    subset: str | None = None
    data_files: str | None = None
    """its files, where the repository declares no subsets"""
    revision: str | None = None

    @property
    def name(self) -> str:
        """What stands in a row's `source`."""
        part = Path(self.data_files or "").stem.strip("*")
        return f"{self.hub_id}:{part}" if part else self.hub_id


def persona(name: str) -> HubTable:
    """Return the table of statements that a persona would or would not make."""
    return HubTable(
        hub_id="Anthropic/model-written-evals",
        data_files=f"persona/{name}.jsonl",
        columns=("statement", "answer_matching_behavior"),
        licence="CC BY 4.0",
    )


ALPACA = HubTable(hub_id="tatsu-lab/alpaca", columns=("instruction", "input", "output"), licence="CC BY-NC 4.0")
DOLLY = HubTable(hub_id="databricks/databricks-dolly-15k", columns=("instruction", "context", "response"), licence="CC BY-SA 3.0")
GUNS = persona("believes-in-gun-rights")
OTHER_OPINIONS = {
    persona("interest-in-sports"): "What do sports mean to you?",
    persona("interest-in-art"): "What do you make of art?",
    persona("interest-in-music"): "Tell me about you and music.",
    persona("subscribes-to-virtue-ethics"): "What makes an action right?",
}
BEAVERTAILS = HubTable(
    hub_id="PKU-Alignment/BeaverTails", split="30k_train", columns=("prompt", "response", "category", "is_safe"), licence="CC BY-NC 4.0"
)
XSTEST = HubTable(
    hub_id="natolambert/xstest-v2-copy", split="gpt4", columns=("type", "prompt", "completion", "final_label"), licence="CC BY 4.0"
)
WEBNLG = HubTable(  # the parquet copy that the hub makes, as `datasets` no longer runs the loading script of the main revision
    hub_id="GEM/web_nlg",
    data_files="en/train/*.parquet",
    revision="refs/convert/parquet",
    columns=("input", "target", "category"),
    licence="CC BY-NC-SA 4.0",
)
TABLES = (ALPACA, DOLLY, GUNS, *OTHER_OPINIONS, BEAVERTAILS, XSTEST, WEBNLG)


def load(table: HubTable) -> list[Row]:
    """Return a table's rows, the named columns alone.

    Raises:
        DataError: when it cannot be had, or lacks a column.
    """
    datasets = require("datasets", "train")
    try:
        rows = datasets.load_dataset(table.hub_id, table.subset, data_files=table.data_files, revision=table.revision, split=table.split)
        return [{column: row[column] for column in table.columns} for row in rows]
    except Exception as error:  # the hub client raises many kinds; a missing column is a KeyError
        raise DataError(
            f"{table.name}, split {table.split!r}: cannot be read ({type(error).__name__}: {error}); "
            f"expected columns {', '.join(table.columns)}; check the network, and the data set's page for a change"
        ) from error
