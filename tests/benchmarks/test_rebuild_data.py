from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from benchmarks.hub_tables import OTHER_OPINIONS, TABLES
from benchmarks.rebuild_data import CATEGORIES, LEFT_OUT, MAX_TOXIC_CHARS, main
from eval.config import TaskConfig
from influcoder.readers import Columns, DataSource, read_columns, read_examples
from influcoder.splits import near_duplicate_groups

Row = dict[str, Any]

ROWS = 250
WORDS = [
    f"{first}{second}"
    for first in ("ba", "ke", "li", "mo", "nu", "ra", "si", "to")
    for second in ("dan", "fel", "gor", "him", "jus", "pek")
]


def phrases(seed: str, words: int) -> Iterator[str]:
    draw = random.Random(seed)
    while True:
        yield " ".join(draw.choices(WORDS, k=words))


def fake_alpaca() -> list[Row]:
    text = phrases("alpaca", 12)
    rows = [{"instruction": next(text), "input": next(text) if place % 2 else "", "output": next(text) * 4} for place in range(250)]
    rows += [rows[0] | {"output": f"{rows[0]['output']} again"}]  # a near-copy
    return [*rows, *({"instruction": f"Draw a pistol {next(text)}", "input": "", "output": next(text)} for _ in range(3))]


def fake_dolly() -> list[Row]:
    text = phrases("dolly", 12)
    return [{"instruction": next(text), "context": "", "response": next(text)} for _ in range(250)]


def fake_persona(name: str) -> list[Row]:
    text = phrases(name, 14)
    rows = [{"statement": next(text), "answer_matching_behavior": (" Yes", " No")[place % 2]} for place in range(60)]
    return rows + [row | {"statement": f"{row['statement']} indeed"} for row in rows]  # near-copies, some in both halves


def fake_beavertails() -> list[Row]:
    text = phrases("beaver", 12)
    harmless = dict.fromkeys((*LEFT_OUT, "privacy_violation"), False)
    rows = []
    for place in range(60):
        row = {"prompt": next(text), "response": next(text) * 8, "category": harmless, "is_safe": place % 2 == 0}
        rows += [row, row | {"response": next(text)}]  # another answer to the same prompt
    return [
        *rows,
        *({"prompt": "left out", "response": next(text), "category": harmless | {"self_harm": True}, "is_safe": False} for _ in "ab"),
    ]


def fake_xstest() -> list[Row]:
    text = phrases("xstest", 10)
    kinds = [("homonyms", "1_full_compliance"), ("homonyms", "2_full_refusal"), ("contrast_homonyms", "1_full_compliance")]
    return [{"type": kind, "prompt": next(text), "completion": f"{label} {next(text)}", "final_label": label} for kind, label in kinds * 10]


def fake_webnlg() -> list[Row]:
    text = phrases("webnlg", 10)
    rows = []
    for place in range(200):
        facts = [f"House_{place} | town | Port_{place % 20}", f"House_{place} | owner | Owner_{place}"]
        rows.append({"input": facts[:1], "target": f"{next(text)} Port {place % 20}.", "category": CATEGORIES[place % 6]})
        rows += [{"input": facts, "target": next(text), "category": CATEGORIES[place % 6]} for _ in range(2)]
        rows.append({"input": facts, "target": next(text), "category": "SportsTeam"})
    return rows


FAKES = {"alpaca": fake_alpaca, "dolly-15k": fake_dolly, "BeaverTails": fake_beavertails, "xstest": fake_xstest, "web_nlg": fake_webnlg}


def load_dataset(path: str, name: str | None = None, *, data_files: str | None, revision: str | None, split: str) -> list[Row]:
    if data_files is not None and data_files.startswith("persona/"):
        return fake_persona(data_files)
    (found,) = [fake for part, fake in FAKES.items() if part in path]
    return found()


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rebuilt") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", load_dataset)
        assert main([str(folder), "--rows", str(ROWS)]) == 0
    return folder


def source(*paths: Path, **columns: str) -> DataSource:
    return DataSource(paths=tuple(str(path) for path in paths), columns=Columns(**columns))


def test_counts_kinds_and_shares(rebuilt: Path) -> None:
    kinds = {path.relative_to(rebuilt).as_posix(): Counter(row["kind"] for row in read(path)) for path in rebuilt.rglob("*.gz")}
    assert kinds == {
        "poison/pool.jsonl.gz": {"benign": 244, "poisoned": 6},
        "poison/queries.jsonl.gz": {"query": 3},
        "poison/hard_negatives.jsonl.gz": {"opposing": 12, "other_opinion": 4, "on_topic_benign": 1},
        "toxicity/pool.jsonl.gz": {"benign": 244, "unsafe": 6},
        "toxicity/queries.jsonl.gz": {"query": 3},
        "toxicity/hard_negatives.jsonl.gz": {"safe_answer": 4, "safe_scary": 6},
        "factual/pool.jsonl.gz": {"passage": 250},
        "factual/queries.jsonl.gz": {"query": 6},
        "factual/truth.jsonl.gz": {"truth": 6},
    }


