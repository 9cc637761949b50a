"""The `influcoder` command: `attribute`, `contributions`, `export`, `push`, `serve` and `verify`, also as `python -m influcoder`.

Each command is a dataclass parsed as the stages' configs are (`influcoder.program`). Torch is imported by `export` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import influcoder
from influcoder.errors import ConfigError, require
from influcoder.onnx_settings import Variant
from influcoder.program import parse_config, run_program
from influcoder.readers import DataSource, read_examples
from influcoder.text_format import load_text_format, render

HELP = """usage: influcoder COMMAND [CONFIG.yaml] [--key value ...]

commands:
  attribute      rank the rows of a pool by their influence on queries: --encoder --pool.paths --queries.paths --output [--rescore.*]
  contributions  value who gave the rows, in a signed report: the same and --attribution --key (made by --make-key KEY.pem)
  export         write an encoder folder's ONNX graph, accepted only if it ranks as torch does: --encoder --sample.paths
  push           upload an encoder folder to a model hub with a model card: --encoder --repository OWNER/NAME --license [--dry_run true]
  serve          answer queries over HTTP from an index, with a page to explore it: --encoder --index [--rows.paths --port]
  verify         check a contribution report and name what differs: REPORT --encoder --pool.paths --queries.paths

influcoder COMMAND --help lists a command's settings; influcoder --version prints the version."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write `onnx/` into an encoder folder, each graph accepted only when its rankings agree with torch's."""

    encoder: str
    """sentence-transformers folder with `text_format.json`"""
    sample: DataSource
    """rows like those to attribute, of mixed lengths: rankings are compared on them; some hundreds are enough"""
    variants: tuple[Variant, ...] = ()
    """beside float32: int8 for CPUs, bf16 for CPUs that have it (by OpenVINO), fp16 for GPUs; each must rank at .99 of torch"""
    minimum_spearman: float = 0.999
    """least mean per-query Spearman between torch and onnxruntime in float32, -1 to 1"""

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
    elif command in COMMANDS:
        COMMANDS[command](arguments[1:])
    else:
        names = ", ".join(list(COMMANDS)[:-1]) + f" or {list(COMMANDS)[-1]}"
        raise ConfigError(f"command: {command or 'none'}; expected {names}; see influcoder --help")


def _attribute(arguments: Sequence[str]) -> None:
    from influcoder.attribution import AttributionConfig, attribute  # pyarrow and tokenizers: not for --help

    config, resolved = parse_config(AttributionConfig, arguments, "influcoder attribute")
    facts = attribute(config, resolved)
    counts, speed = facts["counts"], facts["rows_per_second"]
    far = f", {facts['far_share']:.1%} far from what it was distilled on" if "far_share" in facts else ""
    print(
        f"{config.output}: {counts['rows']} rows ({counts['rejected']} set aside, {facts['truncated_share']:.1%} cut by the encoder{far}), "
        f"{counts['queries']} queries, {'all shards were there' if speed is None else f'{speed} rows/s'}; "
        "see topk.parquet, rows.parquet, index/, rejected.jsonl"
    )
    if found := facts.get("rescore"):
        print(
            f"topk.parquet by {found['teacher']}: {found['short_listed']} rows scored again ({found['computed']} computed, {found['seen']} in its run, "
            f"{found['unscored']} that it cannot read)"
        )
    if "kept" in counts:
        print(f"{counts['kept']} rows in kept.jsonl, {counts['removed']} in removed.jsonl")
    if counts["broken_files"]:
        print(f"{counts['broken_files']} files break off and were read up to there; rejected.jsonl names them (rest_of_file)")


def _contributions(arguments: Sequence[str]) -> None:
    if arguments and arguments[0] in ("--make-key", "--make_key"):
        _make_key(arguments[1:])
        return
    from influcoder.contributions.config import ContributionsConfig
    from influcoder.contributions.job import contributions

    config, resolved = parse_config(ContributionsConfig, arguments, "influcoder contributions")
    facts = contributions(config, resolved)
    counts = facts["counts"]
    print(
        f"{config.output}: {counts['contributors']} contributors, {counts['rows']} rows ({counts['unique_rows']} different), "
        f"{facts['status']}; order under resampled queries {facts['rank_stability']}; signed by {facts['signer'][:16]}; see contributions.html"
    )


def _make_key(arguments: Sequence[str]) -> None:
    from influcoder.contributions.signing import make_key

    if len(arguments) != 1:
        raise ConfigError(
            f"--make-key: {len(arguments)} arguments; expected one, the file to make: influcoder contributions --make-key KEY.pem"
        )
    public = make_key(Path(arguments[0]))
    print(f"{arguments[0]}: keep it to yourself; give {public} to whoever verifies")


def _verify(arguments: Sequence[str]) -> None:
    from influcoder.contributions.config import VerifyConfig
    from influcoder.contributions.verify import verify

    if arguments and Path(arguments[0]).is_dir():
        arguments = ["--report", *arguments]
    config, _ = parse_config(VerifyConfig, arguments, "influcoder verify")
    found = verify(config)
    by = "the key you gave" if found["pinned"] else "a key that only the report itself names; give --public_key for one you trust"
    print(
        f"{config.report}: verified; signed by {found['signer'][:16]} ({by}); values and rewards of {found['rows']} rows recomputed; "
        f"{found['audited']} random rows scored again, which finds {found['found_share']:.1%} of falsified rows in 95 of 100 cases"
    )


def _export(arguments: Sequence[str]) -> None:
    config, _ = parse_config(ExportConfig, arguments, "influcoder export")
    folder = Path(config.encoder)
    text_format = load_text_format(folder)
    texts = [render(example, text_format) for example in read_examples(config.sample)]
    require("sentence_transformers", "train")
    from influcoder.onnx_export import export_encoder  # torch

    parity = export_encoder(folder, texts, variants=config.variants, minimum_spearman=config.minimum_spearman)
    print(
        f"{folder / 'onnx'}: accepted; per-query Spearman {parity['spearman_mean']:.6f} "
        f"(least {parity['spearman_min']:.6f}) over {parity['queries']} queries and {parity['rows']} rows"
    )
    for name, found in parity["variants"].items():
        print(f"{name}: accepted; per-query Spearman {found['spearman_mean']:.4f}, overlap of the first ten {found['top_overlap']:.2f}")


def _push(arguments: Sequence[str]) -> None:
    from influcoder.push import PushConfig, push

    config, _ = parse_config(PushConfig, arguments, "influcoder push")
    files = push(config)
    for file in files:
        print(f"{file.sha256}  {file.size:>12,}  {file.name}")
    size = sum(file.size for file in files)
    done = "nothing was sent" if config.dry_run else "uploaded in one commit"
    print(f"{config.repository}: {len(files)} files, {size:,} bytes; {done}; the card is {Path(config.encoder) / 'README.md'}")


def _serve(arguments: Sequence[str]) -> None:
    from influcoder.serving.config import ServeConfig

    config, _ = parse_config(ServeConfig, arguments, "influcoder serve")
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require(module, "serve")
    from influcoder.serving.server import serve

    serve(config, lambda address, rows: print(f"{address}: {rows} rows; stop it with Ctrl+C", flush=True))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "attribute": _attribute,
    "contributions": _contributions,
    "export": _export,
    "push": _push,
    "serve": _serve,
    "verify": _verify,
}
