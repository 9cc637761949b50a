"""EK-FAC factors in a folder, fitted group of layers by group, each pass committed: a killed fit goes on, and ends with the same bytes.

FOLDER/group-000-vectors.safetensors   eigenvectors `inputs.LAYER` and `outputs.LAYER`, until the eigenvalues are there too
FOLDER/group-000.safetensors           those and `values.LAYER`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from influcoder.errors import RunError
from influcoder.influence.capture import Layer, layer_groups
from influcoder.influence.checked_tensors import commit_tensors, is_committed, read_tensors, remove_tensors
from influcoder.influence.ekfac import HELD_BYTES, Batches, LayerFactors, PseudoBatch, factor_bytes, fit_values, fit_vectors

VECTORS = ("inputs", "outputs")
FACTORS = (*VECTORS, "values")


def fit_ekfac_into(
    folder: Path,
    layers: Mapping[str, Layer],
    batches: Batches,
    *,
    of: str,
    num_rows: int,
    max_bytes: int = HELD_BYTES,
    takes: Callable[[int], bool] = lambda group: True,
) -> None:
    """Fit the factors into `folder`; what is committed there already is kept.

    Args:
        folder: to write.
        layers: as of `capture.gradient_layers`.
        batches: gives the rows anew for every pass.
        of: fingerprint of all that the factors depend on.
        num_rows: of `batches`.
        max_bytes: of moments in memory at once, a group's.
        takes: whether a group of layers, by its number, is this process's.

    Raises:
        RunError: when the folder cannot be written, or holds changed files or factors of something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups = {number: group for number, group in enumerate(layer_groups(layers, factor_bytes, max_bytes)) if takes(number)}
    done, begun = ([folder / f"group-{number:03d}{suffix}.safetensors" for number in groups] for suffix in ("", "-vectors"))
    passes = sum(0 if is_committed(whole, of) else 1 if is_committed(part, of) else 2 for whole, part in zip(done, begun, strict=True))
    with tqdm(total=passes * num_rows, desc="EK-FAC", unit="row", disable=None, leave=False) as progress:

        def counted(step: int) -> Iterator[PseudoBatch]:
            for batch in batches(step):
                yield batch
                progress.update(batch.rows)

        for group, whole, part in zip(groups.values(), done, begun, strict=True):
            if not is_committed(whole, of):
                if not is_committed(part, of):
                    commit_tensors(part, _named(VECTORS, fit_vectors(group, counted)), of)
                factors = fit_values(
                    group, counted, {name: (q_a, q_s) for name, (q_a, q_s) in _by_layer(VECTORS, read_tensors(part), group)}
                )
                commit_tensors(
                    whole, _named(FACTORS, {name: [getattr(layer, side) for side in FACTORS] for name, layer in factors.items()}), of
                )
            remove_tensors(part)


def load_ekfac(folder: Path, layers: Mapping[str, Layer]) -> dict[str, LayerFactors]:
    """Read the factors of these layers, each onto its layer's device.

    Raises:
        RunError: naming the file that is missing or changed, or the layer of other sizes.
    """
    tensors: dict[str, Tensor] = {}
    for record in sorted(folder.glob("group-[0-9][0-9][0-9].json")):
        tensors |= read_tensors(record.with_suffix(".safetensors"))
    for name, layer in layers.items():
        found = [tuple(tensors[key].shape) if (key := f"{side}.{name}") in tensors else None for side in FACTORS]
        inputs, outputs = layer.in_features, layer.out_features
        if found != [(inputs, inputs), (outputs, outputs), (outputs, inputs)]:
            raise RunError(
                f"{folder}: factors of layer {name!r} have shapes {found}; expected those of {outputs} x {inputs} weights; fit them again"
            )
    return {name: LayerFactors(*sides) for name, sides in _by_layer(FACTORS, tensors, layers)}


def _named(sides: Sequence[str], by_layer: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    return {f"{side}.{name}": tensor for name, tensors in by_layer.items() for side, tensor in zip(sides, tensors, strict=True)}


def _by_layer(sides: Sequence[str], tensors: Mapping[str, Tensor], layers: Mapping[str, Layer]) -> Iterator[tuple[str, list[Tensor]]]:
    """Undo `_named`, each layer's tensors on the layer's device."""
    for name, layer in layers.items():
        yield name, [tensors[f"{side}.{name}"].to(layer.weight.device) for side in sides]
