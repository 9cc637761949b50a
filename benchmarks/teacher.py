"""The teacher's speed and memory against a LoRA training step, a loop over single rows, Bergson and dattri-llm.

    python -m benchmarks.teacher [--rows N] [--architecture small|qwen3-0.6b | --model FOLDER] [--peers PYTHON]

All take the same rows (the first of INFLUCODER_DATA's poison pool, in small-lm's tokens) with the loss on the response, all but the
loop in length-sorted batches of at most --tokens padded tokens. After a warm-up they take turns, so that a slow minute of the machine
falls on all; figures are medians. Random weights cost what trained ones do. Writes benchmarks/results/teacher_speed.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config

from influcoder.influence.basis import fit_basis
from influcoder.influence.capture import gradient_layers
from influcoder.influence.decoder import Decoder, DecoderConfig, load_decoder, resolve_device
from influcoder.influence.gradients import GradientConfig, GradientProjector
from influcoder.influence.layer_maps import FactorMap
from influcoder.influence.tokens import TokenizedRow, pad, pad_token_id, row_losses, token_batches, tokenize
from influcoder.readers import DataSource, read_examples
from influcoder.runs import git_commit, write_json_atomic
from influcoder.text_format import TextFormat, truncate_all

CONFIGS: dict[str, dict[str, Any]] = {"default": {}, "random factors": {"factors": "random"}, "rank 16": {"rank": 16, "factors": "random"}}
"""what is measured of ours: settings of GradientConfig by name"""
BASIS_ROWS, MAX_TOKENS = 32, 4096
"""rows that leading factors are fitted on; the decoders' context"""
SPECIAL: dict[str, Any] = {"tie_word_embeddings": True, "eos_token_id": 1, "pad_token_id": 0, "max_position_embeddings": MAX_TOKENS}
SMALL: dict[str, Any] = {"vocab_size": 8192, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, **SPECIAL}
QWEN: dict[str, Any] = {"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, **SPECIAL}
ARCHITECTURES = {
    "small": LlamaConfig(**SMALL, num_attention_heads=6, num_key_value_heads=2),
    "qwen3-0.6b": Qwen3Config(**QWEN, num_attention_heads=16, num_key_value_heads=8, head_dim=128),
}
DATA, RESULT = Path(os.environ.get("INFLUCODER_DATA", "../shared/data")), Path("benchmarks/results/teacher_speed.json")
Rows = Sequence[TokenizedRow]
Contender = Callable[[Rows], object]  # one pass over rows


def make_decoder(options: argparse.Namespace) -> Decoder:
    """Return the decoder of --model, or a random one that reads small-lm's tokens."""
    if options.model:
        return load_decoder(DecoderConfig(path=options.model, dtype=options.dtype, device=options.device), [], 0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[options.architecture], dtype=getattr(torch, options.dtype))
    return Decoder(model.to(resolve_device(options.device)), AutoTokenizer.from_pretrained(DATA / "models" / "small-lm"), MAX_TOKENS)


def make_projector(decoder: Decoder, name: str, rows: Rows, tokens: int) -> GradientProjector:
    """Return the projector of a line of CONFIGS, its basis (where it has one) fitted on a few of `rows`."""
    config, layers = GradientConfig(**CONFIGS[name], max_batch_tokens=tokens), gradient_layers(decoder.model)
    sizes = {"inputs": config.rank or 0, "outputs": config.output_rank or 0}
    bases = [fit_basis(decoder, layers, rows[:BASIS_ROWS], **sizes, max_batch_tokens=tokens)] if config.factors == "leading" else []
    return GradientProjector(decoder, config, seeds=[0], layers=layers, bases=bases)


def project(projector: GradientProjector) -> Contender:
    """(b) Ours: batches in, features out, each brought to the CPU and dropped."""
    return lambda rows: [features.cpu().shape for _, features in projector.project_all(rows)]


def add_lora(decoder: Decoder, rank: int) -> PeftModel:
    """Put a fresh LoRA on every Linear but the head (q, k, v, o, gate, up, down), of scale 1, in the weights' type."""
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return cast(PeftModel, get_peft_model(decoder.model, config, autocast_adapter_dtype=False))


def train_lora(decoder: Decoder, tokens: int) -> Contender:
    """(a) Plain training: LoRA of rank 16, AdamW, a step a batch on the mean of its rows' losses. Changes the decoder."""
    model = add_lora(decoder, 16).train()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4)

    def train(rows: Rows) -> None:
        for positions in token_batches(rows, tokens):
            batch = pad([rows[position] for position in positions], pad_token_id(decoder.tokenizer), decoder.device)
            row_losses(model, *batch).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    return train


