"""From tokenised rows to projected per-row gradients: the paper's teacher (Influcoder, arXiv 2606.13668, section 3).

A fresh LoRA has B = 0, hence dL/dA = 0 exactly and dL/dB = (alpha / r) sum_t delta_t (A x_t)^T: only B's gradient carries
information, and A is a seeded random projection of the layer's input. So no adapter is attached: the base layer's (x, delta)
give the gradient of as many fresh adapters (seeds) as wanted in one pass. A trained PEFT adapter has both halves:
its own A and B layers are captured as they are. Either way the blocks are CountSketched into `dim` coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from influcoder.errors import ConfigError
from influcoder.influence.capture import capture_linear, outer_sum
from influcoder.influence.decoder import Decoder
from influcoder.influence.projection import CountSketch, lora_a
from influcoder.influence.tokens import TokenizedRow, pad, pad_token_id, row_losses, token_batches


@dataclass(frozen=True, kw_only=True)
class GradientConfig:
    """The gradient space and its projection."""

    rank: int = 64
    """rank of the fresh LoRA; higher is less noisy (seed-to-seed agreement .74 at 16, .93 at 64 on a 6M decoder)"""
    alpha: float | None = None
    """LoRA's alpha; null is 2 * rank as in the paper. Unit features do not depend on it, their norms do"""
    dim: int = 16384
    """coordinates of the sketch; bytes a row = 2 * dim"""
    max_batch_tokens: int = 4096
    """padded tokens a batch"""
    shard_rows: int = 256
    """rows a shard: what a kill can lose"""

    def __post_init__(self) -> None:
        for name in ("rank", "dim", "max_batch_tokens", "shard_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"gradients.{name}: {getattr(self, name)}; expected at least 1")


def gradient_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers whose gradients are taken: a PEFT adapter's A and B, else every Linear but the output layer.

    Raises:
        ConfigError: when there is none.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    adapter = {name: module for name, module in linear.items() if ".lora_A." in name or ".lora_B." in name}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    found = adapter or {name: module for name, module in linear.items() if module is not head}
    if not found:
        raise ConfigError(f"{type(model).__name__}: no nn.Linear layers to take gradients of; expected a transformer with Linear layers")
    return found


class GradientProjector:
    """Projects the gradients of one decoder; one sketch a seed. Draws nothing anew: same seed, same projection."""

    def __init__(self, decoder: Decoder, config: GradientConfig, seeds: Sequence[int]) -> None:
        self.decoder, self.config, self.seeds = decoder, config, tuple(seeds)
        self.layers = gradient_layers(decoder.model)
        fresh = not any(".lora_A." in name for name in self.layers)
        self.scale = (config.alpha or 2 * config.rank) / config.rank if fresh else 1.0
        device = decoder.device
        self.a: dict[str, Tensor] = {}
        self.sketches: dict[str, list[CountSketch]] = {}
        for name, layer in self.layers.items():
            inputs = config.rank if fresh else layer.in_features
            if fresh:
                self.a[name] = torch.cat([lora_a(layer.in_features, config.rank, seed, name) for seed in self.seeds]).to(device)
            self.sketches[name] = [CountSketch.draw(layer.out_features * inputs, config.dim, seed, name).to(device) for seed in self.seeds]

    def project(self, rows: Sequence[TokenizedRow]) -> Tensor:
        """Return the sketched gradients of one batch, `(seeds, B, dim)` float32; each row's gradient is that of its own mean loss."""
        sketch = torch.zeros(len(self.seeds), self.config.dim, len(rows), device=self.decoder.device)

        def consume(name: str, x: Tensor, delta: Tensor) -> None:
            count = len(self.seeds)
            projected = (x @ self.a[name].to(x.dtype).T).chunk(count, dim=-1) if name in self.a else (x,) * count
            for place, (inputs, count_sketch) in enumerate(zip(projected, self.sketches[name], strict=True)):
                count_sketch.add_to(sketch[place], outer_sum(inputs, delta))

        input_ids, attention_mask, response_mask = pad(rows, pad_token_id(self.decoder.tokenizer), self.decoder.device)
        with frozen(self.decoder.model), capture_linear(self.layers.items(), consume), torch.enable_grad():
            row_losses(self.decoder.model, input_ids, attention_mask, response_mask).sum().backward()
        return sketch.transpose(1, 2) * self.scale

    def project_all(self, rows: Sequence[TokenizedRow]) -> Iterator[tuple[list[int], Tensor]]:
        """Yield `(positions, (seeds, B, dim))` over length-sorted batches of at most `max_batch_tokens`."""
        for positions in token_batches(rows, self.config.max_batch_tokens):
            yield positions, self.project([rows[position] for position in positions])


class frozen:
    """While the block runs: eval mode, no weight asks for its gradient, the embeddings do, so that deltas flow.

    Weight gradients are a third of a training step and are summed over rows: of no use here.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.training = self.model.training
        self.required = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.model.eval()
        self.model.requires_grad_(False)
        embeddings = self.model.get_input_embeddings()  # type: ignore[operator]  # every PreTrainedModel has it
        self.handle = embeddings.register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))

    def __exit__(self, *details: object) -> None:
        self.handle.remove()
        for parameter in self.required:
            parameter.requires_grad_(True)
        self.model.train(self.training)
