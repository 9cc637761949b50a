"""What is asked and answered, as OpenAPI describes it. Types are strict: a number in quotes is no number."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from influcoder.examples import Example, Turn
from influcoder.serving.answers import Question
from influcoder.serving.config import Limits
from influcoder.serving.problems import Problem
from influcoder.top_k import Side

NOT_BLANK = r"[^\s\x1c-\x1f\x85]"
"""a character that is no blank to JavaScript's patterns nor to Python's `strip`"""


class Query(BaseModel):
    """Behaviour to explain: a response, and what it answers."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: str = Field("", description="what the model is asked; empty for plain text")
    response: str = Field(description="what the model answers; not blank", json_schema_extra={"pattern": NOT_BLANK})
    weight: float = Field(
        1.0,
        ge=-1e6,
        le=1e6,
        allow_inf_nan=False,
        description="+1 to look for it, -1 to look away from it; not 0",
        json_schema_extra={"not": {"const": 0}},
    )

    @field_validator("prompt", "response")
    @classmethod
    def _whole_characters(cls, value: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can escape half of a character; no tokenizer can read one
            raise ValueError("expected whole characters, not half of a pair") from None
        return value

    @field_validator("response")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("expected text, since the loss is on the response")
        return value

    @field_validator("weight")
    @classmethod
    def _not_zero(cls, value: float) -> float:
        if value == 0:
            raise ValueError("expected a number other than 0, as +1 or -1")
        return value


class AttributionRequest(BaseModel):
    """Which rows push toward and against the queries?"""

    model_config = ConfigDict(extra="forbid", strict=True)
    queries: list[Query] = Field(min_length=1)
    k: int = Field(10, ge=1, description="rows of each side")
    side: Literal["top", "bottom", "both"] = Field("both", description="top: rows that push toward; bottom: rows that push against")

    @field_validator("k", mode="before")
    @classmethod
    def _whole_number(cls, value: object) -> object:
        return int(value) if isinstance(value, float) and value.is_integer() else value  # 10.0 is an integer to JSON Schema

    def question(self, limits: Limits) -> Question:
        """Return what is asked.

        Raises:
            Problem: 422 when it is more than the limits allow.
        """
        k = self.k if "k" in self.model_fields_set else min(self.k, limits.k)
        if k > limits.k:
            raise Problem(422, f"k: {k}; expected at most {limits.k}")
        sides: tuple[Side, ...] = ("top", "bottom") if self.side == "both" else (self.side,)
        return Question(queries=_examples(self.queries, limits), k=k, sides=sides)


class HighlightRequest(BaseModel):
    """Which words carry the scores of a row?"""

    model_config = ConfigDict(extra="forbid", strict=True)
    row: str = Field(description="id of a row whose text the server has")
    queries: list[Query] = Field(min_length=1)

    def examples(self, limits: Limits) -> tuple[Example, ...]:
        """Return the queries.

        Raises:
            Problem: 422 when they are more than the limits allow.
        """
        return _examples(self.queries, limits)


def _examples(queries: list[Query], limits: Limits) -> tuple[Example, ...]:
    if len(queries) > limits.queries:
        raise Problem(422, f"queries: {len(queries)}; expected at most {limits.queries}; ask again with the others")
    for number, query in enumerate(queries):
        for name, text in (("prompt", query.prompt), ("response", query.response)):
            if len(text) > limits.text_chars:
                raise Problem(422, f"queries.{number}.{name}: {len(text)} characters; expected at most {limits.text_chars}")
    return tuple(
        Example(id=str(number), context=user_turn(query.prompt), response=query.response, weight=query.weight)
        for number, query in enumerate(queries)
    )


def user_turn(prompt: str) -> tuple[Turn, ...]:
    """Return the context that a prompt is; an empty one is none."""
    return (Turn(role="user", content=prompt),) if prompt else ()


class RowScore(BaseModel):
    """A row and what it does to the query; mu and its interval only where the encoder's teacher estimated them."""

    rank: int = Field(description="1 is the most extreme of its side")
    id: str
    score: float = Field(description="larger: training on the row lowers the query's loss more")
    contributor: str | None
    mu: float | None = None
    mu_lower: float | None = Field(None, description="lower end of the 95 % interval")
    mu_upper: float | None = Field(None, description="upper end of the 95 % interval")
    distinguishable: bool | None = Field(None, description="whether the interval leaves out 0")


class Sides(BaseModel):
    """The sides that were asked for."""

    top: list[RowScore] | None = None
    bottom: list[RowScore] | None = None


class AttributionAnswer(BaseModel):
    """The most extreme rows of each query, and of all queries together."""

    queries: list[Sides]
    ranking: Sides
    rows: int = Field(description="rows that were scored")
    index_version: int
    encoder: str = Field(description="fingerprint of the encoder")


class SpanChange(BaseModel):
    """Some words of a response."""

    text: str = Field(description="with the blanks after them; the spans of a response make up what the encoder read of it")
    change: float = Field(description="the score less the encoder's score without these words; above 0: they push toward the query")


class QueryHighlight(BaseModel):
    """What carries a query's score for the row."""

    score: float
    row: list[SpanChange] = Field(description="the row's response")
    query: list[SpanChange] = Field(description="the query's response")


class HighlightAnswer(BaseModel):
    """The encoder's view, by leaving words out; not the teacher's."""

    row: str
    highlights: list[QueryHighlight] = Field(description="of each query, in order")


class RowText(BaseModel):
    """A row as the encoder read it."""

    id: str
    prompt: str
    response: str
    contributor: str | None


class Health(BaseModel):
    """What is served, and what one request may ask for."""

    status: Literal["ok"]
    rows: int
    index_version: int
    encoder: str
    texts: bool = Field(description="whether /rows/{id} has texts")
    token: bool = Field(description="whether requests need a bearer token")
    max_queries: int
    max_k: int
    max_text_chars: int


class ProblemBody(BaseModel):
    """RFC 9457."""

    type: Literal["about:blank"]
    title: str
    status: int
    detail: str = Field(description="one line")
