"""The `influcoder` command: `influcoder attribute` and `influcoder export`, also as `python -m influcoder`.

Each command is a dataclass parsed as the stages' configs are (`influcoder.program`). Torch is imported by `export` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import influcoder
from influcoder.errors import ConfigError, require
from influcoder.program import parse_config, run_program
from influcoder.readers import DataSource, read_examples
from influcoder.text_format import load_text_format, render

HELP = """usage: influcoder COMMAND [CONFIG.yaml] [--key value ...]

commands:
  attribute   rank the rows of a pool by their influence on queries: --encoder --pool.paths --queries.paths --output
  export      write an encoder folder's ONNX graph, accepted only if it ranks as torch does: --encoder --sample.paths

influcoder COMMAND --help lists a command's settings; influcoder --version prints the version."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write `onnx/` into an encoder folder, accepted only when its rankings agree with torch's."""

    encoder: str
    """sentence-transformers folder with `text_format.json`"""
    sample: DataSource
    """rows like those to attribute, of mixed lengths: rankings are compared on them; some hundreds are enough"""
    minimum_spearman: float = 0.999
    """least mean per-query Spearman between torch and onnxruntime, -1 to 1"""

    def __post_init__(self) -> None:
        if not -1 <= self.minimum_spearman <= 1:
            raise ConfigError(f"minimum_spearman: {self.minimum_spearman}; expected a number from -1 to 1")


def main() -> None:
    """Run the command line."""
    run_program(dispatch)


def dispatch(arguments: Sequence[str]) -> None:
    """Call the command that the first argument names with the others.

    Raises:
        ConfigError: when there is no such command.
    """
    command = arguments[0] if arguments else ""
    if command in ("-h", "--help"):
        print(HELP)
    elif command == "--version":
        print(f"influcoder {influcoder.__version__}")
    elif command == "attribute":
        _attribute(arguments[1:])
    elif command == "export":
        _export(arguments[1:])
    else:
        raise ConfigError(f"command: {command or 'none'}; expected attribute or export; see influcoder --help")


def _attribute(arguments: Sequence[str]) -> None:
    from influcoder.attribution import AttributionConfig, attribute  # pyarrow and tokenizers: not for --help

    config, resolved = parse_config(AttributionConfig, arguments, "influcoder attribute")
    facts = attribute(config, resolved)
    counts, speed = facts["counts"], facts["rows_per_second"]
    print(
        f"{config.output}: {counts['rows']} rows ({counts['rejected']} set aside, {facts['truncated_share']:.1%} cut by the encoder), "
        f"{counts['queries']} queries, {'all shards were there' if speed is None else f'{speed} rows/s'}; "
        "see topk.parquet, rows.parquet, index/, rejected.jsonl"
    )
    if "kept" in counts:
        print(f"{counts['kept']} rows in kept.jsonl, {counts['removed']} in removed.jsonl")
    if counts["broken_files"]:
        print(f"{counts['broken_files']} files break off and were read up to there; rejected.jsonl names them (rest_of_file)")


def _export(arguments: Sequence[str]) -> None:
    config, _ = parse_config(ExportConfig, arguments, "influcoder export")
    folder = Path(config.encoder)
    text_format = load_text_format(folder)
    texts = [render(example, text_format) for example in read_examples(config.sample)]
    require("sentence_transformers", "train")
    from influcoder.onnx_export import export_encoder  # torch

    parity = export_encoder(folder, texts, minimum_spearman=config.minimum_spearman)
    print(
        f"{folder / 'onnx'}: accepted; per-query Spearman {parity['spearman_mean']:.6f} "
        f"(least {parity['spearman_min']:.6f}) over {parity['queries']} queries and {parity['rows']} rows"
    )
