"""From tokenised rows to projected per-row gradients, as many projection seeds as wanted from one pass.

A fresh LoRA has B = 0, hence dL/dA = 0 exactly and dL/dB ~ sum_t delta_t (A x_t)^T: only B's gradient carries information, and A
is a random projection of the layer's input (the paper's teacher, Influcoder, arXiv 2606.13668, section 3). So no adapter is
attached: the base layer's (x, delta) give the gradient of any number of fresh adapters. Projecting delta as well gives LoGra
(arXiv 2405.13954, section 3); neither, the whole gradient. A trained PEFT adapter's A and B are layers like any other, taken whole.

    x (B, T, I) -> P_in x      delta (B, T, O) -> P_out delta      block = sum_t delta x^T      sketch, or blocks side by side
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import torch
from torch import Tensor

from influcoder.errors import ConfigError
from influcoder.influence.basis import Basis
from influcoder.influence.capture import Layer, capture, frozen, gradient_layers, outer_sum
from influcoder.influence.decoder import Decoder
from influcoder.influence.ekfac import Whitening
from influcoder.influence.layer_maps import FactorMap, LayerMap, whitened_maps
from influcoder.influence.projection import Sketch, SketchKind, Slot, draw_sketch
from influcoder.influence.tokens import TokenizedRow, pad, pad_token_id, row_losses, token_batches

Transform = Callable[[str, Tensor], Tensor]
"""of a layer's whole per-row gradients (B, O, I), before they are projected: an optimiser's direction in their place"""
TINY = 1e-30
"""squared length below which a layer's gradient counts as none"""
MAX_DIM = 1 << 22
"""coordinates a row above which a setting is a mistake: 8 MB a row"""


