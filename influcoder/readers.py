"""Reading rows: which columns mean what, and what counts as malformed. `file_formats.py` opens the files.

Only the columns that the config names are looked at; labels may stand beside them and stay unread.
A malformed row is an error in training (`on_bad_row="refuse"`) and is handed back in attribution (`"set_aside"`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from influcoder.errors import ConfigError, DataError
from influcoder.examples import ROLES, Example, Turn, check_unique, content_hash
from influcoder.file_formats import BrokenFile, Row, find_files, iterate_rows

OnBadRow = Literal["refuse", "set_aside"]
Copies = Callable[[str], int]
"""counts contents: given a content hash, how often it came, this time included"""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns hold what. Name `prompt` and `response`, or `text`, or `messages`; null means not read."""

    prompt: str | None = "prompt"
    """what the model is asked"""
    response: str | None = "response"
    """what the model learns to answer: the loss is on this alone"""
    text: str | None = None
    """plain text without a prompt; overrides prompt and response"""
    messages: str | None = None
    """list of {role, content} turns ending with the assistant's; overrides the three above"""
    id: str | None = "id"
    """identifier; rows without one get their content hash"""
    contributor: str | None = None
    """who gave the row"""
    weight: str | None = None
    """queries only: +1 wanted behaviour, -1 contrast"""

    def __post_init__(self) -> None:
        if self.messages is None and self.text is None and (self.prompt is None or self.response is None):
            raise ConfigError("columns: name `prompt` and `response`, or `text`, or `messages`; all of them are null")


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Where rows come from."""

    paths: tuple[str, ...]
    """files (.jsonl, .jsonl.gz, .csv, .parquet) or patterns of them (`pool/*.parquet`), `datasets` folders, or hub ids; read in this order"""
    columns: Columns = field(default_factory=Columns)
    """which columns hold what"""
    split: str = "train"
    """split of a `datasets` folder or hub id; files have none"""
    subset: str | None = None
    """configuration of a hub id, as DATE-LM's hub datasets have one a source; null takes the default one; files have none"""
    limit: int | None = None
    """read at most so many rows; null reads all"""

    def __post_init__(self) -> None:
        if not self.paths:
            raise ConfigError("paths: empty; expected at least one file, `datasets` folder or hub id")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit: {self.limit}; expected at least 1, or null for all rows")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """A row that was set aside."""

    where: str
    """file and row number; the file alone when `rest_of_file`"""
    reason: str
    rest_of_file: bool = False
    """the file breaks off here: the rows that would follow are lost with it, and nobody knows how many"""


def read_examples(source: DataSource) -> list[Example]:
    """Read all rows; refuse malformed rows and duplicate ids.

    Raises:
        DataError: naming file, row, what was found and what was expected.
    """
    examples = [row for row in iterate_examples(source) if isinstance(row, Example)]
    name = ", ".join(source.paths)
    if not examples:
        raise DataError(f"{name}: no rows; expected at least one")
    check_unique(examples, name)
    return examples


def iterate_examples(source: DataSource, on_bad_row: OnBadRow = "refuse") -> Iterator[Example | Rejected]:
    """Yield rows in order; with `set_aside`, a malformed row is yielded as `Rejected` instead of raised.

    Raises:
        DataError: when a source is missing, or a row is malformed and `on_bad_row` is `refuse`.
    """
    return (example for example, _ in iterate_records(source, on_bad_row, counted()))


def iterate_records(source: DataSource, on_bad_row: OnBadRow, copies: Copies) -> Iterator[tuple[Example | Rejected, Row | None]]:
    """Yield each row as `iterate_examples` does, with the record as it was read; None where it could not be read.

    Raises:
        DataError: when a source is missing, or a row is malformed and `on_bad_row` is `refuse`.
    """
    for where, row in _rows(source):
        try:
            example: Example | Rejected = _parse_row(row, source.columns, where, copies)
        except DataError as error:
            if on_bad_row == "refuse":
                raise
            reason = str(error).removeprefix(f"{where}: ")
            example = Rejected(where=where, reason=reason, rest_of_file=isinstance(error, BrokenFile))
        yield example, None if isinstance(row, DataError) else row


def counted() -> Copies:
    """Return a count of contents in memory."""
    counts: Counter[str] = Counter()

    def count(content: str) -> int:
        counts[content] += 1
        return counts[content]

    return count


def read_columns(source: DataSource, names: tuple[str, ...]) -> dict[str, Row]:
    """Read the named columns by id: how eval, and eval alone, gets at labels.

    A row with an id needs nothing else: tables of labels or links hold no text. One without is named by its content.

    Raises:
        DataError: when a row is malformed, has no such column, or has the id of another row.
    """
    found: dict[str, Row] = {}
    places: dict[str, str] = {}
    copies = counted()
    for where, row in _rows(source):
        if isinstance(row, DataError):
            raise row
        missing = [name for name in names if name not in row]
        if missing:
            raise DataError(f"{where}: no column {missing[0]!r}; it has {_listed(row)}; name one of those in the config")
        row_id = _given_id(row, source.columns)
        if row_id is None:
            row_id = _parse_row(row, source.columns, where, copies).id
        if row_id in found:  # which of the two is right nobody knows
            raise DataError(f"{where}: id {row_id!r} stands in {places[row_id]} too; expected every id once; rename or drop one")
        found[row_id] = {column: row[column] for column in names}
        places[row_id] = where
    return found


def _rows(source: DataSource) -> Iterator[tuple[str, Row | DataError]]:
    rows = (found for path in find_files(source.paths) for found in iterate_rows(path, source.split, source.subset))
    return islice(rows, source.limit)


def _parse_row(row: Row | DataError, columns: Columns, where: str, copies: Copies) -> Example:
    if isinstance(row, DataError):
        raise row
    context, response = _parse_conversation(row, columns, where)
    if not response.strip():
        raise DataError(f"{where}: the response is empty; expected text, since the loss is on the response; fill or drop the row")
    given = _given_id(row, columns)
    contributor = _required(row, columns.contributor, where) if columns.contributor else None
    contributor = None if contributor is None else str(contributor)
    try:
        own_id = content_hash(context, response)
        f"{given}{contributor}".encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: its text cannot be written as UTF-8 ({error.reason}); expected whole characters; mend or drop the row"
        ) from error
    if given is None:
        number = copies(own_id)
        given = own_id if number == 1 else f"{own_id}-{number}"  # a copy is a row of its own, counted later
    return Example(id=given, context=context, response=response, contributor=contributor, weight=_parse_weight(row, columns.weight, where))


def _given_id(row: Row, columns: Columns) -> str | None:
    given = row.get(columns.id) if columns.id else None
    return None if given in (None, "") else str(given)


def _parse_conversation(row: Row, columns: Columns, where: str) -> tuple[tuple[Turn, ...], str]:
    if columns.messages:
        return _parse_messages(_required(row, columns.messages, where), columns.messages, where)
    if columns.text:
        return (), _string(row, columns.text, where)
    assert columns.prompt and columns.response  # Columns.__post_init__
    prompt, response = _string(row, columns.prompt, where), _string(row, columns.response, where)
    return (Turn(role="user", content=prompt),) if prompt else (), response


def _parse_messages(value: object, column: str, where: str) -> tuple[tuple[Turn, ...], str]:
    if not isinstance(value, list):
        raise DataError(
            f"{where}: column {column!r} holds {type(value).__name__} {value!r:.40}; expected a list of {{role, content}} turns"
        )
    turns = []
    for position, message in enumerate(value, 1):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise DataError(
                f"{where}: turn {position} of {column!r} is not {{role, content}} with role in {', '.join(ROLES)} and content a string"
            )
        turns.append(Turn(role=role, content=content))
    if not turns or turns[-1].role != "assistant":
        raise DataError(f"{where}: {column!r} does not end with an assistant turn; expected one, since the loss is on it")
    return tuple(turns[:-1]), turns[-1].content


def _parse_weight(row: Row, column: str | None, where: str) -> float:
    if column is None:
        return 1.0
    value = _required(row, column, where)
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = float("nan")
    if not abs(weight) < float("inf") or weight == 0:
        raise DataError(f"{where}: weight {value!r} in column {column!r}; expected a finite number other than 0, as +1 or -1")
    return weight


def _required(row: Row, column: str, where: str) -> Any:
    if column not in row:
        raise DataError(f"{where}: no column {column!r}; it has {_listed(row)}; name the right one under `columns`")
    return row[column]


def _string(row: Row, column: str, where: str) -> str:
    value = _required(row, column, where)
    if not isinstance(value, str):
        raise DataError(f"{where}: column {column!r} holds {type(value).__name__} {value!r:.40}; expected a string")
    return value


def _listed(row: Row) -> str:
    return ", ".join(repr(name) for name in row) or "no columns"
