from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influcoder.errors import ConfigError, DataError
from influcoder.examples import Example, Turn, fingerprint
from influcoder.readers import Columns, DataSource, Rejected, iterate_examples, read_columns, read_examples

Rows = list[dict[str, Any]]

ROWS: Rows = [
    {"id": "a", "prompt": "Name a sea.", "response": "The North Sea,\nor the Baltic.", "source": "s1", "label": "clean"},
    {"id": "b", "prompt": "", "response": 'Plain "quoted" text.', "source": "s2", "label": "poison"},
    {"id": "c", "prompt": "名前は?", "response": "Tür 🚪", "source": "s1", "label": "clean"},
]
EXPECTED = [
    Example(id="a", context=(Turn(role="user", content="Name a sea."),), response="The North Sea,\nor the Baltic."),
    Example(id="b", context=(), response='Plain "quoted" text.'),
    Example(id="c", context=(Turn(role="user", content="名前は?"),), response="Tür 🚪"),
]


def write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_jsonl_gz(path: Path, rows: Rows) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n\n" for row in rows).encode()))


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


def write_dataset(path: Path, rows: Rows) -> None:
    datasets.Dataset.from_list(rows).save_to_disk(path)


def write_dataset_with_splits(path: Path, rows: Rows) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows[:1])}).save_to_disk(path)


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    "rows.jsonl": write_jsonl,
    "rows.jsonl.gz": write_jsonl_gz,
    "rows.csv": write_csv,
    "rows.parquet": write_parquet,
    "dataset": write_dataset,
    "dataset-with-splits": write_dataset_with_splits,
}


def source(path: Path | str, **columns: str | None) -> DataSource:
    return DataSource(paths=(str(path),), columns=Columns(**columns))


def refusal(source: DataSource) -> str:
    """Return the one line with which the source is refused."""
    with pytest.raises(DataError) as caught:
        read_examples(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def no_progress_bars() -> None:
    datasets.disable_progress_bars()


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, ROWS)
    assert read_examples(source(tmp_path / name)) == EXPECTED


def test_a_hub_id_is_loaded_by_name_subset_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(path: str, name: str | None = None, *, split: str) -> datasets.Dataset:
        asked.append((path, name, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_examples(DataSource(paths=("someone/pool",), split="validation")) == EXPECTED
    assert read_columns(DataSource(paths=("someone/pool",), subset="Chat-Hard"), ("label",))["b"] == {"label": "poison"}
    assert asked == [("someone/pool", None, "validation"), ("someone/pool", "Chat-Hard", "train")]
    with pytest.raises(DataError, match=r"^someone/pool\[Chat-Hard, train\]: row 1: no column 'attack'"):
        read_columns(DataSource(paths=("someone/pool",), subset="Chat-Hard"), ("attack",))


def test_a_hub_id_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, name: str | None = None, *, split: str) -> datasets.Dataset:
        raise ConnectionError("no route\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert refusal(source("someone/pool")) == (
        "someone/pool: cannot be loaded as a dataset, split 'train' (no route); check the names and the network"
    )
    assert refusal(DataSource(paths=("someone/pool",), subset="Chat-Hard", split="ref")) == (
        "someone/pool: cannot be loaded as a dataset, subset 'Chat-Hard', split 'ref' (no route); check the names and the network"
    )


def test_files_are_read_in_the_order_given_up_to_the_limit(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "second.jsonl", ROWS[:1])
    write_csv(tmp_path / "first.csv", ROWS[1:])
    paths = (str(tmp_path / "first.csv"), str(tmp_path / "second.jsonl"))
    assert [row.id for row in read_examples(DataSource(paths=paths))] == ["b", "c", "a"]
    assert [row.id for row in read_examples(DataSource(paths=paths, limit=2))] == ["b", "c"]
    assert [row.id for row in read_examples(DataSource(paths=paths, limit=9))] == ["b", "c", "a"]


def test_text_is_a_response_without_context(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"body": "Snow fell.", "id": 7}])
    assert read_examples(source(tmp_path / "rows.jsonl", text="body")) == [Example(id="7", context=(), response="Snow fell.")]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "dataset"])
