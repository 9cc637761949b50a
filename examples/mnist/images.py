"""Handwritten digits: MNIST from its four idx files, or scikit-learn's small ones where there are none.

Legend: N images, H high, W wide.
"""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from influcoder.errors import DataError

GZIP, UNSIGNED_BYTES = b"\x1f\x8b", 8
REMEDY = "fetch the file again"


@dataclass(frozen=True)
class Digits:
    """Images with what they show."""

    images: NDArray[np.uint8]
    """(N, H, W); 0 is paper, 255 is ink"""
    labels: NDArray[np.uint8]
    """(N,), 0 to 9"""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, places: NDArray[np.integer]) -> Digits:
        return Digits(self.images[places], self.labels[places])


def load_digits(folder: str | None) -> tuple[str, Digits, Digits]:
    """Return what was read, and its training and test images.

    Args:
        folder: of the idx files. None: $INFLUCODER_DATA/mnist, else ../shared/data/mnist; scikit-learn's digits when that is not there.

    Raises:
        DataError: when a folder is given, or found, and its files are missing or malformed.
    """
    found = Path(folder or Path(os.environ.get("INFLUCODER_DATA", "../shared/data")) / "mnist")
    if folder is None and not found.is_dir():
        print(f"{found}: not there; taking scikit-learn's 1 797 digits of 8 x 8 pixels (or give --data FOLDER)", file=sys.stderr)
        return ("scikit-learn's digits", *_small_digits())
    return ("MNIST", _read_pair(found, "train"), _read_pair(found, "t10k"))


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, gzipped or not.

    Args:
        path: of the file.
        dimensions: that it is to have: 3 of images, 1 of labels.

    Raises:
        DataError: when it is missing, of another kind, or longer or shorter than it says.
    """
    content = _read_bytes(path)
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, UNSIGNED_BYTES, dimensions]):
        expected = bytes([0, 0, UNSIGNED_BYTES, dimensions]).hex()
        raise DataError(f"{path}: begins with {content[:4].hex() or 'nothing'}; expected {expected}, an idx file of bytes; {REMEDY}")
    if len(content) < header:
        raise DataError(f"{path}: {len(content)} bytes; expected {header} of sizes before any data; {REMEDY}")
    sizes = tuple(int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4))
    if len(content) != header + prod(sizes):
        raise DataError(f"{path}: {len(content) - header:,} bytes of data; expected {prod(sizes):,} of {sizes}; {REMEDY}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(GZIP) else content
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise DataError(f"{path}: not readable ({error}); expected an idx file, gzipped or not; {REMEDY}") from error


def _read_pair(folder: Path, part: str) -> Digits:
    images, labels = (_find(folder, f"{part}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    digits = Digits(read_idx(images, 3), read_idx(labels, 1))
    if len(digits.images) != len(digits.labels):
        raise DataError(f"{images}: {len(digits.images):,} images; expected {len(digits.labels):,} as in {labels.name}; {REMEDY}")
    if not len(digits) or not digits.images.size or digits.labels.max() > 9:
        raise DataError(f"{labels}: {len(digits):,} labels, the largest {digits.labels.max(initial=0)}; expected digits, 0 to 9; {REMEDY}")
    return digits


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise DataError(f"{folder / name}: not there, nor as .gz; expected the four idx files of MNIST; give their folder with --data")


def _small_digits() -> tuple[Digits, Digits]:
    from sklearn.datasets import load_digits as load  # here: nobody who has MNIST waits for it

    found = load()
    order = np.random.default_rng(0).permutation(len(found.target))  # the file is in the order of the writers
    images = np.round(found.images * (255 / 16)).astype(np.uint8)
    every = Digits(images[order], found.target[order].astype(np.uint8))
    return every[np.arange(1400)], every[np.arange(1400, len(every))]
