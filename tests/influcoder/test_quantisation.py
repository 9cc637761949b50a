from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from influcoder.quantisation import binary_codes, fold_queries, hamming_distances, quantise

VECTORS = hnp.arrays(np.float32, st.tuples(st.integers(1, 20), st.integers(1, 9)), elements=st.floats(-1, 1, width=32))


@given(VECTORS)
def test_every_number_is_off_by_half_a_step_at_most(vectors: NDArray[np.float32]) -> None:
    quantised = quantise(vectors)
    assert quantised.codes.dtype == np.int8 and np.abs(quantised.codes.astype(int)).max() <= 127
    assert (quantised.steps > 0).all()
    error = np.abs(quantised.restored().astype(np.float64) - vectors)
    assert (error <= quantised.steps.astype(np.float64) / 2 + 1e-6).all()


def test_steps_are_the_range_of_each_dimension_in_254_parts() -> None:
    quantised = quantise(np.array([[0.0, -0.3, 5], [0.254, 0.208, 5], [0.1, 0.0, 5]], np.float32))
    np.testing.assert_allclose(quantised.steps, [0.001, 0.002, 1], rtol=1e-5)
    np.testing.assert_allclose(quantised.centres, [0.127, -0.046, 5], rtol=1e-5)
    assert quantised.codes.tolist() == [[-127, -127, 0], [127, 127, 0], [-27, 23, 0]]


def test_folded_queries_score_the_restored_numbers() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = (rng.standard_normal(shape).astype(np.float32) + 1 for shape in ((50, 24), (3, 24)))
    quantised = quantise(vectors)
    folded, offsets = fold_queries(queries, quantised.steps, quantised.centres)
    expected = queries.astype(np.float64) @ quantised.restored().astype(np.float64).T
    np.testing.assert_allclose(folded @ quantised.codes.T.astype(np.float32) + offsets, expected, rtol=1e-5)


def test_scores_are_off_by_what_the_docstring_says() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((4000, 64)).astype(np.float32) * np.linspace(0.1, 3, 64).astype(np.float32)
    query = rng.standard_normal(64)
    quantised = quantise(vectors)
    errors = (quantised.restored().astype(np.float64) - vectors) @ query
    assert np.abs(errors).max() <= np.abs(query) @ quantised.steps / 2 + 1e-5
    assert errors.std() == pytest.approx(np.sqrt(((query * quantised.steps) ** 2).sum() / 12), rel=0.05)


def test_no_row_and_a_constant_dimension_are_no_special_cases() -> None:
    empty = quantise(np.empty((0, 4), np.float32))
    assert empty.codes.shape == (0, 4) and empty.restored().shape == (0, 4)
    constant = np.full((3, 2), 0.25, np.float32)
    np.testing.assert_array_equal(quantise(constant).restored(), constant)


@pytest.mark.parametrize("dim", [3, 8, 64, 100])
@pytest.mark.parametrize("with_numpy_2", [True, False])
def test_hamming_distances_count_unequal_signs(dim: int, with_numpy_2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not with_numpy_2:
        monkeypatch.delattr(np, "bitwise_count")
    codes = np.random.default_rng(0).integers(-127, 128, (30, dim)).astype(np.int8)
    binary = binary_codes(codes)
    assert binary.shape == (30, -(-dim // 8)) and binary.dtype == np.uint8
    expected = [sum((a > 0) != (b > 0) for a, b in zip(codes[4], row, strict=True)) for row in codes]
    assert hamming_distances(binary[4], binary).tolist() == expected
