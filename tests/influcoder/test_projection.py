from __future__ import annotations

import pytest
import torch

from influcoder.influence.projection import CountSketch, generator, lora_a


def sketch(block: torch.Tensor, count_sketch: CountSketch) -> torch.Tensor:
    out = torch.zeros(count_sketch.dim, block.shape[1])
    count_sketch.add_to(out, block)
    return out


def test_add_to_equals_a_loop_over_coordinates() -> None:
    count_sketch = CountSketch.draw(50, 8, seed=0, name="layer")
    block = torch.randn(50, 3, generator=generator(0, "block"))
    found = torch.ones(8, 3)
    count_sketch.add_to(found, block)
    expected = torch.ones(8, 3)
    for coordinate in range(50):
        expected[count_sketch.buckets[coordinate]] += count_sketch.signs[coordinate] * block[coordinate]
    torch.testing.assert_close(found, expected)


def test_sketching_is_linear_and_keeps_columns_apart() -> None:
    count_sketch = CountSketch.draw(40, 16, seed=0, name="layer")
    first, second = torch.randn(2, 40, 2, generator=generator(0, "block"))
    torch.testing.assert_close(sketch(first + 2 * second, count_sketch), sketch(first, count_sketch) + 2 * sketch(second, count_sketch))
    torch.testing.assert_close(sketch(first, count_sketch)[:, :1], sketch(first[:, :1], count_sketch))


@pytest.mark.parametrize("cosine", [0.0, 0.5, 1.0])
def test_inner_products_are_unbiased_with_the_stated_variance(cosine: float) -> None:
    """Mean and spread over seeds of <sketch(a), sketch(b)>, against <a, b> and the bound in the module's docstring."""
    coordinates, dim, seeds = 200, 32, 600
    a, other = torch.linalg.qr(torch.randn(coordinates, 2, generator=generator(1, "vectors")))[0].T
    b = cosine * a + (1 - cosine**2) ** 0.5 * other
    products = torch.empty(seeds)
    for seed in range(seeds):
        first, second = sketch(torch.stack([a, b], 1), CountSketch.draw(coordinates, dim, seed, "layer")).T
        products[seed] = first @ second
    bound = (1 + cosine**2) / dim
    assert abs(products.mean() - cosine) < 4 * (bound / seeds) ** 0.5
    assert products.var() < bound * (1 + 4 * (2 / seeds) ** 0.5)
    assert products.var() > bound / 4, "no noise at all: the seed does not reach the draw"


def test_buckets_and_signs_are_even() -> None:
    count_sketch = CountSketch.draw(32_000, 32, seed=0, name="layer")
    counts = torch.bincount(count_sketch.buckets, minlength=32)
    assert counts.shape == (32,)
    assert (counts - 1000).abs().max() < 5 * 1000**0.5
    assert set(count_sketch.signs.tolist()) == {-1.0, 1.0}
    assert abs(count_sketch.signs.sum()) < 5 * 32_000**0.5


def test_same_seed_and_name_same_draw() -> None:
    first, again = (CountSketch.draw(100, 8, seed=3, name="layer") for _ in range(2))
    assert torch.equal(first.buckets, again.buckets)
    assert torch.equal(first.signs, again.signs)
    for other in (CountSketch.draw(100, 8, seed=4, name="layer"), CountSketch.draw(100, 8, seed=3, name="other")):
        assert not torch.equal(first.buckets, other.buckets)
        assert not torch.equal(first.signs, other.signs)


def test_lora_a_depends_on_seed_and_name_alone() -> None:
    first = lora_a(64, 16, seed=0, name="layer")
    torch.manual_seed(123)  # neither on the global generator
    assert torch.equal(first, lora_a(64, 16, seed=0, name="layer"))
    assert not torch.equal(first, lora_a(64, 16, seed=0, name="other"))
    assert not torch.equal(first, lora_a(64, 16, seed=1, name="layer"))


def test_lora_a_is_uniform_within_its_bound() -> None:
    found = lora_a(256, 64, seed=0, name="layer")
    assert found.shape == (64, 256)
    assert found.abs().max() <= 256**-0.5
    assert found.mean().abs() < 5 * (1 / (3 * 256) / found.numel()) ** 0.5
    assert abs(found.var() * 3 * 256 - 1) < 0.05


def test_drawing_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    lora_a(8, 4, seed=0, name="layer")
    CountSketch.draw(10, 4, seed=0, name="layer")
    assert torch.equal(torch.rand(3), expected)
