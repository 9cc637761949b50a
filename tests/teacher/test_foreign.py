from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

import teacher.foreign
from influcoder.errors import ConfigError, DataError, InflucoderError, RunError
from influcoder.examples import Example, load_examples
from influcoder.features import load_features
from influcoder.program import parse_config
from influcoder.runs import open_run
from influcoder.scores import load_scores
from influcoder.splits import SplitConfig
from influcoder.text_format import load_text_format
from influcoder.training import silence_hints
from student import stage as student_stage
from student.config import EncoderConfig, FreshEncoder, RecipeConfig, StudentConfig
from student.stage import load_target
from teacher.foreign import ForeignConfig, ForeignSource, main, run
from tests.influcoder.foreign_sources import f32, write_bergson, write_safetensors
from tests.student.fake_teacher import World

NUM_ROWS, NUM_QUERIES, DIM = 60, 50, 6
SPLIT = SplitConfig(validation=0.25, test=0.25)
Vectors = NDArray[np.float32]


class Source:
    """Rows and queries as jsonl, and what some other program says of them: in another order, with rows that are not ours."""

    def __init__(self, folder: Path) -> None:
        self.folder, world = folder, World()
        self.rows, self.queries = (world.draw(name, count)[0] for name, count in (("row", NUM_ROWS), ("query", NUM_QUERIES)))
        for name, examples in (("rows", self.rows), ("queries", self.queries)):
            lines = [json.dumps({"id": each.id, "prompt": each.prompt, "response": each.response}) for each in examples]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        random = np.random.default_rng(1)
        self.row_vectors, self.query_vectors = (
            (random.normal(size=(count, DIM)) * random.uniform(0.1, 30, size=(count, 1))).astype(np.float32)
            for count in (NUM_ROWS, NUM_QUERIES)
        )
        self.order = random.permutation(NUM_ROWS)

    def shuffled(self, vectors: Vectors, axis: int = 0) -> Vectors:
        """Return rows in the other program's order, with two strangers in front."""
        strangers = np.zeros_like(np.take(vectors, [0, 1], axis))  # bad numbers of theirs must not matter
        return np.concatenate([strangers, np.take(vectors, self.order, axis)], axis)

    @property
    def shuffled_ids(self) -> list[str]:
        return ["x1", "x2", *(self.rows[place].id for place in self.order)]

    def make(self, source: Mapping[str, Any], *overrides: str, queries: bool = True) -> Path:
        """Run the program on a YAML config; return the run."""
        output = self.folder / "teacher"
        content = {
            "output": str(output),
            "rows": {"paths": [str(self.folder / "rows.jsonl")]},
            "text": {"max_prompt_chars": 30},
            "source": {name: str(self.folder / value) if name.endswith(("path", "ids")) else value for name, value in source.items()},
        } | ({"queries": {"paths": [str(self.folder / "queries.jsonl")]}} if queries else {})
        (self.folder / "config.yaml").write_text(json.dumps(content))  # JSON is YAML
        main([str(self.folder / "config.yaml"), *overrides])
        return output


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


def stored(run_folder: Path, side: str) -> tuple[Vectors, Vectors]:
    """Return what the shards hold, read without our reader: vectors and lengths."""
    shards = [load_file(path) for path in sorted((run_folder / "features" / "seed-0" / side).glob("*.safetensors"))]
    vectors, norms = (np.concatenate([shard[name] for shard in shards]).astype(np.float32) for name in ("features", "norms"))
    return vectors, norms


def distil(teacher: Path, **settings: Any) -> dict[str, Any]:
    """Distil one epoch; return the student's record."""
    silence_hints()
    config = StudentConfig(
        output=str(teacher.with_name("student")),
        teacher=str(teacher),
        encoder=EncoderConfig(fresh=FreshEncoder(hidden_size=16, layers=1, heads=2, intermediate_size=16, vocab_size=300), max_tokens=32),
        trainer={"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu"},
        split=SPLIT,
        **settings,
    )
    student_stage.run(config, "resolved: yaml\n")
    return open_run(Path(config.output), "student")


def ids(examples: Sequence[Example]) -> tuple[str, ...]:
    return tuple(example.id for example in examples)


