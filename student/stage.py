"""Load the teacher's features, split, distil, save the encoder.

RUN/encoder/  initial_encoder/  split.parquet  query_split.parquet (where queries ask)  log/metrics.csv  fidelity.png

A killed run goes on from its last saved state, RUN/state.safetensors, and ends with the same weights.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Trainer, seed_everything
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor

from influcoder.distribution import Distribution, fit_distribution, save_distribution
from influcoder.errors import DataError, RunError
from influcoder.examples import Example, fingerprint, load_examples
from influcoder.features import Manifest, load_features, load_row_vectors
from influcoder.influence.decoder import Decoder
from influcoder.runs import Run, create_run, open_run, partial_folder
from influcoder.splits import Part, assign_split
from influcoder.text_format import TextFormat, load_text_format, render, save_text_format
from student.causal_lm import load_causal_lm, with_markers
from student.closed_form import fit_head
from student.config import StudentConfig
from student.coordinates import principal_coordinates, projected
from student.dashboard import log_dashboard
from student.data import DistillationData, Pairs
from student.encoder import load_encoder, longest, save_encoder, tokenize, truncated_share
from student.fidelity import Scores, measure, mu_scale, validation_scores
from student.fidelity import write as write_fidelity
from student.fit import fit, is_first_process
from student.module import Distillation, KeepBest, encode
from student.plot import write_plot
from student.state import state_file
from student.static import fit_table

MINIMUM_ROWS = 6
MOST_EMBEDDED = 4096
"""training rows whose embeddings say how these lie"""


@dataclass(frozen=True)
class Side:
    """What asks, or what is ranked, and which part of the split each belongs to."""

    ids: tuple[str, ...]
    texts: list[str]
    vectors: NDArray[np.float32]
    """(texts, dim) from the teacher's first seed"""
    parts: list[Part]

    def of(self, part: Part) -> tuple[list[str], NDArray[np.float32]]:
        """Return texts and vectors of one part."""
        places = [place for place, found in enumerate(self.parts) if found == part]
        return [self.texts[place] for place in places], self.vectors[places]


@dataclass(frozen=True)
class Target:
    """What is imitated."""

    record: dict[str, Any]
    """the teacher's run.json"""
    text_format: TextFormat
    askers: Side
    """the teacher's queries, or the rows with their vectors as queries"""
    rows: Side
    rows_ask: bool
    lm: Decoder | None = None
    """the causal LM that is to become the encoder, if any"""

    def of(self, part: Part) -> Pairs:
        """Return what asks and what is ranked in one part."""
        return Pairs(*self.askers.of(part), *self.rows.of(part), self.rows_ask)

    @property
    def sides(self) -> dict[str, Side]:
        """The sides that were split: the rows, and the queries where these ask."""
        return {"rows": self.rows} | ({} if self.rows_ask else {"queries": self.askers})


class Distilled(NamedTuple):
    """What `distil` leaves."""

    encoder: SentenceTransformer
    best: KeepBest
    trainer: Trainer


def run(config: StudentConfig, resolved_yaml: str) -> None:
    """Make the student run `config.output`.

    Raises:
        RunError: when the teacher run is unfinished, or its features belong to other rows.
        DataError: when a side of the split has too few rows.
    """
    output, first = Path(config.output), is_first_process()
    make = create_run(output, "student", resolved_yaml, resume=True) if first else nullcontext(Run(partial_folder(output)))
    with make as made:
        target = load_target(config)
        encoder, best, trainer = distil(config, target, made)
        if first:
            scores = _finish(config, target, encoder, best, made)
    if first:
        state_file(output).unlink(missing_ok=True)  # now that nothing has to be resumed
        log_dashboard(trainer, output, best, scores["student"], log_encoder=config.log_encoder)  # an outage there costs no result
        print(f"{config.output}: complete; validation per-query Spearman {best.best:.3f} (epoch {best.best_epoch})")


