from __future__ import annotations

from pathlib import Path

import pytest
import torch

from influcoder.errors import ConfigError
from influcoder.influence.decoder import Decoder, fingerprint_model
from influcoder.influence.finetune import FinetuneConfig, finetune
from influcoder.influence.tokens import pad, row_losses, tokenize
from influcoder.training import make_trainer, silence_hints
from tests.influcoder.tiny_decoders import ROWS, fresh_decoder


def tuned(folder: Path, **settings: float) -> Decoder:
    silence_hints()
    decoder = fresh_decoder()
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


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"learning_rate": 0.0}, {"warmup_share": 1.5}, {"max_batch_tokens": 0}])
def test_what_is_out_of_range_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} "):
        FinetuneConfig(**settings)  # type: ignore[arg-type]