def test_a_bergson_index_becomes_a_teacher_whose_rows_ask(source: Source, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = source.shuffled(source.row_vectors).tolist()
    write_bergson(source.folder / "index", vectors, sizes={"b": DIM - 1, "a": 1}, ids=source.shuffled_ids)
    teacher = source.make({"kind": "bergson", "path": "index"}, "--decoder", "some/llama", queries=False)
    assert "rows: 60 found in the source, 2 more of it left out" in capsys.readouterr().out
    record = open_run(teacher, "teacher")
    expected = {"method": "foreign:bergson", "seeds": [0], "normalise": "unit", "rows_ask": True, "decoder": "some/llama"}
    assert {name: record[name] for name in expected} == expected
    assert len(record["decoder_fingerprint"]) == 16 and not (teacher / "queries.parquet").exists()
    assert load_text_format(teacher).max_prompt_chars == 30
    rows = load_examples(teacher / "rows.parquet")
    assert ids(rows) == ids(source.rows)
    assert all(len(row.prompt) == 19 for row in rows)  # four words of four letters, cut nowhere
    unit, norms = stored(teacher, "rows")
    lengths = np.linalg.norm(source.row_vectors, axis=1)
    np.testing.assert_allclose(norms, lengths, rtol=1e-6)
    np.testing.assert_allclose(unit, source.row_vectors / lengths[:, None], atol=5e-4)  # half a step of float16 below 1
    target = load_target(StudentConfig(output="", teacher=str(teacher), encoder=EncoderConfig(path="none"), split=SPLIT))
    assert target.askers.ids == target.rows.ids == ids(source.rows)
    np.testing.assert_array_equal(target.rows.vectors, unit)
    assert distil(teacher)["teacher_method"] == "foreign:bergson"


def test_the_config_that_a_run_keeps_makes_the_same_run(source: Source) -> None:
    write_bergson(source.folder / "index", source.row_vectors.tolist(), ids=ids(source.rows))
    teacher = source.make({"kind": "bergson", "path": "index"}, queries=False)
    again = source.folder / "again"
    main([str(teacher / "config.yaml"), "--output", str(again)])
    assert open_run(again, "teacher")["decoder_fingerprint"] == open_run(teacher, "teacher")["decoder_fingerprint"]
    np.testing.assert_array_equal(stored(again, "rows")[0], stored(teacher, "rows")[0])


@pytest.mark.parametrize("normalise", ["unit", "none"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", ["bergson", "arrays"])
def test_features_of_queries_score_the_rows(source: Source, kind: str, sign: int, normalise: str) -> None:
    settings: dict[str, Any] = {"kind": kind, "sign": sign, "normalise": normalise, "ids": "rows.txt", "in_order": True}
    (source.folder / "rows.txt").write_text("\n".join(source.shuffled_ids) + "\n")  # the queries are in our order
    if kind == "bergson":
        write_bergson(source.folder / "index", source.shuffled(source.row_vectors).tolist())
        write_bergson(source.folder / "query_index", source.query_vectors.tolist())
        settings |= {"path": "index", "query_path": "query_index"}
    else:
        np.save(source.folder / "rows.npy", np.asfortranarray(source.shuffled(source.row_vectors)))  # columns first, as some write it
        write_safetensors(source.folder / "queries.safetensors", {"other": f32([[1.0]]), "found": f32(source.query_vectors.tolist())})
        settings |= {"path": "rows.npy", "query_path": "queries.safetensors", "key": "found"}
    teacher = source.make(settings)
    expected = sign * source.query_vectors @ source.row_vectors.T
    scale = np.outer(np.linalg.norm(source.query_vectors, axis=1), np.linalg.norm(source.row_vectors, axis=1))
    if normalise == "unit":
        expected, scale = expected / scale, np.ones_like(scale)
    scores = load_scores(teacher / "scores" / "seed-0")
    assert (scores.query_ids, scores.row_ids, scores.method) == (ids(source.queries), ids(source.rows), f"foreign:{kind}")
    assert (np.abs(scores.values - expected) <= 1e-3 * scale).all()  # two roundings to float16
    queries, rows = (load_features(teacher / "features" / "seed-0" / side) for side in ("queries", "rows"))
    np.testing.assert_allclose(queries.as_queries @ rows.as_rows.T, scores.values, rtol=1e-5, atol=1e-5)
    assert rows.manifest.normalise == queries.manifest.normalise == normalise


@pytest.mark.parametrize("kind", ["scores", "kronfluence_scores"])
@pytest.mark.parametrize("objective", ["full_block", "reference"])
def test_scores_become_a_teacher_whose_queries_ask(source: Source, kind: str, objective: Any, capsys: pytest.CaptureFixture[str]) -> None:
    true = source.query_vectors @ source.row_vectors.T
    settings: dict[str, Any] = {"kind": kind, "ids": "rows.json", "in_order": True}
    (source.folder / "rows.json").write_text(json.dumps(source.shuffled_ids))
    given = source.shuffled(true, axis=1)
    if kind == "scores":  # larger = more harmful, in this program
        np.save(source.folder / "scores.npy", -given)
        settings |= {"path": "scores.npy", "sign": -1}
    else:
        (source.folder / "scores").mkdir()
        modules = {"mlp": f32((0.25 * given).tolist()), "head": f32((0.75 * given).tolist())}
        write_safetensors(source.folder / "scores" / "pairwise_scores.safetensors", modules)
        settings |= {"path": "scores"}
    teacher = source.make(settings)
    record = open_run(teacher, "teacher")
    assert (record["rows_ask"], record["normalise"], record["method"]) == (False, "none", f"foreign:{kind}")
    values = load_scores(teacher / "scores" / "seed-0").values
    np.testing.assert_allclose(values, true, rtol=1e-6, atol=1e-6 * np.abs(true).max())
    (queries, query_norms), (rows, row_norms) = stored(teacher, "queries"), stored(teacher, "rows")
    products = (query_norms[:, None] * queries) @ (row_norms[:, None] * rows).T
    error = np.linalg.norm(products - true) / np.linalg.norm(true)
    assert record["relative_error"] == pytest.approx(error, rel=1e-2) and error < 1e-3
    printed = capsys.readouterr().out
    assert "queries: 50 found in the source, 0 more of it left out" in printed
    assert f"scores: 50 queries x 60 rows as 50 factors in float16, relative error {record['relative_error']:.1e}" in printed
    recipe = RecipeConfig(objective=objective, block_rows=16)
    with pytest.raises(RunError, match="was made of scores, which do not say what a row asks for"):
        distil(teacher, recipe=recipe)
    student = distil(teacher, recipe=recipe, asks="queries")
    assert student["asks"] == "queries" and np.isfinite(student["validation"]["per_query_spearman"])


def test_the_fingerprint_is_of_the_contents_and_how_they_are_taken(source: Source) -> None:
    def fingerprint_of(**changes: Any) -> str:
        settings = {"kind": "arrays", "path": "rows.npy", "query_path": "queries.npy", "in_order": True} | changes
        made = source.make(settings)
        found: str = open_run(made, "teacher")["decoder_fingerprint"]
        made.rename(made.with_name(f"teacher-{len(list(source.folder.iterdir()))}"))
        return found

    np.save(source.folder / "rows.npy", source.row_vectors)
    np.save(source.folder / "queries.npy", source.query_vectors)
    (source.folder / "moved.npy").write_bytes((source.folder / "rows.npy").read_bytes())
    (source.folder / "other.txt").write_text("\n".join(ids(source.rows)[::-1]) + "\n")
    first = fingerprint_of()
    assert fingerprint_of(path="moved.npy") == first
    others = {fingerprint_of(sign=-1), fingerprint_of(normalise="none"), fingerprint_of(ids="other.txt")}
    np.save(source.folder / "queries.npy", 2 * source.query_vectors)
    others.add(fingerprint_of())
    assert len(others | {first}) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "scores", "in_order": True, "query_path": "a"}, r"source: query_path or normalise: unit with kind scores"),
        ({"kind": "kronfluence_scores", "in_order": True, "normalise": "unit"}, r"normalise: unit with kind kronfluence_scores"),
        ({"kind": "bergson", "sign": -1}, r"source: sign -1 without query_path; .*give queries"),
        ({"kind": "arrays"}, r"source: ids is null with kind arrays; expected an ids file, or in_order: true"),
        ({"kind": "scores", "ids": "a.txt"}, r"source: query_ids is null with kind scores"),
        ({"kind": "arrays", "ids": "a.txt", "query_path": "a"}, r"source: query_ids is null with kind arrays"),
    ],
)
def test_a_source_that_says_too_little_or_too_much_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ForeignSource(path="there", **settings)