def _finish(config: StudentConfig, target: Target, encoder: SentenceTransformer, best: KeepBest, made: Run) -> dict[str, Scores]:
    """Write what the run is made for; return the validation scores of every method."""
    folder = made.folder / "encoder"
    save_encoder(encoder, folder)
    save_text_format(folder, target.text_format)
    for name, side in target.sides.items():
        path = made.folder / ("split.parquet" if name == "rows" else "query_split.parquet")
        pq.write_table(pa.table({"id": list(side.ids), "part": list(side.parts)}), path)
    save_distribution(folder, _distribution(target, encoder))
    made.facts = {
        "teacher_method": target.record["method"],
        "teacher_seed": target.record["seeds"][0],
        "decoder_fingerprint": target.record["decoder_fingerprint"],
        "rows_fingerprint": target.record["rows_fingerprint"],
        "asks": config.asks,
        "near_duplicate_jaccard": config.split.near_duplicate_jaccard,
        "folds": config.split.folds,
        "fold": config.split.fold,
        "shuffle_target": config.shuffle_target,
        "base_model": config.encoder.hub_id,
        **({} if target.rows_ask else {"queries_fingerprint": target.record["queries_fingerprint"]}),
        **{f"{name}_trained": side.parts.count("train") for name, side in target.sides.items()},
        "seed": config.seed,
        "objective": config.recipe.objective,
    }
    second = None
    if len(target.record["seeds"]) > 1 and not config.shuffle_target:
        second = KeepBest(of_second_seed(target, Path(config.teacher)).of("validation"), config.patience)
    scores = validation_scores(best, encoder, made.folder / "initial_encoder", second)
    measured = measure(best, scores)
    if target.record["method"] == "f_influence":
        scale = mu_scale(scores["student"], best.vectors, len(target.record["learning_rates"]))
        measured |= {} if scale is None else {"mu": asdict(scale)}
    write_fidelity(folder, made.facts, measured)
    write_plot(made.folder / "fidelity.png", best.target, scores)
    made.facts["validation"] = {"per_query_spearman": best.best, "epoch": best.best_epoch, "queries": len(best.queries)}
    return scores


def _distribution(target: Target, encoder: SentenceTransformer) -> Distribution:
    """Sum up the training rows, those ranked, for whoever asks later whether a row is like them."""
    (train, _), (validation, _) = target.rows.of("train"), target.rows.of("validation")
    chosen = [train[place] for place in np.random.default_rng(0).permutation(len(train))[:MOST_EMBEDDED]]
    return fit_distribution((encode(encoder, chosen), train), (encode(encoder, validation), validation))


def load_target(config: StudentConfig) -> Target:
    """Read a teacher run; split its rows, and its queries where these ask.

    Raises:
        RunError: when it is unfinished, its parts do not belong together, or it does not say what is asked for.
        DataError: when a part has too few rows or queries.
    """
    folder = Path(config.teacher)
    record, text_format = open_run(folder, "teacher"), load_text_format(folder)
    place = folder / "features" / f"seed-{record['seeds'][0]}"
    if config.asks == "queries" and "queries_fingerprint" not in record:
        raise RunError(f"{folder}: has no queries; expected some with asks: queries; run the teacher with queries, or let rows ask")
    if config.asks == "rows" and not record.get("rows_ask", True):
        raise RunError(f"{folder}: was made of scores, which do not say what a row asks for; expected asks: queries; set it")
    manifest, asking, vectors = load_row_vectors(place)
    lm = load_causal_lm(config.encoder.causal_lm) if config.encoder.causal_lm else None
    own_format = with_markers(text_format, lm) if lm else text_format
    examples = _read_side(folder, "rows", manifest, record)
    texts = [render(example, text_format) for example in examples]  # all students of a teacher are split alike
    own_texts = [render(example, own_format) for example in examples]
    if config.asks == "rows":
        rows = Side(manifest.ids, own_texts, vectors, assign_split(texts, config.split))
        askers = replace(rows, vectors=asking)
    else:
        queries = load_features(place / "queries")
        asked = _read_side(folder, "queries", queries.manifest, record)
        query_texts, own_queries = ([render(example, form) for example in asked] for form in (text_format, own_format))
        parts = assign_split([*texts, *query_texts], config.split)  # together, so that a query and its near-copy share a part
        rows = Side(manifest.ids, own_texts, vectors, parts[: len(texts)])
        askers = Side(queries.manifest.ids, own_queries, queries.as_queries, parts[len(texts) :])
    target = Target(record, own_format, askers, rows, rows_ask=config.asks == "rows", lm=lm)
    for name, side in target.sides.items():
        for part in ("train", "validation", "test"):
            count = side.parts.count(part)
            if count < MINIMUM_ROWS:
                raise DataError(
                    f"{folder}: {count} of {len(side.parts)} {name} fall to {part}, expected at least {MINIMUM_ROWS}; give more {name}"
                )
    return target