def test_messages_end_with_the_response(name: str, tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("user", "Is ice cold?"), ("assistant", "Yes.")]
    WRITERS[name](tmp_path / name, [{"chat": [{"role": role, "content": content} for role, content in turns]}])
    (row,) = read_examples(source(tmp_path / name, messages="chat"))
    assert row.context == tuple(Turn(role=role, content=content) for role, content in turns[:-1])
    assert row.response == "Yes."


def test_contributor_weight_and_other_names_are_read_when_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", [{"q": "Why?", "a": "So.", "who": "ada", "sign": "-1", "key": "k"}])
    (row,) = read_examples(source(tmp_path / "rows.csv", prompt="q", response="a", id="key", contributor="who", weight="sign"))
    assert row == Example(id="k", context=(Turn(role="user", content="Why?"),), response="So.", contributor="ada", weight=-1.0)


def test_rows_without_an_id_are_named_by_their_content(tmp_path: Path) -> None:
    without = [{key: row[key] for key in ("prompt", "response")} for row in ROWS]
    write_jsonl(tmp_path / "rows.jsonl", [*without[:2], {**without[2], "id": ""}])
    ids = [row.id for row in read_examples(source(tmp_path / "rows.jsonl"))]
    write_jsonl(tmp_path / "turned.jsonl", list(reversed(without)))
    assert [row.id for row in read_examples(source(tmp_path / "turned.jsonl"))] == list(reversed(ids))
    assert len(set(ids)) == 3
    assert [row.id for row in read_examples(source(tmp_path / "rows.jsonl", id=None))] == ids


def test_byte_order_marks_of_spreadsheets_are_not_part_of_the_first_name(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", ROWS)
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "rows.csv").read_bytes())
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "rows.jsonl").read_bytes())
    assert read_examples(source(tmp_path / "rows.csv")) == EXPECTED
    assert read_examples(source(tmp_path / "rows.jsonl")) == EXPECTED


class Guarded(dict[str, Any]):
    """A row whose label must not be touched."""

    def __getitem__(self, key: str) -> Any:
        assert key != "label", "a label was read"
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        assert key != "label", "a label was read"
        return super().get(key, default)

    def items(self) -> Any:
        raise AssertionError("all columns were read, labels among them")

    values = items


def test_labels_beside_the_rows_stay_unread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, split: [Guarded(row) for row in ROWS])
    assert read_examples(source("someone/pool", contributor="source"))[0].contributor == "s1"
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    write_jsonl(tmp_path / "relabelled.jsonl", [{**row, "label": "?"} for row in ROWS])
    read = [read_examples(source(tmp_path / name)) for name in ("rows.jsonl", "relabelled.jsonl")]
    assert read[0] == read[1]
    assert fingerprint(read[0]) == fingerprint(read[1])


