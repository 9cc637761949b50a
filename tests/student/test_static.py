from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from transformers import PreTrainedTokenizerFast

from influcoder.errors import ConfigError
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.onnx_export import export_encoder
from influcoder.runs import open_run
from student.closed_form import PENALTIES
from student.config import EncoderConfig, FreshEncoder, StaticEncoder
from student.encoder import load_encoder, longest, save_encoder, truncated_share
from student.module import KeepBest
from student.stage import load_target
from student.static import fit_table, frequencies
from tests.student.fake_teacher import DIM
from tests.student.test_closed_form import least_squares, make_texts
from tests.student.test_stage import make_config, run_stage

WIDTH = 5
TABLE = EncoderConfig(static=StaticEncoder(vocab_size=300), max_tokens=12, embedding_dim=WIDTH)
UNTRAINED = {"enable_progress_bar": False, "accelerator": "cpu"}


def counted(encoder: SentenceTransformer, texts: list[str]) -> NDArray[np.float64]:
    """Return token frequencies (texts, whole vocabulary), one token after another."""
    found = np.zeros((len(texts), encoder.tokenizer.get_vocab_size()))
    for row, text in zip(found, texts, strict=True):
        ids = encoder.tokenizer.encode(text, add_special_tokens=False).ids
        for token in ids:
            row[token] += 1 / len(ids)
    return found


def table_of(encoder: SentenceTransformer) -> torch.Tensor:
    table = encoder[0]
    assert isinstance(table, StaticEmbedding)
    return table.embedding.weight.detach()


def test_the_table_is_the_ridge_regression_on_token_frequencies() -> None:
    texts, asking, ranked = make_texts(60, 0), make_texts(12, 1), [*make_texts(30, 2), "~ zz ~"]
    encoder = load_encoder(replace(TABLE, max_tokens=24), texts, seed=0)
    inputs, queries, rows = (counted(encoder, part) for part in (texts, asking, ranked))
    random = np.random.default_rng(3)
    truth = random.normal(size=(inputs.shape[1], WIDTH)) * np.geomspace(1, 0.1, WIDTH) + 0.1  # a level: the bias has work to do
    coordinates = inputs @ truth + 0.3 * random.normal(size=(len(texts), WIDTH))
    scores = (queries @ truth) @ (rows @ truth).T

    figures, tables = [], []
    for penalty in PENALTIES:
        weight, bias = least_squares(inputs, coordinates, penalty * np.mean(((inputs - inputs.mean(0)) ** 2).sum(1)))
        table = weight.T + bias
        embedded = [part @ table for part in (queries, rows)]
        cosines = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in embedded]
        figures.append(np.mean([spearmanr(*pair).statistic for pair in zip(cosines[0] @ cosines[1].T, scores, strict=True)]))
        tables.append(table)
    best = int(np.argmax(figures))
    assert 0 < best < len(PENALTIES) - 1 and figures[best] > max(figures[0], figures[-1]) + 0.02, figures

    found = fit_table(encoder, texts, torch.from_numpy(coordinates).float(), (asking, ranked, scores.astype(np.float32)))
    assert found.penalty == PENALTIES[best] and found.figure == pytest.approx(figures[best], abs=1e-4)
    np.testing.assert_allclose(table_of(encoder), tables[best], atol=1e-4)
    seen = inputs.sum(0) > 0
    assert (~seen).sum() > 50 and rows[:, ~seen].any(), "some tokens of the ranked texts were never trained on"
    np.testing.assert_allclose(table_of(encoder)[~seen], found.bias.expand(int((~seen).sum()), WIDTH).numpy(), atol=1e-6)
    vectors = [encoder.encode(part, show_progress_bar=False) for part in (asking, ranked)]
    np.testing.assert_allclose(np.linalg.norm(vectors[1], axis=1), 1, atol=1e-5)
    figure = np.mean([spearmanr(*pair).statistic for pair in zip(vectors[0] @ vectors[1].T, scores, strict=True)])
    assert figure == pytest.approx(figures[best], abs=1e-4)  # what the encoder gives, not only what was computed on the way


def test_frequencies_count_shares_of_the_whole_text() -> None:
    found = frequencies([[5, 2, 5, 9], [2], [], [7, 7]], torch.tensor([2, 5]))
    np.testing.assert_allclose(found, [[0.25, 0.5], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])