def of_second_seed(target: Target, folder: Path) -> Target:
    """Return the target with the vectors of the teacher's second seed in the place of the first's.

    Raises:
        RunError: when there is none, or it is of other rows or queries.
    """
    seeds = target.record["seeds"]
    if len(seeds) < 2:
        raise RunError(f"{folder}: has seed {seeds[0]} alone; expected two with recipe.uncertainty; run the teacher with two")
    place = folder / "features" / f"seed-{seeds[1]}"
    manifest, asking, vectors = load_row_vectors(place)
    found = {"rows": manifest}
    if not target.rows_ask:
        queries = load_features(place / "queries")
        found["queries"], asking = queries.manifest, queries.as_queries
    for name, side in found.items():
        expected = target.record[f"{name}_fingerprint"]
        if side.rows_fingerprint != expected:
            raise RunError(f"{place}: of {name} {side.rows_fingerprint}, run.json of {expected}; expected the same; run the teacher again")
    return replace(target, askers=replace(target.askers, vectors=asking), rows=replace(target.rows, vectors=vectors))


def shuffle_targets(target: Target, seed: int) -> Target:
    """Give every training and validation row (or query) the vector of another one of its part; test rows keep theirs.

    Validation rows too: the best epoch is chosen on them, and a choice by the true ranking would let the truth back in.
    Where rows ask, both sides are of the same parts, hence in the same new order: a row gets both vectors of the same other row.
    """
    return replace(target, askers=_shuffle(target.askers, seed), rows=_shuffle(target.rows, seed))


def _shuffle(side: Side, seed: int) -> Side:
    vectors = side.vectors.copy()
    for stream, part in enumerate(("train", "validation"), start=1):
        places = np.flatnonzero(np.array(side.parts) == part)
        order = np.random.default_rng([seed, 0, stream]).permutation(places)  # three numbers: epochs draw from [seed, epoch]
        vectors[order] = side.vectors[np.roll(order, 1)]  # one cycle through the part, so that none keeps its own
    return replace(side, vectors=vectors)


def distil(config: StudentConfig, target: Target, made: Run) -> Distilled:
    """Train an encoder on the training side; return it with its best weights on the validation side."""
    seed_everything(config.seed, verbose=False)
    second = of_second_seed(target, Path(config.teacher)) if config.recipe.uncertainty else None
    if config.shuffle_target:
        target = shuffle_targets(target, config.seed)
        second = shuffle_targets(second, config.seed) if second else None
    pairs = replace(target.of("train"), second_seed=second.of("train") if second else None)
    encoder = load_encoder(config.encoder, pairs.every_text, config.seed, target.lm)
    if is_first_process():
        save_encoder(encoder, made.folder / "initial_encoder")
        save_text_format(made.folder / "initial_encoder", target.text_format)
        for name, side in target.sides.items():
            counts = ", ".join(f"{side.parts.count(part)} {part}" for part in ("train", "validation", "test"))
            longer = truncated_share(encoder, side.texts)
            print(f"student: {counts} {name}; {longer:.1%} of the texts are longer than {longest(encoder)} tokens")
    best = KeepBest(target.of("validation"), config.patience)
    if config.encoder.fitted:
        solve, what = (fit_head, "head") if config.encoder.static is None else (fit_table, "table")
        fitted = solve(encoder, pairs.every_text, _coordinates(pairs, encoder), (best.queries, best.candidates, best.target))
        print(f"student: {what} in closed form, penalty {fitted.penalty:g}, validation {fitted.figure:.3f}")
        best.take(best.measure(encoder), encoder, -1)
    data = DistillationData(pairs, partial(tokenize, encoder), config.recipe, config.seed)
    trainer = fit(config, Distillation(encoder, config.recipe, config.optimizer, config.seed), data, best, made)
    best.restore(encoder)
    return Distilled(encoder, best, trainer)


def _coordinates(pairs: Pairs, encoder: SentenceTransformer) -> Tensor:
    """Return the teacher's principal coordinates of `pairs.every_text`, as wide as the encoder."""
    width = encoder.get_embedding_dimension()
    assert width is not None  # it ends in a head
    found = principal_coordinates(pairs.targets, width)
    return found.coordinates if pairs.rows_ask else torch.cat([projected(torch.from_numpy(pairs.asking), found.axes), found.coordinates])


def _read_side(folder: Path, name: str, manifest: Manifest, record: dict[str, Any]) -> list[Example]:
    """Return rows or queries, in the order of their features."""
    examples = load_examples(folder / f"{name}.parquet")
    expected = record[f"{name}_fingerprint"]
    for what, found in ((f"{name}.parquet", fingerprint(examples)), ("features", manifest.rows_fingerprint)):
        if found != expected:
            raise RunError(f"{folder}: {what} is of {name} {found}, run.json of {expected}; expected the same; run the teacher again")
    return examples