def test_read_columns_gives_labels_by_id(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rows.parquet", ROWS)
    found = read_columns(source(tmp_path / "rows.parquet"), ("label",))
    assert found == {"a": {"label": "clean"}, "b": {"label": "poison"}, "c": {"label": "clean"}}
    with pytest.raises(DataError, match=r"row 1: no column 'attack'; it has 'id', 'prompt', 'response', 'source', 'label'"):
        read_columns(source(tmp_path / "rows.parquet"), ("attack",))


def test_read_columns_needs_no_text_where_there_is_an_id(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "links.jsonl", [{"query": "q1", "row_ids": ["a", "c"]}, {"query": 2, "row_ids": []}])
    links = source(tmp_path / "links.jsonl", id="query")
    assert read_columns(links, ("row_ids",)) == {"q1": {"row_ids": ["a", "c"]}, "2": {"row_ids": []}}
    write_csv(tmp_path / "labels.csv", [{"id": "a", "label": "1"}, {"id": "", "label": "0"}])
    with pytest.raises(DataError, match=r"labels.csv: row 2: no column 'prompt'; it has 'id', 'label'"):
        read_columns(source(tmp_path / "labels.csv"), ("label",))


def test_read_columns_names_rows_as_read_examples_does(tmp_path: Path) -> None:
    rows = [{"id": id, "prompt": "p", "response": response, "label": label} for id, response, label in
            [("given", "r", 1), (None, "r", 2), ("", "r", 3), (None, "other", 4)]]  # fmt: skip
    write_jsonl(tmp_path / "rows.jsonl", rows)
    found = read_columns(source(tmp_path / "rows.jsonl"), ("label",))
    assert list(found) == [example.id for example in read_examples(source(tmp_path / "rows.jsonl"))]
    assert [row["label"] for row in found.values()] == [1, 2, 3, 4]
    first_two = DataSource(paths=(str(tmp_path / "rows.jsonl"),), limit=2)
    assert list(read_columns(first_two, ("label",))) == list(found)[:2]


def test_an_id_that_is_labelled_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.csv"
    write_jsonl(one, [{"id": "a", "label": 1}, {"id": 7, "label": 0}])
    write_csv(two, [{"id": "b", "label": "1"}, {"id": "7", "label": "1"}])
    with pytest.raises(DataError) as caught:
        read_columns(DataSource(paths=(str(one), str(two))), ("label",))
    assert str(caught.value) == f"{two}: row 2: id '7' stands in {one}:2 too; expected every id once; rename or drop one"


GOOD = {"id": "good", "prompt": "p", "response": "r", "weight": 1}
BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "missing column": ({"id": "x", "question": "p", "response": "r"}, "no column 'prompt'; it has 'id', 'question', 'response'"),
    "empty response": ({"prompt": "p", "response": " \n"}, "the response is empty; expected text"),
    "wrong type": ({"prompt": "p", "response": 5}, "column 'response' holds int 5; expected a string"),
    "null": ({"prompt": None, "response": "r"}, "column 'prompt' holds NoneType None; expected a string"),
    "lone surrogate": ({"prompt": "p", "response": "\ud83d"}, "its text cannot be written as UTF-8"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_refused_with_file_and_row(kind: str, tmp_path: Path) -> None:
    bad, reason = BAD_ROWS[kind]
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [GOOD, bad, {**GOOD, "id": "last"}])
    assert refusal(source(path)).startswith(f"{path}:2: {reason}")


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_set_aside_when_asked(kind: str, tmp_path: Path) -> None:
    bad, reason = BAD_ROWS[kind]
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [GOOD, bad, {**GOOD, "id": "last"}])
    first, rejected, last = iterate_examples(source(path), on_bad_row="set_aside")
    assert isinstance(first, Example)
    assert isinstance(last, Example)
    assert isinstance(rejected, Rejected)
    assert (first.id, last.id) == ("good", "last")
    assert rejected.where == f"{path}:2"
    assert rejected.reason.startswith(reason)


@pytest.mark.parametrize(("line", "reason"), [('{"prompt": ', "not JSON"), ("[1, 2]", "a JSON list; expected one object a line")])
def test_a_line_that_is_no_object_is_named(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    assert refusal(source(path)).startswith(f"{path}:3: {reason}")
    with pytest.raises(DataError, match=reason):
        read_columns(source(path), ("weight",))
    assert [type(row) for row in iterate_examples(source(path), on_bad_row="set_aside")] == [Example, Rejected]


@pytest.mark.parametrize("weight", [0, "much", None, float("nan"), float("inf"), [1]])
def test_a_bad_weight_is_refused(weight: object, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{**GOOD, "weight": weight}])
    assert refusal(source(path, weight="weight")).startswith(f"{path}:1: weight {weight!r} in column 'weight'; expected a finite number")
    assert read_examples(source(path))[0].weight == 1.0


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ([{"role": "user", "content": "p"}], "'chat' does not end with an assistant turn"),
        ([], "'chat' does not end with an assistant turn"),
        ("Hello", "column 'chat' holds str 'Hello'; expected a list"),
        ([{"role": "robot", "content": "p"}, {"role": "assistant", "content": "r"}], "turn 1 of 'chat' is not {role, content}"),
        ([{"role": "user", "content": "p"}, {"role": "assistant", "content": None}], "turn 2 of 'chat' is not {role, content}"),
        (["Hello"], "turn 1 of 'chat' is not {role, content}"),
    ],
)
def test_bad_messages_are_refused(chat: object, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"chat": chat}])
    assert refusal(source(path, messages="chat")).startswith(f"{path}:1: {reason}")


