from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from influcoder.influence.methods import METHODS, Method, combine

RATES = [1e-3, 4e-3, 2e-3]


def parts(rows: int, seed: int) -> list[NDArray[np.float32]]:
    """Return three checkpoints' gradients, lengths far apart."""
    source = np.random.default_rng(seed)
    return [(source.normal(size=(rows, 6)) * 10**place).astype(np.float32) for place in range(3)]


def test_combined_inner_products_are_sums_weighted_by_learning_rate() -> None:
    asking, asked = parts(2, 0), parts(4, 1)
    left, right = (combine(side, RATES, unit_weights=False) for side in (asking, asked))
    assert left.shape == (2, 18) and left.dtype == np.float32
    for one in range(2):
        for two in range(4):
            terms = [rate * float(a[one].astype(np.float64) @ b[two]) for rate, a, b in zip(RATES, asking, asked, strict=True)]
            assert float(left[one] @ right[two]) == pytest.approx(sum(terms), rel=1e-4, abs=1e-5)


def test_unit_weights_make_them_means_of_cosines_weighted_by_share_of_learning_rate() -> None:
    asking, asked = parts(2, 0), parts(4, 1)
    left, right = (combine(side, RATES, unit_weights=True) for side in (asking, asked))
    for one in range(2):
        for two in range(4):
            cosines = [
                float(a[one] @ b[two]) / float(np.linalg.norm(a[one]) * np.linalg.norm(b[two])) for a, b in zip(asking, asked, strict=True)
            ]
            expected = sum(rate / sum(RATES) * cosine for rate, cosine in zip(RATES, cosines, strict=True))
            assert float(left[one] @ right[two]) == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(np.linalg.norm(left, axis=1), 1, rtol=1e-6)


def test_combining_leaves_what_it_was_given() -> None:
    given = parts(2, 0)
    combine(given, RATES, unit_weights=True)
    for part, expected in zip(given, parts(2, 0), strict=True):
        assert np.array_equal(part, expected)


def test_as_many_rates_as_checkpoints_are_asked_for() -> None:
    with pytest.raises(ValueError, match="zip"):
        combine(parts(2, 0), RATES[:2], unit_weights=False)


def test_methods_are_those_of_the_table() -> None:
    """One row a method: directions of rows and of queries, EK-FAC, Fisher, normalisation, all checkpoints, unit weights, noise scales."""
    table = {
        "influcoder": ("gradient", "gradient", False, None, "layers", False, False, False),
        "tracin": ("gradient", "gradient", False, None, "none", True, False, False),
        "less": ("adam_step", "gradient", False, None, "unit", True, True, False),
        "logra": ("gradient", "gradient", False, "rows", "none", False, False, False),
        "trackstar": ("second_moment", "second_moment", False, "both", "unit", False, False, False),
        "ekfac": ("gradient", "gradient", True, None, "none", False, False, False),
        "f_influence": ("gradient", "gradient", False, None, "none", True, False, True),
    }
    found = {
        name: (m.direction, m.query_direction, m.ekfac, m.fisher, m.normalise, m.every_checkpoint, m.unit_weights, m.noise_scaled)
        for name, m in METHODS.items()
    }
    assert found == table
    assert [name for name, method in METHODS.items() if method.asymmetric] == ["less"]
    assert [name for name, method in METHODS.items() if method.finished_at_once] == ["influcoder", "ekfac"]


@pytest.mark.parametrize(
    ("method", "at_once"), [(Method(), True), (Method(fisher="rows"), False), (Method(every_checkpoint=True, normalise="none"), False)]
)
def test_features_are_finished_at_once_unless_something_comes_after(method: Method, at_once: bool) -> None:
    assert method.finished_at_once is at_once and not method.asymmetric