@dataclass(frozen=True, kw_only=True)
class GradientConfig:
    """The gradient space and its projection."""

    rank: int | None = 16
    """rows of the matrix that reduces a layer's input, the rank of a fresh LoRA; null keeps the input whole"""
    output_rank: int | None = None
    """the same for a layer's output (LoGra); null keeps the output whole"""
    factors: Literal["leading", "random"] = "leading"
    """rows of those matrices: the leading directions of a sample of rows (little noise, a little bias), or random as in a fresh LoRA;
    with method ekfac leading keeps the `dim` strongest coordinates of its eigenbasis in the place of a sketch"""
    sketch: Literal["count_sketch", "sjlt", "rademacher", "gaussian", "none"] = "count_sketch"
    """how the layers' blocks become one vector; none puts them side by side, which per-layer preconditioners need"""
    dim: int = 65536
    """coordinates of the sketch; bytes a row = 2 * dim; without a sketch the layers decide"""
    max_batch_tokens: int = 1024
    """padded tokens a batch: about 1024 fit a CPU's caches (4096 are a third slower there), a GPU wants 4096 and more; halved when
    memory runs out"""
    shard_rows: int = 256
    """rows a shard: what a kill can lose"""
    checkpointing: bool = False
    """gradient checkpointing: less memory, about a third more time"""

    def __post_init__(self) -> None:
        for name in ("rank", "output_rank", "dim", "max_batch_tokens", "shard_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"gradients.{name}: {value}; expected at least 1")


class GradientProjector:
    """Projects the gradients of one decoder; one vector a seed. Draws nothing anew: same seed, same projection."""

    def __init__(
        self,
        decoder: Decoder,
        config: GradientConfig,
        seeds: Sequence[int],
        *,
        layers: Mapping[str, Layer] | None = None,
        bases: Sequence[Basis] = (),
        unit_layers: bool = False,
        transform: Transform | None = None,
        whitenings: Sequence[Whitening] = (),
    ) -> None:
        """Draw the projections.

        Args:
            decoder: whose gradients.
            config: space and projection.
            seeds: of the projection.
            layers: `self_check.usable_layers` of the decoder; by default all that `gradient_layers` finds.
            bases: for `factors: leading`, one a seed.
            unit_layers: scale each layer's projected gradient of a row to length 1, so that every layer's cosine counts alike;
                the sum is scaled to the whole gradient's length.
            transform: what replaces a layer's whole gradient before it is projected.
            whitenings: EK-FAC's, one a seed, in the place of a transform and of ranks.

        Raises:
            ConfigError: when a row would have too many coordinates.
        """
        self.decoder, self.config, self.seeds, self.transform = decoder, config, tuple(seeds), transform
        self.unit_layers, self.whitenings = unit_layers, tuple(whitenings)
        self.layers = dict(layers) if layers is not None else gradient_layers(decoder.model)
        adapter = any(".lora_A." in name for name in self.layers)
        ranks = (None, None) if adapter or whitenings else (config.rank, config.output_rank)  # an adapter's blocks are small already
        if config.factors == "random" or not any(ranks):
            bases = ()
        elif len(bases) != len(self.seeds):
            raise ConfigError(
                f"gradients.factors: leading, with {len(bases)} bases; expected one of basis.fit_basis a seed; or take factors: random"
            )
        self.bases = tuple(bases)
        picks = bool(whitenings) and config.factors == "leading" and config.sketch != "none"
        self.maps = self._whitened_maps(config.dim if picks else None) if whitenings else self._factor_maps(ranks)
        self.blocks = tuple(maps[0].size for maps in self.maps.values())
        """coordinates of each layer's projected gradient, under the first seed"""
        self.dim = sum(self.blocks) if config.sketch == "none" or picks else config.dim
        if self.dim > MAX_DIM:
            raise ConfigError(
                f"gradients: {self.dim:,} coordinates a row; expected at most {MAX_DIM:,}; lower rank or output_rank, or take a sketch"
            )
        self.sketches = [
            self._side_by_side(place) if config.sketch == "none" or picks else self._draw_sketches(config.sketch, seed)
            for place, seed in enumerate(self.seeds)
        ]
        if config.checkpointing:
            model = decoder.model  # the older name is deprecated since transformers 5.23
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": True})

    def transformed(self, transform: Transform | None) -> GradientProjector:
        """Return the same projection behind another transform."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def _factor_maps(self, ranks: tuple[int | None, int | None]) -> dict[str, list[LayerMap]]:
        return {
            name: [FactorMap.draw(name, layer, ranks, seed, basis) for seed, basis in zip_longest(self.seeds, self.bases)]
            for name, layer in self.layers.items()
        }

    def _whitened_maps(self, count: int | None) -> dict[str, list[LayerMap]]:
        maps = [whitened_maps(whitening, self.layers, count) for whitening in self.whitenings]
        return {name: [of_seed[name] for of_seed in maps] for name in self.layers}

    def _side_by_side(self, place: int) -> dict[str, Sketch]:
        sizes = [maps[place].size for maps in self.maps.values()]
        return {name: Slot(sum(sizes[:number]), sizes[number]) for number, name in enumerate(self.maps)}

    def _draw_sketches(self, kind: SketchKind, seed: int) -> dict[str, Sketch]:
        return {
            name: draw_sketch(kind, maps[0].size, self.config.dim, seed, name, self.layers[name].weight.device)
            for name, maps in self.maps.items()
        }

    @property
    def held_bytes(self) -> int:
        """Memory that the projections hold."""
        maps = sum(layer_map.held_bytes for maps in self.maps.values() for layer_map in maps)
        return maps + sum(sketch.held_bytes for sketches in self.sketches for sketch in sketches.values())

    def project(self, rows: Sequence[TokenizedRow]) -> Tensor:
        """Return the projected gradients of one batch, `(seeds, B, dim)` float32; each row's gradient is that of its own mean loss."""
        sums: dict[torch.device, _Sum] = {}  # a decoder may be spread over devices: each sums up its own layers

        def consume(name: str, x: Tensor, delta: Tensor) -> None:
            if delta.device not in sums:
                sums[delta.device] = self._empty(len(rows), delta.device)
            self._add(sums[delta.device], name, x, delta)

        input_ids, attention_mask, response_mask = pad(rows, pad_token_id(self.decoder.tokenizer), self.decoder.device)
        with frozen(self.decoder.model), capture(self.layers, consume), torch.enable_grad():
            row_losses(self.decoder.model, input_ids, attention_mask, response_mask).sum().backward()
        first, *others = (part.to(self.decoder.device) for part in sums.values())
        return self._scaled(sum(others, first))

    def project_all(self, rows: Sequence[TokenizedRow], max_batch_tokens: int | None = None) -> Iterator[tuple[list[int], Tensor]]:
        """Yield `(positions, (seeds, B, dim))` over length-sorted batches of at most `max_batch_tokens` (the config's by default)."""
        for positions in token_batches(rows, max_batch_tokens or self.config.max_batch_tokens):
            yield positions, self.project([rows[position] for position in positions])

    def project_dense(self, gradients: dict[str, Tensor]) -> Tensor:
        """Return the projection `(seeds, B, dim)` of whole gradients by layer, each (B, O, I): the slow way to the same vectors."""
        first = next(iter(gradients.values()))
        total = self._empty(len(first), first.device)
        for name, gradient in gradients.items():
            self._add_whole(total, name, gradient)
        return self._scaled(total)

    def _empty(self, count: int, device: torch.device) -> _Sum:
        return _Sum(torch.zeros(len(self.seeds), count, self.dim, device=device), torch.zeros(len(self.seeds), count, device=device))

    def _add(self, total: _Sum, name: str, x: Tensor, delta: Tensor) -> None:
        if self.transform is not None:
            self._add_whole(total, name, outer_sum(x, delta))
            return
        for place, layer_map in enumerate(self.maps[name]):
            self._put(total, place, name, layer_map.of_pairs(x, delta))

    def _add_whole(self, total: _Sum, name: str, gradient: Tensor) -> None:
        if self.transform is not None:
            gradient = self.transform(name, gradient)
        for place, layer_map in enumerate(self.maps[name]):
            self._put(total, place, name, layer_map.of_gradients(gradient))

    def _put(self, total: _Sum, place: int, name: str, flat: Tensor) -> None:
        if self.unit_layers:
            squares = flat.square().sum(1)
            total.squares[place] += squares
            flat = flat * squares.clamp_min(TINY).rsqrt()[:, None]
        self.sketches[place][name].add_to(total.vectors[place], flat)

    def _scaled(self, total: _Sum) -> Tensor:
        if not self.unit_layers:
            return total.vectors
        return torch.nn.functional.normalize(total.vectors, dim=2, eps=TINY) * total.squares.sqrt()[..., None]


@dataclass
class _Sum:
    """Sums over layers."""

    vectors: Tensor
    """(seeds, B, dim)"""
    squares: Tensor
    """(seeds, B) squared lengths of the projected gradients, kept with `unit_layers`"""

    def to(self, device: torch.device) -> _Sum:
        return _Sum(self.vectors.to(device), self.squares.to(device))

    def __add__(self, other: _Sum) -> _Sum:
        return _Sum(self.vectors + other.vectors, self.squares + other.squares)
