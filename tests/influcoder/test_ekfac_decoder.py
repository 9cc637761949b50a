"""The truth here: the Gauss-Newton matrix of a row's mean loss, made densely of the Jacobian of its logits; and a loop over rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from transformers import LlamaConfig, LlamaForCausalLM

from influcoder.influence import ekfac_decoder as module
from influcoder.influence.capture import gradient_layers
from influcoder.influence.decoder import Decoder
from influcoder.influence.ekfac import LayerFactors, fit_ekfac
from influcoder.influence.ekfac_decoder import Draws, decoder_batches
from influcoder.influence.pseudo_gradients import label_errors, row_uniforms, sample_labels
from influcoder.influence.tokens import Predictions, TokenizedRow, tokenize
from tests.influcoder.tiny_decoders import DECODERS, ROWS, fresh_decoder, gpt2_decoder, relative_error, trained_adapter, with_adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # PEFT's own
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated"),
]
Array = NDArray[np.float64]
VOCABULARY = 7
TINY_ROWS = [
    TokenizedRow((1, 2, 3, 4, 5), 2),
    TokenizedRow((6, 1, 0), 1),
    TokenizedRow((2, 2, 5, 1, 3, 6, 0, 4), 6),
    TokenizedRow((3, 5), 1),
]
"""3, 2, 2 and 1 tokens of response"""


def tiny_decoder() -> Decoder:
    """Return a Llama of seven pieces, whose whole Jacobian is small."""
    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=16, initializer_range=0.6,
    )  # fmt: skip
    return Decoder(LlamaForCausalLM(config).eval(), fresh_decoder().tokenizer, 16)


def row_gauss_newton(decoder: Decoder, row: TokenizedRow, name: str) -> Array:
    """Return (O * I, O * I) of one layer: mean over response tokens of J^T (diag(p) - p p^T) J, in float64."""
    model = decoder.model.double()
    parameters = {key: value for key, value in model.named_parameters() if key != f"{name}.weight"}
    ids = torch.tensor(row.input_ids)[None]

    def logits(weight: Tensor) -> Tensor:
        found: Tensor = functional_call(model, parameters | {f"{name}.weight": weight}, (), {"input_ids": ids}).logits[0]
        return found[row.response_start - 1 : -1]

    weight = model.get_parameter(f"{name}.weight").detach()
    jacobian = jacrev(logits)(weight).flatten(2).detach().numpy()  # (T, V, O * I)
    p = logits(weight).softmax(1).detach().numpy()
    decoder.model.float()
    found: Array = np.mean([j.T @ (np.diag(q) - np.outer(q, q)) @ j for j, q in zip(jacobian, p, strict=True)], axis=0)
    return found


def diagonal(matrix: Array, factors: LayerFactors) -> Array:
    """Return a (O * I) square matrix's diagonal in the factors' basis, (O, I)."""
    rotation = np.kron(factors.outputs.double().numpy(), factors.inputs.double().numpy())
    return np.diag(rotation.T @ matrix @ rotation).reshape(factors.values.shape)


def each_token_each_label(predicted: Predictions, places: Sequence[int], draws: Draws, draw: int) -> Tensor:
    """Go through every token and label instead of drawing: `draws` is their number."""
    p, (token, label) = predicted.logits.softmax(1).detach(), divmod(draw % (3 * VOCABULARY), VOCABULARY)
    lengths = predicted.rows.bincount(minlength=len(places))
    errors = label_errors(p, torch.full((len(p),), label)) * p[:, [label]].sqrt() / lengths[predicted.rows, None].sqrt()
    order = torch.cat([torch.arange(length) for length in lengths])
    return errors * (order == token)[:, None]


@pytest.mark.parametrize("max_batch_tokens", [1, 1000])
def test_eigenvalues_are_those_of_the_mean_losss_gauss_newton(max_batch_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = tiny_decoder()
    layers = gradient_layers(decoder.model)
    monkeypatch.setattr(module, "sampled_errors", each_token_each_label)
    batches = decoder_batches(decoder, TINY_ROWS, Draws(count=3 * VOCABULARY), max_batch_tokens)
    for name, factors in fit_ekfac(layers, batches).items():
        dense = np.mean([row_gauss_newton(decoder, row, name) for row in TINY_ROWS], axis=0)
        assert relative_error(factors.values, diagonal(dense, factors)) <= 1e-5, name


def test_drawn_labels_have_that_gauss_newton_as_their_mean() -> None:
    """100 draws of 4 rows err by some percent; 1 / T in place of 1 / sqrt(T), or a mean over the batch's tokens, by half."""
    decoder = tiny_decoder()
    fitted = fit_ekfac(gradient_layers(decoder.model), decoder_batches(decoder, TINY_ROWS, Draws(count=100), 1000))
    for name, factors in fitted.items():
        dense = np.mean([row_gauss_newton(decoder, row, name) for row in TINY_ROWS], axis=0)
        assert abs(float(factors.values.sum()) / np.trace(dense) - 1) <= 0.2, name
        assert relative_error(factors.values, diagonal(dense, factors)) <= 0.35, name


