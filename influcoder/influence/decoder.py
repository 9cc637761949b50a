"""The decoder whose gradients are the teacher: a Hugging Face causal LM by hub id or folder, or a fresh small one.

`tokens.py` beside it turns rows into its input.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from influcoder.errors import ConfigError
from influcoder.examples import Example

FRESH_CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<assistant>{{ m['content'] }}<eos>"
    "{% else %}<user>{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class FreshDecoder:
    """A small Llama with random weights and a byte-level BPE tokenizer trained on the pool. It must be fine-tuned."""

    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    intermediate_size: int = 344
    vocab_size: int = 2048
    """pieces of the tokenizer, at most"""
    max_tokens: int = 256
    """context length"""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Which decoder. Give `path` or `fresh`."""

    path: str | None = None
    """hub id or folder of a causal LM"""
    fresh: FreshDecoder | None = None
    """a new small model instead"""
    adapter: str | None = None
    """hub id or folder of a PEFT LoRA adapter on it: then its A and B are the gradient space"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """weights' type; per-row gradients are summed in float32 either way"""
    device: str = "auto"
    """auto takes a GPU when there is one, under torchrun the process's own"""
    device_map: str | None = None
    """spread a model larger than one GPU over several: auto, balanced or sequential (Hugging Face accelerate); takes the place of `device`"""
    chat_template: str | None = None
    """Jinja template that turns messages into text; null takes the tokenizer's own, and without one prompt, newline, response"""
    trust_remote_code: bool = False
    """run code that the hub repository brings; only for sources that you trust"""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.fresh is None):
            raise ConfigError("decoder: give exactly one of `path` and `fresh`")
        if self.fresh is not None and self.device_map is not None:
            raise ConfigError("decoder: device_map is for a large model by `path`; a fresh decoder is small")
        if self.fresh is not None and self.adapter is not None:
            raise ConfigError("decoder: an adapter belongs to the `path` it was trained on, not to a fresh decoder")


@dataclass(frozen=True)
class Decoder:
    """A loaded decoder."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        return self.model.device


def resolve_device(name: str) -> torch.device:
    """Return the named device; `auto` is a GPU when there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def recorded_decoder(folder: Path, record: Mapping[str, Any], device: str) -> DecoderConfig:
    """Return how to load the decoder whose gradients a teacher run took, of its folder and run.json: from inside it, or by hub id or folder."""

    def located(name: str) -> str | None:
        given: str | None = record.get(name)
        return str(folder / given) if given is not None and (folder / given).is_dir() else given

    return DecoderConfig(
        path=located("decoder_path"),
        adapter=located("decoder_adapter"),
        dtype=record.get("decoder_dtype", "float32"),
        chat_template=record.get("decoder_chat_template"),
        device=device,
    )


def load_decoder(config: DecoderConfig, examples: Sequence[Example], seed: int) -> Decoder:
    """Load a decoder, or make a fresh one whose tokenizer is trained on `examples`.

    Raises:
        ConfigError: when the path cannot be loaded as a causal LM.
    """
    if config.fresh is not None:
        decoder = make_fresh_decoder(config.fresh, examples, seed)
        decoder.model.to(getattr(torch, config.dtype))
    else:
        assert config.path is not None  # DecoderConfig.__post_init__
        try:
            tokenizer = AutoTokenizer.from_pretrained(config.path, trust_remote_code=config.trust_remote_code)
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                config.path, dtype=getattr(torch, config.dtype), device_map=config.device_map, trust_remote_code=config.trust_remote_code
            )
            if config.adapter is not None:
                from peft import PeftModel

                # it wraps the model and hands on what it does not have itself
                model = cast(PreTrainedModel, PeftModel.from_pretrained(model, config.adapter, is_trainable=True))
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"decoder {config.path!r}, adapter {config.adapter!r}: cannot be loaded ({reason}); check names and network"
            ) from error
        decoder = Decoder(model, tokenizer, int(getattr(model.config, "max_position_embeddings", 2048)))
    if config.chat_template is not None:
        decoder.tokenizer.chat_template = config.chat_template
    if config.device_map is None:
        decoder.model.to(resolve_device(config.device))  # type: ignore[arg-type]  # transformers' stub of `to`
    return decoder


def make_fresh_decoder(config: FreshDecoder, examples: Sequence[Example], seed: int) -> Decoder:
    """Return a randomly initialised small Llama; same seed and examples, same model."""
    tokenizer = _train_tokenizer(examples, config.vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                max_position_embeddings=config.max_tokens,
                tie_word_embeddings=True,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
            )
        )
    return Decoder(model, tokenizer, config.max_tokens)


def _train_tokenizer(examples: Sequence[Example], vocab_size: int) -> PreTrainedTokenizerFast:
    special = ["<pad>", "<eos>", "<user>", "<assistant>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator((text for example in examples for text in (example.prompt, example.response)), trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    wrapped.chat_template = FRESH_CHAT_TEMPLATE
    return wrapped


@torch.no_grad()
def randomise_weights(decoder: Decoder, seed: int) -> None:
    """Give every weight matrix fresh random values, in place: what the decoder has learnt is gone, its shape and scale stay.

    Normal, with each matrix's own deviation, from one seed. Vectors (norms' gains, biases) keep their values: they
    carry scale, and a network whose activations vanish would make any comparison trivial.
    """
    source = torch.Generator().manual_seed(seed)
    for parameter in decoder.model.parameters():
        if parameter.ndim > 1:
            deviation = float(parameter.float().std())
            parameter.copy_(torch.randn(parameter.shape, generator=source) * deviation)


def fingerprints(path: str) -> Iterator[str]:
    """Yield what `fingerprint_model` says of a folder or hub id, of a LoRA adapter's too, as a teacher may have loaded it: in 16 bits, in 32.

    Raises:
        ConfigError: when it cannot be loaded as a causal LM.
    """
    adapter, record = None, Path(path) / "adapter_config.json"
    if record.is_file():
        path, adapter = json.loads(record.read_text(encoding="utf-8"))["base_model_name_or_path"], path
    dtypes: tuple[Literal["bfloat16", "float32"], ...] = ("bfloat16", "float32")
    for dtype in dtypes:
        yield fingerprint_model(load_decoder(DecoderConfig(path=path, adapter=adapter, dtype=dtype, device="cpu"), [], seed=0).model)


def fingerprint_model(model: torch.nn.Module) -> str:
    """Return 16 hex digits that identify a model's weights, wherever they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
