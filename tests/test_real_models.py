"""Every teacher config of a real decoder runs on that decoder's architecture, shrunk, random, on a CPU, in the config's own dtype.

What is not seen here: a GPU, and what only size or trained weights bring.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from influcoder.examples import Example, Turn
from influcoder.features import load_features
from influcoder.influence.decoder import Decoder, FreshDecoder, make_fresh_decoder
from influcoder.influence.tokens import tokenize
from influcoder.program import parse_config
from influcoder.runs import open_run
from influcoder.training import silence_hints
from teacher.config import TeacherConfig
from teacher.stage import run

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(
    path.relative_to(CONFIGS).as_posix() for folder in ("gpu", "paper", "date_lm") for path in (CONFIGS / folder).glob("teacher*")
)
QWEN = "gpu/teacher_qwen3_0.6b.yaml"
LLAMA = "gpu/teacher_llama_3.1_8b.yaml"
SIZE: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
GROUPED: dict[str, Any] = SIZE | {"intermediate_size": 96, "num_key_value_heads": 2}
EXPERTS: dict[str, Any] = GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "tie_word_embeddings": True}
SHRUNK: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "EleutherAI/pythia-1b": (GPTNeoXConfig, SIZE | {"intermediate_size": 256, "rotary_pct": 0.25, "tie_word_embeddings": False}),
    "Qwen/Qwen3-0.6B": (Qwen3Config, GROUPED | {"head_dim": 32, "tie_word_embeddings": True}),
    "Qwen/Qwen3-4B": (Qwen3Config, GROUPED | {"head_dim": 32, "tie_word_embeddings": True}),
    "meta-llama/Llama-3.1-8B": (LlamaConfig, GROUPED | {"tie_word_embeddings": False}),
}
"""architecture of each decoder, and sizes to try it at"""

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # PEFT's use of transformers
]

WORDS = "a reader of the north sea wrote that ice and snow are cold and that two plus three is five".split()
EXAMPLES = [
    Example(
        id=f"row-{place}",
        context=(Turn(role="user", content=" ".join(WORDS[place % 5 : place % 5 + 3 + place % 9] * (1 + place % 4))),),
        response=" ".join(WORDS[place % 7 : place % 7 + 2 + place % 6]) + f" {place}",
    )
    for place in range(18)
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model only waits for its threads, five times as long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def named_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROWS", "QUERIES", "BBH"):
        monkeypatch.setenv(name, f"{name}.jsonl")


def make_model(config_class: type[PretrainedConfig], sizes: dict[str, Any], folder: Path) -> PreTrainedModel:
    """Save a random model in bfloat16 with a tokenizer that knows every byte."""
    tokenizer = make_fresh_decoder(
        FreshDecoder(hidden_size=8, layers=1, heads=1, intermediate_size=8, vocab_size=300), EXAMPLES, 0
    ).tokenizer
    tokenizer.chat_template, tokenizer.bos_token = None, "<eos>"
    torch.manual_seed(0)
    ids = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    # wider than usual: as large a step from layer to layer as 0.02 is at a real width
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config_class(**(sizes | ids | {"initializer_range": 0.1})), dtype=torch.bfloat16
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def make_adapter(model: PreTrainedModel, folder: Path) -> int:
    """Save a LoRA adapter whose B is not zero, as of a training; return its parameters."""
    settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings)
    adapted.save_pretrained(str(folder))
    return sum(parameter.numel() for name, parameter in adapted.named_parameters() if ".lora_" in name)


def run_on(name: str, folder: Path, *overrides: str) -> tuple[Path, TeacherConfig]:
    """Run a config of the repository on the rows and the model in `folder`."""
    for side, examples in (("rows", EXAMPLES), ("queries", EXAMPLES[:3])):
        lines = []
        for example in examples:
            both = {"id": example.id, "prompt": example.prompt, "response": example.response}
            lines.append(json.dumps(both | {"answer": example.response, "input": example.prompt, "target": example.response}))
        (folder / f"{side}.jsonl").write_text("\n".join(lines))
    changes = {"output": str(folder / "run"), "decoder.path": str(folder / "model"), "decoder.device": "cpu", "gradients.shard_rows": "8"}
    changes |= {f"{side}.paths": json.dumps([str(folder / f"{side}.jsonl")]) for side in ("rows", "queries")}
    arguments = [word for key, value in changes.items() for word in (f"--{key}", value)]
    config, resolved = parse_config(TeacherConfig, [str(CONFIGS / name), *arguments, *overrides], "teacher")
    silence_hints()
    run(config, resolved)
    return folder / "run", config


def check_run(folder: Path, config: TeacherConfig, expected: int) -> dict[str, Any]:
    """Check what every complete run must hold; return its record."""
    record = open_run(folder, "teacher")
    for seed in config.seeds:
        for side, count in (("rows", len(EXAMPLES)), ("queries", 3)):
            vectors = load_features(folder / "features" / f"seed-{seed}" / side).vectors
            assert vectors.shape == (count, config.gradients.dim) and np.isfinite(vectors).all()
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    assert record["coverage"]["captured"] == expected, "other layers than the transformer's matrices"
    assert 0 <= record["self_check"] <= 0.02, "two layers in bfloat16 differ by about 0.005, thirty-six by 0.03"
    assert -1 <= record["seed_agreement"] <= 1
    return record


def matrices(model: PreTrainedModel, *besides: str) -> int:
    """Parameters of the two-dimensional weights inside the blocks."""
    inside = [item for item in model.named_parameters() if ".layers." in item[0] or ".h." in item[0]]
    return sum(weight.numel() for name, weight in inside if weight.ndim == 2 and not any(part in name for part in besides))


@pytest.mark.parametrize("name", FILES)
def test_the_config_runs_on_its_architecture(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, _ = parse_config(TeacherConfig, [str(CONFIGS / name)], "teacher")
    assert config.decoder.dtype == "bfloat16" and config.decoder.path in SHRUNK
    model = make_model(*SHRUNK[config.decoder.path], tmp_path / "model")
    expected, overrides = matrices(model), []
    if config.decoder.adapter is not None:
        expected = make_adapter(model, tmp_path / "adapter")
        overrides = ["--decoder.adapter", str(tmp_path / "adapter")]
    if config.rows.subset is not None:
        overrides += ["--rows.subset", "null", "--queries.subset", "null"]
    folder, config = run_on(name, tmp_path, *overrides)
    record = check_run(folder, config, expected)
    assert record["decoder_dtype"] == "bfloat16" and record["coverage"]["unfit_layers"] == []
    printed = capsys.readouterr().out
    assert f"coverage: {expected:,} of {record['coverage']['total']:,} parameters" in printed
    if config.decoder.adapter is None:
        assert "embed" in printed.partition("left out: ")[2]


@pytest.mark.parametrize("name", FILES)
def test_the_loss_is_on_the_response_and_its_end(name: str) -> None:
    config, _ = parse_config(TeacherConfig, [str(CONFIGS / name)], "teacher")
    tokenizer = make_fresh_decoder(FreshDecoder(), EXAMPLES, 0).tokenizer
    tokenizer.chat_template, tokenizer.bos_token = config.decoder.chat_template, "<eos>"
    (row,) = tokenize(EXAMPLES[:1], Decoder(torch.nn.Module(), tokenizer, 512))  # type: ignore[arg-type]  # the tokenizer alone is asked
    end = "<|im_end|>" if "Qwen3" in str(config.decoder.path) and "gpu" in name else "<eos>"
    assert tokenizer.decode(list(row.input_ids[row.response_start :])) == EXAMPLES[0].response + end
    before = str(tokenizer.decode(list(row.input_ids[: row.response_start])))
    assert EXAMPLES[0].prompt in before and "assistant" in before
    assert before.startswith("<eos>") == ("Llama" in str(config.decoder.path))


def test_checkpointing_is_exercised_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = parse_config(TeacherConfig, [str(CONFIGS / LLAMA)], "teacher")
    assert config.gradients.checkpointing
    assert config.decoder.path is not None
    calls: list[object] = []
    forward = torch.utils.checkpoint.CheckpointFunction.forward

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return forward(*arguments)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(torch.utils.checkpoint.CheckpointFunction, "forward", staticmethod(counted))
    found = []
    for switch in ("true", "false"):
        place = tmp_path / switch
        make_model(*SHRUNK[config.decoder.path], place / "model")
        before = len(calls)
        folder, _ = run_on(LLAMA, place, "--gradients.checkpointing", switch)
        assert (len(calls) > before) == (switch == "true")
        found.append(load_features(folder / "features" / "seed-0" / "rows").vectors)
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)


def test_a_decoder_spread_by_device_map(tmp_path: Path) -> None:
    config, _ = parse_config(TeacherConfig, [str(CONFIGS / QWEN)], "teacher")
    assert config.decoder.path is not None
    model = make_model(*SHRUNK[config.decoder.path], tmp_path / "model")
    folder, config = run_on(QWEN, tmp_path, "--decoder.device_map", "auto")
    check_run(folder, config, matrices(model))


def test_fused_experts_are_left_out_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(Qwen3MoeConfig, EXPERTS | {"head_dim": 32}, tmp_path / "model")
    folder, config = run_on(QWEN, tmp_path)
    check_run(folder, config, matrices(model, ".mlp.gate."))
    printed = capsys.readouterr().out
    assert "model.layers.0.mlp.experts (" in printed and "model.layers.1.mlp.experts (" in printed


def test_layers_that_see_tokens_without_their_rows_are_left_out_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(Qwen2MoeConfig, EXPERTS | {"shared_expert_intermediate_size": 48}, tmp_path / "model")
    folder, config = run_on(QWEN, tmp_path)
    record = check_run(folder, config, matrices(model, ".mlp."))
    unfit = [
        f"model.layers.{layer}.mlp.shared_expert{part}" for layer in range(2) for part in (".gate_proj", ".up_proj", ".down_proj", "_gate")
    ]
    assert sorted(record["coverage"]["unfit_layers"]) == sorted(unfit)
    printed = capsys.readouterr().out
    assert all(layer in printed.partition("not attributable to rows: ")[2] for layer in unfit)


def test_weights_of_conv1d_are_taken(tmp_path: Path) -> None:
    model = make_model(GPT2Config, {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}, tmp_path / "model")
    folder, config = run_on(QWEN, tmp_path)
    check_run(folder, config, matrices(model))
