"""Every method of the stage against its dense version, whole weights and a LoRA adapter; nothing projected, so nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from influcoder.examples import load_examples
from influcoder.features import load_features
from influcoder.influence.decoder import DecoderConfig, load_decoder
from influcoder.influence.finetune import AdapterConfig, FinetuneConfig
from influcoder.influence.gradients import GradientConfig
from influcoder.influence.tokens import tokenize
from influcoder.scores import load_scores
from tests.teacher import dense
from tests.teacher.test_stage import make_config, run_stage

WHOLE = GradientConfig(rank=None, sketch="none", shard_rows=8, factors="random")
METHODS: dict[str, tuple[Callable[..., NDArray[np.float64]], dict[str, Any]]] = {
    "influcoder": (dense.layers, {}),
    "the paper's cosine": (dense.influcoder, {"method": "influcoder", "normalise": "unit"}),
    "tracin": (dense.tracin, {}),
    "less": (dense.less, {}),
    "logra": (dense.logra, {}),
    "relatif": (dense.relatif, {"method": "logra", "normalise": "relatif"}),
    "trackstar": (dense.trackstar, {}),
    "ekfac": (dense.ekfac, {}),
    "ekfac, relatif": (dense.ekfac_relatif, {"method": "ekfac", "normalise": "relatif"}),
    "f_influence": (dense.f_influence, {}),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose decoder others start from."""
    return run_stage(make_config(tmp_path_factory.mktemp("base"), seeds=(0,)))


@pytest.mark.parametrize("space", ["weights", "adapter"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_equals_its_dense_version(name: str, space: str, base: Path, tmp_path: Path) -> None:
    expected_of, changes = METHODS[name]
    adapter = AdapterConfig(rank=12) if space == "adapter" else None
    config = make_config(
        tmp_path,
        decoder=DecoderConfig(path=str(base / "decoder"), device="cpu"),
        finetune=FinetuneConfig(epochs=2, checkpoints=3, adapter=adapter, learning_rate=5e-3, max_batch_tokens=128),
        gradients=WHOLE,
        seeds=(0,),
        **({"method": name} | changes),
    )
    made = run_stage(config)
    located = (
        DecoderConfig(path=str(base / "decoder"), adapter=str(made / "adapter"), device="cpu")
        if adapter
        else DecoderConfig(path=str(made / "decoder"), device="cpu")
    )
    decoder = load_decoder(located, [], 0)
    decoder.model.eval()
    queries, rows = (tokenize(load_examples(made / f"{side}.parquet"), decoder) for side in ("queries", "rows"))
    expected = expected_of(decoder, made, queries, rows)
    found = load_scores(made / "scores" / "seed-0").values
    place = made / "features" / "seed-0"
    asking, asked = load_features(place / "queries").as_queries, load_features(place / "rows").as_rows
    scale = np.linalg.norm(asking, axis=1).max() * np.linalg.norm(asked, axis=1).max()  # float16 errs by a share of the lengths
    assert np.abs(found - expected).max() <= 1e-4 * scale
    asymmetric = name in ("less", "f_influence")
    assert (made / "features" / "seed-0" / "rows_as_queries").exists() is asymmetric
    if asymmetric:  # the rows ask with other vectors than they are asked with
        own = load_features(place / "rows_as_queries").as_queries @ load_features(place / "rows").as_rows.T
        np.testing.assert_allclose(own, expected_of(decoder, made, rows, rows), atol=1e-4 * max(1, np.abs(own).max()))
    assert not (made / "gradients").exists()