def fit_row_by_row(decoder: Decoder, rows: Sequence[TokenizedRow], draws: Draws) -> tuple[dict[str, list[Array]], dict[str, list[Array]]]:
    """Return each layer's pseudo-gradients and moments, one row and draw a backward pass through the weights themselves."""
    layers, model = gradient_layers(decoder.model), decoder.model.eval()
    gradients: dict[str, list[Array]] = {name: [] for name in layers}
    moments = {name: [np.zeros((size, size)) for size in (layer.in_features, layer.out_features)] for name, layer in layers.items()}
    for place, row in enumerate(rows):
        for draw in range(2 * draws.count):  # the first half for the eigenvectors, the second for the eigenvalues
            seen: dict[str, tuple[Tensor, Tensor]] = {}

            def note(name: str, seen: dict[str, tuple[Tensor, Tensor]] = seen) -> object:
                def hook(layer: nn.Module, taken: tuple[Tensor, ...], made: Tensor) -> None:
                    made.retain_grad()
                    seen[name] = taken[0].detach()[0], made

                return layers[name].module.register_forward_hook(hook)

            handles = [note(name) for name in layers]
            model.zero_grad()
            logits = model(input_ids=torch.tensor(row.input_ids)[None]).logits[0, row.response_start - 1 : -1]
            labels = sample_labels(logits.detach().softmax(1), row_uniforms(draws.seed, place, draw, len(logits)))
            (nn.functional.cross_entropy(logits, labels, reduction="sum") / np.sqrt(len(logits) * draws.count)).backward()
            for name, layer in layers.items():
                handles.pop().remove()  # type: ignore[attr-defined]
                x, output = seen[name]
                assert layer.weight.grad is not None and output.grad is not None
                if draw >= draws.count:
                    gradients[name].append(layer.oriented(layer.weight.grad).double().numpy().copy())
                    continue
                moments[name][0] += (x.double().T @ x.double()).numpy()
                moments[name][1] += (output.grad[0].double().T @ output.grad[0].double()).numpy()
    model.zero_grad()
    return gradients, moments


MAKERS: dict[str, Callable[[], Decoder]] = {
    **DECODERS,
    "LoRA": lambda: trained_adapter(fresh_decoder()),
    "GPT-2 LoRA": lambda: trained_adapter(gpt2_decoder()),
}


@pytest.mark.parametrize("max_batch_tokens", [1, 1000])
@pytest.mark.parametrize("name", MAKERS)
def test_equals_a_loop_over_rows_and_draws(name: str, max_batch_tokens: int) -> None:
    decoder = MAKERS[name]()
    rows, draws = tokenize(ROWS, decoder), Draws(count=2, seed=3)
    fitted = fit_ekfac(gradient_layers(decoder.model), decoder_batches(decoder, rows, draws, max_batch_tokens))
    gradients, moments = fit_row_by_row(decoder, rows, draws)
    assert list(fitted) == list(gradients)
    for layer, factors in fitted.items():
        for vectors, moment in zip((factors.inputs, factors.outputs), moments[layer], strict=True):
            rotated = vectors.double().numpy().T @ moment @ vectors.double().numpy()
            np.testing.assert_allclose(rotated, np.diag(np.linalg.eigvalsh(moment)), rtol=0, atol=1e-4 * np.trace(moment))
        rotated = factors.outputs.double().numpy().T @ np.stack(gradients[layer]) @ factors.inputs.double().numpy()
        assert relative_error(factors.values, (rotated**2).sum(0) / len(rows)) <= 1e-4, layer


def test_an_adapter_that_knows_nothing_yet_has_curvature_in_b_alone() -> None:
    decoder = with_adapter(fresh_decoder())
    fitted = fit_ekfac(gradient_layers(decoder.model), decoder_batches(decoder, tokenize(ROWS, decoder), Draws(), 1000))
    for name, factors in fitted.items():
        assert (float(factors.values.max()) == 0) == (".lora_A." in name)
        assert torch.isfinite(factors.half(torch.ones(1, *factors.values.shape))).all()


def test_labels_depend_on_seed_row_and_draw_and_not_on_the_batch() -> None:
    uniforms = {(seed, place, draw): row_uniforms(seed, place, draw, 4) for seed in (0, 1) for place in (0, 1, 11) for draw in (0, 1)}
    assert len({tuple(values.tolist()) for values in uniforms.values()}) == len(uniforms)
    assert torch.equal(row_uniforms(1, 11, 1, 4), uniforms[1, 11, 1])
    p = torch.tensor([[0.2, 0.5, 0.0, 0.3]]).repeat(7, 1)
    labels = sample_labels(p, torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 0.99, 1.0]))
    assert labels.tolist() == [0, 0, 1, 1, 3, 3, 3]


def test_checkpointing_changes_nothing() -> None:
    plain, checkpointed = fresh_decoder(), fresh_decoder()
    checkpointed.model.gradient_checkpointing_enable({"use_reentrant": True})
    rows = tokenize(ROWS, plain)
    fitted = [fit_ekfac(gradient_layers(one.model), decoder_batches(one, rows, Draws(), 1000)) for one in (plain, checkpointed)]
    for name in fitted[0]:
        torch.testing.assert_close(fitted[1][name].values, fitted[0][name].values)