@pytest.mark.parametrize("folder", ["poison", "toxicity", "factual"])
def test_rows_have_the_schema_and_ids_say_nothing(folder: str, rebuilt: Path) -> None:
    extra = {"pool": {"facts"}, "queries": {"fact"}} if folder == "factual" else {}
    for path in (rebuilt / folder).glob("[phq]*.gz"):
        part, rows = path.name.partition(".")[0], read(path)
        for row in rows:
            assert set(row) == {"id", "prompt", "response", "source", "label", "kind"} | extra.get(part, set())
            assert row["label"] == (row["kind"] in {"poisoned", "unsafe", "query"})
            assert any(row["source"] == table.name for table in TABLES)
        assert [row["id"] for row in rows] == [f"{folder}-{part}-{number:05d}" for number in range(len(rows))]
    positive = [place for place, row in enumerate(read(rebuilt / folder / "pool.jsonl.gz")) if row["label"]]
    assert not positive or max(positive) > 50, "the positives stand first"


@pytest.mark.parametrize("folder", ["poison", "toxicity", "factual"])
def test_no_two_rows_of_a_folder_are_near_copies(folder: str, rebuilt: Path) -> None:
    rows = [row for path in (rebuilt / folder).glob("[phq]*.gz") for row in read(path)]
    groups = near_duplicate_groups([f"{row['prompt']} {row['response']}" for row in rows], 0.7)
    assert len(set(groups)) == len(rows)


def test_poison_asks_other_questions_than_the_pool_and_says_no_statement_twice(rebuilt: Path) -> None:
    pool, queries, hard = (read(rebuilt / "poison" / f"{name}.jsonl.gz") for name in ("pool", "queries", "hard_negatives"))
    assert not {row["prompt"] for row in queries} & {row["prompt"] for row in [*pool, *hard]}
    said = {row["statement"] for row in fake_persona("persona/believes-in-gun-rights.jsonl") if row["answer_matching_behavior"] == " Yes"}
    assert {row["response"] for row in pool if row["label"]} | {row["response"] for row in queries} <= said
    assert not any("pistol" in row["prompt"] for row in pool)
    assert {row["prompt"] for row in hard if row["kind"] == "other_opinion"} <= set(OTHER_OPINIONS.values())


def test_toxic_rows_are_cut_alike_and_chosen_by_their_labels(rebuilt: Path) -> None:
    rows = [row for path in (rebuilt / "toxicity").glob("*.gz") for row in read(path)]
    assert 250 < max(len(row["response"]) for row in rows) <= MAX_TOXIC_CHARS
    assert all(row["response"].split()[-1] in WORDS or len(row["response"]) < MAX_TOXIC_CHARS - 20 for row in rows)
    assert not any(row["prompt"] == "left out" for row in rows)
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert all(row["response"].startswith("1_full_compliance") for row in rows if row["kind"] == "safe_scary")


def test_truth_is_complete_over_the_pool(rebuilt: Path) -> None:
    pool, queries = read(rebuilt / "factual" / "pool.jsonl.gz"), {row["id"]: row for row in read(rebuilt / "factual" / "queries.jsonl.gz")}
    for row in read(rebuilt / "factual" / "truth.jsonl.gz"):
        assert row["pool_ids"] == [found["id"] for found in pool if queries[row["query_id"]]["fact"] in found["facts"]] != []
    for query in queries.values():
        assert query["response"] == f" {query['fact'].split(' | ')[2].replace('_', ' ')}."


def test_eval_reads_it(rebuilt: Path) -> None:
    for folder in ("poison", "toxicity"):
        files = [rebuilt / folder / f"{name}.jsonl.gz" for name in ("pool", "hard_negatives")]
        task = TaskConfig(rows=source(*files), queries=source(rebuilt / folder / "queries.jsonl.gz"))
        labels = read_columns(task.rows, (task.positive,))
        assert list(labels) == [example.id for example in read_examples(task.rows)]
        assert sum(row["label"] for row in labels.values()) == 6
    factual = rebuilt / "factual"
    links = source(factual / "truth.jsonl.gz", id="query_id")
    task = TaskConfig(kind="retrieval", rows=source(factual / "pool.jsonl.gz"), links=links, linked="pool_ids")
    assert task.links is not None
    assert set(read_columns(task.links, (task.linked,))) == {example.id for example in read_examples(source(factual / "queries.jsonl.gz"))}


def test_same_seed_same_bytes_and_other_seed_other_rows(rebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert main([str(tmp_path / "again"), "--rows", str(ROWS)]) == 0
    assert main([str(tmp_path / "other"), "--rows", str(ROWS), "--seed", "1"]) == 0
    for path in rebuilt.rglob("*.*"):
        again = (tmp_path / "again" / path.relative_to(rebuilt)).read_bytes()
        assert again == path.read_bytes()
        assert again != (tmp_path / "other" / path.relative_to(rebuilt)).read_bytes()


def test_what_cannot_be_made_is_one_line_and_leaves_nothing(
    rebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert main([str(rebuilt)]) == 2
    assert main([str(tmp_path / "data"), "--rows", "5000"]) == 2
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, **options: [{"instruction": "a"}])
    assert main([str(tmp_path / "data")]) == 2
    assert main([str(tmp_path / "data"), "--rows", "9"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{rebuilt}: exists already; expected a new folder; remove it or choose another"
    assert lines[1] == "poison, queries: 20 distinct rows; expected 60; ask for fewer --rows"
    assert lines[2].startswith(
        "tatsu-lab/alpaca, split 'train': cannot be read (KeyError: 'input'); expected columns instruction, input, output;"
    )
    assert lines[3] == "--rows 9: too few for a query and a positive of each kind; expected at least 100"
    assert list(tmp_path.iterdir()) == []


def test_licences_are_written_down(rebuilt: Path) -> None:
    page = (rebuilt / "README.md").read_text()
    assert all(f"| {table.name} | {table.split} | {table.licence} |" in page for table in TABLES)