def single_rows(decoder: Decoder, projector: GradientProjector) -> Callable[[Rows], Tensor]:
    """(c) The features of `projector` the plain way: a LoRA with its A, a backward pass a row, its sketch. Changes the decoder."""
    model = add_lora(decoder, projector.config.rank or 0).eval().requires_grad_(False)
    weights, sketches = [], []
    for name, (maps,) in projector.maps.items():
        adapted: Any = model.get_submodule(f"base_model.model.{name}")
        assert isinstance(maps, FactorMap) and maps.input is not None  # layers are wider than the rank
        adapted.lora_A["default"].weight.data.copy_(maps.input)
        weights.append(adapted.lora_B["default"].weight.requires_grad_(True))
        sketches.append(projector.sketches[0][name])

    def take(rows: Rows) -> Tensor:
        features = torch.zeros(len(rows), projector.dim, device=decoder.device)
        for place, row in enumerate(rows):
            loss = row_losses(model, *pad([row], pad_token_id(decoder.tokenizer), decoder.device)).sum()
            for sketch, gradient in zip(sketches, torch.autograd.grad(loss, weights), strict=True):
                sketch.add_to(features[place : place + 1], gradient.float().flatten()[None])
        return features.cpu()

    return take


BERGSON = """
import time
from bergson.__main__ import main
from bergson.collector.gradient_collectors import GradientCollector
process, seen = GradientCollector.process_batch, []
def timed(self, indices, **more):
    process(self, indices, **more)
    seen.append((time.perf_counter(), sum(self.data[indices]["length"])))
GradientCollector.process_batch = timed
main()
print("TOKENS_PER_SECOND", sum(tokens for _, tokens in seen[1:]) / (seen[-1][0] - seen[0][0]))
"""
"""a build that tells its speed from the end of its first batch, which draws its projections, to the end of its last"""


DATTRI = """
import json, sys, tempfile, time
import torch
from dattri_llm import GradientStorageManager, HookManager, HookManagerConfig, OffloadCallback
from transformers import AutoModelForCausalLM
from influcoder.influence.capture import gradient_layers
from influcoder.influence.tokens import TokenizedRow, pad, row_losses, token_batches
folder, device, side, tokens = sys.argv[1], torch.device(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
found = [json.loads(line) for line in open(f"{folder}/rows.jsonl")]
rows, seen = [TokenizedRow(tuple(row["input_ids"]), row["labels"].count(-100)) for row in found], []
model = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype="auto").to(device).eval().requires_grad_(False)
layers = gradient_layers(model)
for layer in layers.values():
    layer.module.requires_grad_(True)
config = HookManagerConfig(
    hook_types=dict.fromkeys(layers, "invasive_linear_io"),
    projection_kwargs={"__default__": {"proj_dim": side, "proj_max_batch_size": 8, "proj_type": "rademacher"}},
    capture_style="materialized",
)
with tempfile.TemporaryDirectory(dir=folder) as store:
    save = OffloadCallback(offload_interval=1, file_manager=GradientStorageManager(store), recording_type="per_sample")
    with HookManager(model, config=config, callbacks=[save]).collect():
        for positions in token_batches(rows, tokens):
            batch = [rows[position] for position in positions]
            row_losses(model, *pad(batch, 0, device)).sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seen.append((time.perf_counter(), sum(len(row.input_ids) for row in batch)))
print("TOKENS_PER_SECOND", sum(tokens for _, tokens in seen[1:]) / (seen[-1][0] - seen[0][0]))
"""
"""its quick start's store of per-row gradients, with a projection, timed as BERGSON is; a batch's file is written during the next"""


