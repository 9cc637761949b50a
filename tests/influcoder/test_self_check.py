from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from influcoder.errors import ConfigError, RunError
from influcoder.influence.capture import gradient_layers
from influcoder.influence.decoder import Decoder
from influcoder.influence.gradients import GradientConfig, GradientProjector
from influcoder.influence.self_check import check_gradients, usable_layers
from influcoder.influence.tokens import TokenizedRow, pad, row_losses, tokenize
from tests.influcoder.tiny_decoders import DECODERS, ROWS, fresh_decoder, gpt2_decoder, trained_adapter

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT's own
MLP = [f"model.layers.1.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")]


class FlatMlp(nn.Module):
    """Hands its tokens on without their rows, as a mixture of experts does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        for name, module in inner.named_children():
            self.add_module(name, module)
        self.run = [inner]

    def forward(self, x: Tensor) -> Tensor:
        flat: Tensor = self.run[0](x.flatten(0, 1))
        return flat.view_as(x)


class TwiceMlp(FlatMlp):
    """Uses its layers twice."""

    def forward(self, x: Tensor) -> Tensor:
        twice: Tensor = self.run[0](x + self.run[0](x))
        return twice


class RowwiseMlp(FlatMlp):
    """Sees one row after another: used as often as there are rows."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.run[0](row[None]) for row in x])


class UnusedMlp(FlatMlp):
    """Does nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class FirstRowsMlp(FlatMlp):
    """Sees some of the rows alone."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.run[0](x[:2]), x[2:]])


class LastTokenMlp(FlatMlp):
    """Sees one token a row."""

    def forward(self, x: Tensor) -> Tensor:
        last: Tensor = self.run[0](x[:, -1])
        return x + last[:, None]


def with_mlp(kind: Callable[[nn.Module], nn.Module]) -> Decoder:
    decoder = fresh_decoder()
    block = decoder.model.model.layers[1]
    block.mlp = kind(block.mlp)
    return decoder


@pytest.mark.parametrize("name", DECODERS)
def test_every_layer_of_an_ordinary_decoder_is_usable(name: str) -> None:
    decoder = DECODERS[name]()
    found, left_out = usable_layers(decoder, tokenize(ROWS, decoder))
    assert list(found) == list(gradient_layers(decoder.model)) and left_out == []


@pytest.mark.parametrize("kind", [FlatMlp, TwiceMlp, RowwiseMlp, UnusedMlp, FirstRowsMlp, LastTokenMlp])
def test_layers_that_do_not_see_every_row_once_are_left_out_by_name(kind: Callable[[nn.Module], nn.Module]) -> None:
    decoder = with_mlp(kind)
    rows = tokenize(ROWS, decoder)
    found, left_out = usable_layers(decoder, rows)
    assert left_out == MLP
    assert list(found) == [name for name in gradient_layers(decoder.model) if name not in MLP]
    projector = GradientProjector(decoder, GradientConfig(rank=3, dim=64, factors="random"), [0], layers=found)
    if kind in (FirstRowsMlp, LastTokenMlp):  # a row's place in the batch, or its padding, matters, which the next check finds
        with pytest.raises(RunError, match="the decoder mixes rows of a batch"):
            check_gradients(projector, rows)
    else:
        assert check_gradients(projector, rows) <= 1e-5, "what is left is right"


def test_a_decoder_without_any_usable_layer_is_refused() -> None:
    decoder = fresh_decoder()
    decoder.model.model.layers = nn.ModuleList()
    with pytest.raises(ConfigError, match="LlamaForCausalLM: no Linear"):
        usable_layers(decoder, tokenize(ROWS, decoder))
    decoder = with_mlp(UnusedMlp)
    decoder.model.model.layers = decoder.model.model.layers[1:]
    decoder.model.model.layers[0].self_attn = _NoAttention(decoder.model.model.layers[0].self_attn)
    decoder.model.config.num_hidden_layers = 1
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM: none of its 7 linear layers sees whole rows") as caught:
        usable_layers(decoder, tokenize(ROWS, decoder))
    assert "\n" not in str(caught.value)


class _NoAttention(UnusedMlp):
    def forward(self, hidden_states: Tensor, **others: object) -> tuple[Tensor, None]:  # type: ignore[override]
        return hidden_states, None


