"""On real rows and a real decoder; skipped where the benchmark data are not there."""

from __future__ import annotations

from pathlib import Path

import torch

from eval.config import GateConfig
from eval.gates import trained_gate
from influcoder.influence.decoder import DecoderConfig, load_decoder, randomise_weights
from influcoder.influence.gradients import GradientConfig, GradientProjector
from influcoder.influence.representations import losses
from influcoder.influence.tokens import tokenize
from influcoder.readers import DataSource, read_columns, read_examples
from influcoder.text_format import TextFormat, truncate_all


def test_gradients_of_a_real_decoder_do_not_depend_on_batch_mates(data_folder: Path) -> None:
    source = DataSource(paths=(str(data_folder / "poison" / "pool.jsonl.gz"),), limit=6)
    decoder = load_decoder(DecoderConfig(path=str(data_folder / "models" / "small-lm"), device="cpu"), [], 0)
    rows = tokenize(truncate_all(read_examples(source), TextFormat(max_prompt_chars=100, max_response_chars=100)), decoder)
    assert len({len(row.input_ids) for row in rows}) > 3, "rows of one length would not be padded"
    projector = GradientProjector(decoder, GradientConfig(rank=8, factors="random", dim=2048), seeds=(0, 1))
    together = projector.project(rows)
    for place, row in enumerate(rows):
        alone = projector.project([row])[:, 0]
        error = torch.linalg.norm(together[:, place] - alone, dim=1) / torch.linalg.norm(alone, dim=1)
        assert error.max() <= 1e-5


def test_labels_of_the_poison_task_join_by_id(data_folder: Path) -> None:
    source = DataSource(paths=tuple(str(data_folder / "poison" / f"{name}.jsonl.gz") for name in ("pool", "hard_negatives")))
    labels = read_columns(source, ("label",))
    assert set(labels) == {example.id for example in read_examples(source)}
    assert sum(label["label"] for label in labels.values()) == 120


def test_the_trained_gate_tells_a_real_decoder_from_its_random_weights(data_folder: Path) -> None:
    source = DataSource(paths=(str(data_folder / "poison" / "pool.jsonl.gz"),), limit=12)
    decoder = load_decoder(DecoderConfig(path=str(data_folder / "models" / "small-lm"), device="cpu"), [], 0)
    rows = tokenize(truncate_all(read_examples(source), TextFormat(max_prompt_chars=100, max_response_chars=100)), decoder)
    found = [float(losses(decoder, rows, 2048).mean())]
    for seed in (1, 2):
        randomise_weights(decoder, seed)
        found.append(float(losses(decoder, rows, 2048).mean()))
    trained, untrained = trained_gate(found[0], found[1], GateConfig()), trained_gate(found[2], found[1], GateConfig())
    assert trained is not None and trained.passed and untrained is not None and not untrained.passed, found
