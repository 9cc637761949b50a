from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.special import stdtrit
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from torch import Tensor

from influcoder.calibration import load_mu_scale
from influcoder.distribution import fit_distribution, load_distribution
from influcoder.errors import ConfigError, DataError, InflucoderError, RunError
from influcoder.examples import fingerprint, load_examples, write_examples
from influcoder.features import create_store, load_features, write_shard
from influcoder.runs import open_run, partial_folder
from influcoder.splits import SplitConfig
from influcoder.text_format import load_text_format
from influcoder.training import silence_hints
from student import module
from student.config import LOSSES, EncoderConfig, FreshEncoder, OptimizerConfig, RecipeConfig, StudentConfig
from student.data import Block, plan_epoch
from student.module import KeepBest
from student.objective import block_loss
from student.stage import load_target, run, shuffle_targets
from tests.student.fake_teacher import DIM, TEXT, make_teacher, write_store

SMALL = FreshEncoder(hidden_size=32, layers=1, heads=2, intermediate_size=32, vocab_size=400)


@pytest.fixture
def teacher(finished_teacher: Path, tmp_path: Path) -> Path:
    """A teacher run of this test alone."""
    return Path(shutil.copytree(finished_teacher, tmp_path / "teacher"))


def make_config(teacher: Path, output: Path, **changes: Any) -> StudentConfig:
    settings: dict[str, Any] = {
        "output": str(output),
        "teacher": str(teacher),
        "encoder": EncoderConfig(fresh=SMALL, max_tokens=48, embedding_dim=DIM),
        "split": SplitConfig(validation=0.2, test=0.2),
        "recipe": RecipeConfig(block_rows=16),
        "optimizer": OptimizerConfig(learning_rate=5e-3),
        "trainer": {"max_epochs": 8, "enable_progress_bar": False, "accelerator": "cpu"},
    }
    return StudentConfig(**(settings | changes))


def run_stage(config: StudentConfig) -> Path:
    silence_hints()
    run(config, "resolved: yaml\n")
    return Path(config.output)


