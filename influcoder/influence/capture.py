"""Per-row gradients of linear layers from one batched backward pass.

For a linear layer y = W x the gradient of row b's loss is `sum over t of delta[b, t] x[b, t]^T` (out, in), with x the layer's
input and delta the gradient at its output. Hooks hand (x, delta) to a consumer as the backward pass goes; nothing is kept.
When the loss of a batch is the *sum* of its rows' losses, delta[b] belongs to row b alone, whatever its batch-mates;
padded positions have delta = 0.

Legend: B rows, T tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Consumer = Callable[[str, Tensor, Tensor], None]
"""called with (layer's name, x (B, T, I), delta (B, T, O))"""


@contextmanager
def capture_linear(layers: Iterable[tuple[str, nn.Module]], consume: Consumer) -> Iterator[None]:
    """While the block runs, every backward pass hands each layer's (x, delta) to `consume`."""
    handles = [layer.register_forward_hook(_forward_hook(name, consume)) for name, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _forward_hook(name: str, consume: Consumer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].detach()
        if output.requires_grad:
            output.register_hook(lambda delta: consume(name, x, delta.detach()))

    return hook


def outer_sum(x: Tensor, delta: Tensor) -> Tensor:
    """Return each row's gradient `sum_t delta x^T` with the rows last, `(O * I, B)`, in float32."""
    blocks = torch.bmm(delta.float().transpose(1, 2), x.float())  # (B, O, I)
    return blocks.flatten(1).T.contiguous()
