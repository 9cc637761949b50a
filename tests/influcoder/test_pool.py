from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influcoder import file_formats
from influcoder.errors import DataError
from influcoder.examples import Example
from influcoder.pool import PoolRow, SeenIds, estimate_rows, in_shards, iterate_pool, json_line, shard_fingerprint
from influcoder.readers import Columns, DataSource, Rejected, read_examples
from influcoder.text_format import TextFormat

GOOD = {"id": "good", "prompt": "p", "response": "r"}
LAST = {"id": "last", "prompt": "p", "response": "r"}


def rows_of(*paths: Path | str, **settings: Any) -> list[PoolRow]:
    keep = settings.pop("keep_lines", False)
    return list(iterate_pool(DataSource(paths=tuple(map(str, paths)), **settings), "set_aside", TextFormat(), keep_lines=keep))


def ids(rows: list[PoolRow]) -> list[str | None]:
    return [row.example.id if isinstance(row.example, Example) else None for row in rows]


def line(**columns: Any) -> bytes:
    return json.dumps({"id": "bad", "prompt": "p", "response": "r"} | columns).encode()


MALFORMED: dict[str, tuple[bytes, str]] = {
    "bad UTF-8": (b'{"id": "bad", "prompt": "p", "response": "T\xfcr"}', "cannot be read as UTF-8"),
    "not JSON": (b'{"id": "bad", ', "not JSON"),
    "cut in the middle of a string": (line()[:-4], "not JSON"),
    "no object": (b"[1]", "a JSON list"),
    "JSON null": (b"null", "a JSON NoneType"),
    "nesting without end": (b"[" * 100_000, "not JSON"),
    "a number without end": (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
    "zero bytes": (b"\0" * 50, "not JSON"),
    "nested nulls": (line(response={"text": [None]}), "column 'response' holds dict"),
    "null": (line(prompt=None), "column 'prompt' holds NoneType"),
    "wrong columns": (b'{"question": "p", "answer": "r"}', "no column 'prompt'"),
    "empty response": (line(response=" "), "the response is empty"),
    "half a character in the response": (line(response="\ud83d"), "its text cannot be written as UTF-8"),
    "half a character in the id": (line(id="\ud83d"), "its text cannot be written as UTF-8"),
    "10 MB": (line(response="x" * 10_000_000), "longer than 8388608 bytes"),
    "a copy of an id": (line(id="good"), "id 'good' stands in row 1 already"),
}


@pytest.mark.parametrize("kind", MALFORMED)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_malformed_line_is_set_aside_and_the_next_one_read(kind: str, suffix: str, tmp_path: Path) -> None:
    bad, reason = MALFORMED[kind]
    content = json.dumps(GOOD).encode() + b"\n" + bad + b"\n" + json.dumps(LAST).encode() + b"\n"
    path = tmp_path / f"pool{suffix}"
    path.write_bytes(gzip.compress(content, 1) if suffix == ".jsonl.gz" else content)
    good, rejected, last = rows_of(path)
    assert ids([good, rejected, last]) == ["good", None, "last"]
    assert isinstance(rejected.example, Rejected) and rejected.example.reason.startswith(reason)
    assert rejected.example.where in (f"{path}:2", f"{path}: row 2") and not rejected.example.rest_of_file
    with pytest.raises(DataError, match=r"(:|row )2: "):
        list(iterate_pool(DataSource(paths=(str(path),)), "refuse", TextFormat(), keep_lines=False))


def test_malformed_messages_are_set_aside(tmp_path: Path) -> None:
    talks: list[Any] = [None, [None], [[]], [{"role": ["user"], "content": "p"}], [{"role": "assistant", "content": None}], [{}]]
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    assert ids(rows_of(path, columns=Columns(messages="messages"))) == [None] * len(talks)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (b"bad,T\xfcr,r", "cannot be read as UTF-8"),
        (b"bad,p,r,more", "its cells do not match the header"),
        (b"bad,p", "its cells do not match the header"),
        (b"bad,p," + b"x" * 9_000_000, "cannot be read as csv"),
        (b"good,p,r", "id 'good' stands in row 1"),
    ],
)
def test_a_malformed_row_of_csv_is_set_aside(cells: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "pool.csv"
    path.write_bytes(b"id,prompt,response\ngood,p,r\n" + cells + b"\nlong,p," + b"y" * 200_000 + b"\n")
    found = rows_of(path)
    assert ids(found) == ["good", None, "long"]
    assert isinstance(found[1].example, Rejected) and found[1].example.reason.startswith(reason)


def test_strings_of_parquet_that_are_not_utf8_cost_their_row(tmp_path: Path) -> None:
    column = pa.array([b"r", b"T\xfcr", b"s"]).view(pa.string())
    pq.write_table(pa.table({"id": ["a", "b", "c"], "prompt": ["p"] * 3, "response": column}), tmp_path / "pool.parquet")
    found = rows_of(tmp_path / "pool.parquet")
    assert ids(found) == ["a", None, "c"]
    assert isinstance(found[1].example, Rejected) and "row 2" in found[1].example.where


def test_a_file_that_breaks_off_is_said_to_and_the_next_one_is_read(tmp_path: Path) -> None:
    source = random.Random(0)
    many = [{"id": f"r{row}", "prompt": "p", "response": f"{source.random()}"} for row in range(2000)]
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in many).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.parquet").write_bytes(b"")
    (tmp_path / "c.jsonl").write_bytes(b"")
    (tmp_path / "d.csv").write_bytes(b"")
    (tmp_path / "e.jsonl").write_bytes(json.dumps(LAST).encode())
    found = rows_of(tmp_path / "*")
    broken = [row.example for row in found if isinstance(row.example, Rejected)]
    assert [Path(row.where).name for row in broken] == ["a.jsonl.gz", "b.parquet"] and all(row.rest_of_file for row in broken)
    assert 500 < len(found) < 1500 and ids(found)[0] == "r0" and ids(found)[-1] == "last"


