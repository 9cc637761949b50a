"""The truth here is torch's own: weights' gradients, and a backward pass a row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from influcoder.errors import ConfigError
from influcoder.influence.capture import Coverage, as_layer, capture, coverage, frozen, gradient_layers, outer_sum
from influcoder.influence.decoder import Decoder, DecoderConfig, load_decoder
from influcoder.influence.gradients import GradientConfig, GradientProjector
from influcoder.influence.tokens import pad, row_losses, tokenize
from tests.influcoder.tiny_decoders import (
    DECODERS,
    ROWS,
    fresh_decoder,
    gpt2_decoder,
    grouped_decoder,
    relative_error,
    row_gradients,
    trained_adapter,
    with_adapter,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # PEFT's own
    pytest.mark.filterwarnings(
        "ignore:`gradient_checkpointing_enable` is deprecated"
    ),  # it came after the oldest transformers that we take
]
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", DECODERS)
def test_capture_works_around_a_users_own_training_loop(name: str) -> None:
    """The model trains, dropout and all; what is captured sums up to the weights' gradients of every step."""
    torch.manual_seed(0)
    decoder = DECODERS[name]()
    model = decoder.model.train()
    layers = gradient_layers(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = pad(tokenize(ROWS, decoder), 0, CPU)
    found: dict[str, Tensor] = {}
    with capture(layers, lambda name, x, delta: found.update({name: outer_sum(x, delta)})):
        for _ in range(3):
            optimizer.zero_grad()
            found.clear()
            row_losses(model, *batch).mean().backward()
            assert found.keys() == layers.keys()
            for layer_name, layer in layers.items():
                assert layer.weight.grad is not None
                assert found[layer_name].shape == (len(ROWS), layer.out_features, layer.in_features)
                assert relative_error(found[layer_name].sum(0), layer.oriented(layer.weight.grad)) <= 1e-5, layer_name
            optimizer.step()
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    found.clear()
    row_losses(model, *batch).mean().backward()
    assert not found, "the hooks are gone"


@pytest.mark.parametrize("name", DECODERS)
def test_a_summed_loss_gives_each_row_its_own_gradient(name: str) -> None:
    decoder = DECODERS[name]()
    rows = tokenize(ROWS, decoder)
    found: dict[str, Tensor] = {}
    with frozen(decoder.model), capture(gradient_layers(decoder.model), lambda name, x, delta: found.update({name: outer_sum(x, delta)})):
        row_losses(decoder.model, *pad(rows, 0, CPU)).sum().backward()
    for place, row in enumerate(rows):
        for layer, gradient in row_gradients(decoder, row).items():
            assert relative_error(found[layer][place], gradient) <= 1e-4, layer


def test_sums_of_half_precision_are_in_single_precision() -> None:
    source = torch.Generator().manual_seed(0)
    x, delta = (torch.rand(2, 500, size, generator=source).bfloat16() for size in (4, 3))
    found = outer_sum(x, delta)
    assert found.dtype == torch.float32 and found.shape == (2, 3, 4)
    expected = sum(delta[:, t, :, None].double() * x[:, t, None, :].double() for t in range(500))
    assert relative_error(found, expected) <= 1e-6, "bfloat16 alone would err by 1e-3"


def test_hooks_go_when_the_block_fails() -> None:
    decoder, calls = fresh_decoder(), []
    layers = gradient_layers(decoder.model)
    with pytest.raises(RuntimeError, match="stop"), capture(layers, lambda name, x, delta: calls.append(name)):
        raise RuntimeError("stop")
    row_losses(decoder.model, *pad(tokenize(ROWS, decoder), 0, CPU)).sum().backward()
    assert calls == []


def test_what_needs_no_gradient_is_not_captured() -> None:
    decoder, calls = fresh_decoder(), []
    with torch.no_grad(), capture(gradient_layers(decoder.model), lambda name, x, delta: calls.append(name)):
        row_losses(decoder.model, *pad(tokenize(ROWS, decoder), 0, CPU))
    assert calls == []


@pytest.mark.parametrize("settings", [{}, {"sketch": "none", "output_rank": 2}, {"sketch": "sjlt"}, {"sketch": "rademacher"}])
@pytest.mark.parametrize("unit_layers", [False, True])
def test_autocast_gives_nearly_the_same_gradients(settings: dict[str, object], unit_layers: bool) -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    config = GradientConfig(rank=8, factors="random", **({"dim": 512} | settings))  # type: ignore[arg-type]
    projector = GradientProjector(decoder, config, [0], unit_layers=unit_layers)
    expected = projector.project(rows)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = projector.project(rows)[0]
    assert found.isfinite().all() and found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.99
    assert not torch.equal(found, expected), "autocast is off"


@pytest.mark.parametrize("name", [*DECODERS, "adapter"])
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    make = DECODERS.get(name, lambda: trained_adapter(fresh_decoder()))
    decoder = make()
    rows = tokenize(ROWS, decoder)
    plain = GradientConfig(rank=3, dim=64, factors="random")
    expected = GradientProjector(decoder, plain, [0]).project(rows)
    other = make()
    projector = GradientProjector(other, GradientConfig(rank=3, dim=64, factors="random", checkpointing=True), [0])
    forwards: list[nn.Module] = []
    first = next(iter(projector.layers.values())).module
    first.register_forward_hook(lambda module, inputs, output: forwards.append(module))
    found = projector.project(rows)
    assert len(forwards) == 2, "a block runs again in the backward pass"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_capture_works_around_a_users_own_checkpointing() -> None:
    decoder = fresh_decoder()
    batch = pad(tokenize(ROWS, decoder), 0, CPU)
    model = decoder.model.train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    layers, found = gradient_layers(model), dict[str, list[Tensor]]()
    with capture(layers, lambda name, x, delta: found.setdefault(name, []).append(outer_sum(x, delta))):
        row_losses(model, *batch).mean().backward()
    for name, layer in layers.items():
        (gradients,) = found[name]
        assert layer.weight.grad is not None
        assert relative_error(gradients.sum(0), layer.weight.grad) <= 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_layers_leave_out_the_head(tied: bool) -> None:
    model = grouped_decoder(tied).model
    layers = gradient_layers(model)
    assert list(layers) == [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    assert len(layers) == 14
    assert coverage(model, layers).skipped.keys() == (
        {"model.embed_tokens", "model.norm", *(f"model.layers.{place}.{norm}" for place in range(2) for norm in NORMS)}
        | (set() if tied else {"lm_head"})
    )


NORMS = ("input_layernorm", "post_attention_layernorm")


def test_layers_of_gpt2_are_its_conv1d_with_inputs_and_outputs_the_right_way_round() -> None:
    layers = gradient_layers(gpt2_decoder().model)
    sizes = {
        name.removeprefix("transformer.h.0."): (layer.in_features, layer.out_features) for name, layer in layers.items() if ".h.0." in name
    }
    assert sizes == {"attn.c_attn": (16, 48), "attn.c_proj": (16, 16), "mlp.c_fc": (16, 24), "mlp.c_proj": (24, 16)}
    for layer in layers.values():
        assert layer.oriented(layer.weight).shape == (layer.out_features, layer.in_features)


def test_other_modules_are_no_layers() -> None:
    assert as_layer(nn.Embedding(3, 2)) is None and as_layer(nn.Conv1d(3, 2, 1)) is None


def test_layers_of_an_adapter_are_its_a_and_b() -> None:
    layers = gradient_layers(with_adapter(fresh_decoder()).model)
    assert len(layers) == 28
    assert all(".lora_A." in name or ".lora_B." in name for name in layers)


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Embedding: no Linear or Conv1D layers"):
        gradient_layers(nn.Embedding(3, 2))


@pytest.mark.parametrize("name", DECODERS)
def test_coverage_counts_tied_weights_once_and_names_what_is_left_out(name: str) -> None:
    model = DECODERS[name]().model
    layers = gradient_layers(model)
    found = coverage(model, layers)
    assert found.total == sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())
    assert found.captured == sum(layer.in_features * layer.out_features for layer in layers.values())
    assert sum(found.skipped.values()) == found.total - found.captured
    vocabulary = 16 * model.config.vocab_size
    assert found.skipped["transformer.wte" if name == "GPT-2" else "model.embed_tokens"] == vocabulary
    assert ("lm_head" in found.skipped) is (name == "grouped query, untied")
    if name == "GPT-2":  # a layer's bias is left out under its layer's name
        assert found.skipped["transformer.h.0.attn.c_attn"] == 48


def test_coverage_of_an_adapter_is_of_its_own_parameters() -> None:
    model = with_adapter(fresh_decoder(), rank=3).model
    layers = gradient_layers(model)
    expected = sum(3 * size for size in 2 * [16 + 16] * 4 + 2 * [16 + 24] * 3)
    assert coverage(model, layers) == Coverage(expected, expected, {})
    name = next(iter(layers))
    fewer = coverage(model, {other: layer for other, layer in layers.items() if other != name})
    assert fewer == Coverage(expected - 48, expected, {name: 48})


def test_coverage_reads_as_one_line_with_the_largest_three() -> None:
    skipped = {"norm": 5, "embed": 1000, "head": 600, "bias": 20}
    assert str(Coverage(2_000, 3_625, skipped)) == (
        "2,000 of 3,625 parameters (55.2%); left out: embed (1,000), head (600), bias (20) and 1 more"
    )
    assert str(Coverage(2, 2, {})) == "2 of 2 parameters (100.0%); left out: nothing"
    assert str(Coverage(2, 4, {"a": 1, "b": 1})) == "2 of 4 parameters (50.0%); left out: a (1), b (1)"


@pytest.mark.parametrize("training", [True, False])
def test_frozen_puts_everything_back(training: bool) -> None:
    model = fresh_decoder().model
    model.train(training)
    model.model.layers[0].requires_grad_(False)
    model.model.layers[1].mlp.train(not training)
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    assert set(required.values()) == set(modes.values()) == {True, False}
    with pytest.raises(RuntimeError, match="stop"), frozen(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert model.get_input_embeddings()(torch.tensor([[1]])).requires_grad
        raise RuntimeError("stop")
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert required == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with torch.no_grad():
        assert not model.get_input_embeddings()(torch.tensor([[1]])).requires_grad


def test_frozen_under_checkpointing_lets_blocks_alone_think_that_they_train() -> None:
    model = gpt2_decoder().model.eval()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with frozen(model):
        assert [name for name, module in model.named_modules() if module.training] == ["transformer.h.0", "transformer.h.1"]
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_placed_by_a_device_map_gives_the_same_gradients(name: str, tmp_path: Path) -> None:
    decoder = DECODERS[name]()
    decoder.model.save_pretrained(tmp_path)
    decoder.tokenizer.save_pretrained(tmp_path)
    rows = tokenize(ROWS, decoder)
    config = GradientConfig(rank=3, dim=64, factors="random")
    expected = GradientProjector(decoder, config, [0]).project(rows)
    mapped = Decoder(AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"}), decoder.tokenizer, 128)
    loaded = load_decoder(DecoderConfig(path=str(tmp_path), device_map="auto"), [], 0)
    for other in (mapped, loaded):
        torch.testing.assert_close(GradientProjector(other, config, [0]).project(rows).cpu(), expected)
