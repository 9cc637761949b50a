"""Pool what a causal LM gets wrong: the part of a gradient that a forward pass already knows.

The gradient of a row's loss at the LM's last state is `delta_t = (p_t - e_y) W`, predicted less true next token through the output
layer; every weight's gradient is a sum over positions of (that layer's input) x (delta sent back through the layers above). So
rows whose errors and states are alike have gradients that are alike, and no backward pass is needed to see it: on real rows the plain mean
of delta follows the exact ranking several times better than any text embedding (docs/LOG.md). A sentence-transformers module.

Legend: B texts, T tokens, D width of the LM, V pieces, L chosen layers, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.base.modules import Module
from torch import Tensor
from torch.nn.functional import normalize

STATISTICS = 6
"""mean, largest, first and standard deviation of the tokens' losses (nats), 1 / tokens, log tokens"""
STATISTICS_WEIGHT = 0.3
"""of each standardised statistic beside the other parts, each of length 1"""
EPSILON = 1e-6


class ErrorPooling(Module):
    """Concatenates, each centred and of length 1: mean error, mean last state, and mean products of states and errors of L layers.

    All means are over the positions that predict a token of the response, which begins after the last `marker_ids` in the text.
    """

    config_keys: list[str] = ["marker_ids", "layers", "rank", "width", "vocabulary"]  # noqa: RUF012  # the base class has it so

    def __init__(self, marker_ids: Sequence[int], layers: Sequence[int], rank: int, width: int, vocabulary: int) -> None:
        """Make it, with nothing fitted yet.

        Args:
            marker_ids: tokens that stand before the response.
            layers: hidden states to take, 0 being the embeddings.
            rank: R.
            width: D.
            vocabulary: V.
        """
        super().__init__()  # type: ignore[no-untyped-call]  # the base class is untyped
        self.marker_ids, self.layers, self.rank, self.width, self.vocabulary = list(marker_ids), list(layers), rank, width, vocabulary
        self.register_buffer("output_weight", torch.zeros(vocabulary, width))
        self.register_buffer("state_axes", torch.zeros(len(self.layers), width, rank))
        self.register_buffer("error_axes", torch.zeros(width, rank))
        self.register_buffer("centre", torch.zeros(sum(self.sizes)))
        self.register_buffer("spread", torch.ones(STATISTICS))

    @property
    def sizes(self) -> list[int]:
        """Numbers of each part; the statistics come last."""
        return [self.width, self.width, *[self.rank**2] * len(self.layers), STATISTICS]

    def get_embedding_dimension(self) -> int:
        """Return the numbers of an embedding."""
        return sum(self.sizes)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add `sentence_embedding` (B, numbers) to the features of a Transformer that gives all its layers."""
        parts = (self.raw(features) - self.centre).split(self.sizes, dim=1)
        statistics = STATISTICS_WEIGHT * parts[-1] / self.spread
        features["sentence_embedding"] = torch.cat([*(normalize(part, dim=1, eps=EPSILON) for part in parts[:-1]), statistics], dim=1)
        return features

    def raw(self, features: dict[str, Any]) -> Tensor:
        """Return the parts before they are centred and scaled (B, numbers)."""
        states, errors, losses, weights = self.tokens(features)
        error = (errors * weights[..., None]).sum(1)
        state = (states[-1] * weights[..., None]).sum(1)
        reduced = (errors @ self.error_axes) * weights[..., None]
        products = [
            ((_unit_rms(states[layer]) @ axes).transpose(1, 2) @ reduced).flatten(1)
            for layer, axes in zip(self.layers, self.state_axes, strict=True)
        ]
        return torch.cat([error, state, *products, _statistics(losses, weights)], dim=1)

    def tokens(self, features: dict[str, Any]) -> tuple[Sequence[Tensor], Tensor, Tensor, Tensor]:
        """Return states of every layer (B, T, D) each, errors (B, T, D), losses (B, T), and weights (B, T).

        A text's weights have the sum 1 over the positions that predict its response; elsewhere all but the states is 0.
        """
        ids, states = features["input_ids"], [state.float() for state in features["all_layer_embeddings"]]
        predicts = self._predicts(ids, features["attention_mask"])
        following, last = ids.roll(-1, 1).flatten(), states[-1].flatten(0, 1)
        if torch.compiler.is_exporting():  # a graph's shapes must not hang on what is in it: every position, then the mask
            errors, losses = self._errors(last, following)
            errors, losses = errors * predicts.flatten()[:, None], losses * predicts.flatten()
        else:
            places = predicts.flatten().nonzero()[:, 0]
            found, lost = self._errors(last[places], following[places])
            errors, losses = torch.zeros_like(last).index_copy(0, places, found), last.new_zeros(len(last)).index_copy(0, places, lost)
        weights = predicts / predicts.sum(1, keepdim=True).clamp_min(1)
        return states, errors.view(states[-1].shape), losses.view(ids.shape), weights

    def _errors(self, last: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """Return `(p - e_y) W` and the loss at some positions, (N, D) and (N,), of their last states (N, D) and next tokens (N,)."""
        weight: Any = self.output_weight
        logits = (last @ weight.T).float()
        losses = torch.nn.functional.cross_entropy(logits, following, reduction="none")
        return logits.softmax(1) @ weight - weight[following], losses

    def marker_ends(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return whether a marker ends at a position (B, T)."""
        position, found = torch.arange(ids.shape[1], device=ids.device), mask.bool()
        for offset, piece in enumerate(reversed(self.marker_ids)):
            found = found & (ids.roll(offset, 1) == piece) & (position >= offset)
        return found

    def _predicts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return 1 where a position predicts a token of the response (B, T): from the marker's end on; all positions without a marker."""
        position = torch.arange(ids.shape[1], device=ids.device)
        end = (self.marker_ends(ids, mask) * position).amax(1, keepdim=True)
        followed = mask.bool() & (mask.roll(-1, 1) > 0) & (position < ids.shape[1] - 1)
        return ((position >= end) & followed).float()

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write config and buffers."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> ErrorPooling:  # type: ignore[override]  # fewer names
        """Read what `save` wrote."""
        hub = {name: kwargs[name] for name in ("token", "cache_folder", "revision", "local_files_only") if name in kwargs}
        made = cls(**cls.load_config(model_name_or_path, subfolder=subfolder, **hub))
        cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=made, **hub)
        return made


def _unit_rms(states: Tensor) -> Tensor:
    return states * states.square().mean(-1, keepdim=True).add(EPSILON).rsqrt()


def _statistics(losses: Tensor, weights: Tensor) -> Tensor:
    """Return the statistics of each text's token losses (B, 6)."""
    predicts = weights > 0
    count = predicts.sum(1).clamp_min(1).float()
    mean = (losses * weights).sum(1)
    deviation = ((losses - mean[:, None]).square() * weights).sum(1).clamp_min(0).add(EPSILON).sqrt()
    first = losses.gather(1, predicts.float().argmax(1, keepdim=True))[:, 0]
    return torch.stack([mean, losses.amax(1), first, deviation, 1 / count, count.log()], dim=1)