def peers(python: str, decoder: Decoder, dim: int, tokens: int, folder: Path) -> dict[str, Callable[[Rows], float]]:
    """(d) `bergson build` and dattri-llm, each in a process of `python`; same model, rows, tokens, loss and type; both return tokens/s.

    Neither has LoRA-B or CountSketch: two dense sign matrices reduce each layer's whole gradient to P x P numbers, P such that all of
    them come nearest to `dim`, and the features are written.

    - Bergson 2.5.1 takes the embeddings' gradient too and runs without an attention mask.
    - dattri-llm 0.1.0 (and dattri 0.3.0, for the matrices) is given our batches, mask and loss, and the fastest of its ways here:
      `invasive_linear_io` leaves out the weights' own gradients (its quick start's `linear_io` takes them, about half as fast on a
      CPU), embeddings and norms are frozen, and P x P numbers are kept where its default keeps T x 2P. Layers of one width share
      their matrices (one seed). It hashes every row and writes in the model's type. dattri's sparse projections (`sjlt`, `grass`)
      refuse a CPU and are not measured.

    Both fit one environment: `pip install bergson==2.5.1`, then `pip install --no-deps dattri==0.3.0 dattri-llm==0.1.0`.
    """
    decoder.model.save_pretrained(folder / "model")
    decoder.tokenizer.save_pretrained(folder / "model")
    on_cpu, side = decoder.device.type == "cpu", round((dim / len(gradient_layers(decoder.model))) ** 0.5)
    build = ["build", f"{folder}/index", "--overwrite", "--loss_reduction=mean", f"--model={folder}/model"]
    build += [f"--dataset={folder}/rows.jsonl", f"--token_batch_size={tokens}", f"--projection_dim={side}"]
    build += ["--precision", "bf16" if decoder.model.dtype == torch.bfloat16 else "fp32"]
    capture = [str(folder), str(decoder.device), str(side), str(tokens)]
    environment = os.environ | {"HF_HOME": f"{folder}/cache", "HF_HUB_OFFLINE": "1"} | ({"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {})

    def measure(name: str, program: str, options: list[str], rows: Rows) -> float:
        pairs = [(row.input_ids, (-100,) * row.response_start + row.input_ids[row.response_start :]) for row in rows]
        (folder / "rows.jsonl").write_text("\n".join(json.dumps({"input_ids": ids, "labels": labels}) for ids, labels in pairs))
        made = subprocess.run([python, "-c", program, *options], env=environment, capture_output=True, text=True, check=False)
        if made.returncode:
            raise SystemExit(f"{python}: {name} failed:\n{made.stderr[-2000:]}")
        return float(made.stdout.split("TOKENS_PER_SECOND")[1])

    return {
        "bergson build": partial(measure, "bergson build", BERGSON, build),
        "dattri-llm": partial(measure, "dattri-llm", DATTRI, capture),
    }


def measure_speed(decoder: Decoder, rows: Rows, options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Return the tokens/s of every repeat, by contender."""
    others = peers(options.peers, decoder, GradientConfig().dim, options.tokens, folder) if options.peers else {}
    projectors = {name: make_projector(decoder, name, rows, options.tokens) for name in CONFIGS}
    contenders: dict[str, Contender] = {"lora training": train_lora(replace(decoder, model=copy.deepcopy(decoder.model)), options.tokens)}
    contenders |= {name: project(projector) for name, projector in projectors.items()}
    contenders["single rows"] = single_rows(replace(decoder, model=copy.deepcopy(decoder.model)), projectors["default"])
    for run in contenders.values():
        run(rows[: len(rows) // 4 + 1])
    tokens, found = sum(len(row.input_ids) for row in rows), {name: [0.0] * 0 for name in contenders}
    for _ in range(options.repeats):
        for name, run in contenders.items():
            started = time.perf_counter()
            run(rows)
            if decoder.device.type == "cuda":
                torch.cuda.synchronize()
            found[name].append(tokens / (time.perf_counter() - started))
        for name, measure in others.items():
            found.setdefault(name, []).append(measure(rows))
    return found


def peak_bytes(decoder: Decoder, rows: Rows, contender: str, tokens: int) -> int:
    """Return by how much one pass, with all that it needs, raises this process's memory; on a GPU the memory there."""
    cuda = decoder.device.type == "cuda"
    if not cuda:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    before = torch.cuda.memory_allocated() if cuda else int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    (train_lora(decoder, tokens) if contender == "lora training" else project(make_projector(decoder, contender, rows, tokens)))(rows)
    return (torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) - before


def measure_memory(options: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Return peak bytes by contender and number of rows, each in a process of its own."""
    given = {name: getattr(options, name) for name in ("architecture", "model", "tokens", "dtype", "device")}
    command = [sys.executable, "-m", "benchmarks.teacher", *(f"--{name}={value}" for name, value in given.items() if value)]
    found: dict[str, dict[str, int]] = {name: {} for name in ("lora training", *CONFIGS)}
    for contender, peaks in found.items():
        for rows in (options.rows, 2 * options.rows):
            run = subprocess.run([*command, f"--rows={rows}", f"--memory-of={contender}"], stdout=subprocess.PIPE, text=True, check=True)
            peaks[str(rows)] = int(run.stdout.split()[-1])
    return found


def publish(decoder: Decoder, speed: dict[str, list[float]], memory: dict[str, dict[str, int]], settings: dict[str, Any]) -> None:
    """Print the figures and write them."""
    base, most = median(speed["lora training"]), max(memory["lora training"].values())
    ratios = {name: round(median(values) / base, 3) for name, values in speed.items()}
    for name, values in speed.items():
        print(f"{name:16} {median(values):9,.0f} tokens/s, {ratios[name]:5.2f} x training; peak bytes by rows: {memory.get(name, '-')}")
    figures = {
        "git_commit": git_commit(),
        "hardware": torch.cuda.get_device_name() if decoder.device.type == "cuda" else f"{os.cpu_count()} CPU cores",
        "settings": settings | {"configs": CONFIGS, "parameters": decoder.model.num_parameters()},
        "tokens_per_second": speed,
        "speed_to_training": ratios,
        "peak_bytes": memory,
        "memory_to_training": {name: round(max(peaks.values()) / most, 3) for name, peaks in memory.items()},
    }
    write_json_atomic(RESULT, figures)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, measure, publish."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.teacher", description=(__doc__ or "").splitlines()[0])
    for name, count in (("--rows", 128), ("--repeats", 3), ("--tokens", 1024)):
        parser.add_argument(name, type=int, default=count)
    parser.add_argument("--architecture", choices=list(ARCHITECTURES), default="small", help="random weights of this shape")
    texts = {"--model": "folder of a causal LM, not random weights", "--peers": "a Python that has Bergson and dattri-llm"}
    for name, text in (texts | {"--memory-of": argparse.SUPPRESS}).items():
        parser.add_argument(name, help=text)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    decoder = make_decoder(options)
    pool = DataSource(paths=(f"{DATA}/poison/pool.jsonl.gz",), limit=options.rows)
    rows = tokenize(truncate_all(read_examples(pool), TextFormat()), decoder)
    if options.memory_of:
        print(peak_bytes(decoder, rows, options.memory_of, options.tokens))
        return 0
    print("" if options.peers else "Bergson, dattri-llm: not measured; give --peers the interpreter of an environment that has both")
    with tempfile.TemporaryDirectory() as folder:
        speed = measure_speed(decoder, rows, options, Path(folder))
    publish(decoder, speed, measure_memory(options), vars(options) | {"row_tokens": sum(len(row.input_ids) for row in rows)})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
