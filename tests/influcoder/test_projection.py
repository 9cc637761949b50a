"""The truth here: a loop over coordinates, an explicit matrix, or statistics over seeds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from influcoder.influence import projection
from influcoder.influence.projection import DenseSketch, Sketch, SketchKind, SparseSketch, draw_sketch, factor, generator, signs

CPU = torch.device("cpu")
KINDS: list[SketchKind] = ["count_sketch", "sjlt", "rademacher", "gaussian"]
SPARSE: list[SketchKind] = ["count_sketch", "sjlt"]
DENSE: list[SketchKind] = ["rademacher", "gaussian"]


def draw(kind: SketchKind, coordinates: int, dim: int, seed: int = 0, name: str = "layer") -> Sketch:
    return draw_sketch(kind, coordinates, dim, seed, name, CPU)


def sketched(block: Tensor, sketch: Sketch, dim: int) -> Tensor:
    out = torch.zeros(len(block), dim)
    sketch.add_to(out, block)
    return out


def matrix(kind: SketchKind, coordinates: int, dim: int, seed: int = 0, name: str = "layer") -> Tensor:
    """Return the `(coordinates, dim)` matrix that a sketch multiplies by."""
    return sketched(torch.eye(coordinates), draw(kind, coordinates, dim, seed, name), dim)


@pytest.mark.parametrize(("kind", "buckets"), [("count_sketch", 1), ("sjlt", 4)])
def test_a_sparse_sketch_equals_a_loop_over_coordinates(kind: SketchKind, buckets: int) -> None:
    sketch = draw(kind, 50, 8)
    assert isinstance(sketch, SparseSketch)
    assert sketch.buckets.shape == sketch.signs.shape == (buckets, 50)
    block = torch.randn(3, 50, generator=generator(0, "block"))
    found = torch.ones(3, 8)
    sketch.add_to(found, block)
    expected = torch.ones(3, 8)
    for row in range(3):
        for coordinate in range(50):
            for place in range(buckets):
                expected[row, sketch.buckets[place, coordinate]] += sketch.signs[place, coordinate] * block[row, coordinate]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", DENSE)
def test_a_dense_sketch_equals_one_explicit_matrix(kind: SketchKind) -> None:
    block = torch.randn(3, 50, generator=generator(0, "block"))
    source = generator(5, f"{kind}:layer")
    explicit = signs(source, 50, 16) if kind == "rademacher" else torch.randn(50, 16, generator=source)
    found = torch.ones(3, 16)
    draw(kind, 50, 16, seed=5).add_to(found, block)
    torch.testing.assert_close(found, 1 + block @ explicit / 4)


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("chunk", [1, 16, 100, 333])
def test_chunks_of_a_dense_sketch_change_nothing(kind: SketchKind, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = matrix(kind, 50, 16)
    monkeypatch.setattr(projection, "DENSE_CHUNK", chunk)
    sketch = draw(kind, 50, 16)
    assert isinstance(sketch, DenseSketch)
    sizes = [part.numel() for part in sketch._chunks(16)]
    assert sum(sizes) == 50 * 16 and max(sizes) <= max(chunk, 16) and len(sizes) > 1
    torch.testing.assert_close(matrix(kind, 50, 16), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_sketching_is_linear_and_keeps_rows_apart(kind: SketchKind) -> None:
    sketch = draw(kind, 40, 16)
    first, second = torch.randn(2, 3, 40, generator=generator(0, "block"))
    together = sketched(first + 2 * second, sketch, 16)
    torch.testing.assert_close(together, sketched(first, sketch, 16) + 2 * sketched(second, sketch, 16))
    torch.testing.assert_close(sketched(first, sketch, 16)[1:2], sketched(first[1:2], sketch, 16))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cosine", [0.0, 0.5, 1.0])
def test_inner_products_are_unbiased_with_the_stated_variance(kind: SketchKind, cosine: float) -> None:
    """Mean and spread over seeds of <sketch(a), sketch(b)>, against <a, b> and the bound in the module's docstring."""
    coordinates, dim, seeds = 200, 32, 600
    a, other = torch.linalg.qr(torch.randn(coordinates, 2, generator=generator(1, "vectors")))[0].T
    pair = torch.stack([a, cosine * a + (1 - cosine**2) ** 0.5 * other])
    products = torch.empty(seeds)
    for seed in range(seeds):
        first, second = sketched(pair, draw(kind, coordinates, dim, seed), dim)
        products[seed] = first @ second
    bound = (1 + cosine**2) / dim
    assert abs(products.mean() - cosine) < 4 * (bound / seeds) ** 0.5
    assert products.var() < bound * (1 + 4 * (2 / seeds) ** 0.5)
    assert products.var() > bound / 4, "no noise at all: the seed does not reach the draw"