@pytest.mark.parametrize(
    ("settings", "queries", "message"),
    [
        ({"kind": "bergson"}, True, r"source\.query_path: null, but queries has queries; expected both or neither"),
        ({"kind": "bergson", "query_path": "a"}, False, r"queries: null, but the source has queries"),
        ({"kind": "scores", "in_order": True}, False, r"queries: null, but the source has queries"),
    ],
)
def test_queries_come_with_their_features(source: Source, settings: dict[str, Any], queries: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source.make({"path": "there"} | settings, queries=queries)


def test_a_setting_that_is_none_is_refused(source: Source) -> None:
    for name, value in (("sign", 0), ("kind", "trak"), ("normalise", "relatif"), ("idz", "a")):
        with pytest.raises(ConfigError, match=str(value)):
            source.make({"kind": "bergson", "path": "index"} | {name: value}, queries=False)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", r"rows\.npy: no 'row7' in it \(2 of 60 rows are missing, its own ids begin with 'row0'\); expected all"),
        ("zero", r"rows\.npy: the features of 'row3' have length 0\.0 \(1 such rows\)"),
        ("count", r"rows\.npy: 60 rows, but 59 ids; expected one each"),
        ("width", r"queries\.npy: other coordinates than .*rows\.npy has .*make both with the same settings"),
        ("exists", r"teacher: exists already"),
    ],
)
def test_what_does_not_fit_the_rows_is_refused_and_leaves_nothing(source: Source, what: str, message: str) -> None:
    names, vectors, queries = list(ids(source.rows)), source.row_vectors.copy(), source.query_vectors
    if what == "missing":
        names[7], names[9] = "a", "b"
    elif what == "zero":
        vectors[3] = 0
    elif what == "count":
        names.pop()
    elif what == "width":
        queries = queries[:, :-1]
    else:
        (source.folder / "teacher").mkdir()
    (source.folder / "rows.txt").write_text("\n".join(names))
    np.save(source.folder / "rows.npy", vectors)
    np.save(source.folder / "queries.npy", queries)
    settings = {"kind": "arrays", "path": "rows.npy", "query_path": "queries.npy", "ids": "rows.txt", "in_order": True}
    with pytest.raises(InflucoderError, match=message) as caught:
        source.make(settings)
    assert "\n" not in str(caught.value)
    assert what == "exists" or not [path for path in source.folder.iterdir() if "teacher" in path.name]


