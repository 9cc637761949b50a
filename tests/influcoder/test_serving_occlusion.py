"""Texts are cut into parts that make them up, and what is asked together is what each is alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from influcoder.examples import Example, Turn
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.serving.occlusion import Occlusion, cut_into_spans, occlude
from tests.influcoder.conftest import make_texts


@given(text=st.text(" \n\tab\u3000é", max_size=60), limit=st.integers(1, 9))
def test_spans_make_up_the_text_and_hold_whole_words(text: str, limit: int) -> None:
    spans, words = cut_into_spans(text, limit), text.split()
    assert "".join(spans) == text and 1 <= len(spans) <= limit
    assert [word for span in spans for word in span.split()] == words
    sizes = [len(span.split()) for span in spans]
    assert len(words) > limit or sizes == [1] * len(words) or not words, "one word a span where there is room"
    assert len(set(sizes[:-1])) <= 1 and sizes[-1] <= sizes[0], "all of one size, the last one may be smaller"


def test_answers_do_not_depend_on_what_is_asked_with_them(exported_folder: Path) -> None:
    encoder, texts = OnnxEncoder(exported_folder), make_texts(8, seed=2)
    examples = [
        Example(id=str(place), context=(Turn(role="user", content=text[::-1]),) if place % 2 else (), response=text)
        for place, text in enumerate(texts)
    ]
    asked = [
        Occlusion(row=examples[0], queries=(examples[1],), spans=5),
        Occlusion(row=examples[2], queries=(examples[3], examples[4], examples[5]), spans=2),
        Occlusion(row=examples[6], queries=(examples[7],), spans=1),
    ]
    together = occlude(encoder, asked)
    for each, found in zip(asked, together, strict=True):
        (alone,) = occlude(encoder, [each])
        assert len(found) == len(each.queries)
        for one, other in zip(found, alone, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-5)
            for side in ("row", "query"):
                mine, theirs = getattr(one, side), getattr(other, side)
                assert [span.text for span in mine] == [span.text for span in theirs]
                assert [span.change for span in mine] == pytest.approx([span.change for span in theirs], abs=2e-5)
        assert sum(len(one.row) for one in found[:1]) + sum(len(one.query) for one in found) + 1 + len(found) <= each.size
