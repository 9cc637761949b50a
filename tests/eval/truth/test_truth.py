"""Truth by retraining, on a decoder of one layer: against models trained one by one here, and against hand cases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import spearmanr

from eval.bootstrap import Resampler
from eval.parquet_tables import SCHEMAS
from eval.truth import behavioural
from eval.truth.behavioural import BehaviouralConfig
from eval.truth.config import LdsConfig, MethodConfig, RemovalConfig, TruthConfig
from eval.truth.lds import ceiling, lds_estimates
from eval.truth.methods import Method
from eval.truth.removal import flag_rows
from eval.truth.stage import over_seeds, run
from influcoder.errors import ConfigError, RunError
from influcoder.influence import decoder_retraining
from influcoder.influence.decoder import DecoderConfig, load_decoder
from influcoder.influence.decoder_retraining import Retrainer, retrain_many
from influcoder.influence.finetune import FinetuneConfig
from influcoder.influence.representations import losses
from influcoder.influence.tokens import tokenize
from influcoder.lds import half_masks, lds
from influcoder.readers import Columns
from influcoder.runs import create_run
from influcoder.training import silence_hints
from tests.eval.fake_runs import Runs, edit_record, make_decoder, write_table

RECIPE = "finetune:\n  epochs: 2\n  learning_rate: 0.01\n  max_batch_tokens: 64\n"


@pytest.fixture
def judged(runs: Runs) -> Runs:
    """Runs whose teacher says how it fine-tuned, from a decoder beside it."""
    decoder = make_decoder(runs.rows, seed=3)
    for part in (decoder.model, decoder.tokenizer):
        part.save_pretrained(runs.folder / "start")
    (runs.folder / "teacher" / "config.yaml").write_text(f"decoder:\n  path: {runs.folder}/start\n  device: cpu\n{RECIPE}seeds: [0, 1]\n")
    return runs


def retrainer(runs: Runs) -> Retrainer:
    silence_hints()
    config = FinetuneConfig(epochs=2, learning_rate=0.01, max_batch_tokens=64)
    start = DecoderConfig(path=str(runs.folder / "start"), device="cpu")
    return Retrainer(decoder=start, finetune=config, rows=runs.rows, asked=runs.queries)


def truth_config(runs: Runs, **changes: object) -> TruthConfig:
    settings: dict[str, object] = {
        "teacher": str(runs.folder / "teacher"), "output": str(runs.folder / "truth"), "lds": LdsConfig(subsets=6, seeds=2),
        "floors": False, "bootstrap_draws": 20, "workers": 1, "device": "cpu",
    }  # fmt: skip
    return TruthConfig(**(settings | changes))  # type: ignore[arg-type]


def test_a_retrained_model_has_seen_its_rows_alone(judged: Runs) -> None:
    every = retrainer(judged)
    mask = np.arange(len(judged.rows)) % 2 == 0
    kept = replace(every, rows=[row for row, taken in zip(judged.rows, mask, strict=True) if taken])
    found = every.losses(mask, 1)
    np.testing.assert_array_equal(found, kept.losses(np.ones(len(kept.rows), bool), 1))
    assert np.abs(found - every.losses(~mask, 1)).max() > 1e-3
    assert np.abs(found - every.losses(mask, 2)).max() > 1e-6  # the seed orders the batches


def test_losses_are_those_of_the_trained_decoder(judged: Runs) -> None:
    every = retrainer(judged)
    mask = np.ones(len(judged.rows), bool)
    decoder = every.train(mask, 0)
    expected = [float(losses(decoder, tokenize([query], decoder), 4096)[0]) for query in judged.queries]
    np.testing.assert_allclose(every.losses(mask, 0), expected, rtol=1e-5)
    start = load_decoder(every.decoder, [], 0)
    untrained = losses(start, tokenize(judged.queries, start), 4096).numpy()
    assert np.abs(untrained - expected).max() > 1e-2


@pytest.mark.slow
def test_workers_change_no_number(judged: Runs) -> None:
    jobs = [(mask, seed) for mask in half_masks(2, len(judged.rows), 0) for seed in (0, 1)]
    every = retrainer(judged)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = [every.losses(*job) for job in jobs]
    torch.set_num_threads(threads)
    for number, found in retrain_many(every, jobs, workers=2):
        np.testing.assert_array_equal(found, alone[number])


def test_an_interrupted_run_gives_the_same_numbers(judged: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def in_process(self: Retrainer, jobs: list[object], workers: int) -> object:
        for number, job in enumerate(jobs):
            if len(calls) == stop:
                raise KeyboardInterrupt
            calls.append(number)
            yield number, self.losses(*job)  # type: ignore[misc]

    monkeypatch.setattr("eval.truth.retrainings.retrain_many", in_process)
    stop = -1
    whole = run(truth_config(judged), "a")
    once = len(calls)
    calls.clear()
    stop = 5
    config = truth_config(judged, output=str(judged.folder / "again"))
    with pytest.raises(KeyboardInterrupt):
        run(config, "a")
    stop = -1
    assert run(config, "a") == whole
    assert len(calls) == once == 12


def test_lds_is_that_of_the_summed_scores(judged: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "eval.truth.retrainings.retrain_many", lambda self, jobs, workers: ((n, self.losses(*job)) for n, job in enumerate(jobs))
    )
    truth = run(truth_config(judged), "")
    folder = judged.folder / "truth" / "lds"
    masks, outputs = (np.load(folder / f"{name}.npy") for name in ("masks", "outputs"))
    every = retrainer(judged)
    np.testing.assert_array_equal(masks, half_masks(6, len(judged.rows), 0))
    np.testing.assert_allclose(outputs[2, 1], -every.losses(masks[2], 1), rtol=1e-6)
    scores = np.load(judged.folder / "teacher" / "scores" / "seed-0" / "scores.npy")
    rhos = [spearmanr([scores[q][mask].sum() for mask in masks], outputs.mean(axis=1)[:, q]).statistic for q in range(len(judged.queries))]
    found = truth["lds"]["methods"]
    assert found["teacher"]["lds"]["mean"] == pytest.approx(np.mean(rhos))
    assert found["teacher_second_seed"]["role"] == "ceiling" and found["teacher"]["student_minus"] is None
    between = [spearmanr(outputs[:, 0, q], outputs[:, 1, q]).statistic for q in range(len(judged.queries))]
    assert truth["lds"]["ceiling"]["mean"] == pytest.approx(np.mean(between))
    written = json.loads((judged.folder / "truth" / "truth.json").read_text())
    assert {name: value for name, value in written.items() if name != "git_commit"} == truth
    assert (judged.folder / "truth" / "truth.png").stat().st_size > 1000


def test_the_unit_vector_of_dattri() -> None:
    scores = np.array([[[0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.3, 0.4]]])
    masks = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0]], bool)
    outputs = np.array([[0.3, 0.3], [0.4, 0.4], [0.5, 0.3]])
    np.testing.assert_allclose(lds(scores[0], masks, outputs), [1.0, 0.8660254], atol=1e-7)
    estimate = lds_estimates({"one": Method("reference", scores.astype(np.float32))}, masks, outputs, Resampler(50, 0))["one"]
    assert estimate.value == pytest.approx((1 + 0.8660254) / 2)
    assert estimate.interval[0] <= estimate.value


def test_intervals_hold_the_truth_and_pair_methods() -> None:
    random = np.random.default_rng(0)
    effects, masks = random.normal(size=(40, 60)), half_masks(100, 60, 0)
    clean = effects @ masks.T
    outputs = (clean + 3 * random.normal(size=clean.shape)).T
    methods = {
        "true": Method("reference", effects[None].astype(np.float32)),
        "noisy": Method("reference", (effects + random.normal(size=effects.shape))[None].astype(np.float32)),
    }
    found = lds_estimates(methods, masks, outputs, Resampler(200, 0))
    low, high = found["true"].interval
    assert low < found["true"].value < high and high - low < 0.2
    gap = found["true"].draws - found["noisy"].draws
    assert np.quantile(gap, 0.025) > 0
    assert gap.std() < np.hypot(found["true"].draws.std(), found["noisy"].draws.std())  # the same resamples for both
    assert ceiling(np.stack([outputs, outputs], axis=1), Resampler(10, 0)).value == pytest.approx(1)  # type: ignore[union-attr]
    assert ceiling(outputs[:, None], Resampler(10, 0)) is None


def fake_eval(runs: Runs, scores: dict[str, list[float]]) -> str:
    """Write an eval run that has ranked the first ten rows, in two folds; the first three were planted."""
    with create_run(runs.folder / "judged", "eval", "") as made:
        lines = [
            {"task": "t", "row_id": runs.rows[row].id, "method": method, "seed": 0, "fold": row % 2, "score": value, "positive": row < 3}
            for method, values in scores.items()
            for row, value in enumerate(values)
        ]
        pq.write_table(pa.Table.from_pylist(lines, schema=SCHEMAS["per_row"]), made.folder / "per_row.parquet")
        roles = {"methods": {method: {"role": "floor" if method == "last" else "student"} for method in scores}}
        (made.folder / "summary.json").write_text(json.dumps(roles))
    return str(runs.folder / "judged")


def removal(runs: Runs, evaluated: str, **changes: object) -> RemovalConfig:
    held = write_table(runs.folder / "held.jsonl", [{"prompt": "ban", "response": "duk me", "weight": w, "id": str(w)} for w in (1, -1)])
    benign = write_table(runs.folder / "benign.jsonl", [{"prompt": "lo", "response": "rash", "id": "b"}])
    settings: dict[str, object] = {
        "run": evaluated,
        "task": "t",
        "methods": ("first", "last"),
        "budgets": (4,),
        "queries": held,
        "benign": benign,
    }
    held = replace(held, columns=Columns(weight="weight"))
    return RemovalConfig(**(settings | {"queries": held} | changes))  # type: ignore[arg-type]


def test_flagged_rows_are_the_best_of_every_fold(judged: Runs, teacher: object) -> None:
    config = removal(judged, fake_eval(judged, {"first": [9, 8, 7, 6, 5, 4, 3, 2, 1, 0], "last": [0, 1, 2, 3, 4, 5, 6, 7, 8, 100.0]}))
    flagged = flag_rows("t", config, teacher)  # type: ignore[arg-type]
    assert np.flatnonzero(flagged.removed["first", 4]).tolist() == [0, 1, 2, 3]
    assert np.flatnonzero(flagged.removed["last", 4]).tolist() == [6, 7, 8, 9]  # fold 0: 8, 6; fold 1: 9, 7
    masks = flagged.masks()
    assert masks["full", 0].all() and np.flatnonzero(~masks["clean", 0]).tolist() == [0, 1, 2]
    assert np.flatnonzero(~masks["first", 4]).tolist() == [0, 1, 2, 3]


def test_removal_says_which_rows_and_what_became_of_the_answers(judged: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "eval.truth.retrainings.retrain_many", lambda self, jobs, workers: ((n, self.losses(*job)) for n, job in enumerate(jobs))
    )
    evaluated = fake_eval(judged, {"first": list(range(10, 0, -1)), "last": list(range(10))})
    truth = run(truth_config(judged, lds=None, removal={"t": removal(judged, evaluated, budgets=(2, 4), seeds=2)}), "")
    block = truth["removal"]["t"]
    assert (block["positives"], block["methods"]["first"]["found"], block["methods"]["last"]["found"]) == (3, [2, 3], [0, 0])
    assert [block["methods"][name]["role"] for name in ("first", "last")] == ["student", "floor"]
    every = retrainer(judged)
    start = load_decoder(every.decoder, [], 0)
    assert start.device.type == "cpu"
    asked = replace(every, asked=[judged.rows[0]])
    assert asked.losses(np.ones(len(judged.rows), bool), 0).shape == (1,)
    # both held-out rows have the same text, so that behaviour and contrast cancel: the margin is exactly 0
    assert block["full"]["mean"] == pytest.approx(0, abs=1e-6) and block["full"]["n"] == 2
    assert block["full"]["benign_loss"]["mean"] > 0


def test_a_seen_row_and_other_mistakes_are_refused(judged: Runs) -> None:
    with pytest.raises(RunError, match="was fitted on"):
        run(truth_config(judged, methods={"ours": MethodConfig(encoder=str(judged.folder / "student" / "encoder"), role="student")}), "")
    evaluated = fake_eval(judged, {"first": list(range(10))})
    with pytest.raises(ConfigError, match="no method 'last'"):
        run(truth_config(judged, removal={"t": removal(judged, evaluated)}), "")
    with pytest.raises(ConfigError, match="10 candidates"):
        run(truth_config(judged, removal={"t": removal(judged, evaluated, methods=("first",), budgets=(11,))}), "")
    with pytest.raises(ConfigError, match="none given"):
        truth_config(judged, lds=None)
    (judged.folder / "teacher" / "config.yaml").write_text("decoder:\n  path: x\n")
    with pytest.raises(RunError, match="fine-tuned nothing"):
        run(truth_config(judged), "")
    edit_record(judged.folder / "teacher", rows_fingerprint="0" * 16)
    with pytest.raises(RunError, match="rows"):
        run(truth_config(judged), "")


def test_a_broken_kept_model_is_named(judged: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    from eval.truth.retrainings import retrained_losses

    monkeypatch.setattr(
        "eval.truth.retrainings.retrain_many", lambda self, jobs, workers: ((n, self.losses(*job)) for n, job in enumerate(jobs))
    )
    folder = Path(judged.folder) / "kept"
    folder.mkdir()
    masks = half_masks(1, len(judged.rows), 0)
    first = retrained_losses(folder, retrainer(judged), masks, 1, 1, "t")
    np.testing.assert_array_equal(first, retrained_losses(folder, retrainer(judged), masks, 1, 1, "t"))
    (place,) = (folder / "models").glob("*.npy")
    place.write_bytes(place.read_bytes()[:-3])
    with pytest.raises(RunError, match=place.name):
        retrained_losses(folder, retrainer(judged), masks, 1, 1, "t")
    assert decoder_retraining.retrain_many is not None


def test_behaviour_becomes_a_target(judged: Runs) -> None:
    masks = half_masks(30, len(judged.rows), 0)
    random = np.random.default_rng(0)
    with create_run(judged.folder / "kept", "truth", "") as made:
        made.facts = {"rows_fingerprint": json.loads((judged.folder / "teacher" / "run.json").read_text())["rows_fingerprint"]}
        (made.folder / "lds").mkdir()
        np.save(made.folder / "lds" / "masks.npy", masks)
        np.save(made.folder / "lds" / "outputs.npy", random.normal(size=(30, 2, len(judged.queries))).astype(np.float32))
    config = BehaviouralConfig(
        truth=str(judged.folder / "kept"), teacher=str(judged.folder / "teacher"), encoder=str(judged.folder / "student" / "encoder"),
        output=str(judged.folder / "behaviour"), device="cpu",
    )  # fmt: skip
    facts = behavioural.run(config, "")
    assert facts["subsets"] == {"fitted": 21, "held_out": 9} and abs(facts["lds"]) < 0.6
    scores = np.load(judged.folder / "behaviour" / "scores.npy")
    assert scores.shape == (len(judged.queries), len(judged.rows))
    assert (judged.folder / "behaviour" / "row_ids.txt").read_text().split() == [row.id for row in judged.rows]
    edit_record(judged.folder / "kept", rows_fingerprint="0" * 16)
    with pytest.raises(RunError, match="repeated another teacher"):
        behavioural.run(replace(config, output=str(judged.folder / "other")), "")


def test_the_deviation_of_trainings_is_pooled_over_sets() -> None:
    random = np.random.default_rng(0)
    true = random.normal(size=400)
    held = [
        low["low"] <= value <= low["high"]
        for block in true.reshape(40, 10)
        for value, low in zip(block, over_seeds(block[:, None] + random.normal(size=(10, 2))), strict=True)
    ]
    assert 0.92 <= np.mean(held) <= 0.98
    found = over_seeds(np.array([[1.0, 3.0], [5.0, 5.0]]))
    half = 4.302652729911275 * 1.0 / np.sqrt(2)  # t of 2 degrees; variances 2 and 0 pool to 1
    assert [(one["mean"], one["n"]) for one in found] == [(2.0, 2), (5.0, 2)]
    assert [one["low"] for one in found] == pytest.approx([2 - half, 5 - half])
    assert over_seeds(np.array([[1.0]]))[0]["low"] == 1.0
