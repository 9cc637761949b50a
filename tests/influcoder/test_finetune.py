from __future__ import annotations

from pathlib import Path

import pytest
import torch

from influcoder.errors import ConfigError
from influcoder.influence.capture import gradient_layers
from influcoder.influence.decoder import Decoder, fingerprint_model
from influcoder.influence.finetune import AdapterConfig, FinetuneConfig, add_adapter, drawn_share, finetune
from influcoder.influence.tokens import TokenizedRow, pad, row_losses, tokenize
from influcoder.training import make_trainer, silence_hints
from tests.influcoder.tiny_decoders import ROWS, fresh_decoder, gpt2_decoder, grouped_decoder

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT's own


def tuned(folder: Path, decoder: Decoder | None = None, **settings: float) -> Decoder:
    silence_hints()
    decoder = decoder or fresh_decoder()
    config = FinetuneConfig(epochs=8, learning_rate=1e-2, max_batch_tokens=60, **settings)  # type: ignore[arg-type]
    trainer = make_trainer(
        {"enable_progress_bar": False, "accelerator": "cpu"}, folder, max_epochs=config.epochs, log_every_n_steps=1, gradient_clip_val=1.0
    )
    finetune(decoder, tokenize(ROWS, decoder), config, trainer)
    return decoder


def mean_loss(decoder: Decoder) -> float:
    with torch.no_grad():
        return float(row_losses(decoder.model.eval(), *pad(tokenize(ROWS, decoder), 0, torch.device("cpu"))).mean())


def test_loss_falls_and_the_model_is_left_in_eval_mode(tmp_path: Path) -> None:
    decoder = tuned(tmp_path)
    assert not decoder.model.training
    assert mean_loss(decoder) < 0.8 * mean_loss(fresh_decoder())
    assert "decoder_loss" in (tmp_path / "log" / "metrics.csv").read_text()


def test_the_seed_decides(tmp_path: Path) -> None:
    first = fingerprint_model(tuned(tmp_path / "a").model)
    torch.manual_seed(5)
    assert fingerprint_model(tuned(tmp_path / "b").model) == first
    assert fingerprint_model(tuned(tmp_path / "c", seed=1).model) != first


def test_an_adapter_is_all_that_is_trained(tmp_path: Path) -> None:
    decoder = add_adapter(fresh_decoder(), AdapterConfig(rank=2), seed=0)
    before = {name: parameter.clone() for name, parameter in decoder.model.named_parameters()}
    assert {name for name, parameter in decoder.model.named_parameters() if parameter.requires_grad} == {
        name for name in before if "lora_" in name
    }
    loss = mean_loss(decoder)
    tuned(tmp_path, decoder)
    for name, parameter in decoder.model.named_parameters():
        assert torch.equal(parameter, before[name]) is ("lora_" not in name), name
        assert parameter.requires_grad is ("lora_" in name)
    assert mean_loss(decoder) < loss
    base = dict(fresh_decoder().model.named_parameters())
    kept = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): value for name, value in before.items() if "lora_" not in name
    }
    assert kept.keys() == base.keys() and all(torch.equal(kept[name], base[name]) for name in base)


@pytest.mark.parametrize("tied", [True, False])
def test_a_fresh_adapter_is_on_every_layer_but_the_head_and_changes_nothing_yet(tied: bool) -> None:
    decoder, plain = add_adapter(grouped_decoder(tied), AdapterConfig(rank=2), seed=0), grouped_decoder(tied)
    layers = gradient_layers(decoder.model)
    assert len(layers) == 28 and not any("lm_head" in name for name in layers)
    assert mean_loss(decoder) == pytest.approx(mean_loss(plain), abs=1e-6)
    assert (decoder.max_tokens, decoder.tokenizer.get_vocab()) == (plain.max_tokens, plain.tokenizer.get_vocab())


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`")  # PEFT mends it itself
def test_an_adapter_goes_on_conv1d_too() -> None:
    decoder = add_adapter(gpt2_decoder(), AdapterConfig(rank=2), seed=0)
    assert len(gradient_layers(decoder.model)) == 2 * 8
    assert mean_loss(decoder) == pytest.approx(mean_loss(gpt2_decoder()), abs=1e-6)


@pytest.mark.parametrize(("alpha", "scale"), [(None, 2.0), (6.0, 1.5)])
def test_rank_alpha_and_dropout_are_the_adapters(alpha: float | None, scale: float) -> None:
    decoder = add_adapter(fresh_decoder(), AdapterConfig(rank=4, alpha=alpha, dropout=0.25), seed=0)
    module = decoder.model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    assert module.scaling == {"default": scale}
    assert module.get_submodule("lora_A.default.weight".rpartition(".")[0]).weight.shape == (4, 16)
    assert module.get_submodule("lora_dropout.default").p == 0.25


def test_an_adapter_depends_on_its_seed_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = fingerprint_model(add_adapter(fresh_decoder_at(5), AdapterConfig(rank=2), seed=0).model)
    assert torch.equal(torch.rand(1), expected), "the caller's random state is left alone"
    assert fingerprint_model(add_adapter(fresh_decoder(), AdapterConfig(rank=2), seed=0).model) == first
    assert fingerprint_model(add_adapter(fresh_decoder(), AdapterConfig(rank=2), seed=1).model) != first


def fresh_decoder_at(seed: int) -> Decoder:
    """Return the same decoder, with the global generator at `seed`."""
    decoder = fresh_decoder()
    torch.manual_seed(seed)
    return decoder


@pytest.mark.parametrize(("share", "count"), [(1.0, 40), (0.5, 20), (0.05, 2), (0.001, 1)])
def test_a_share_is_drawn_by_the_seed_in_the_rows_order(share: float, count: int) -> None:
    rows = [TokenizedRow((place, 1, 2), 1) for place in range(40)]
    found = drawn_share(rows, FinetuneConfig(share=share, seed=3))
    places = [row.input_ids[0] for row in found]
    assert len(places) == len(set(places)) == count and places == sorted(places)
    assert drawn_share(rows, FinetuneConfig(share=share, seed=3)) == found
    assert all(row is rows[row.input_ids[0]] for row in found)


def test_another_seed_draws_another_share_and_every_row_has_its_chance() -> None:
    rows = [TokenizedRow((place, 1, 2), 1) for place in range(40)]
    draws = [[row.input_ids[0] for row in drawn_share(rows, FinetuneConfig(share=0.25, seed=seed))] for seed in range(200)]
    assert len({tuple(draw) for draw in draws}) == 200
    counts = [sum(place in draw for draw in draws) for place in range(40)]
    assert all(abs(count - 50) < 5 * (200 * 0.25 * 0.75) ** 0.5 for count in counts)


@pytest.mark.parametrize(("share", "checkpoints"), [(0.0, 1), (-0.1, 1), (1.1, 1), (0.5, 0)])
def test_shares_and_checkpoints_out_of_range_are_refused(share: float, checkpoints: int) -> None:
    with pytest.raises(ConfigError, match=rf"finetune: share {share}, checkpoints {checkpoints}; expected a share in \(0, 1\]"):
        FinetuneConfig(share=share, checkpoints=checkpoints)


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"learning_rate": 0.0}, {"warmup_share": 1.5}, {"max_batch_tokens": 0}])
def test_what_is_out_of_range_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} "):
        FinetuneConfig(**settings)  # type: ignore[arg-type]
