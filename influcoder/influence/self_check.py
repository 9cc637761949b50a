"""Before a long run: which layers can be attributed to rows at all, and do rows taken together give what each gives alone?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from influcoder.errors import ConfigError, RunError
from influcoder.influence.capture import Layer, capture, frozen, gradient_layers
from influcoder.influence.decoder import Decoder
from influcoder.influence.gradients import GradientProjector
from influcoder.influence.tokens import TokenizedRow, pad, pad_token_id, row_losses

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""largest ||difference|| / ||gradient||; fp32 on a CPU gives 1e-6, a GPU's TF32 1e-4"""
HALF_TOLERANCE = 0.15
"""of 16-bit weights, whose sums depend on the order of the tokens: .02 at 16 layers, .08 at 80; a leak of 1 % between rows gives .15"""


def usable_layers(decoder: Decoder, rows: Sequence[TokenizedRow]) -> tuple[dict[str, Layer], list[str]]:
    """Return the layers that see every row once with its own tokens, and the names of the others, from one pass over `rows`.

    A mixture's expert sees tokens without their rows, a layer used twice has cross terms: these are left out by name.

    Raises:
        ConfigError: when no layer is left.
    """
    layers = gradient_layers(decoder.model)
    uses: dict[str, list[tuple[int, ...]]] = {name: [] for name in layers}
    with frozen(decoder.model), capture(layers, lambda name, x, delta: uses[name].append(tuple(x.shape))), torch.enable_grad():
        _losses(decoder, rows).sum().backward()
    fit = {
        name: layer for name, layer in layers.items() if len(uses[name]) == 1 and len(uses[name][0]) == 3 and uses[name][0][0] == len(rows)
    }
    if not fit:
        raise ConfigError(
            f"{type(decoder.model).__name__}: none of its {len(layers)} linear layers sees whole rows (batch, tokens, features); "
            "expected a decoder-only transformer"
        )
    return fit, [name for name in layers if name not in fit]


def check_gradients(projector: GradientProjector, rows: Sequence[TokenizedRow]) -> float:
    """Compare a batch with single-row backward passes through the weights themselves; return the largest relative difference.

    Raises:
        RunError: when it is above the tolerance of the weights' type.
    """
    together = projector.project(rows)
    worst, model = 0.0, projector.decoder.model
    weights = [layer.weight for layer in projector.layers.values()]
    for place, row in enumerate(rows):
        with _only(model, weights), torch.enable_grad():
            _losses(projector.decoder, [row]).sum().backward()  # not autograd.grad: reentrant checkpointing has no graph for it
        dense = {}
        for name, layer in projector.layers.items():
            assert layer.weight.grad is not None  # usable layers are used
            dense[name] = layer.oriented(layer.weight.grad)[None].float().to(projector.decoder.device)
            layer.weight.grad = None
        alone = projector.project_dense(dense)[:, 0]
        difference = (together[:, place] - alone).norm() / alone.norm()
        worst = float(torch.maximum(torch.tensor(worst), difference.cpu()))  # keeps a NaN, unlike max
    dtypes = {parameter.dtype for parameter in model.parameters()}  # an adapter is in float32 on whatever base
    tolerance = TOLERANCE[weights[0].dtype] if dtypes <= set(TOLERANCE) else HALF_TOLERANCE
    if not worst <= tolerance:  # NaN too
        raise RunError(
            f"{type(model).__name__}: gradients of rows taken together differ from single rows by {worst:.2g} of their length; "
            f"expected at most {tolerance:g}; the decoder mixes rows of a batch, or its attention depends on padding"
        )
    return worst


class _only:
    """While the block runs: eval mode, and these weights alone ask for gradients."""

    def __init__(self, model: torch.nn.Module, weights: Sequence[torch.nn.Parameter]) -> None:
        self.freeze, self.weights = frozen(model), weights

    def __enter__(self) -> None:
        self.freeze.__enter__()
        for weight in self.weights:
            weight.requires_grad_(True)

    def __exit__(self, *details: object) -> None:
        for weight in self.weights:
            weight.requires_grad_(False)
        self.freeze.__exit__(*details)


def _losses(decoder: Decoder, rows: Sequence[TokenizedRow]) -> Tensor:
    return row_losses(decoder.model, *pad(rows, pad_token_id(decoder.tokenizer), decoder.device))
