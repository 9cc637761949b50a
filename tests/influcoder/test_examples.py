from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influcoder.errors import DataError, RunError
from influcoder.examples import Example, Turn, check_unique, content_hash, fingerprint, load_examples, write_examples


def test_rows_come_back_from_parquet_as_they_were(tiny_rows: list[Example], tmp_path: Path) -> None:
    write_examples(tmp_path / "rows.parquet", tiny_rows)
    assert load_examples(tmp_path / "rows.parquet") == tiny_rows


def test_no_rows_come_back_as_no_rows(tmp_path: Path) -> None:
    write_examples(tmp_path / "rows.parquet", [])
    assert load_examples(tmp_path / "rows.parquet") == []


def test_prompt_is_the_only_turn_or_one_line_a_turn(tiny_rows: list[Example]) -> None:
    assert tiny_rows[0].prompt == "Add 2 and 3."
    assert tiny_rows[2].prompt == "system: Be brief.\nuser: Hello\nassistant: Hello.\nuser: Is ice cold?"
    assert tiny_rows[3].prompt == ""


def test_content_hash_tells_roles_turns_and_response_apart() -> None:
    user = Turn(role="user", content="a")
    hashes = {
        content_hash((user,), "b"),
        content_hash((Turn(role="system", content="a"),), "b"),
        content_hash((), "ab"),
        content_hash((), "b"),
        content_hash((user, user), "b"),
        content_hash((Turn(role="user", content="ab"),), ""),
    }
    assert len(hashes) == 6
    assert content_hash((user,), "b") == content_hash([user], "b")
    assert all(len(found) == 16 for found in hashes)


def test_fingerprint_knows_order_ids_contents_and_weights(tiny_rows: list[Example]) -> None:
    first, *rest = tiny_rows
    changed = [
        [*rest, first],
        [replace(first, id="other"), *rest],
        [replace(first, response="The sum is 6."), *rest],
        [replace(first, weight=-1.0), *rest],
        rest,
    ]
    assert len({fingerprint(rows) for rows in [tiny_rows, *changed]}) == 6
    assert fingerprint(tiny_rows) == fingerprint(list(tiny_rows))


def test_duplicate_id_is_named_with_both_rows(tiny_rows: list[Example]) -> None:
    check_unique(tiny_rows, "pool.jsonl")
    with pytest.raises(DataError, match=r"pool\.jsonl: id 'sea' stands in row 2 and row 6") as caught:
        check_unique([*tiny_rows, tiny_rows[1]], "pool.jsonl")
    assert "\n" not in str(caught.value)


def test_rows_that_the_teacher_did_not_write_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    with pytest.raises(RunError, match=r"rows\.parquet: cannot be read as rows of a run"):
        load_examples(path)
    path.write_bytes(b"PAR1 not parquet PAR1")
    with pytest.raises(RunError, match=r"rows\.parquet: cannot be read as rows of a run") as caught:
        load_examples(path)
    assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"question": ["why"]}), path)
    with pytest.raises(RunError, match=r"rows\.parquet: cannot be read as rows of a run"):
        load_examples(path)
