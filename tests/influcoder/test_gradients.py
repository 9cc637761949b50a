"""The truth here is slow and independent: a real PEFT adapter, one backward pass a row, a sketch by np.add.at."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from influcoder.errors import ConfigError
from influcoder.influence.decoder import Decoder
from influcoder.influence.gradients import GradientConfig, GradientProjector, frozen, gradient_layers
from influcoder.influence.projection import CountSketch, lora_a
from influcoder.influence.tokens import TokenizedRow, pad, row_losses, tokenize
from tests.influcoder.tiny_decoders import ROWS, fresh_decoder, grouped_decoder

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT's own
RANK, DIM = 3, 64
CONFIG = GradientConfig(rank=RANK, dim=DIM)
DECODERS: dict[str, Callable[[], Decoder]] = {
    "as many key heads": fresh_decoder,
    "grouped query, tied": lambda: grouped_decoder(tied=True),
    "grouped query, untied": lambda: grouped_decoder(tied=False),
}


def relative_error(found: Tensor | NDArray[np.float64], expected: Tensor | NDArray[np.float64]) -> float:
    difference = np.linalg.norm(np.asarray(found) - np.asarray(expected))
    return float(difference / np.linalg.norm(np.asarray(expected)))


def with_adapter(decoder: Decoder) -> Decoder:
    """Wrap the decoder in a PEFT LoRA on every linear layer but the head; B = 0 as PEFT makes it."""
    torch.manual_seed(0)
    names = [name for name, module in decoder.model.named_modules() if isinstance(module, nn.Linear) and "lm_head" not in name]
    adapted = get_peft_model(decoder.model, LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=names))
    return Decoder(cast(PreTrainedModel, adapted), decoder.tokenizer, decoder.max_tokens)


def row_gradients(model: nn.Module, row: TokenizedRow) -> dict[str, NDArray[np.float64]]:
    """Return the gradients of every A and B for one row alone, its loss by torch's own cross-entropy."""
    model.zero_grad()
    ids = torch.tensor(row.input_ids)
    logits = model(input_ids=ids[None]).logits[0]
    torch.nn.functional.cross_entropy(logits[row.response_start - 1 : -1], ids[row.response_start :]).backward()
    return {
        name: parameter.grad.double().numpy().copy()
        for name, parameter in model.named_parameters()
        if "lora_" in name and parameter.grad is not None
    }


def naive_sketch(blocks: dict[str, NDArray[np.float64]], seed: int) -> NDArray[np.float64]:
    """Sketch each layer's block with that layer's hash, one coordinate after another."""
    sketch = np.zeros(DIM)
    for name, block in blocks.items():
        count_sketch = CountSketch.draw(block.size, DIM, seed, name)
        np.add.at(sketch, count_sketch.buckets.numpy(), count_sketch.signs.double().numpy() * block.ravel())
    return sketch


@pytest.mark.parametrize("name", DECODERS)
def test_equals_a_loop_over_a_fresh_peft_adapter(name: str) -> None:
    seed = 7
    rows = tokenize(ROWS, DECODERS[name]())
    found = GradientProjector(DECODERS[name](), CONFIG, [seed]).project(rows)[0]
    model = with_adapter(DECODERS[name]()).model
    with torch.no_grad():
        for module_name, module in model.named_modules():
            if module_name.endswith(".lora_A.default"):
                assert isinstance(module, nn.Linear)
                layer = module_name.removeprefix("base_model.model.").removesuffix(".lora_A.default")
                module.weight.copy_(lora_a(module.in_features, RANK, seed, layer))
    for place, row in enumerate(rows):
        gradients = row_gradients(model, row)
        assert len(gradients) == 2 * 14  # A and B of seven projections in two layers
        assert all(np.all(gradient == 0) for key, gradient in gradients.items() if "lora_A" in key)
        blocks = {
            key.removeprefix("base_model.model.").removesuffix(".lora_B.default.weight"): gradient
            for key, gradient in gradients.items()
            if "lora_B" in key
        }
        assert relative_error(found[place], naive_sketch(blocks, seed)) <= 1e-5, ROWS[place].id