@pytest.fixture(scope="module")
def finished(finished_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete student run. Do not write into it."""
    return run_stage(make_config(finished_teacher, tmp_path_factory.mktemp("student") / "student"))


def test_the_run_holds_what_readers_ask_for(finished: Path, finished_teacher: Path) -> None:
    record, teacher = open_run(finished, "student"), open_run(finished_teacher, "teacher")
    for name in ("rows_fingerprint", "decoder_fingerprint"):
        assert record[name] == teacher[name]
    assert (record["teacher_method"], record["teacher_seed"], record["near_duplicate_jaccard"]) == ("influcoder", 4, 0.7)
    fidelity = json.loads((finished / "encoder" / "fidelity.json").read_text())
    validation = fidelity["validation"]
    found = {name: validation[name] for name in ("epoch", "queries")}
    found["per_query_spearman"] = validation["methods"]["student"]["per_query_spearman"]
    assert found == pytest.approx(record["validation"], abs=1e-6)
    row = "| **student** | " + " | ".join(f"{figure:.2f}" for figure in validation["methods"]["student"].values()) + " |"
    assert row in (finished / "encoder" / "README.md").read_text()
    table = pq.read_table(finished / "split.parquet").to_pydict()
    expected = {
        "asks": "rows",
        "folds": None,
        "fold": 0,
        "shuffle_target": False,
        "base_model": None,
        "rows_trained": table["part"].count("train"),
    }
    for found in (record, fidelity):
        assert {name: found[name] for name in expected} == expected
    assert table["id"] == [row.id for row in load_examples(finished_teacher / "rows.parquet")]
    assert set(Counter(table["part"])) == {"train", "validation", "test"}
    for name in ("encoder", "initial_encoder"):
        assert load_text_format(finished / name) == TEXT
    log = (finished / "log" / "metrics.csv").read_text()
    assert "loss" in log and "validation_per_query_spearman" in log
    assert not [path for path in finished.rglob("*") if path.suffix in {".ckpt", ".pt", ".bin", ".pkl"}]


def test_the_best_encoder_is_saved_and_has_learnt(finished: Path, finished_teacher: Path) -> None:
    target = load_target(make_config(finished_teacher, finished))
    judge = KeepBest(target.of("validation"), 1)
    before, after = (judge.measure(SentenceTransformer(str(finished / name), device="cpu")) for name in ("initial_encoder", "encoder"))
    assert after == pytest.approx(open_run(finished, "student")["validation"]["per_query_spearman"], abs=1e-6)
    assert after > before + 0.2, (before, after)
    unseen = KeepBest(target.of("test"), 1)  # rows that neither training nor the choice of the epoch saw
    before, after = (unseen.measure(SentenceTransformer(str(finished / name), device="cpu")) for name in ("initial_encoder", "encoder"))
    assert after > before + 0.2, (before, after)


def spearman_of_unseen_rows(config: StudentConfig, name: str) -> float:
    encoder = SentenceTransformer(str(Path(config.output) / name), device="cpu")
    return KeepBest(load_target(config).of("test"), 1).measure(encoder)


def test_a_shuffled_target_is_another_row_of_the_same_side(finished_teacher: Path, tmp_path: Path) -> None:
    target = load_target(make_config(finished_teacher, tmp_path / "student"))
    made, again, other = (shuffle_targets(target, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(made.rows.vectors, again.rows.vectors)
    np.testing.assert_array_equal(made.of("test").features, target.of("test").features)
    assert made.rows.parts == target.rows.parts and made.rows.texts == target.rows.texts
    for part in ("train", "validation"):
        true, shuffled, others = (each.of(part).features for each in (target, made, other))
        assert (true != shuffled).any(axis=1).all()
        assert (shuffled != others).any(axis=1).mean() > 0.5
        np.testing.assert_array_equal(np.unique(shuffled, axis=0), np.unique(true, axis=0))
        np.testing.assert_array_equal(made.of(part).asking, shuffled)  # the row that it pretends to be asks too


def test_a_control_is_recorded_and_its_epoch_not_chosen_by_the_truth(finished_teacher: Path, tmp_path: Path) -> None:
    split = SplitConfig(validation=0.2, folds=4, fold=2)
    config = make_config(finished_teacher, tmp_path / "student", shuffle_target=True, split=split)
    record = open_run(run_stage(config), "student")
    parts = pq.read_table(tmp_path / "student" / "split.parquet").to_pydict()["part"]
    assert (record["folds"], record["fold"], record["shuffle_target"], record["rows_trained"]) == (4, 2, True, parts.count("train"))
    encoder = SentenceTransformer(str(tmp_path / "student" / "encoder"), device="cpu")
    judge = KeepBest(shuffle_targets(load_target(config), config.seed).of("validation"), 1)
    assert record["validation"]["per_query_spearman"] == pytest.approx(judge.measure(encoder), abs=1e-6)


@pytest.mark.slow
def test_a_student_of_shuffled_targets_learns_nothing_of_unseen_rows(finished: Path, finished_teacher: Path, tmp_path: Path) -> None:
    """One control's figure spreads by about 0.2, as its initial encoder's does: the mean over seeds is judged."""
    controls = [make_config(finished_teacher, tmp_path / f"seed-{seed}", seed=seed, shuffle_target=True) for seed in range(8)]
    for config in controls:
        run_stage(config)
    before, after = (
        float(np.mean([spearman_of_unseen_rows(config, name) for config in controls])) for name in ("initial_encoder", "encoder")
    )
    learnt = spearman_of_unseen_rows(make_config(finished_teacher, finished), "encoder")
    assert learnt > 0.75, learnt
    assert after < min(before + 0.2, learnt - 0.25), (before, after, learnt)


def test_the_encoder_is_a_sentence_transformer_with_unit_embeddings(finished: Path) -> None:
    found = SentenceTransformer(str(finished / "encoder"), device="cpu").encode(["Ask: bark\nResponse: dutt"], show_progress_bar=False)
    assert found.shape == (1, DIM)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_the_encoder_says_what_rows_it_was_distilled_on(finished: Path, finished_teacher: Path) -> None:
    target, found = load_target(make_config(finished_teacher, finished)), load_distribution(finished / "encoder")
    encoder = SentenceTransformer(str(finished / "encoder"), device="cpu")

    def far(texts: list[str]) -> float:
        return float(found.far(module.encode(encoder, texts), texts).mean()) if found else -1

    validation, _ = target.rows.of("validation")
    assert 0 <= far(validation) <= 2 / len(validation)  # what is largest of some dozens of rows is the limit
    expected = fit_distribution(*((module.encode(encoder, texts), texts) for texts in (target.rows.of("train")[0], validation)))
    assert found is not None and found.limits == pytest.approx(expected.limits, rel=1e-4)
    test, _ = target.rows.of("test")
    assert far(test) < 0.2 < 0.9 < far([f"Ask: {{'{place}': [1, 2]}}; #import x\nResponse: ÄÖÜ ({place}) == 東京" for place in range(20)])


def test_the_same_seed_gives_the_same_weights(finished: Path, finished_teacher: Path, tmp_path: Path) -> None:
    again = run_stage(make_config(finished_teacher, tmp_path / "again"))
    other = run_stage(make_config(finished_teacher, tmp_path / "other", seed=1, trainer={"max_epochs": 1, "enable_progress_bar": False}))
    for weights in ("initial_encoder/model.safetensors", "encoder/model.safetensors"):
        assert (again / weights).read_bytes() == (finished / weights).read_bytes()
        assert (other / weights).read_bytes() != (finished / weights).read_bytes()


def test_the_reference_objective_learns_too(finished_teacher: Path, tmp_path: Path) -> None:
    made = run_stage(make_config(finished_teacher, tmp_path / "student", recipe=RecipeConfig(objective="reference")))
    judge = KeepBest(load_target(make_config(finished_teacher, made)).of("validation"), 1)
    before = judge.measure(SentenceTransformer(str(made / "initial_encoder"), device="cpu"))
    record = open_run(made, "student")
    assert record["objective"] == "reference"
    assert record["validation"]["per_query_spearman"] > before + 0.1


def stored(teacher: Path, side: str) -> NDArray[np.float32]:
    """Return what the shards hold, read without our reader."""
    shards = sorted((teacher / "features" / "seed-4" / side).glob("*.safetensors"))
    return np.concatenate([load_file(shard)["features"].astype(np.float32) for shard in shards])


def first_block(config: StudentConfig, monkeypatch: pytest.MonkeyPatch) -> Block:
    """Train; return the first block that reached the loss."""
    seen: list[Block] = []

    def spy(embeddings: Tensor, block: Block, recipe: RecipeConfig) -> Tensor:
        seen.append(block)
        assert block.target.shape == (len(block.queries), len(block.candidates)) and recipe == config.recipe
        loss = block_loss(embeddings, block, recipe)
        assert torch.isfinite(loss)
        return loss

    monkeypatch.setattr(module, "block_loss", spy)
    run_stage(config)
    return seen[0]


RECIPES = [RecipeConfig(block_rows=16), RecipeConfig(objective="reference", num_queries=3, num_candidates=5)]
ONE_STEP = {"max_steps": 1, "enable_progress_bar": False, "accelerator": "cpu"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_asymmetric_features_reach_the_loss_as_what_asks_times_what_is_ranked(
    tmp_path: Path, recipe: RecipeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = make_teacher(tmp_path / "teacher", asymmetric=True)
    config = make_config(teacher, tmp_path / "student", recipe=recipe, trainer=ONE_STEP)
    found = first_block(config, monkeypatch).target.numpy()
    train = np.flatnonzero(np.array(load_target(config).rows.parts) == "train")
    asked, ranked = plan_epoch(None, len(train), recipe, config.seed, 0)[0]
    asking, features = stored(teacher, "rows_as_queries"), stored(teacher, "rows")
    expected = [[asking[query] @ features[row] for row in train[ranked]] for query in train[asked]]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    swapped = [[features[query] @ asking[row] for row in train[ranked]] for query in train[asked]]
    assert np.abs(found - swapped).max() > 0.1  # the test can tell


@pytest.mark.parametrize("recipe", RECIPES)
def test_where_queries_ask_their_features_reach_the_loss(tmp_path: Path, recipe: RecipeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = make_teacher(tmp_path / "teacher", num_queries=40)
    config = make_config(teacher, tmp_path / "student", recipe=recipe, asks="queries", trainer=ONE_STEP)
    found = first_block(config, monkeypatch).target.numpy()
    target = load_target(config)
    queries, rows = (np.flatnonzero(np.array(side.parts) == "train") for side in (target.askers, target.rows))
    asked, ranked = plan_epoch(len(queries), len(rows), recipe, config.seed, 0)[0]
    expected = stored(teacher, "queries")[queries[asked]] @ stored(teacher, "rows")[rows[ranked]].T
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def add_second_seed(teacher: Path, num_queries: int) -> None:
    """Write features of seed 5 whose every vector is that of the row, or query, before it."""
    for side in ("rows", "queries")[: 2 if num_queries else 1]:
        examples = load_examples(teacher / f"{side}.parquet")
        write_store(teacher / "features" / "seed-5" / side, examples, np.roll(stored(teacher, side), 1, axis=0))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("num_queries", [0, 40])
def test_the_second_seed_of_the_same_rows_reaches_the_loss(
    tmp_path: Path, num_queries: int, shuffle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = make_teacher(tmp_path / "teacher", num_queries=num_queries)
    add_second_seed(teacher, num_queries)
    recipe = RecipeConfig(block_rows=16, uncertainty=True)
    asks = "queries" if num_queries else "rows"
    config = make_config(teacher, tmp_path / "student", recipe=recipe, asks=asks, shuffle_target=shuffle, trainer=ONE_STEP)
    block = first_block(config, monkeypatch)
    target = load_target(config)
    sides = [np.roll(side.vectors, 1, axis=0) for side in (target.askers, target.rows)]
    expected = replace(target, askers=replace(target.askers, vectors=sides[0]), rows=replace(target.rows, vectors=sides[1]))
    if shuffle:
        expected = shuffle_targets(expected, config.seed)
    pairs = expected.of("train")
    asked, ranked = plan_epoch(len(pairs.askers) if num_queries else None, len(pairs.texts), recipe, config.seed, 0)[0]
    assert block.second_target is not None and not torch.allclose(block.second_target, block.target, atol=1e-2)
    np.testing.assert_allclose(block.second_target, pairs.scores(asked, ranked), atol=2e-3)  # both are rounded to float16


def test_uncertainty_without_a_second_seed_or_of_other_rows_is_refused(teacher: Path, tmp_path: Path) -> None:
    config = make_config(teacher, tmp_path / "student", recipe=RecipeConfig(uncertainty=True))
    add_second_seed(teacher, 0)
    remake_store(teacher / "features" / "seed-5" / "rows", rows_fingerprint="0" * 16)
    with pytest.raises(RunError, match=r"seed-5: of rows 0{16}, run\.json of \w+; expected the same; run the teacher again"):
        run_stage(config)
    record = json.loads((teacher / "run.json").read_text())
    (teacher / "run.json").write_text(json.dumps(record | {"seeds": [4]}))
    with pytest.raises(RunError, match=r"has seed 4 alone; expected two with recipe\.uncertainty; run the teacher with two") as caught:
        run_stage(config)
    assert "\n" not in str(caught.value)


def test_all_losses_together_learn(finished_teacher: Path, tmp_path: Path) -> None:
    recipe = RecipeConfig(block_rows=16, losses=dict.fromkeys(LOSSES, 1.0), tail_sharpness=1.0, matryoshka=[4])
    config = make_config(finished_teacher, tmp_path / "student", recipe=recipe)
    run_stage(config)
    before, after = (spearman_of_unseen_rows(config, name) for name in ("initial_encoder", "encoder"))
    assert after > before + 0.2, (before, after)


@pytest.fixture(scope="module")
def asked_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher run with queries. Do not write into it."""
    return make_teacher(tmp_path_factory.mktemp("asked") / "teacher", num_queries=60)


def test_a_student_of_queries_ranks_unseen_rows_for_unseen_queries(asked_teacher: Path, tmp_path: Path) -> None:
    config = make_config(asked_teacher, tmp_path / "student", asks="queries")
    made = run_stage(config)
    record = open_run(made, "student")
    tables = {name: pq.read_table(made / f"{name}.parquet").to_pydict() for name in ("split", "query_split")}
    for name, side in (("split", "rows"), ("query_split", "queries")):
        assert tables[name]["id"] == [example.id for example in load_examples(asked_teacher / f"{side}.parquet")]
        assert record[f"{side}_trained"] == tables[name]["part"].count("train")
    assert record["asks"] == "queries"
    assert record["queries_fingerprint"] == open_run(asked_teacher, "teacher")["queries_fingerprint"]
    target = load_target(config)
    figures = {}
    for part in ("validation", "test"):
        queries, rows = (np.flatnonzero(np.array(tables[name]["part"]) == part) for name in ("query_split", "split"))
        true = stored(asked_teacher, "queries")[queries] @ stored(asked_teacher, "rows")[rows].T
        for name in ("initial_encoder", "encoder"):
            encoder = SentenceTransformer(str(made / name), device="cpu")
            asking, ranked = (
                encoder.encode([side.texts[place] for place in places], show_progress_bar=False)
                for side, places in ((target.askers, queries), (target.rows, rows))
            )
            figures[part, name] = np.mean([spearmanr(*pair).statistic for pair in zip(asking @ ranked.T, true, strict=True)])
    assert record["validation"]["per_query_spearman"] == pytest.approx(figures["validation", "encoder"], abs=1e-5)
    assert record["validation"]["queries"] == tables["query_split"]["part"].count("validation")
    assert figures["test", "encoder"] > figures["test", "initial_encoder"] + 0.2, figures


def remake_store(store: Path, **changes: str) -> None:
    """Write a store anew under another manifest: its shards name the store that they belong to."""
    features = load_features(store)
    manifest = replace(features.manifest, **changes)  # type: ignore[arg-type]  # all of them strings
    shutil.rmtree(store)
    create_store(store, manifest)
    for shard in range(manifest.num_shards):
        write_shard(store, shard, features.vectors[manifest.rows_of(shard)])


def test_a_query_and_its_copy_among_the_rows_share_a_part(tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path / "teacher", num_queries=60)
    rows = load_examples(teacher / "rows.parquet")
    queries = [replace(row, id=f"copy of {row.id}") for row in rows[:60]]
    write_examples(teacher / "queries.parquet", queries)
    record = teacher / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"queries_fingerprint": fingerprint(queries)}))
    remake_store(teacher / "features" / "seed-4" / "queries", rows_fingerprint=fingerprint(queries))
    target = load_target(make_config(teacher, tmp_path / "student", asks="queries"))
    assert target.askers.parts == target.rows.parts[:60]
    assert target.rows.parts == load_target(make_config(teacher, tmp_path / "student")).rows.parts  # as where rows ask
    assert len(set(target.askers.parts)) == 3