def test_patterns_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b/two.jsonl", "a/one.jsonl", "b/[x].jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(GOOD | {"id": Path(name).stem}) + "\n")
    assert ids(rows_of(tmp_path / "**" / "*.jsonl")) == ["one", "[x]", "two"]
    assert ids(rows_of(tmp_path / "b" / "[x].jsonl")) == ["[x]"]  # a file of that name comes before the pattern
    assert [row.id for row in read_examples(DataSource(paths=(str(tmp_path / "?" / "*o*.jsonl"),)))] == ["one", "two"]
    with pytest.raises(DataError, match=r"\*\.csv: matches no file"):
        rows_of(tmp_path / "*.csv")
    with pytest.raises(DataError, match=r"absent\.jsonl: no such file"):  # before the first row of the others
        next(iterate_pool(DataSource(paths=(str(tmp_path / "a/one.jsonl"), "absent.jsonl")), "refuse", TextFormat(), keep_lines=False))


def test_rows_are_cut_at_once_and_records_kept_when_asked(tmp_path: Path) -> None:
    record = {"id": "a", "prompt": "p" * 50, "response": "r" * 50, "label": {"x": [None, 1.5]}}
    (tmp_path / "pool.jsonl").write_text(json.dumps(record))
    source, text_format = DataSource(paths=(str(tmp_path / "pool.jsonl"),)), TextFormat(max_prompt_chars=5, max_response_chars=7)
    for keep in (True, False):
        (row,) = iterate_pool(source, "refuse", text_format, keep_lines=keep)
        assert isinstance(row.example, Example) and (len(row.example.prompt), len(row.example.response)) == (5, 7)
        assert row.line == (json.dumps(record) + "\n" if keep else None)


