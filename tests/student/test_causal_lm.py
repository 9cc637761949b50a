from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from influcoder.error_pooling import ErrorPooling
from influcoder.errors import ConfigError
from influcoder.examples import Example, load_examples
from influcoder.influence.decoder import Decoder
from influcoder.influence.tokens import tokenize
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.onnx_export import export_encoder
from influcoder.runs import open_run
from influcoder.sentence_encoder import load_sentence_encoder
from influcoder.text_format import TextFormat, load_text_format, render, truncate_all
from student import causal_lm, stage
from student.causal_lm import load_causal_lm, make_causal_lm, with_markers
from student.closed_form import Fitted, fit_head
from student.config import CausalLMEncoder, EncoderConfig, StudentConfig
from student.encoder import save_encoder
from student.stage import load_target
from tests.influcoder.tiny_decoders import fresh_decoder
from tests.student.fake_teacher import DIM, TEXT, World, make_teacher
from tests.student.test_stage import make_config, run_stage, stored

CHAT = (
    "{% for m in messages %}{% if loop.first %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = "{% for m in messages %}{% if m['role'] == 'user' %}Question: {{ m['content'] }}\nAnswer: {% else %}{{ m['content'] }}\n\n{% endif %}{% endfor %}"
NO_MARKER = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
THINKS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant><think></think>{% endif %}"
ROWS = World().draw("row", 40)[0]
CONFIG = CausalLMEncoder(path="not read", layers=3, rank=5)
UNTRAINED = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def lm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random causal LM with its tokenizer and template."""
    return save_lm(fresh_decoder(), tmp_path_factory.mktemp("lm"))


def save_lm(lm: Decoder, folder: Path) -> Path:
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def lm(lm_folder: Path) -> Decoder:
    return load_causal_lm(CausalLMEncoder(path=str(lm_folder)))


@pytest.mark.parametrize("template", [None, CHAT, PLAIN])
def test_rows_are_rendered_as_the_template_has_them(lm_folder: Path, template: str | None) -> None:
    lm = load_causal_lm(CausalLMEncoder(path=str(lm_folder), chat_template=template))
    text_format = with_markers(replace(TEXT, max_prompt_chars=12, max_response_chars=9), lm)
    assert text_format.budgets == (12, 9)
    for row in truncate_all(ROWS, text_format):
        messages = [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.response}]
        expected = lm.tokenizer.apply_chat_template(messages, tokenize=False)
        assert render(row, text_format) == expected
        assert row.prompt in str(expected) and row.response in str(expected)


def test_the_markers_are_what_stands_around_the_texts(lm: Decoder) -> None:
    expected = replace(TEXT, prompt_marker="<user>", separator="", response_marker="<assistant>", bare_marker="<eos>", end_marker="<eos>")
    assert with_markers(TEXT, lm) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "its tokenizer has no chat template, so where a response begins is unknown; set chat_template"),
        (NO_MARKER, "its chat template puts nothing fixed before the response; expected a marker; set chat_template"),
        (THINKS, "its chat template puts nothing fixed before the response; expected a marker; set chat_template"),
        ("always the same", "its chat template puts nothing fixed before the response; expected a marker; set chat_template"),
    ],
)
def test_a_template_that_does_not_say_where_the_response_begins_is_refused(lm: Decoder, template: str | None, message: str) -> None:
    lm.tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=message) as caught:
        with_markers(TEXT, lm)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_puts_a_beginning_itself_gets_none_from_the_template(lm: Decoder) -> None:
    tokenizer: Any = lm.tokenizer
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = processor
    tokenizer.chat_template = "<bos>" + tokenizer.chat_template
    row = ROWS[0]
    messages = [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.response}]
    expected = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)["input_ids"]
    assert tokenizer(render(row, with_markers(TEXT, lm)))["input_ids"] == expected
    assert expected.count(tokenizer.bos_token_id) == 1


def test_a_row_without_context_reads_as_its_teacher_reads_it(lm: Decoder) -> None:
    row = Example(id="bare", context=(), response="dutt bark")
    text = render(row, with_markers(TEXT, lm))
    assert tuple(lm.tokenizer(text)["input_ids"]) == tokenize([row], lm)[0].input_ids


def test_texts_whose_response_is_cut_off_are_refused(lm: Decoder) -> None:
    texts = rendered(lm)
    with pytest.raises(
        ConfigError, match=f"{len(texts)} of {len(texts)} texts show no beginning of a response within encoder.max_tokens 2; "
    ):
        make_causal_lm(CONFIG, lm, texts, 2, seed=0)


def test_an_output_layer_with_a_bias_is_refused(tmp_path: Path) -> None:
    tokenizer = fresh_decoder().tokenizer
    sizes: Any = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    phi = PhiForCausalLM(PhiConfig(vocab_size=len(tokenizer), **sizes))
    folder = save_lm(Decoder(phi, tokenizer, 64), tmp_path)
    with pytest.raises(ConfigError, match=r"its output layer has a bias, or is none; expected a plain matrix"):
        load_causal_lm(CausalLMEncoder(path=str(folder)))


def test_a_model_that_scales_or_caps_its_logits_is_refused(tmp_path: Path) -> None:
    lm = fresh_decoder()
    sizes: Any = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    vocabulary = len(lm.tokenizer)
    scaled = GraniteForCausalLM(GraniteConfig(vocab_size=vocabulary, **sizes, logits_scaling=8.0))
    capped = Gemma2ForCausalLM(Gemma2Config(vocab_size=vocabulary, **sizes, head_dim=8, final_logit_softcapping=0.01))
    for name, model in (("scaled", scaled), ("capped", capped)):
        folder = save_lm(replace(lm, model=model), tmp_path / name)
        with pytest.raises(ConfigError, match="logits are not the last states times the output matrix"):
            load_causal_lm(CausalLMEncoder(path=str(folder)))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.causal_lm: layers 0, rank 3; expected at least 1"):
        CausalLMEncoder(path="a", layers=0, rank=3)
    with pytest.raises(ConfigError, match="exactly one of `path`, `causal_lm`, `static` and `fresh`"):
        EncoderConfig(path="a", causal_lm=CONFIG)
    assert EncoderConfig(causal_lm=CONFIG).fitted and EncoderConfig(path="a", head="closed_form").fitted
    assert not EncoderConfig(path="a").fitted


def pooling_of(encoder: SentenceTransformer) -> ErrorPooling:
    pooling = encoder[1]
    assert isinstance(pooling, ErrorPooling)
    return pooling


def weights_of(encoder: SentenceTransformer) -> dict[str, torch.Tensor]:
    """Return those of the LM inside."""
    assert encoder.transformers_model is not None
    return encoder.transformers_model.state_dict()


def rendered(lm: Decoder, rows: Sequence[Example] = ROWS) -> list[str]:
    text_format = with_markers(TextFormat(), lm)
    return [render(row, text_format) for row in rows]


def alone(encoder: SentenceTransformer, text: str) -> dict[str, Any]:
    """Return a text's features after the LM, of no batch."""
    with torch.no_grad():
        features: dict[str, Any] = encoder[0](encoder.preprocess([text]))
    return features


def test_centre_and_spread_are_those_of_the_texts(lm: Decoder) -> None:
    texts = rendered(lm)
    encoder = make_causal_lm(CONFIG, lm, texts, 64, seed=0)
    pooling = pooling_of(encoder)
    assert pooling.layers == [0, 1, 2] and pooling.sizes == [16, 16, 25, 25, 25, 6]
    raw = np.concatenate([pooling.raw(alone(encoder, text)) for text in texts])
    np.testing.assert_allclose((raw - pooling.centre.numpy()).mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(pooling.spread, np.maximum(raw[:, -6:].std(0, ddof=1), 1e-3), rtol=1e-3)
    assert np.abs(pooling.centre.numpy()).max() > 0.1
    assert torch.equal(pooling.output_weight, lm.model.get_output_embeddings().weight)


def leading(vectors: Sequence[NDArray[np.float64]], rank: int) -> NDArray[np.float64]:
    """Return the projector on the leading right singular vectors."""
    axes = np.linalg.svd(np.array(vectors), full_matrices=False)[2][:rank]
    return np.asarray(axes.T @ axes)


def test_the_axes_are_the_leading_directions_of_errors_and_unit_states_of_the_responses(lm: Decoder) -> None:
    texts = rendered(lm)
    encoder = make_causal_lm(CONFIG, lm, texts, 64, seed=0)
    pooling = pooling_of(encoder)
    errors: list[Any] = []
    states: list[list[Any]] = [[] for _ in pooling.layers]
    for row, text in zip(ROWS, texts, strict=True):
        features, tokens = alone(encoder, text), tokenize([row], lm)[0]
        found = pooling.tokens(features)[1][0].double().numpy()
        for place in range(tokens.response_start - 1, len(tokens.input_ids) - 1):
            errors.append(found[place])
            for held, layer in zip(states, pooling.layers, strict=True):
                state = features["all_layer_embeddings"][layer][0, place].double().numpy()
                held.append(state / np.linalg.norm(state))
    for axes, vectors in ((pooling.error_axes, errors), *zip(pooling.state_axes, states, strict=True)):
        np.testing.assert_allclose(axes.T @ axes, np.eye(5), atol=1e-5)
        np.testing.assert_allclose(axes @ axes.T, leading(vectors, 5), atol=1e-3)
        assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()


def test_the_encoder_reads_what_the_teacher_reads(lm: Decoder, tmp_path: Path) -> None:
    texts = rendered(lm)
    encoder = make_causal_lm(CONFIG, lm, texts, 64, seed=0)
    save_encoder(encoder, tmp_path)
    expected = [list(row.input_ids) for row in tokenize(ROWS, lm)]  # the template once, not around itself
    for each in (encoder, load_sentence_encoder(tmp_path)):
        taken = each.preprocess(texts)
        ids = [row[mask > 0].tolist() for row, mask in zip(taken["input_ids"], taken["attention_mask"], strict=True)]
        assert ids == expected
        assert each.max_seq_length == 64


def test_equal_calls_give_equal_bytes_and_the_seed_draws_the_texts(
    lm: Decoder, lm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal_lm, "AXES_TEXTS", 8)
    again = load_causal_lm(CausalLMEncoder(path=str(lm_folder)))
    for name, model, seed in (("first", lm, 0), ("second", lm, 0), ("loaded again", again, 0), ("other", lm, 1)):
        torch.manual_seed(len(name))
        save_encoder(make_causal_lm(CONFIG, model, rendered(lm), 64, seed), tmp_path / name)
    files = {path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.safetensors")}
    assert len(files) == 2
    for name in ("second", "loaded again"):
        assert all((tmp_path / name / file).read_bytes() == (tmp_path / "first" / file).read_bytes() for file in files)
    axes = [load_file(tmp_path / name / "1_ErrorPooling" / "model.safetensors")["error_axes"] for name in ("first", "other")]
    assert np.abs(axes[0] - axes[1]).max() > 0.01


@pytest.mark.parametrize(
    "settings",
    [
        {"padding_side": "left"},
        {"pad_token": None},
        {"model_input_names": ["input_ids"]},
        {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
    ],
)
def test_a_tokenizer_may_pad_and_mask_as_it_likes(lm_folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    usual, odd = (load_causal_lm(CausalLMEncoder(path=str(lm_folder))) for _ in range(2))
    for name, value in settings.items():
        setattr(odd.tokenizer, name, value)
        odd.tokenizer.init_kwargs[name] = value
    odd = load_causal_lm(CausalLMEncoder(path=str(save_lm(odd, tmp_path / "lm"))))
    assert [getattr(odd.tokenizer, name) for name in settings] == list(settings.values())
    texts = rendered(usual)
    expected = make_causal_lm(CONFIG, usual, texts, 64, 0)
    save_encoder(make_causal_lm(CONFIG, odd, texts, 64, 0), tmp_path / "encoder")
    found = load_sentence_encoder(tmp_path / "encoder")
    taken = found.preprocess(texts[:9])
    assert taken["attention_mask"].shape == taken["input_ids"].shape
    assert taken["attention_mask"][:, 0].all() and not taken["attention_mask"].all(), "padded on the right"
    np.testing.assert_allclose(found.encode(texts), expected.encode(texts, batch_size=1), atol=1e-4)


def config_of(teacher: Path, output: Path, lm_folder: Path, **changes: Any) -> StudentConfig:
    encoder = EncoderConfig(causal_lm=CausalLMEncoder(path=str(lm_folder), layers=3, rank=6), max_tokens=64, embedding_dim=DIM)
    return make_config(teacher, output, **({"encoder": encoder, "trainer": UNTRAINED} | changes))


def figure_of(encoder: SentenceTransformer, config: StudentConfig, part: Any) -> float:
    """Return the mean per-query Spearman on a part, by SciPy: where rows ask, a third of them for the others."""
    pairs = load_target(config).of(part)
    cut = len(pairs.texts) // 3 if pairs.rows_ask else 0
    askers, asking = (pairs.askers[:cut], pairs.asking[:cut]) if cut else (pairs.askers, pairs.asking)
    vectors = [encoder.encode(texts, show_progress_bar=False) for texts in (askers, pairs.texts[cut:])]
    truth = asking @ pairs.features[cut:].T
    return float(np.mean([spearmanr(*pair).statistic for pair in zip(vectors[0] @ vectors[1].T, truth, strict=True)]))


@pytest.fixture(scope="module")
def finished(finished_teacher: Path, lm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StudentConfig:
    """The config of a complete run. Do not write into it."""
    config = config_of(finished_teacher, tmp_path_factory.mktemp("student") / "student", lm_folder)
    run_stage(config)
    return config


def test_a_run_ends_with_the_head_in_closed_form(finished: StudentConfig, finished_teacher: Path, lm_folder: Path) -> None:
    record = open_run(Path(finished.output), "student")
    encoder = load_sentence_encoder(Path(finished.output) / "encoder")
    initial = load_sentence_encoder(Path(finished.output) / "initial_encoder")
    names = ["Transformer", "ErrorPooling", "Dense", "Normalize"]
    assert [type(module).__name__ for module in encoder] == [type(module).__name__ for module in initial] == names
    assert record["validation"]["epoch"] == -1
    assert record["validation"]["per_query_spearman"] == pytest.approx(figure_of(encoder, finished, "validation"), abs=1e-4)
    for part in ("validation", "test"):
        assert figure_of(encoder, finished, part) > figure_of(initial, finished, part) + 0.2
    assert encoder.encode("<user>bark").shape == (DIM,)
    model = AutoModelForCausalLM.from_pretrained(lm_folder).base_model.state_dict()
    kept = weights_of(encoder)
    assert model.keys() == kept.keys() and all(torch.equal(kept[name], value) for name, value in model.items()), "only the head was fitted"
    with_own = replace(TEXT, prompt_marker="<user>", separator="", response_marker="<assistant>", bare_marker="<eos>", end_marker="<eos>")
    for name in ("encoder", "initial_encoder"):
        assert load_text_format(Path(finished.output) / name) == with_own
    target, other = load_target(finished), load_target(make_config(finished_teacher, Path(finished.output)))
    assert target.rows.parts == other.rows.parts, "split as any student of this teacher"
    assert target.rows.texts == [render(row, with_own) for row in load_examples(finished_teacher / "rows.parquet")]


@pytest.mark.parametrize(("num_queries", "asymmetric"), [(0, False), (60, False), (0, True)])
def test_the_head_is_fitted_to_coordinates_whose_products_are_the_teachers_scores(
    tmp_path: Path, lm_folder: Path, num_queries: int, asymmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = make_teacher(tmp_path / "teacher", num_queries=num_queries, asymmetric=asymmetric)
    config = config_of(teacher, tmp_path / "student", lm_folder, asks="queries" if num_queries else "rows")
    seen: dict[str, Any] = {}

    def spy(encoder: Any, texts: Any, coordinates: Any, validation: Any) -> Fitted:
        found = fit_head(encoder, texts, coordinates, validation)
        seen.update(texts=texts, coordinates=coordinates, figure=found.figure)
        return found

    monkeypatch.setattr(stage, "fit_head", spy)
    record = open_run(run_stage(config), "student")
    target = load_target(config)
    assert record["validation"]["epoch"] == -1
    assert record["validation"]["per_query_spearman"] == pytest.approx(seen["figure"], abs=1e-3)
    encoder = load_sentence_encoder(tmp_path / "student" / "encoder")
    assert record["validation"]["per_query_spearman"] == pytest.approx(figure_of(encoder, config, "validation"), abs=1e-4)

    queries, rows = (np.flatnonzero(np.array(side.parts) == "train") for side in (target.askers, target.rows))
    asking = stored(teacher, "queries")[queries] if num_queries else np.empty((0, DIM))
    ranked = stored(teacher, "rows")[rows]
    if asymmetric:  # a row has one embedding: its target is between its two vectors
        other = stored(teacher, "rows_as_queries")[rows]
        ranked = (other * np.linalg.norm(ranked) / np.linalg.norm(other) + ranked) / 2
    expected_texts = [target.askers.texts[place] for place in queries] if num_queries else []
    assert seen["texts"] == expected_texts + [target.rows.texts[place] for place in rows]
    coordinates = seen["coordinates"].numpy()  # as wide as the teacher's features: nothing is lost
    vectors = np.concatenate([asking, ranked])
    np.testing.assert_allclose(coordinates @ coordinates[len(asking) :].T, vectors @ ranked.T, atol=1e-4 * np.abs(vectors).max() ** 2)


def test_a_student_of_shuffled_targets_knows_less_of_unseen_rows(
    finished: StudentConfig, finished_teacher: Path, lm_folder: Path, tmp_path: Path
) -> None:
    learnt = figure_of(load_sentence_encoder(Path(finished.output) / "encoder"), finished, "test")
    controls = []
    for seed in range(4):
        config = config_of(finished_teacher, tmp_path / f"seed-{seed}", lm_folder, shuffle_target=True, seed=seed)
        assert open_run(run_stage(config), "student")["shuffle_target"] is True
        controls.append(figure_of(load_sentence_encoder(Path(config.output) / "encoder"), config, "test"))
    assert learnt > 0.5 and np.mean(controls) < learnt - 0.3, (learnt, controls)


def test_training_may_go_on_from_the_head(finished: StudentConfig, finished_teacher: Path, lm_folder: Path, tmp_path: Path) -> None:
    config = config_of(finished_teacher, tmp_path / "student", lm_folder, trainer={"max_epochs": 2, **UNTRAINED})
    found, before = (open_run(run, "student")["validation"] for run in (run_stage(config), Path(finished.output)))
    log = (tmp_path / "student" / "log" / "metrics.csv").read_text()
    assert log.count("\n") >= 3, "two epochs were validated"
    assert found["per_query_spearman"] >= before["per_query_spearman"] - 1e-6, "the head is the least that is kept"


def test_any_encoder_may_get_its_head_in_closed_form(finished_teacher: Path, tmp_path: Path) -> None:
    config = make_config(finished_teacher, tmp_path / "student", trainer=UNTRAINED)
    config = replace(config, encoder=replace(config.encoder, head="closed_form"))
    record = open_run(run_stage(config), "student")
    initial, encoder = (load_sentence_encoder(tmp_path / "student" / name) for name in ("initial_encoder", "encoder"))
    assert record["validation"]["epoch"] == -1
    assert record["validation"]["per_query_spearman"] == pytest.approx(figure_of(encoder, config, "validation"), abs=1e-4)
    assert figure_of(encoder, config, "test") > figure_of(initial, config, "test") + 0.2


@pytest.mark.slow
def test_the_graph_ranks_as_the_encoder_does(finished: StudentConfig, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(Path(finished.output) / "encoder", tmp_path / "encoder"))
    texts = load_target(finished).rows.texts
    parity = export_encoder(folder, texts)
    assert parity["spearman_min"] > 0.999
    graph = OnnxEncoder(folder)
    assert graph.settings.inputs == ("input_ids", "attention_mask") and graph.settings.max_seq_length == 64
    odd = [text[:40] for text in texts[:5]] + ["bark", "<assistant>"]
    np.testing.assert_allclose(graph.encode(texts + odd), load_sentence_encoder(folder).encode(texts + odd), atol=1e-5)