def test_shuffled_queries_and_rows_get_others_of_their_part(asked_teacher: Path, tmp_path: Path) -> None:
    target = load_target(make_config(asked_teacher, tmp_path / "student", asks="queries"))
    made = shuffle_targets(target, 0)
    for before, after in ((target.askers, made.askers), (target.rows, made.rows)):
        moved = (before.vectors != after.vectors).any(axis=1)
        np.testing.assert_array_equal(moved, np.array(before.parts) != "test")


@pytest.mark.parametrize(
    ("num_queries", "facts", "asks", "message"),
    [
        (0, {}, "queries", r"teacher: has no queries; expected some with asks: queries; run the teacher with queries, or let rows ask"),
        (60, {"rows_ask": False}, "rows", r"made of scores, which do not say what a row asks for; expected asks: queries"),
        (60, {"queries_fingerprint": "0" * 16}, "queries", r"queries\.parquet is of queries \w+, run\.json of 0{16}; expected the same"),
        (12, {}, "queries", r"\d of 12 queries fall to \w+, expected at least 6; give more queries"),
    ],
)
def test_who_cannot_ask_is_refused(tmp_path: Path, num_queries: int, facts: dict[str, Any], asks: str, message: str) -> None:
    teacher = make_teacher(tmp_path / "teacher", num_queries=num_queries)
    (teacher / "run.json").write_text(json.dumps(json.loads((teacher / "run.json").read_text()) | facts))
    with pytest.raises(InflucoderError, match=message) as caught:
        run_stage(make_config(teacher, tmp_path / "student", asks=asks))
    assert "\n" not in str(caught.value) and not (tmp_path / "student").exists()