def test_ids_are_remembered_exactly() -> None:
    seen, source = SeenIds(), random.Random(0)
    drawn = [f"{source.choice('äb')}{source.randint(0, 300)}" for _ in range(2000)]
    first: dict[str, int] = {}
    for number, row_id in enumerate(drawn, 1):
        assert seen.first(row_id, number) == first.setdefault(row_id, number)
        assert seen.copies(row_id) == drawn[:number].count(row_id)


def test_copies_without_ids_are_numbered_as_elsewhere(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "response": "r"}, {"prompt": "q", "response": "r"}] * 3
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = [row.id for row in read_examples(DataSource(paths=(str(tmp_path / "pool.jsonl"),)))]
    assert ids(rows_of(tmp_path / "pool.jsonl")) == expected and expected[4] == f"{expected[0]}-3"


CHANGES: list[Callable[[list[PoolRow]], list[PoolRow]]] = [
    lambda rows: rows[::-1],
    lambda rows: rows[:2],
    lambda rows: [PoolRow(Example(id="a", context=(), response="other"), None), *rows[1:]],
    lambda rows: [PoolRow(Example(id="a", context=(), response="r", contributor="c"), None), *rows[1:]],
    lambda rows: [*rows[:2], PoolRow(Rejected(where="f:3", reason="other"), None)],
    lambda rows: [rows[0], PoolRow(rows[1].example, "{}"), rows[2]],
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_shards_fingerprint_is_of_all_that_goes_into_it(change: Callable[[list[PoolRow]], list[PoolRow]]) -> None:
    rows = [PoolRow(Example(id=name, context=(), response="r"), None) for name in "ab"]
    rows.append(PoolRow(Rejected(where="f:3", reason="bad"), None))
    assert shard_fingerprint(rows) == shard_fingerprint(list(rows)) != shard_fingerprint(change(rows))
    assert [len(shard) for shard in in_shards(iter(rows), 2)] == [2, 1]


def test_any_record_is_a_line_of_json() -> None:
    assert json_line({"a": "Tür", "b": None}) == '{"a": "Tür", "b": null}\n'
    assert json.loads(json_line({"a": "\ud83d"})) == {"a": "\ud83d"} and json_line({"a": "\ud83d"}).isascii()
    assert json.loads(json_line({"a": Path("x")})) == {"a": "x"}


def test_the_number_of_rows_is_guessed_from_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("influcoder.pool.SAMPLE_BYTES", 4000)
    source = random.Random(0)
    text = "".join(json.dumps({"prompt": "p", "response": f"{source.random()}"}) + "\n" for _ in range(5000))
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    pq.write_table(pa.table({"prompt": ["p"] * 70, "response": ["r"] * 70}), tmp_path / "c.parquet")
    assert estimate_rows(DataSource(paths=(str(tmp_path / "a.jsonl"),))) == pytest.approx(5000, rel=0.1)
    assert estimate_rows(DataSource(paths=(str(tmp_path / "c.parquet"),))) == 70
    assert estimate_rows(DataSource(paths=(str(tmp_path / "*"),), limit=100)) == 100
    monkeypatch.setattr("influcoder.pool.SAMPLE_BYTES", 100_000)  # gzip reads ahead
    assert estimate_rows(DataSource(paths=(str(tmp_path / "b.jsonl.gz"),))) == pytest.approx(5000, rel=0.5)
    assert estimate_rows(DataSource(paths=("owner/name",))) is None


def test_long_lines_are_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_formats, "MAX_ROW_BYTES", 60)
    asked: list[int] = []

    class Watched:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def readline(self, size: int) -> bytes:
            asked.append(size)
            end = self.content.find(b"\n") + 1 or len(self.content)
            found, self.content = self.content[: min(end, size)], self.content[min(end, size) :]
            return found

    lines = [b"\xef\xbb\xbfone\n", b"x" * 60 + b"\n", b"y" * 59 + b"\n", b"z" * 500 + b"\n", b"last"]
    found = list(file_formats._lines(Watched(b"".join(lines))))  # type: ignore[arg-type]
    assert found == [b"one\n", None, lines[2], None, b"last"] and max(asked) == 61