@pytest.mark.parametrize("cells", ["1,2,3,4", "1,2"])
def test_csv_cells_that_do_not_match_the_header_are_refused(cells: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"id,prompt,response\na,p,r\n{cells}\n")
    assert refusal(source(path)) == f"{path}: row 2: its cells do not match the header; expected 3 cells"


def test_duplicate_ids_are_refused_across_files(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "one.jsonl", ROWS)
    write_csv(tmp_path / "two.csv", ROWS[1:2])
    line = refusal(DataSource(paths=(str(tmp_path / "one.jsonl"), str(tmp_path / "two.csv"))))
    assert "two.csv: id 'b' stands in row 2 and row 4" in line


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.parquet"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_corrupt_file_is_named(name: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path, ROWS * 20)
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] if damage == "cut" else whole[: middle - 8] + b"\xff" * 16 + whole[middle + 8 :])
    assert refusal(source(path)).startswith(f"{path}: ")


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    for name, content, place in (("rows.jsonl", '{"prompt": "Tür"}', ":1"), ("rows.csv", "id,prompt,response\n1,Tür,r", ": row 1")):
        (tmp_path / name).write_bytes(content.encode("latin-1"))
        assert refusal(source(tmp_path / name)).startswith(f"{tmp_path / name}{place}: cannot be read as UTF-8")


def test_what_cannot_be_a_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("hello")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "folder").mkdir()
    assert refusal(source(tmp_path / "rows.txt")) == (
        f"{tmp_path / 'rows.txt'}: unknown kind of file; expected one of .jsonl, .jsonl.gz, .csv, .parquet"
    )
    assert "no such file or folder" in refusal(source(tmp_path / "absent.jsonl"))
    assert refusal(source(tmp_path / "empty.jsonl")) == f"{tmp_path / 'empty.jsonl'}: no rows; expected at least one"
    assert refusal(source(tmp_path / "folder")).startswith(f"{tmp_path / 'folder'}: cannot be loaded as a dataset")


def test_an_unknown_split_lists_the_known_ones(tmp_path: Path) -> None:
    write_dataset_with_splits(tmp_path / "dataset", ROWS)
    path = str(tmp_path / "dataset")
    assert [row.id for row in read_examples(DataSource(paths=(path,), split="test"))] == ["a"]
    assert refusal(DataSource(paths=(path,), split="dev")) == f"{path}: no split 'dev'; it has train, test; set `split` to one of those"


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="paths: empty"):
        DataSource(paths=())
    with pytest.raises(ConfigError, match="limit: 0; expected at least 1"):
        DataSource(paths=("a.jsonl",), limit=0)
    with pytest.raises(ConfigError, match="columns: name `prompt` and `response`, or `text`, or `messages`"):
        Columns(response=None)


def test_copies_without_ids_are_rows_of_their_own(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pool.jsonl", [{"prompt": "p", "response": "r"}] * 3 + [{"prompt": "q", "response": "r"}])
    ids = [example.id for example in read_examples(DataSource(paths=(str(tmp_path / "pool.jsonl"),)))]
    assert len(set(ids)) == 4
    assert ids[1:3] == [f"{ids[0]}-2", f"{ids[0]}-3"]
