from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from influcoder.errors import ConfigError, RunError
from influcoder.examples import Example, Turn
from influcoder.text_format import FILE_NAME, TextFormat, load_text_format, render, save_text_format, truncate, truncate_all

SHORT = TextFormat(max_prompt_chars=5, max_response_chars=4)

turns = st.builds(Turn, role=st.sampled_from(["system", "user", "assistant"]), content=st.text(max_size=12))
rows = st.builds(Example, id=st.just("row"), context=st.lists(turns, max_size=4).map(tuple), response=st.text(min_size=1, max_size=12))
formats = st.builds(TextFormat, max_prompt_chars=st.integers(1, 15), max_response_chars=st.integers(1, 15))


def test_prompt_keeps_its_tail_and_response_its_head() -> None:
    row = Example(id="row", context=(Turn(role="user", content="abcdefgh"),), response="12345678", contributor="ada", weight=-1.0)
    expected = Example(id="row", context=(Turn(role="user", content="defgh"),), response="1234", contributor="ada", weight=-1.0)
    assert truncate(row, SHORT) == expected


def test_earliest_turns_go_first() -> None:
    context = (Turn(role="system", content="gone"), Turn(role="user", content="cut off"), Turn(role="assistant", content="abc"))
    kept = truncate(Example(id="row", context=context, response="r"), SHORT).context
    assert kept == (Turn(role="user", content="ff"), Turn(role="assistant", content="abc"))


def test_a_turn_that_fills_the_budget_leaves_no_empty_turn_before_it() -> None:
    context = (Turn(role="system", content="gone"), Turn(role="user", content="abcde"))
    assert truncate(Example(id="row", context=context, response="r"), SHORT).context == (Turn(role="user", content="abcde"),)


@given(rows, formats)
def test_truncation_keeps_to_the_budgets_and_cutting_twice_changes_nothing(row: Example, text_format: TextFormat) -> None:
    once = truncate(row, text_format)
    assert truncate(once, text_format) == once
    assert render(once, text_format) == render(row, text_format)
    assert sum(len(turn.content) for turn in once.context) <= text_format.max_prompt_chars
    assert len(once.response) == min(len(row.response), text_format.max_response_chars)
    assert row.response.startswith(once.response)
    assert "".join(turn.content for turn in row.context).endswith("".join(turn.content for turn in once.context))


def test_rendered_text_carries_the_markers(tiny_rows: list[Example]) -> None:
    first, _, talk, plain, _ = tiny_rows
    default = TextFormat()
    assert render(first, default) == "Prompt: Add 2 and 3.\nResponse: The sum is 5."
    assert render(plain, default) == "Response: Snow fell on the harbour all night."
    assert render(talk, default) == ("Prompt: system: Be brief.\nuser: Hello\nassistant: Hello.\nuser: Is ice cold?\nResponse: Yes.")
    assert render(first, TextFormat(prompt_marker="Q ", response_marker="A ", max_response_chars=7)) == "Q Add 2 and 3.\nA The sum"
    chat = TextFormat(prompt_marker="<u>", separator="", response_marker="</u><a>", end_marker="</a>", max_response_chars=7)
    assert render(first, chat) == "<u>Add 2 and 3.</u><a>The sum</a>"
    assert render(plain, chat) == "</u><a>Snow fe</a>"


def test_truncate_all_cuts_every_row(tiny_rows: list[Example]) -> None:
    assert truncate_all(tiny_rows, SHORT) == [truncate(row, SHORT) for row in tiny_rows]


def test_text_format_comes_back_from_its_file(tmp_path: Path) -> None:
    written = TextFormat(
        max_prompt_chars=7, max_response_chars=9, prompt_marker="Frage: ", separator=" | ", response_marker="答: ", end_marker="■"
    )
    save_text_format(tmp_path, written)
    assert load_text_format(tmp_path) == written
    assert written.budgets == (7, 9)


def test_a_file_from_before_separator_and_end_marker_renders_as_it_did(tmp_path: Path, tiny_rows: list[Example]) -> None:
    old = {"version": 1, "max_prompt_chars": 5, "max_response_chars": 7, "prompt_marker": "Q ", "response_marker": "A "}
    (tmp_path / FILE_NAME).write_text(json.dumps(old))
    assert render(tiny_rows[0], load_text_format(tmp_path)) == "Q nd 3.\nA The sum"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"version": 2, "max_prompt_chars": 10}', "version 2, expected 1; use the influcoder release that wrote it"),
        ('{"max_prompt_chars": 10}', "not a readable text format"),
        ('{"version": 1, "max_words": 10}', "not a readable text format"),
        ('{"version": 1, ', "not a readable text format"),
        ("[]", "not a readable text format"),
        (None, "not a readable text format"),
    ],
)
def test_another_version_or_a_broken_file_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(RunError, match=message) as caught:
        load_text_format(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / FILE_NAME))
    assert "\n" not in str(caught.value)


def test_the_file_says_its_version(tmp_path: Path) -> None:
    save_text_format(tmp_path, TextFormat())
    assert json.loads((tmp_path / FILE_NAME).read_text())["version"] == 1


def test_budgets_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_prompt_chars 0"):
        TextFormat(max_prompt_chars=0)
    with pytest.raises(ConfigError, match="max_response_chars -1"):
        TextFormat(max_response_chars=-1)
