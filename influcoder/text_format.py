"""How a row becomes text, once for all: the same truncation for the decoder and the encoder, the same markers everywhere.

A row is cut *by characters* before any tokenizer sees it, so the student reads exactly what its teacher's gradients saw.
The prompt keeps its tail (nearest the response), the response keeps its head (where its loss begins).
`text_format.json` travels in the encoder folder: torch-free attribution renders text as training did.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from influcoder.errors import ConfigError, RunError
from influcoder.examples import Example, Turn

FILE_NAME = "text_format.json"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """Character budgets and the encoder's markers."""

    max_prompt_chars: int = 1000
    """characters of context kept, counted from its end"""
    max_response_chars: int = 1000
    """characters of response kept, counted from its start"""
    prompt_marker: str = "Prompt: "
    """what the encoder sees before the context"""
    separator: str = "\n"
    """what the encoder sees between context and response"""
    response_marker: str = "Response: "
    """what the encoder sees before the response"""
    bare_marker: str | None = None
    """what it sees before a response without context; null is `response_marker`"""
    end_marker: str = ""
    """what the encoder sees after the response"""

    @property
    def budgets(self) -> tuple[int, int]:
        """Characters kept of context and response."""
        return self.max_prompt_chars, self.max_response_chars

    def __post_init__(self) -> None:
        if self.max_prompt_chars < 1 or self.max_response_chars < 1:
            raise ConfigError(
                f"text: max_prompt_chars {self.max_prompt_chars} and max_response_chars {self.max_response_chars} must be at least 1"
            )


def truncate(example: Example, text_format: TextFormat) -> Example:
    """Cut one row to its character budgets; earliest turns go first."""
    budget = text_format.max_prompt_chars
    kept: list[Turn] = []
    for turn in reversed(example.context):
        if budget <= 0:
            break
        kept.append(Turn(role=turn.role, content=turn.content[-budget:]))
        budget -= len(turn.content)
    return replace(example, context=tuple(reversed(kept)), response=example.response[: text_format.max_response_chars])


def truncate_all(examples: Sequence[Example], text_format: TextFormat) -> list[Example]:
    """Cut every row to its character budgets."""
    return [truncate(example, text_format) for example in examples]


def render(example: Example, text_format: TextFormat) -> str:
    """Return the text that the encoder embeds. Expects a row that was truncated; cutting twice changes nothing."""
    cut = truncate(example, text_format)
    response = f"{cut.response}{text_format.end_marker}"
    if cut.context:
        return f"{text_format.prompt_marker}{cut.prompt}{text_format.separator}{text_format.response_marker}{response}"
    return f"{text_format.response_marker if text_format.bare_marker is None else text_format.bare_marker}{response}"


def save_text_format(folder: Path, text_format: TextFormat) -> None:
    """Write `text_format.json` into `folder`."""
    (folder / FILE_NAME).write_text(json.dumps({"version": VERSION, **asdict(text_format)}, indent=2) + "\n")


def load_text_format(folder: Path) -> TextFormat:
    """Read `text_format.json` from `folder`.

    Raises:
        RunError: when it is missing, unreadable, or of another version.
    """
    path = folder / FILE_NAME
    try:
        content = json.loads(path.read_text())
        version = content.pop("version")
        if version != VERSION:
            raise RunError(f"{path}: version {version!r}, expected {VERSION}; use the influcoder release that wrote it")
        return TextFormat(**content)
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path}: not a readable text format ({error}); expected a folder written by influcoder, "
            "with this file beside the model; export the encoder again"
        ) from error