def test_indexes_of_other_projections_are_refused(source: Source) -> None:
    write_bergson(source.folder / "index", source.row_vectors.tolist(), ids=ids(source.rows))
    write_bergson(source.folder / "query_index", source.query_vectors.tolist(), ids=ids(source.queries))
    (source.folder / "query_index" / "processor_config.yaml").write_text("projection_seed: 5\n")
    with pytest.raises(DataError, match=r"query_index: other coordinates than .*index has \(number, modules or projection\)"):
        source.make({"kind": "bergson", "path": "index", "query_path": "query_index"})


def test_the_examples_of_the_docstring_are_configs(tmp_path: Path) -> None:
    assert teacher.foreign.__doc__ is not None
    lines = [line.removeprefix("    ") for line in teacher.foreign.__doc__.splitlines() if line.startswith("    ")]
    blocks = "\n".join(lines).split("output: runs/teacher/bergson\n")[1].split("rows: ")[1:]
    kinds = []
    for block in blocks:
        (tmp_path / "config.yaml").write_text(f"output: {tmp_path / 'run'}\nrows: {block}")
        config, _ = parse_config(ForeignConfig, [str(tmp_path / "config.yaml")], "test")
        kinds.append(config.source.kind)
        with pytest.raises(DataError, match="no such file"):
            run(config, "")
    assert kinds == ["bergson", "arrays", "kronfluence_scores", "scores"]
