"""The model card of an encoder folder, its `README.md`: how well it follows its teacher, what it was made of, how to use it, what it cannot do.

A student run writes one beside its figures, which are of the validation side; `influcoder push` writes it again, with a licence, the
repository's name and, where there is one, the table of an eval, which is of the test side.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from influcoder.calibration import FIDELITY_FILE
from influcoder.errors import RunError
from influcoder.examples import Example, Turn
from influcoder.model_card_tables import figures_of_test_side, figures_of_validation_side, results
from influcoder.text_format import load_text_format, render

CARD_FILE = "README.md"
LIMITS = """\
- It speaks of the decoder `{decoder_fingerprint}` alone, and of rows like those of the pool.
- Influence is first order, around the weights of a checkpoint or a few; it is not what would have happened without a row.
- It is as good as its teacher at best: read floors and ceiling beside it. Scores compare rows for a query, not queries.
- Close vectors are of like influence, which need not be of like meaning: this is no search engine."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What only who publishes an encoder can say of it."""

    repository: str
    """OWNER/NAME"""
    license: str
    license_name: str | None
    license_link: str | None
    base_model: str | None
    """hub id of what the encoder was before; None when it is not known"""


def load_fidelity(folder: Path) -> dict[str, Any]:
    """Return what a student run says of its encoder.

    Raises:
        RunError: when it says nothing, or what it says is not readable.
    """
    path = folder / FIDELITY_FILE
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        facts["validation"]["methods"]["student"]["per_query_spearman"], facts["shuffle_target"]  # what every card needs
        return facts
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not readable ({error}); expected what a student run says of its encoder; distil again") from error


def model_card(folder: Path, publication: Publication | None = None, evaluated: dict[str, Any] | None = None) -> str:
    """Return the card of an encoder folder.

    Args:
        folder: with `fidelity.json`, `modules.json` and `text_format.json`.
        publication: where it is to be read; None in a run.
        evaluated: `summary.json` of an eval of this student.

    Raises:
        RunError: when a file is missing or not readable.
    """
    facts = load_fidelity(folder)
    own_modules = "influcoder." in (folder / "modules.json").read_text(encoding="utf-8")
    parts = [
        f"# {publication.repository.partition('/')[2] if publication else 'Influcoder student'}",
        *(["**A control: its target was shuffled. Not for use.**"] if facts["shuffle_target"] else []),
        _about(facts),
        "## How well it follows its teacher",
        *([] if evaluated is None else figures_of_test_side(evaluated)),
        *figures_of_validation_side(facts),
        "## Made of",
        _made_of(facts, publication, evaluated),
        "## Use",
        *_use(folder, publication.repository if publication else None, own_modules=own_modules),
        "## Limits",
        LIMITS.format(**facts),
    ]
    data = _front_matter(publication, evaluated, own_modules=own_modules)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n" + "\n\n".join(parts) + "\n"))  # read back: what is malformed is refused here


def _front_matter(publication: Publication | None, evaluated: dict[str, Any] | None, *, own_modules: bool) -> ModelCardData:
    known: dict[str, Any] = {}
    if publication is not None:
        names = ("license", "license_name", "license_link", "base_model")
        known = {name: getattr(publication, name) for name in names if getattr(publication, name) is not None}
        if evaluated is not None:
            known |= {"model_name": publication.repository.partition("/")[2], "eval_results": results(evaluated)}
    return ModelCardData(
        library_name="influcoder" if own_modules else "sentence-transformers",
        pipeline_tag="feature-extraction",  # not sentence-similarity: what is alike here is influence, not meaning
        tags=["influcoder", "training-data-attribution", "onnx"],
        **known,
    )


def _about(facts: dict[str, Any]) -> str:
    return (
        "A text encoder whose dot products rank training rows as gradient influence does: larger = training on the row lowered the loss on the "
        f"query more. Distilled by [influcoder](https://arxiv.org/abs/2606.13668) from the teacher `{facts['teacher_method']}` of the decoder "
        f"`{facts['decoder_fingerprint']}`."
    )


def _made_of(facts: dict[str, Any], publication: Publication | None, evaluated: dict[str, Any] | None) -> str:
    said = {
        "teacher": f"`{facts['teacher_method']}`, seed {facts['teacher_seed']}",
        "decoder": f"fingerprint `{facts['decoder_fingerprint']}`",
        "rows": f"pool `{facts['rows_fingerprint']}`, {facts['rows_trained']} of it trained on",
    }
    if "queries_trained" in facts:
        said["queries"] = f"set `{facts.get('queries_fingerprint', 'unknown')}`, {facts['queries_trained']} of it trained on"
    said["student"] = f"objective `{facts.get('objective', 'unknown')}`, seed {facts.get('seed', 'unknown')}"
    if publication is not None:
        said["base model"] = publication.base_model or "not known, or trained from scratch"
        said["licence"] = publication.license_name or publication.license
    if evaluated is not None:
        said["judged on"] = f"rows `{evaluated['query_set']['rows']}`, queries `{evaluated['query_set']['fidelity']}`"
    return "\n".join(f"- {name}: {what}" for name, what in said.items())


def _use(folder: Path, repository: str | None, *, own_modules: bool) -> list[str]:
    example = Example(id="", context=(Turn(role="user", content="What is asked?"),), response="What is answered.")
    text = json.dumps(render(example, load_text_format(folder)), ensure_ascii=False)
    download = [] if repository is None else ["from huggingface_hub import snapshot_download"]
    here, by_name = ('"THIS_FOLDER"',) * 2 if repository is None else (f'snapshot_download("{repository}")', f'"{repository}"')
    if own_modules:
        imports = [*download, "from pathlib import Path", "from influcoder.sentence_encoder import load_sentence_encoder"]
        load = f"encoder = load_sentence_encoder(Path({here}))"
    else:
        imports, load = ["from sentence_transformers import SentenceTransformer"], f"encoder = SentenceTransformer({by_name})"
    with_onnx = [
        *download, "from influcoder import DataSource, OnnxEncoder, read_examples, render", "",
        f"encoder = OnnxEncoder({here})",
        'pool, queries = (read_examples(DataSource(paths=(name,))) for name in ("pool.jsonl", "queries.jsonl"))',
        "rows, asked = ([render(example, encoder.text_format) for example in examples] for examples in (pool, queries))",
        "scores = encoder.encode(asked) @ encoder.encode(rows).T",
    ]  # fmt: skip
    with_torch = [*imports, "", load, f"asked = rows = [{text}]", "scores = encoder.encode(asked) @ encoder.encode(rows).T"]
    return [
        "`scores` is (queries, rows), the larger the more a row helps. With onnxruntime and no torch (`pip install 'influcoder[cpu]'`); a line "
        "of the files has `prompt` and `response`:",
        "\n".join(["```python", *with_onnx, "```"]),
        "With sentence-transformers; texts must look as `text_format.json` says:",
        "\n".join(["```python", *with_torch, "```"]),
    ]
