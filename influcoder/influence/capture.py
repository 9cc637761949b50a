"""Per-row gradients of linear layers from one batched backward pass.

For a linear layer y = W x the gradient of row b's loss is `sum over t of delta[b, t] x[b, t]^T` (out, in), with x the layer's
input and delta the gradient at its output. Hooks hand (x, delta) to a consumer as the backward pass goes; nothing is kept.
When the loss of a batch is the *sum* of its rows' losses, delta[b] belongs to row b alone, whatever its batch-mates;
padded positions have delta = 0.

Legend: B rows, T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from influcoder.errors import ConfigError

Consumer = Callable[[str, Tensor, Tensor], None]
"""called with (layer's name, x (B, T, I), delta (B, T, O))"""


@dataclass(frozen=True)
class Layer:
    """A layer whose gradient is `sum_t delta x^T`."""

    module: nn.Module
    in_features: int
    out_features: int

    @property
    def weight(self) -> nn.Parameter:
        """The module's own weight: (O, I) of a Linear, (I, O) of a Conv1D."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)  # both kinds have one
        return weight

    def oriented(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the weight's shape as (O, I)."""
        return tensor.T if isinstance(self.module, Conv1D) else tensor


def as_layer(module: nn.Module) -> Layer | None:
    """Return the module as a layer; None when its gradient is no sum of outer products that we know."""
    if isinstance(module, nn.Linear):
        return Layer(module, module.in_features, module.out_features)
    if isinstance(module, Conv1D):  # GPT-2's: y = x W
        return Layer(module, *module.weight.shape)
    return None


def gradient_layers(model: nn.Module) -> dict[str, Layer]:
    """Return the layers whose gradients are taken: a PEFT adapter's A and B, else every Linear and Conv1D but the output layer.

    Raises:
        ConfigError: when there is none.
    """
    found = {name: layer for name, module in model.named_modules() if (layer := as_layer(module)) is not None}
    adapter = {name: layer for name, layer in found.items() if ".lora_A." in name or ".lora_B." in name}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    layers = adapter or {name: layer for name, layer in found.items() if layer.module is not head}
    if not layers:
        raise ConfigError(
            f"{type(model).__name__}: no Linear or Conv1D layers to take gradients of; expected a transformer with such layers"
        )
    return layers


@contextmanager
def capture(layers: Mapping[str, Layer], consume: Consumer) -> Iterator[None]:
    """While the block runs, every backward pass hands each layer's (x, delta) to `consume`, once a use of the layer.

    It works around any loop: the user's own training step, autocast, reentrant gradient checkpointing (the recomputed
    forward is the one that is seen).
    """
    handles = [layer.module.register_forward_hook(_forward_hook(name, consume)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _forward_hook(name: str, consume: Consumer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].detach()

        def hand_over(delta: Tensor) -> None:
            with torch.autocast(delta.device.type, enabled=False):  # a user's autocast is not to halve what we sum
                consume(name, x, delta.detach())

        if output.requires_grad:
            output.register_hook(hand_over)

    return hook


class frozen:
    """While the block runs: eval mode, no weight asks for its gradient, the embeddings do, so that deltas flow.

    Weight gradients are a third of a training step and are summed over rows: of no use here. With gradient checkpointing
    on, the blocks alone think that they train, which is when transformers checkpoints them; their dropouts do not.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.training = {module: module.training for module in self.model.modules()}
        self.required = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.model.eval()
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                module.training = True  # of the block alone, not of what is in it
        self.model.requires_grad_(False)
        embeddings = self.model.get_input_embeddings()  # type: ignore[operator]  # every PreTrainedModel has it
        self.handle = embeddings.register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))

    def __exit__(self, *details: object) -> None:
        self.handle.remove()
        for parameter in self.required:
            parameter.requires_grad_(True)
        for module, training in self.training.items():
            module.training = training


def layer_groups(layers: Mapping[str, Layer], size: Callable[[Layer], int], max_bytes: int) -> list[dict[str, Layer]]:
    """Return the layers in order, in groups that hold at most `max_bytes` (one layer at least), for statistics of `size` bytes each."""
    groups: list[dict[str, Layer]] = [{}]
    held = 0
    for name, layer in layers.items():
        if held + size(layer) > max_bytes and groups[-1]:
            groups.append({})
            held = 0
        groups[-1][name] = layer
        held += size(layer)
    return groups


def outer_sum(x: Tensor, delta: Tensor) -> Tensor:
    """Return each row's gradient `sum_t delta x^T`, (B, O, I), summed in float32."""
    return torch.bmm(delta.float().transpose(1, 2), x.float())


@dataclass(frozen=True)
class Coverage:
    """What part of a model's parameters the gradients are taken of."""

    captured: int
    """parameters"""
    total: int
    skipped: dict[str, int]
    """parameters by the name of the module that holds them, tied ones once"""

    def __str__(self) -> str:
        largest = sorted(self.skipped.items(), key=lambda item: -item[1])
        named = ", ".join(f"{name} ({count:,})" for name, count in largest[:3])
        more = f" and {len(largest) - 3} more" if len(largest) > 3 else ""
        return f"{self.captured:,} of {self.total:,} parameters ({self.captured / self.total:.1%}); left out: {named or 'nothing'}{more}"


def coverage(model: nn.Module, layers: Mapping[str, Layer]) -> Coverage:
    """Count the parameters of `layers` against all that an adapter (where there is one) or the model has."""
    taken = {id(layer.weight) for layer in layers.values()}
    adapter = any(".lora_A." in name for name in layers)
    counted = {name: parameter for name, parameter in model.named_parameters() if not adapter or ".lora_" in name}
    skipped: dict[str, int] = {}
    for name, parameter in counted.items():
        if id(parameter) not in taken:
            holder = name.rpartition(".")[0] or name
            skipped[holder] = skipped.get(holder, 0) + parameter.numel()
    total = sum(parameter.numel() for parameter in counted.values())
    return Coverage(total - sum(skipped.values()), total, skipped)
