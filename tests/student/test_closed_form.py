from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import Ridge

from student.closed_form import PENALTIES, fit_head, pool, ridge
from student.config import EncoderConfig, FreshEncoder
from student.encoder import load_encoder
from tests.student.fake_teacher import WORDS

Array = NDArray[np.float64]
SMALL = FreshEncoder(hidden_size=16, layers=1, heads=2, intermediate_size=16, vocab_size=400)
WIDTH = 5


def least_squares(inputs: Array, outputs: Array, penalty: float) -> tuple[Array, Array]:
    """Return weight (K, F) and bias (K,) by numpy: a column of ones for the bias, a row for each weight's penalty and none for the bias."""
    count, size = inputs.shape
    rows = np.vstack([np.c_[inputs, np.ones(count)], np.c_[np.sqrt(penalty) * np.eye(size), np.zeros(size)]])
    solution = np.linalg.lstsq(rows, np.vstack([outputs, np.zeros((size, outputs.shape[1]))]), rcond=None)[0]
    return solution[:-1].T, solution[-1]


@pytest.mark.parametrize(("count", "size"), [(40, 7), (9, 30), (12, 12)])
def test_ridge_is_least_squares_with_a_penalty_that_spares_the_bias(count: int, size: int) -> None:
    random = np.random.default_rng(count)
    inputs = random.normal(size=(count, size)) + 5.0  # far from the origin: a bias that is shrunk shows
    outputs = inputs @ random.normal(size=(size, 3)) + random.normal(size=(count, 3)) - 20.0
    given = [torch.from_numpy(array).float() for array in (inputs, outputs)]
    penalties = (3.0, 0.01, 50.0)
    found = list(ridge(given[0], given[1], penalties))
    assert torch.equal(given[0], torch.from_numpy(inputs).float()), "the inputs are left alone"
    for penalty, (weight, bias) in zip(penalties, found, strict=True):
        assert weight.shape == (3, size) and bias.shape == (3,)
        judge = Ridge(alpha=penalty).fit(inputs, outputs)
        for truth in (least_squares(inputs, outputs, penalty), (judge.coef_, judge.intercept_)):
            np.testing.assert_allclose(weight, truth[0], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(bias, truth[1], rtol=1e-4, atol=1e-3)


def make_texts(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(3, 9))) for _ in range(count)]


def pooled_alone(encoder: SentenceTransformer, texts: list[str]) -> Array:
    """Return what the modules before the head make of the texts, one by one."""
    rows = []
    with torch.no_grad():
        for text in texts:
            features = encoder.preprocess([text])
            for module in list(encoder)[:-2]:
                features = module(features)
            rows.append(features["sentence_embedding"][0].double().numpy())
    return np.array(rows)


def test_the_head_has_the_penalty_with_the_best_validation_figure() -> None:
    texts, asking, ranked = make_texts(24, 0), make_texts(10, 1), make_texts(30, 2)
    encoder = load_encoder(EncoderConfig(fresh=SMALL, embedding_dim=WIDTH, head="closed_form"), texts, seed=0).eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    pooled, queries, rows = (pooled_alone(encoder, part) for part in (texts, asking, ranked))
    np.testing.assert_allclose(pool(encoder, texts), pooled, atol=1e-5)
    random = np.random.default_rng(3)
    truth = random.normal(size=(pooled.shape[1], WIDTH)) * np.geomspace(1, 0.1, WIDTH)
    coordinates = pooled @ truth + random.normal(size=(len(texts), WIDTH))  # few rows, much noise: a penalty must help
    scores = (queries @ truth) @ (rows @ truth).T

    figures, heads = [], []
    for penalty in PENALTIES:
        head = least_squares(pooled, coordinates, penalty * np.mean(((pooled - pooled.mean(0)) ** 2).sum(1)))
        embedded = [part @ head[0].T + head[1] for part in (queries, rows)]
        cosines = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in embedded]
        figures.append(np.mean([spearmanr(*pair).statistic for pair in zip(cosines[0] @ cosines[1].T, scores, strict=True)]))
        heads.append(head)
    best = int(np.argmax(figures))
    assert 0 < best < len(PENALTIES) - 1 and figures[best] > max(figures[0], figures[-1]) + 0.02, figures

    found = fit_head(encoder, texts, torch.from_numpy(coordinates).float(), (asking, ranked, scores.astype(np.float32)))
    assert found.penalty == PENALTIES[best] and found.figure == pytest.approx(figures[best], abs=1e-4)
    after = encoder.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert changed == ["2.linear.weight", "2.linear.bias"]
    for name, expected in zip(changed, heads[best], strict=True):
        np.testing.assert_allclose(after[name], expected, rtol=1e-3, atol=1e-3)
    vectors = [encoder.encode(part, show_progress_bar=False) for part in (asking, ranked)]
    figure = np.mean([spearmanr(*pair).statistic for pair in zip(vectors[0] @ vectors[1].T, scores, strict=True)])
    assert figure == pytest.approx(figures[best], abs=1e-4)  # what the encoder gives, not only what was computed on the way