@pytest.mark.parametrize("kind", SPARSE)
def test_buckets_and_signs_are_even(kind: SketchKind) -> None:
    sketch = draw(kind, 32_000, 32)
    assert isinstance(sketch, SparseSketch)
    for buckets, drawn in zip(sketch.buckets, sketch.signs, strict=True):
        counts = torch.bincount(buckets, minlength=32)
        assert counts.shape == (32,)
        assert (counts - 1000).abs().max() < 5 * 1000**0.5
        assert set((drawn * len(sketch.signs) ** 0.5).tolist()) == {-1.0, 1.0}
        assert abs(drawn.sum()) < 5 * 32_000**0.5


def test_the_buckets_of_a_coordinate_have_nothing_to_do_with_each_other() -> None:
    sketch = SparseSketch.draw(32_000, 32, 0, "layer", 4)
    for one in range(4):
        for other in range(one):
            assert abs((sketch.buckets[one] == sketch.buckets[other]).float().mean() - 1 / 32) < 5 * (1 / 32 / 32_000) ** 0.5
            assert abs((sketch.signs[one] * sketch.signs[other]).mean() * 4) < 5 / 32_000**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_name_alone_decide(kind: SketchKind) -> None:
    torch.manual_seed(0)
    first = matrix(kind, 100, 8, seed=3)
    torch.manual_seed(123)
    assert torch.equal(first, matrix(kind, 100, 8, seed=3))
    others = [matrix(kind, 100, 8, seed=4), matrix(kind, 100, 8, seed=3, name="other")]
    for other in (*others, matrix(KINDS[KINDS.index(kind) - 1], 100, 8, seed=3)):
        assert (first - other).norm() > 0.5 * first.norm()


def test_a_factor_is_plus_and_minus_one_over_the_root_of_its_rank() -> None:
    found = factor(16, 256, seed=0, name="layer")
    assert found.shape == (16, 256) and found.dtype == torch.float32
    assert set(found.flatten().tolist()) == {-0.25, 0.25}
    assert found.mean().abs() < 5 * 0.25 / found.numel() ** 0.5


def test_a_factor_depends_on_seed_and_name_alone() -> None:
    first = factor(16, 64, seed=0, name="layer")
    torch.manual_seed(123)  # neither on the global generator
    assert torch.equal(first, factor(16, 64, seed=0, name="layer"))
    assert not torch.equal(first, factor(16, 64, seed=0, name="other"))
    assert not torch.equal(first, factor(16, 64, seed=1, name="layer"))


def test_a_factor_keeps_inner_products_in_expectation() -> None:
    seeds, rank = 2000, 4
    total = torch.zeros(6, 6)
    for seed in range(seeds):
        drawn = factor(rank, 6, seed, "layer")
        total += drawn.T @ drawn
    assert (total / seeds - torch.eye(6)).abs().max() < 5 / (rank * seeds) ** 0.5


def test_drawing_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    factor(8, 4, seed=0, name="layer")
    for kind in KINDS:
        matrix(kind, 10, 4)
    assert torch.equal(torch.rand(3), expected)