def test_equals_a_loop_over_a_trained_peft_adapter() -> None:
    decoder = with_adapter(fresh_decoder())
    with torch.no_grad():
        for name, parameter in decoder.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    rows = tokenize(ROWS, decoder)
    found = GradientProjector(decoder, CONFIG, [5]).project(rows)[0]
    for place, row in enumerate(rows):
        blocks = {name.removesuffix(".weight"): gradient for name, gradient in row_gradients(decoder.model, row).items()}
        assert all(np.any(block != 0) for block in blocks.values())
        assert relative_error(found[place], naive_sketch(blocks, 5)) <= 1e-5, ROWS[place].id


def test_batch_mates_and_padding_change_nothing() -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    projector = GradientProjector(decoder, CONFIG, [0])
    together = projector.project(rows)[0]
    for place, row in enumerate(rows):
        assert relative_error(projector.project([row])[0, 0], together[place]) <= 1e-5
        longest = max(rows, key=lambda other: len(other.input_ids))
        assert relative_error(projector.project([longest, row])[0, 1], together[place]) <= 1e-5


def test_project_all_returns_every_row_once_whatever_the_batches() -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    expected = GradientProjector(decoder, CONFIG, [0]).project(rows)[0]
    projector = GradientProjector(decoder, GradientConfig(rank=RANK, dim=DIM, max_batch_tokens=40), [0])
    batches = list(projector.project_all(rows))
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


def test_the_loss_is_on_the_response_alone() -> None:
    decoder = fresh_decoder()
    row = tokenize(ROWS[:1], decoder)[0]
    projector = GradientProjector(decoder, CONFIG, [0])
    moved = TokenizedRow(row.input_ids, row.response_start + 1)
    assert relative_error(projector.project([moved])[0], projector.project([row])[0]) > 0.01


def test_alpha_scales_lengths_alone() -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    usual = GradientProjector(decoder, CONFIG, [0]).project(rows)
    scaled = GradientProjector(decoder, GradientConfig(rank=RANK, dim=DIM, alpha=RANK), [0]).project(rows)
    torch.testing.assert_close(usual, 2 * scaled)


def test_larger_product_means_that_a_step_on_the_row_lowers_the_querys_loss() -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    found = GradientProjector(decoder, GradientConfig(rank=64, dim=8192), [0]).project(rows)[0]
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


@pytest.mark.parametrize("tied", [True, False])
def test_layers_leave_out_the_head(tied: bool) -> None:
    layers = gradient_layers(grouped_decoder(tied).model)
    assert len(layers) == 14
    assert not any("lm_head" in name for name in layers)


def test_layers_of_an_adapter_are_its_a_and_b() -> None:
    layers = gradient_layers(with_adapter(fresh_decoder()).model)
    assert len(layers) == 28
    assert all(".lora_A." in name or ".lora_B." in name for name in layers)


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Embedding: no nn\.Linear layers"):
        gradient_layers(nn.Embedding(3, 2))


@pytest.mark.parametrize("training", [True, False])
def test_frozen_puts_everything_back(training: bool) -> None:
    model = fresh_decoder().model
    model.train(training)
    model.model.layers[0].requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert set(before.values()) == {True, False}
    with pytest.raises(RuntimeError, match="stop"), frozen(model):
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert model.get_input_embeddings()(torch.tensor([[1]])).requires_grad
        raise RuntimeError("stop")
    assert model.training is training
    assert before == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with torch.no_grad():
        assert not model.get_input_embeddings()(torch.tensor([[1]])).requires_grad


def test_weights_gather_no_gradients() -> None:
    decoder = fresh_decoder()
    GradientProjector(decoder, CONFIG, [0]).project(tokenize(ROWS, decoder))
    assert all(parameter.grad is None for parameter in decoder.model.parameters())


@pytest.mark.parametrize("name", ["rank", "dim", "max_batch_tokens", "shard_rows"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"gradients\.{name}: 0"):
        GradientConfig(**{name: 0})
