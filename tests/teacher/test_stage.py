from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import teacher.features
import teacher.stage
from influcoder.errors import DataError, RunError
from influcoder.examples import fingerprint, load_examples
from influcoder.features import load_features, write_shard
from influcoder.influence.basis import Basis
from influcoder.influence.capture import gradient_layers
from influcoder.influence.decoder import DecoderConfig, FreshDecoder, fingerprint_model, load_decoder
from influcoder.influence.finetune import AdapterConfig, FinetuneConfig
from influcoder.influence.gradients import GradientConfig, GradientProjector
from influcoder.influence.tokens import tokenize
from influcoder.program import run_program
from influcoder.readers import Columns, DataSource
from influcoder.runs import open_run
from influcoder.scores import load_scores
from influcoder.text_format import TextFormat, load_text_format
from influcoder.training import silence_hints
from teacher.__main__ import main
from teacher.config import TeacherConfig
from teacher.stage import run

WORDS = "red blue green cat dog bird sings runs eats fish bread stone".split()
GRADIENTS = GradientConfig(rank=4, dim=128, shard_rows=8)


def write_rows(path: Path, count: int, seed: int, label: object = None) -> None:
    r = random.Random(seed)
    rows: list[dict[str, Any]] = [
        {"id": f"{path.stem}-{i}", "prompt": " ".join(r.choices(WORDS, k=r.randint(2, 6))), "response": " ".join(r.choices(WORDS, k=4))}
        for i in range(count)
    ]
    lines = [json.dumps(row | {"weight": 1.0 if i % 2 else -1.0, "poisoned": label}) for i, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")


def make_config(folder: Path, **changes: Any) -> TeacherConfig:
    """Return a config on 20 rows and 4 queries in `folder`; they are written when they are not there."""
    folder.mkdir(exist_ok=True)
    for name, count, seed in (("pool", 20, 0), ("queries", 4, 1)):
        if not (folder / f"{name}.jsonl").exists():
            write_rows(folder / f"{name}.jsonl", count, seed)
    settings: dict[str, Any] = {
        "output": str(folder / "run"),
        "rows": DataSource(paths=(str(folder / "pool.jsonl"),)),
        "queries": DataSource(paths=(str(folder / "queries.jsonl"),), columns=Columns(weight="weight")),
        "decoder": DecoderConfig(
            fresh=FreshDecoder(hidden_size=16, layers=1, heads=2, intermediate_size=16, vocab_size=280, max_tokens=96), device="cpu"
        ),
        "text": TextFormat(max_prompt_chars=20, max_response_chars=40),
        "finetune": FinetuneConfig(epochs=1),
        "gradients": GRADIENTS,
        "trainer": {"enable_progress_bar": False},
    }
    return TeacherConfig(**(settings | changes))


def run_stage(config: TeacherConfig, resolved: str = "same: config\n") -> Path:
    silence_hints()
    run(config, resolved)
    return Path(config.output)


def shards(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "features").rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run; its inputs lie beside it."""
    return run_stage(make_config(tmp_path_factory.mktemp("teacher")))


def test_the_run_holds_what_readers_ask_for(finished: Path) -> None:
    record = open_run(finished, "teacher")
    rows, queries = load_examples(finished / "rows.parquet"), load_examples(finished / "queries.parquet")
    assert [row.id for row in rows] == [f"pool-{i}" for i in range(20)]
    assert max(len(row.prompt) for row in rows) == 20  # truncated once, before any tokenizer
    assert [query.weight for query in queries] == [-1.0, 1.0, -1.0, 1.0]
    assert load_text_format(finished).max_prompt_chars == 20
    decoder = load_decoder(DecoderConfig(path=str(finished / "decoder"), device="cpu"), [], 0)
    expected = {
        "method": "influcoder",
        "seeds": [0, 1],
        "normalise": "layers",
        "gradients": asdict(GRADIENTS),
        "dim": 128,
        "passes": 1,
        "processes": 1,
        "decoder_path": "decoder",
        "decoder_adapter": None,
        "decoder_dtype": "float32",
        "decoder_chat_template": None,
        "decoder_fingerprint": fingerprint_model(decoder.model),
        "rows_fingerprint": fingerprint(rows),
        "queries_fingerprint": fingerprint(queries),
    }
    assert {name: record[name] for name in expected} == expected
    assert -1 <= record["seed_agreement"] <= 1
    captured = sum(layer.weight.numel() for layer in gradient_layers(decoder.model).values())
    total = sum(parameter.numel() for parameter in decoder.model.parameters())
    assert {name: record["coverage"][name] for name in ("captured", "total")} == {"captured": captured, "total": total}
    assert sum(record["coverage"]["skipped"].values()) == total - captured and record["coverage"]["unfit_layers"] == []
    assert 0 <= record["self_check"] < 1e-3
    assert record["projection"]["queries"] == 6 and record["projection"]["rows"] == 14
    assert -1 <= record["projection"]["per_query_spearman"] <= 1
    assert (finished / "config.yaml").read_text() == "same: config\n"
    assert "decoder_loss" in (finished / "finetune" / "log" / "metrics.csv").read_text()
    assert not [path for path in finished.rglob("*") if path.suffix in {".ckpt", ".pt", ".bin", ".pkl", ".writing"}]


def test_the_estimate_is_compared_with_what_it_took(finished: Path) -> None:
    cost = open_run(finished, "teacher")["cost"]
    assert set(cost["estimated"]) == set(cost["actual"]) == {"seconds", "peak_bytes", "disk_bytes"}
    assert cost["estimated"]["seconds"] > 0 and cost["actual"]["seconds"] > 0
    assert cost["estimated"]["disk_bytes"] == 24 * 2 * (2 * 128 + 4)  # rows and queries, seeds, float16 and a length
    written = sum(path.stat().st_size for path in (finished / "features").rglob("*.safetensors"))
    assert cost["actual"]["disk_bytes"] == written
    assert cost["estimated"]["disk_bytes"] <= written <= 2 * cost["estimated"]["disk_bytes"]  # headers weigh with rows this small


def test_scores_are_products_of_the_features(finished: Path) -> None:
    for seed in (0, 1):
        rows, queries = (load_features(finished / "features" / f"seed-{seed}" / side) for side in ("rows", "queries"))
        scores = load_scores(finished / "scores" / f"seed-{seed}")
        np.testing.assert_array_equal(scores.values, queries.vectors @ rows.vectors.T)
        assert (scores.seed, scores.row_ids, scores.query_ids) == (seed, rows.manifest.ids, queries.manifest.ids)
        assert rows.manifest.num_shards == 3
        np.testing.assert_allclose(np.linalg.norm(rows.vectors, axis=1), 1, atol=1e-3)


def test_features_are_the_saved_decoders_gradients(finished: Path) -> None:
    decoder = load_decoder(DecoderConfig(path=str(finished / "decoder"), device="cpu"), [], 0)
    rows = tokenize(load_examples(finished / "rows.parquet"), decoder)
    bases = [Basis.load(finished / "basis" / "seed-1.safetensors")]
    expected = GradientProjector(decoder, GRADIENTS, [1], bases=bases, unit_layers=True).project(rows)[0].numpy()
    found = load_features(finished / "features" / "seed-1" / "rows")
    np.testing.assert_allclose(found.norms, np.linalg.norm(expected, axis=1), rtol=1e-4)
    cosines: NDArray[np.float32] = (found.vectors * expected).sum(1) / found.norms
    np.testing.assert_allclose(cosines, 1, atol=1e-3)


@pytest.mark.parametrize("committed", [0, 1, 3, 7])
def test_a_killed_run_goes_on_and_ends_the_same(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, committed: int) -> None:
    config = make_config(tmp_path)
    written: list[int] = []

    def write_some(folder: Path, shard: int, gradients: NDArray[np.float32]) -> None:
        if len(written) == committed:
            raise KeyboardInterrupt
        written.append(shard)
        write_shard(folder, shard, gradients)

    monkeypatch.setattr(teacher.features, "write_shard", write_some)
    with pytest.raises(KeyboardInterrupt):
        run_stage(config)
    monkeypatch.undo()
    assert not (tmp_path / "run").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / ".run.partial").rglob("shard-*.safetensors")}
    assert len(before) == committed
    trained = (tmp_path / ".run.partial" / "decoder" / "model.safetensors").stat().st_mtime_ns
    run_stage(config)
    assert (tmp_path / "run" / "decoder" / "model.safetensors").stat().st_mtime_ns == trained
    assert shards(tmp_path / "run") == shards(finished)
    both = {tmp_path / "run" / path.relative_to(tmp_path / ".run.partial"): stamp for path, stamp in before.items()}
    untouched = sum(path.stat().st_mtime_ns == stamp for path, stamp in both.items())
    assert untouched == committed - committed % 2  # a shard lacking in one seed's store is taken again for both
    assert open_run(tmp_path / "run", "teacher")["decoder_fingerprint"] == open_run(finished, "teacher")["decoder_fingerprint"]


def test_a_trained_decoder_outlives_an_interruption_right_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(teacher.stage, "load_decoder", stop)
    with pytest.raises(KeyboardInterrupt):
        run_stage(make_config(tmp_path))
    assert (tmp_path / ".run.partial" / "decoder" / "model.safetensors").exists()


def test_a_training_begun_anew_gives_the_same_weights_whatever_was_drawn_before(finished: Path, tmp_path: Path) -> None:
    """With dropout, the only randomness of a training that the order of the batches is not."""
    place = DecoderConfig(path=str(finished / "decoder"), device="cpu")
    settings = FinetuneConfig(epochs=1, adapter=AdapterConfig(rank=2, dropout=0.5), learning_rate=1e-2)
    made: list[bytes] = []
    for name in ("once", "again"):
        torch.rand(len(made) + 1)
        config = make_config(tmp_path, decoder=place, finetune=settings, output=str(tmp_path / name), queries=None, seeds=(0,))
        made.append((run_stage(config) / "adapter" / "adapter_model.safetensors").read_bytes())
    assert made[0] == made[1]


def interrupt(config: TeacherConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(teacher.features, "write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        run_stage(config, "seed: 1\n")
    monkeypatch.undo()


def test_going_on_with_another_config_shows_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path)
    interrupt(config, monkeypatch)
    with pytest.raises(RunError, match=r"there `seed: 1`, now `seed: 2`"):
        run_stage(config, "seed: 2\n")


def test_going_on_with_other_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path)
    interrupt(config, monkeypatch)
    write_rows(tmp_path / "pool.jsonl", 20, seed=5)
    with pytest.raises(RunError, match=r"unfinished work on other rows than .*pool\.jsonl now holds; remove"):
        run_stage(config, "seed: 1\n")


def test_an_existing_output_is_refused(finished: Path) -> None:
    before = shards(finished)
    with pytest.raises(RunError, match="exists already"):
        run_stage(make_config(finished.parent))
    assert shards(finished) == before


@pytest.mark.parametrize("side", ["rows", "queries"])
def test_an_overflowing_row_is_refused_before_any_training(tmp_path: Path, side: str) -> None:
    name = "pool" if side == "rows" else "queries"
    config = make_config(tmp_path, text=TextFormat(max_prompt_chars=4000))
    with (tmp_path / f"{name}.jsonl").open("a") as stream:
        stream.write(json.dumps({"id": "long", "prompt": "".join(map(str, range(300))), "response": "y", "weight": 1.0}) + "\n")
    with pytest.raises(DataError, match=r"row 'long': \d+ tokens, expected at most the decoder's 96"):
        run_stage(config)
    assert not list(tmp_path.glob("*run*"))


def test_a_bad_row_ends_the_program_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "pool.jsonl", 3, seed=0)
    with (tmp_path / "pool.jsonl").open("a") as stream:
        stream.write('{"id": "bad", "prompt": "no response"}\n')
    arguments = ["--output", str(tmp_path / "run"), "--rows.paths", f"[{tmp_path}/pool.jsonl]", "--decoder.path", "unused"]
    monkeypatch.setattr(sys, "argv", ["teacher", *arguments])
    with pytest.raises(SystemExit, match="2"):
        run_program(main)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pool.jsonl" in error and "response" in error
    assert not (tmp_path / "run").exists()


def test_labels_beside_the_rows_are_never_read(finished: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "pool.jsonl", 20, seed=0, label={"SECRETLABEL": ["SECRETLABEL", 3, None]})
    made = run_stage(make_config(tmp_path))
    assert shards(made) == shards(finished)
    assert not [path for path in made.rglob("*") if path.is_file() and b"SECRETLABEL" in path.read_bytes()]


def test_a_given_decoder_is_taken_as_it_is(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = DecoderConfig(path=str(finished / "decoder"), device="cpu")
    config = make_config(tmp_path, decoder=place, finetune=None, queries=None, seeds=(3,))
    made = run_stage(config)
    record = open_run(made, "teacher")
    assert record["decoder_path"] == str(finished / "decoder")
    assert "seed_agreement" not in record
    assert {path.name for path in made.iterdir()} == {"config.yaml", "run.json", "text_format.json", "rows.parquet", "basis", "features"}
    assert "agreement" not in capsys.readouterr().out


def test_the_agreement_of_the_seeds_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(tmp_path, queries=None)
    made = run_stage(config)
    printed, record = capsys.readouterr().out, open_run(made, "teacher")
    assert "rows: 20 read, 0 of them exact copies of another" in printed
    assert f"seed-to-seed agreement of the target: {record['seed_agreement']:.3f}" in printed
    assert ("raise gradients.dim or gradients.rank" in printed) == (record["seed_agreement"] < 0.85)
    sharper = replace(config, output=str(tmp_path / "sharp"), gradients=GradientConfig(rank=256, dim=65536))
    finer = open_run(run_stage(sharper), "teacher")
    assert finer["seed_agreement"] > record["seed_agreement"]
    assert finer["projection"]["per_query_spearman"] > max(0.95, record["projection"]["per_query_spearman"])


def test_few_rows_have_no_agreement_and_no_comparison(tmp_path: Path) -> None:
    write_rows(tmp_path / "pool.jsonl", 2, seed=0)
    made = run_stage(make_config(tmp_path, queries=None))
    record = json.loads((made / "run.json").read_text(), parse_constant=pytest.fail)  # no NaN
    assert record["projection"] is None and "seed_agreement" not in record
