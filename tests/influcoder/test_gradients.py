"""The truth here is slow and independent: a real PEFT adapter, one backward pass a row, projections by numpy in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from influcoder.errors import ConfigError
from influcoder.influence.basis import Basis
from influcoder.influence.capture import gradient_layers
from influcoder.influence.decoder import Decoder
from influcoder.influence.gradients import GradientConfig, GradientProjector
from influcoder.influence.projection import SketchKind, SparseSketch, draw_sketch, factor, generator, signs
from influcoder.influence.tokens import TokenizedRow, pad, row_losses, tokenize
from tests.influcoder.tiny_decoders import (
    DECODERS,
    ROWS,
    fresh_decoder,
    gpt2_decoder,
    relative_error,
    row_gradients,
    trained_adapter,
    with_adapter,
)

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT's own
RANK, DIM = 3, 64
CONFIG = GradientConfig(rank=RANK, dim=DIM, factors="random")
SIDE_BY_SIDE = GradientConfig(rank=RANK, output_rank=2, sketch="none", factors="random")
WHOLE = GradientConfig(rank=None, sketch="none", factors="random")
Array = NDArray[np.float64]


def naive_sketch(blocks: dict[str, Array], seed: int, kind: SketchKind = "count_sketch", dim: int = DIM) -> Array:
    """Sketch each layer's block with that layer's hash, one coordinate after another, or with its matrix."""
    sketch = np.zeros(dim)
    for name, block in blocks.items():
        drawn = draw_sketch(kind, block.size, dim, seed, name, torch.device("cpu"))
        if isinstance(drawn, SparseSketch):
            for buckets, sign in zip(drawn.buckets.numpy(), drawn.signs.double().numpy(), strict=True):
                np.add.at(sketch, buckets, sign * block.ravel())
        else:
            source = generator(seed, f"{kind}:{name}")
            matrix = signs(source, block.size, dim) if kind == "rademacher" else torch.randn(block.size, dim, generator=source)
            sketch += block.ravel() @ matrix.double().numpy() / dim**0.5
    return sketch


def drawn_factor(rank: int, features: int, side: str, name: str, seed: int = 0) -> Array:
    return factor(rank, features, seed, f"{side}:{name}").double().numpy()


def projected(gradient: Array, name: str, seed: int = 0) -> Array:
    """Return P_out G P_in^T of SIDE_BY_SIDE."""
    outputs, inputs = gradient.shape
    block: Array = drawn_factor(2, outputs, "output", name, seed) @ gradient @ drawn_factor(RANK, inputs, "input", name, seed).T
    return block


def random_basis(decoder_name: str, seed: int = 4) -> Basis:
    source = torch.Generator().manual_seed(seed)
    layers = gradient_layers(DECODERS[decoder_name]().model)

    def rows(features: int) -> Tensor:
        orthonormal: Tensor = torch.linalg.qr(torch.randn(features, 6, generator=source))[0].T
        return orthonormal

    sizes = {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}
    return Basis({name: rows(inputs) for name, (inputs, _) in sizes.items()}, {name: rows(outputs) for name, (_, outputs) in sizes.items()})


@pytest.mark.parametrize("factors", ["random", "leading"])
@pytest.mark.parametrize("name", DECODERS)
def test_equals_a_loop_over_a_fresh_peft_adapter(name: str, factors: str) -> None:
    seed, basis = 7, random_basis(name)
    rows = tokenize(ROWS, DECODERS[name]())
    config = GradientConfig(rank=RANK, dim=DIM, factors=factors)  # type: ignore[arg-type]
    found = GradientProjector(DECODERS[name](), config, [seed], bases=[basis]).project(rows)[0]
    adapted = with_adapter(DECODERS[name](), RANK, alpha=2 * RANK)
    with torch.no_grad():
        for module_name, module in adapted.model.named_modules():
            if module_name.endswith(".lora_A.default"):
                assert isinstance(module, nn.Linear)
                layer = module_name.removeprefix("base_model.model.").removesuffix(".lora_A.default")
                drawn = factor(RANK, module.in_features, seed, f"input:{layer}")
                module.weight.copy_(drawn if factors == "random" else basis.inputs[layer][:RANK])
    for place, row in enumerate(rows):
        gradients = row_gradients(adapted, row)
        assert len(gradients) == 2 * (8 if name == "GPT-2" else 14), "A and B of every projection in two layers"
        assert all(np.all(gradient == 0) for key, gradient in gradients.items() if "lora_A" in key)
        blocks = {
            key.removeprefix("base_model.model.").removesuffix(".lora_B.default"): gradient
            / 2  # ours are of an adapter without its alpha / r
            for key, gradient in gradients.items()
            if "lora_B" in key
        }
        assert relative_error(found[place], naive_sketch(blocks, seed)) <= 1e-5, ROWS[place].id


@pytest.mark.parametrize("factors", ["random", "leading"])
@pytest.mark.parametrize("make", [fresh_decoder, gpt2_decoder])
def test_equals_a_loop_over_a_trained_peft_adapter(make: Callable[[], Decoder], factors: str) -> None:
    """Its A and B are taken whole, whatever the rank, and need no basis."""
    decoder = trained_adapter(make())
    rows = tokenize(ROWS, decoder)
    config = GradientConfig(rank=2, output_rank=2, dim=DIM, factors=factors)  # type: ignore[arg-type]
    found = GradientProjector(decoder, config, [5]).project(rows)[0]
    for place, row in enumerate(rows):
        blocks = row_gradients(decoder, row)
        assert all("lora_" in key and np.any(block != 0) for key, block in blocks.items())
        assert relative_error(found[place], naive_sketch(blocks, 5)) <= 1e-5, ROWS[place].id


@pytest.mark.parametrize("kind", ["count_sketch", "sjlt", "rademacher", "gaussian"])
def test_each_sketch_equals_its_explicit_matrix(kind: SketchKind) -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    found = GradientProjector(decoder, GradientConfig(rank=None, dim=32, sketch=kind, factors="random"), [2]).project(rows)[0]
    for place, row in enumerate(rows):
        assert relative_error(found[place], naive_sketch(row_gradients(decoder, row), 2, kind, 32)) <= 1e-5


@pytest.mark.parametrize("name", DECODERS)
def test_without_a_sketch_blocks_stand_side_by_side_reduced_on_both_sides(name: str) -> None:
    decoder = DECODERS[name]()
    rows = tokenize(ROWS, decoder)
    projector = GradientProjector(decoder, SIDE_BY_SIDE, [0, 1])
    found = projector.project(rows)
    assert projector.blocks == (RANK * 2,) * len(projector.layers) and projector.dim == sum(projector.blocks) == found.shape[2]
    for place, row in enumerate(rows):
        gradients = row_gradients(decoder, row)
        assert gradients.keys() == projector.layers.keys()
        for seed in (0, 1):
            expected = np.concatenate([projected(gradient, layer, seed).ravel() for layer, gradient in gradients.items()])
            assert relative_error(found[seed, place], expected) <= 1e-5, ROWS[place].id


def test_the_basis_of_a_seed_gives_the_leading_rows_of_both_sides() -> None:
    decoder, bases = fresh_decoder(), [random_basis("as many key heads", seed) for seed in (4, 5)]
    rows = tokenize(ROWS, decoder)
    config = GradientConfig(rank=4, output_rank=2, sketch="none")
    found = GradientProjector(decoder, config, [0, 1], bases=bases).project(rows)
    for place, row in enumerate(rows):
        gradients = row_gradients(decoder, row)
        for seed, basis in enumerate(bases):
            parts = [
                basis.outputs[layer][:2].double().numpy() @ gradient @ basis.inputs[layer][:4].double().numpy().T
                for layer, gradient in gradients.items()
            ]
            assert relative_error(found[seed, place], np.concatenate([part.ravel() for part in parts])) <= 1e-5


def test_a_basis_is_not_used_for_random_factors() -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    found = GradientProjector(decoder, SIDE_BY_SIDE, [0], bases=[random_basis("as many key heads")]).project(rows)
    assert torch.equal(found, GradientProjector(decoder, SIDE_BY_SIDE, [0]).project(rows))


def test_a_rank_that_reduces_nothing_keeps_the_side_whole() -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    config = GradientConfig(rank=16, output_rank=24, sketch="none", factors="random")  # 16 features, or 24 within an MLP
    projector = GradientProjector(decoder, config, [0])
    for place, row in enumerate(rows):
        parts = [
            gradient @ drawn_factor(16, 24, "input", layer).T if gradient.shape[1] == 24 else gradient
            for layer, gradient in row_gradients(decoder, row).items()
        ]
        assert relative_error(projector.project(rows)[0, place], np.concatenate([part.ravel() for part in parts])) <= 1e-5


@pytest.mark.parametrize("name", DECODERS)
def test_unit_layers_make_a_cosine_the_mean_of_the_layers_cosines(name: str) -> None:
    decoder = DECODERS[name]()
    rows = tokenize(ROWS, decoder)
    found = GradientProjector(decoder, WHOLE, [0], unit_layers=True).project(rows)[0].double()
    truth = [row_gradients(decoder, row) for row in rows]
    lengths = [np.sqrt(sum(np.sum(gradient**2) for gradient in gradients.values())) for gradients in truth]
    assert relative_error(found.norm(dim=1), lengths) <= 1e-5, "a row keeps the length of its whole gradient"
    for first in range(len(rows)):
        for second in range(len(rows)):
            pairs = [(truth[first][layer], truth[second][layer]) for layer in truth[0]]
            cosines = [np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
            cosine = torch.nn.functional.cosine_similarity(found[first], found[second], dim=0)
            assert float(cosine) == pytest.approx(np.mean(cosines), abs=1e-5)


def test_unit_layers_are_sketched_after_they_are_scaled() -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    config = GradientConfig(rank=RANK, output_rank=2, dim=DIM, factors="random")
    found = GradientProjector(decoder, config, [0, 1], unit_layers=True).project(rows)
    for place, row in enumerate(rows):
        for seed in (0, 1):
            blocks = {layer: projected(gradient, layer, seed) for layer, gradient in row_gradients(decoder, row).items()}
            length = np.sqrt(sum(np.sum(block**2) for block in blocks.values()))
            expected = naive_sketch({layer: block / np.linalg.norm(block) for layer, block in blocks.items()}, seed)
            assert relative_error(found[seed, place], expected / np.linalg.norm(expected) * length) <= 1e-5


def test_unit_layers_leave_a_layer_without_gradient_at_zero() -> None:
    decoder = with_adapter(fresh_decoder())  # B = 0: no gradient reaches A
    rows = tokenize(ROWS, decoder)
    projector = GradientProjector(decoder, WHOLE, [0], unit_layers=True)
    found = projector.project(rows)[0]
    assert found.isfinite().all()
    for name, part in zip(projector.layers, found.split(projector.blocks, dim=1), strict=True):
        assert bool((part == 0).all()) is (".lora_A." in name)


@pytest.mark.parametrize("unit_layers", [False, True])
def test_a_transform_is_of_the_whole_gradient_before_it_is_projected(unit_layers: bool) -> None:
    decoder = gpt2_decoder()
    rows = tokenize(ROWS, decoder)
    seen: set[tuple[str, tuple[int, ...]]] = set()

    def transform(name: str, gradient: Tensor) -> Tensor:
        seen.add((name, tuple(gradient.shape)))
        return gradient.abs().sqrt() * gradient.sign()

    found = GradientProjector(decoder, SIDE_BY_SIDE, [0], transform=transform, unit_layers=unit_layers).project(rows)[0]
    shapes = {layer: gradient.shape for layer, gradient in row_gradients(decoder, rows[0]).items()}
    assert seen == {(layer, (len(rows), *shape)) for layer, shape in shapes.items()}
    for place, row in enumerate(rows):
        blocks = [
            projected(np.sqrt(np.abs(gradient)) * np.sign(gradient), layer).ravel()
            for layer, gradient in row_gradients(decoder, row).items()
        ]
        length = np.sqrt(sum(np.sum(block**2) for block in blocks))
        expected = np.concatenate(blocks)
        if unit_layers:
            expected = np.concatenate([block / np.linalg.norm(block) for block in blocks])
            expected *= length / np.linalg.norm(expected)
        assert relative_error(found[place], expected) <= 1e-4, "the root makes much of small entries' rounding"


def test_transformed_is_the_same_projection_behind_another_transform() -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    plain = GradientProjector(decoder, CONFIG, [0])
    tripled = plain.transformed(lambda name, gradient: 3 * gradient)
    expected = plain.project(rows)
    torch.testing.assert_close(tripled.project(rows), 3 * expected)
    assert torch.equal(plain.project(rows), expected), "the first is left as it was"
    torch.testing.assert_close(tripled.transformed(None).project(rows), expected)


@pytest.mark.parametrize("unit_layers", [False, True])
@pytest.mark.parametrize("config", [CONFIG, SIDE_BY_SIDE, WHOLE])
def test_project_dense_is_the_slow_way_to_the_same_vectors(config: GradientConfig, unit_layers: bool) -> None:
    decoder = gpt2_decoder()
    rows = tokenize(ROWS, decoder)
    projector = GradientProjector(decoder, config, [0, 3], unit_layers=unit_layers)
    truth = [row_gradients(decoder, row) for row in rows]
    whole = {name: torch.tensor(np.stack([gradients[name] for gradients in truth])).float() for name in truth[0]}
    found, expected = projector.project_dense(whole), projector.project(rows)
    for seed in range(2):
        for place in range(len(rows)):
            assert relative_error(found[seed, place], expected[seed, place]) <= 1e-5


def test_layers_can_be_chosen() -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    chosen = {name: layer for name, layer in gradient_layers(decoder.model).items() if "down_proj" in name}
    projector = GradientProjector(decoder, WHOLE, [0], layers=chosen)
    assert projector.blocks == (16 * 24,) * 2
    for place, row in enumerate(rows):
        parts = [gradient.ravel() for layer, gradient in row_gradients(decoder, row).items() if "down_proj" in layer]
        assert relative_error(projector.project(rows)[0, place], np.concatenate(parts)) <= 1e-5


@pytest.mark.parametrize("name", DECODERS)
def test_batch_mates_and_padding_change_nothing(name: str) -> None:
    decoder = DECODERS[name]()
    rows = tokenize(ROWS, decoder)
    projector = GradientProjector(decoder, CONFIG, [0])
    together = projector.project(rows)[0]
    for place, row in enumerate(rows):
        assert relative_error(projector.project([row])[0, 0], together[place]) <= 1e-5
        longest = max(rows, key=lambda other: len(other.input_ids))
        assert relative_error(projector.project([longest, row])[0, 1], together[place]) <= 1e-5


@pytest.mark.parametrize("argument", [None, 40])
def test_project_all_returns_every_row_once_whatever_the_batches(argument: int | None) -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    expected = GradientProjector(decoder, CONFIG, [0]).project(rows)[0]
    config = GradientConfig(rank=RANK, dim=DIM, max_batch_tokens=10_000 if argument else 40, factors="random")
    batches = list(GradientProjector(decoder, config, [0]).project_all(rows, argument))
    assert len(batches) > 1
    assert sorted(position for positions, _ in batches for position in positions) == [0, 1, 2, 3]
    for positions, found in batches:
        assert relative_error(found[0], expected[positions]) <= 1e-5


def test_seeds_of_one_pass_equal_each_seed_alone() -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    together = GradientProjector(decoder, CONFIG, [0, 1, 9]).project(rows)
    for place, seed in enumerate([0, 1, 9]):
        assert relative_error(together[place], GradientProjector(decoder, CONFIG, [seed]).project(rows)[0]) <= 1e-5
    assert relative_error(together[0], together[1]) > 0.1


def test_held_bytes_are_those_of_factors_buckets_and_signs() -> None:
    decoder = fresh_decoder()
    layers = gradient_layers(decoder.model)
    factors = sum(4 * (RANK * layer.in_features + 2 * layer.out_features) for layer in layers.values())
    config = GradientConfig(rank=RANK, output_rank=2, sketch="sjlt", dim=DIM, factors="random")
    assert GradientProjector(decoder, config, [0, 1]).held_bytes == 2 * (factors + len(layers) * RANK * 2 * 4 * (8 + 4))
    assert GradientProjector(decoder, SIDE_BY_SIDE, [0]).held_bytes == factors


def test_the_loss_is_on_the_response_alone() -> None:
    decoder = fresh_decoder()
    row = tokenize(ROWS[:1], decoder)[0]
    projector = GradientProjector(decoder, CONFIG, [0])
    moved = TokenizedRow(row.input_ids, row.response_start + 1)
    assert relative_error(projector.project([moved])[0], projector.project([row])[0]) > 0.01


def test_larger_product_means_that_a_step_on_the_row_lowers_the_querys_loss() -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    found = GradientProjector(decoder, GradientConfig(rank=64, dim=8192, factors="random"), [0]).project(rows)[0]
    layers = [layer.weight for layer in gradient_layers(decoder.model).values()]
    padded = pad(rows, 0, torch.device("cpu"))

    def losses() -> Tensor:
        return row_losses(decoder.model, *padded)

    drops = torch.zeros(len(rows), len(rows))
    for place in range(len(rows)):
        before = losses()
        gradients = torch.autograd.grad(before[place], layers)
        with torch.no_grad():
            for weight, gradient in zip(layers, gradients, strict=True):
                weight.sub_(1e-3 * gradient)
            drops[:, place] = before - losses()
            for weight, gradient in zip(layers, gradients, strict=True):
                weight.add_(1e-3 * gradient)
    assert np.corrcoef(drops.ravel(), (found @ found.T).ravel())[0, 1] > 0.9


def test_weights_gather_no_gradients() -> None:
    decoder = fresh_decoder()
    GradientProjector(decoder, CONFIG, [0]).project(tokenize(ROWS, decoder))
    assert all(parameter.grad is None for parameter in decoder.model.parameters())


@pytest.mark.parametrize("count", [0, 1])
def test_leading_factors_ask_for_a_basis_a_seed(count: int) -> None:
    bases = [random_basis("as many key heads")] * count
    for config in (GradientConfig(rank=2), GradientConfig(rank=None, output_rank=2)):
        with pytest.raises(ConfigError, match=rf"gradients\.factors: leading, with {count} bases; expected one"):
            GradientProjector(fresh_decoder(), config, [0, 1], bases=bases)
    GradientProjector(fresh_decoder(), GradientConfig(rank=None, dim=DIM), [0])  # nothing is reduced


def test_too_many_coordinates_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("influcoder.influence.gradients.MAX_DIM", 14 * RANK * 2)
    GradientProjector(fresh_decoder(), SIDE_BY_SIDE, [0])
    with pytest.raises(ConfigError, match=r"gradients: 4,352 coordinates a row; expected at most 84; lower rank"):
        GradientProjector(fresh_decoder(), WHOLE, [0])


@pytest.mark.parametrize("name", ["rank", "output_rank", "dim", "max_batch_tokens", "shard_rows"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"gradients\.{name}: 0"):
        GradientConfig(**{name: 0})  # type: ignore[arg-type]
