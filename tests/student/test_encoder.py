from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from influcoder.errors import ConfigError
from student.config import CausalLMEncoder, EncoderConfig, FreshEncoder
from student.encoder import load_encoder, save_encoder, tokenize, truncated_share
from student.module import encode

SMALL = FreshEncoder(hidden_size=16, layers=1, heads=2, intermediate_size=16, vocab_size=280)
TEXTS = ["Prompt: a red cat\nResponse: it sings", "Prompt: stone\nResponse: bread and more bread", "Grüße 🚪"]


@pytest.mark.parametrize(("head", "width"), [(None, 16), (24, 24)])
def test_a_fresh_encoder_survives_saving(tmp_path: Path, head: int | None, width: int, capfd: pytest.CaptureFixture[str]) -> None:
    encoder = load_encoder(EncoderConfig(fresh=SMALL, max_tokens=32, embedding_dim=head), TEXTS, seed=0)
    save_encoder(encoder, tmp_path)
    loaded = SentenceTransformer(str(tmp_path), device="cpu")
    found = loaded.encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(found, encode(encoder, TEXTS), atol=1e-6)
    assert found.shape == (3, width)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)  # the folder itself normalises
    assert loaded.max_seq_length == 32
    assert "MISSING" not in "".join(capfd.readouterr())  # every weight is in the folder
    assert {type(module).__name__ for module in loaded} == {"Transformer", "Pooling", "Normalize"} | ({"Dense"} if head else set())


def test_only_a_hub_id_is_told_of_what_the_encoder_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert EncoderConfig(path="acme/bert").hub_id == "acme/bert"
    assert EncoderConfig(causal_lm=CausalLMEncoder(path="acme/lm")).hub_id == "acme/lm"
    for mine in (EncoderConfig(path="models/mine"), EncoderConfig(path=str(tmp_path)), EncoderConfig(fresh=SMALL)):
        assert mine.hub_id is None


def test_the_seed_decides() -> None:
    config = EncoderConfig(fresh=SMALL, embedding_dim=8)
    torch.manual_seed(3)
    first = encode(load_encoder(config, TEXTS, seed=0), TEXTS)
    torch.manual_seed(4)
    np.testing.assert_array_equal(encode(load_encoder(config, TEXTS, seed=0), TEXTS), first)
    assert np.abs(encode(load_encoder(config, TEXTS, seed=1), TEXTS) - first).max() > 0.01


def test_a_folder_gets_a_head_and_one_normalisation(tmp_path: Path) -> None:
    save_encoder(load_encoder(EncoderConfig(fresh=SMALL, max_tokens=32), TEXTS, seed=0), tmp_path)
    encoder = load_encoder(EncoderConfig(path=str(tmp_path), max_tokens=64, embedding_dim=8), TEXTS, seed=0)
    assert [type(module).__name__ for module in encoder] == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert encode(encoder, TEXTS).shape == (3, 8)
    assert encoder.max_seq_length == 32  # what it can read, not what was asked


def test_training_and_encoding_read_the_same(tmp_path: Path) -> None:
    encoder = load_encoder(EncoderConfig(fresh=SMALL), TEXTS, seed=0).eval()
    with torch.no_grad():
        found = encoder(tokenize(encoder, TEXTS))["sentence_embedding"]
    np.testing.assert_allclose(found.numpy(), encode(encoder, TEXTS), atol=1e-6)


def test_truncated_share_counts_special_tokens() -> None:
    encoder = load_encoder(EncoderConfig(fresh=SMALL, max_tokens=8), TEXTS, seed=0)
    six, seven = "0 1 2", "0 1 2 3"
    lengths = [len(encoder.tokenizer(text)["input_ids"]) for text in (six, seven)]
    assert lengths[0] <= 8 < lengths[1], lengths
    assert truncated_share(encoder, [six, seven, six, six]) == 0.25


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"encoder '.*empty': cannot be loaded"):
        load_encoder(EncoderConfig(path=str(tmp_path / "empty")), TEXTS, 0)
    with pytest.raises(ConfigError, match="exactly one of"):
        EncoderConfig()
    with pytest.raises(ConfigError, match="at least 8"):
        EncoderConfig(path="a", max_tokens=4)