def test_training_stops_without_progress(finished_teacher: Path, tmp_path: Path) -> None:
    config = make_config(
        finished_teacher,
        tmp_path / "student",
        optimizer=OptimizerConfig(learning_rate=1e-12),
        patience=2,
        trainer={"max_epochs": 30, "enable_progress_bar": False, "accelerator": "cpu"},
    )
    made = run_stage(config)
    epochs = [line.split(",")[0] for line in (made / "log" / "metrics.csv").read_text().splitlines()[1:]]
    assert set(epochs) == {"0", "1", "2"}
    assert open_run(made, "student")["validation"]["epoch"] == 0


class Watch(Callback):
    """Notes the encoder's weights after every step."""

    seen: ClassVar[list[dict[str, Tensor]]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, module.Distillation)
        self.seen.append({name: value.detach().clone() for name, value in pl_module.encoder.named_parameters()})


def test_the_average_of_the_weights_is_validated_and_saved(finished_teacher: Path, tmp_path: Path) -> None:
    Watch.seen.clear()
    watch = {"class_path": "tests.student.test_stage.Watch"}
    trainer = {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu", "callbacks": [watch]}
    optimizer = OptimizerConfig(learning_rate=5e-3, ema=0.7)
    config = make_config(finished_teacher, tmp_path / "student", optimizer=optimizer, trainer=trainer)
    made = run_stage(config)
    found = SentenceTransformer(str(made / "encoder"), device="cpu")
    assert len(Watch.seen) == 3
    for name, value in found.named_parameters():
        first, second, third = (weights[name] for weights in Watch.seen)
        np.testing.assert_allclose(value.detach(), 0.7 * (0.7 * first + 0.3 * second) + 0.3 * third, atol=1e-6)
    judge = KeepBest(load_target(config).of("validation"), 1)
    assert judge.measure(found) == pytest.approx(open_run(made, "student")["validation"]["per_query_spearman"], abs=1e-6)


def test_chunks_and_bfloat16_learn_too(finished_teacher: Path, tmp_path: Path, finished: Path) -> None:
    trainer = {"max_epochs": 8, "enable_progress_bar": False, "accelerator": "cpu", "precision": "bf16-mixed"}
    recipe = RecipeConfig(block_rows=16, max_batch_tokens=150)
    made = run_stage(make_config(finished_teacher, tmp_path / "student", recipe=recipe, trainer=trainer))
    figures = [open_run(run, "student")["validation"]["per_query_spearman"] for run in (made, finished)]
    assert figures[0] > figures[1] - 0.1, figures
    assert {value.dtype for value in load_file(made / "encoder" / "model.safetensors").values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizerConfig(ema=1.0), r"optimizer: ema 1\.0; expected a decay between 0 and 1"),
        (lambda: RecipeConfig(max_batch_tokens=0), r"recipe: max_batch_tokens 0; expected at least 1"),
        (lambda: make_config(Path(), Path(), save_every_seconds=-1.0), r"save_every_seconds: -1\.0; expected seconds, 0 to save after"),
        (lambda: make_config(Path(), Path(), trainer={"strategy": "fsdp"}), r"trainer\.strategy: 'fsdp'; expected auto, or ddp, whose"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_corrupt_shard_is_refused(teacher: Path, tmp_path: Path) -> None:
    path = teacher / "features" / "seed-4" / "rows" / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"shard-00001\.safetensors: checksum \w+, expected \w+; .*run the teacher again") as caught:
        run_stage(make_config(teacher, tmp_path / "student"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "student").exists() and not partial_folder(tmp_path / "student").exists()


def test_other_rows_are_refused(teacher: Path, tmp_path: Path) -> None:
    rows = load_examples(teacher / "rows.parquet")
    write_examples(teacher / "rows.parquet", rows[::-1])
    with pytest.raises(RunError, match=r"rows\.parquet is of rows \w+, run\.json of \w+; expected the same"):
        run_stage(make_config(teacher, tmp_path / "student"))


def test_features_of_other_rows_are_refused(teacher: Path, tmp_path: Path) -> None:
    remake_store(teacher / "features" / "seed-4" / "rows", rows_fingerprint="0" * 16)
    with pytest.raises(RunError, match=r"features is of rows 0{16}, run\.json of"):
        run_stage(make_config(teacher, tmp_path / "student"))


def test_an_unfinished_teacher_is_refused(teacher: Path, tmp_path: Path) -> None:
    teacher.rename(partial_folder(teacher))
    with pytest.raises(RunError, match=r"unfinished .*run the teacher stage again"):
        run_stage(make_config(teacher, tmp_path / "student"))


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    make_teacher(tmp_path / "teacher", count=14)
    with pytest.raises(DataError, match=r"\d of 14 rows fall to \w+, expected at least 6; give more rows"):
        run_stage(make_config(tmp_path / "teacher", tmp_path / "student"))


def test_an_existing_output_is_refused(finished: Path, finished_teacher: Path) -> None:
    with pytest.raises(RunError, match="exists already"):
        run_stage(make_config(finished_teacher, finished))


def test_a_student_of_f_influence_says_what_its_scores_mean(teacher: Path, tmp_path: Path) -> None:
    record = json.loads((teacher / "run.json").read_text())
    (teacher / "run.json").write_text(json.dumps(record | {"method": "f_influence", "learning_rates": [0.1] * 4}))
    config = make_config(teacher, tmp_path / "student")
    run_stage(config)
    found = load_mu_scale(tmp_path / "student" / "encoder")
    assert found is not None
    judge = KeepBest(load_target(config).of("validation"), 1)
    encoder = SentenceTransformer(str(tmp_path / "student" / "encoder"), device="cpu")
    scores = module.encode(encoder, judge.queries) @ module.encode(encoder, judge.candidates).T
    slope, intercept = np.polyfit(scores.ravel(), judge.target.ravel(), 1)
    assert (found.slope, found.intercept) == pytest.approx((slope, intercept), rel=1e-3, abs=1e-4)
    missed = np.mean((judge.target - intercept - slope * scores) ** 2)
    asking, ranked = (side.reshape(len(side), 4, -1) for side in judge.vectors)
    steps = np.einsum("qtd,ctd->tqc", asking, ranked).astype(np.float64)
    error = np.sqrt(4 * steps.var(axis=0, ddof=1)) * stdtrit(3, 0.975) / 1.959964
    assert found.deviation == pytest.approx(np.sqrt(missed + np.mean(error**2)), rel=1e-3)