def test_the_folder_is_plain_sentence_transformers(tmp_path: Path) -> None:
    encoder = load_encoder(TABLE, make_texts(24, 0), seed=0)
    save_encoder(encoder, tmp_path)
    assert all(entry["type"].startswith("sentence_transformers.") for entry in json.loads((tmp_path / "modules.json").read_text()))
    loaded = SentenceTransformer(str(tmp_path), device="cpu")
    texts = [*make_texts(9, 4), "[CLS]", "grün"]
    np.testing.assert_allclose(loaded.encode(texts, show_progress_bar=False), encoder.encode(texts, show_progress_bar=False), atol=1e-6)
    assert longest(loaded) == 12 and loaded.get_embedding_dimension() == WIDTH


def test_the_seed_decides() -> None:
    texts = make_texts(24, 0)
    torch.manual_seed(3)
    first = table_of(load_encoder(TABLE, texts, seed=0))
    torch.manual_seed(4)
    assert torch.equal(table_of(load_encoder(TABLE, texts, seed=0)), first)
    assert not torch.allclose(table_of(load_encoder(TABLE, texts, seed=1)), first)


def test_what_is_beyond_max_tokens_is_cut() -> None:
    encoder = load_encoder(TABLE, make_texts(24, 0), seed=0)
    long = " ".join(make_texts(3, 5))
    ids = encoder.tokenizer.encode(long).ids
    assert len(ids) == longest(encoder) == 12
    head = table_of(encoder)[ids].mean(0)
    np.testing.assert_allclose(encoder.encode(long, show_progress_bar=False), head / head.norm(), atol=1e-6)
    assert truncated_share(encoder, [long, "ba", "ba", long]) == 0.5


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """A transformers tokenizer that puts a token before and after every text."""
    fresh = FreshEncoder(hidden_size=16, layers=1, heads=2, intermediate_size=16, vocab_size=290)
    save_encoder(load_encoder(EncoderConfig(fresh=fresh), make_texts(24, 9), seed=0), tmp_path / "fresh")
    return tmp_path / "fresh"


def test_a_tokenizer_can_be_given_and_adds_nothing_of_its_own(tokenizer_folder: Path, tmp_path: Path) -> None:
    given = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    config = EncoderConfig(static=StaticEncoder(tokenizer=str(tokenizer_folder)), max_tokens=12, embedding_dim=WIDTH)
    encoder = load_encoder(config, ["not looked at"], seed=0)
    text = make_texts(1, 6)[0]
    expected = given(text, add_special_tokens=False)["input_ids"][:12]
    assert given(text)["input_ids"][0] == given.cls_token_id
    assert encoder.tokenizer.encode(text).ids == encoder.tokenizer.encode(text, add_special_tokens=False).ids == expected
    assert len(table_of(encoder)) == len(given)
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=r"encoder\.static\.tokenizer '.*': cannot be loaded \(.*\); check the name") as caught:
            load_encoder(EncoderConfig(static=StaticEncoder(tokenizer=str(path))), ["a"], seed=0)
        assert "\n" not in str(caught.value)


def test_a_static_student_ranks_unseen_rows_without_training_in_torch_and_onnx(finished_teacher: Path, tmp_path: Path) -> None:
    encoder_config = EncoderConfig(static=StaticEncoder(), max_tokens=48, embedding_dim=DIM)
    config = make_config(finished_teacher, tmp_path / "student", encoder=encoder_config, trainer=UNTRAINED)
    made = run_stage(config)
    record, target = open_run(made, "student"), load_target(config)
    encoder, initial = (SentenceTransformer(str(made / name), device="cpu") for name in ("encoder", "initial_encoder"))
    assert record["validation"]["epoch"] == -1
    figures = {part: [KeepBest(target.of(part), 1).measure(each) for each in (initial, encoder)] for part in ("validation", "test")}
    assert record["validation"]["per_query_spearman"] == pytest.approx(figures["validation"][1], abs=1e-6)
    assert figures["test"][1] > figures["test"][0] + 0.2 and figures["test"][1] > 0.7, figures

    assert export_encoder(made / "encoder", target.rows.texts)["spearman_min"] > 0.999
    found = OnnxEncoder(made / "encoder").encode(target.rows.texts)
    np.testing.assert_allclose(found, encoder.encode(target.rows.texts, show_progress_bar=False), atol=1e-5)


def test_a_table_is_not_trained() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs: 3 with encoder\.static, which is fitted, not trained; expected 0"):
        make_config(Path(), Path(), encoder=TABLE, trainer={"max_epochs": 3})
    assert TABLE.fitted
    with pytest.raises(ConfigError, match=r"exactly one of `path`, `causal_lm`, `static` and `fresh`"):
        EncoderConfig(static=StaticEncoder(), path="a")