@pytest.mark.parametrize("unit_layers", [False, True])
@pytest.mark.parametrize("sketch", ["count_sketch", "none"])
@pytest.mark.parametrize("name", [*DECODERS, "adapter"])
def test_rows_together_and_alone_agree_on_tiny_decoders(name: str, sketch: str, unit_layers: bool) -> None:
    decoder = DECODERS.get(name, lambda: trained_adapter(gpt2_decoder()))()
    config = GradientConfig(rank=3, output_rank=4, dim=64, factors="random", sketch=sketch)  # type: ignore[arg-type]
    before = {name: parameter.requires_grad for name, parameter in decoder.model.named_parameters()}
    projector = GradientProjector(decoder, config, [0, 1], unit_layers=unit_layers)
    assert 0 < check_gradients(projector, tokenize(ROWS, decoder)) <= 1e-5
    assert before == {name: parameter.requires_grad for name, parameter in decoder.model.named_parameters()}
    assert all(parameter.grad is None for parameter in decoder.model.parameters())


def test_a_transform_is_checked_too() -> None:
    decoder = gpt2_decoder()
    projector = GradientProjector(
        decoder, GradientConfig(rank=3, dim=64, factors="random"), [0], transform=lambda name, x: x / (1 + x.abs())
    )
    assert 0 < check_gradients(projector, tokenize(ROWS, decoder)) <= 1e-5


def test_half_precision_passes_within_its_own_tolerance() -> None:
    decoder = fresh_decoder()
    for parameter in decoder.model.parameters():
        parameter.data = parameter.data.bfloat16()
    projector = GradientProjector(decoder, GradientConfig(rank=3, dim=64, factors="random"), [0])
    assert 1e-4 < check_gradients(projector, tokenize(ROWS, decoder)) <= 0.1


def mixes_rows(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + output.mean(0, keepdim=True)


def spoils_numbers(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output * float("nan")


@pytest.mark.parametrize(("hook", "size"), [(mixes_rows, r"[\d.e+-]+"), (spoils_numbers, "nan")])
def test_a_decoder_that_mixes_rows_or_gives_no_numbers_is_refused(hook: Callable[..., Tensor], size: str) -> None:
    decoder = fresh_decoder()
    decoder.model.model.layers[0].mlp.register_forward_hook(hook)
    rows = tokenize(ROWS, decoder)
    layers, _ = usable_layers(decoder, rows)
    projector = GradientProjector(decoder, GradientConfig(rank=3, dim=64, factors="random"), [0], layers=layers)
    with pytest.raises(RunError, match=rf"taken together differ from single rows by {size} of their length; expected at most 0\.001;"):
        check_gradients(projector, rows)


@pytest.mark.parametrize("wrong", range(len(ROWS)))
def test_one_row_that_is_wrong_among_many_is_enough(wrong: int) -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)

    def double(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        factors = torch.ones(len(output), 1, 1)
        if len(output) > 1:
            factors[wrong] = 2
        return output * factors

    decoder.model.model.layers[0].mlp.register_forward_hook(double)
    projector = GradientProjector(decoder, GradientConfig(rank=3, dim=64, factors="random"), [0])
    with pytest.raises(RunError, match="taken together differ"):
        check_gradients(projector, rows)


def test_differences_are_shares_of_the_single_rows_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    projector = GradientProjector(decoder, GradientConfig(rank=3, dim=64, factors="random"), [0])
    right = projector.project(rows)
    monkeypatch.setattr(projector, "project", lambda rows: right * 1.0005)
    assert check_gradients(projector, rows) == pytest.approx(5e-4, rel=0.02)
    monkeypatch.setattr(projector, "project", lambda rows: right * 4)
    with pytest.raises(RunError, match="differ from single rows by 3 of their length"):
        check_gradients(projector, rows)


def test_weights_that_ask_for_no_gradient_are_checked_and_left_so() -> None:
    decoder = fresh_decoder()
    decoder.model.requires_grad_(False)
    projector = GradientProjector(decoder, GradientConfig(rank=3, dim=64, factors="random"), [0])
    assert 0 < check_gradients(projector, tokenize(ROWS, decoder)) <= 1e-5
    assert not any(parameter.requires_grad for parameter in decoder.model.parameters())


def test_the_losses_of_rows_are_what_is_differentiated() -> None:
    """A central difference of one row's loss along a weight's gradient, taken from the check's slow side."""
    decoder = fresh_decoder()
    row: TokenizedRow = tokenize(ROWS[:1], decoder)[0]
    config = GradientConfig(rank=None, sketch="none", factors="random")
    projector = GradientProjector(decoder, config, [0])
    gradient = projector.project([row])[0, 0].split(projector.blocks)[0].view(16, 16)
    weight = next(iter(projector.layers.values())).weight
    step = 1e-2 * gradient / gradient.norm()
    losses = []
    with torch.no_grad():
        for sign in (1, -2):
            weight.add_(sign * step)
            losses.append(float(row_losses(decoder.model, *pad([row], 0, torch.device("cpu")))))
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(float(gradient.norm()), rel=1e-2)
