from __future__ import annotations

import gzip
import io
import re
import struct
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray

from examples.mnist.images import Digits, load_digits, read_idx
from examples.mnist.png import data_uri, encode_png
from influcoder.errors import DataError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4) * 10
LABELS = np.array([7, 2], dtype=np.uint8)


def idx(array: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(folder: Path, images: NDArray[np.uint8] = IMAGES, labels: NDArray[np.uint8] = LABELS) -> Path:
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return folder


def test_files_are_read_zipped_or_not(tmp_path: Path) -> None:
    source, train, test = load_digits(str(write(tmp_path)))
    assert source == "MNIST"
    for digits in (train, test):
        np.testing.assert_array_equal(digits.images, IMAGES)
        np.testing.assert_array_equal(digits.labels, LABELS)
    second = train[np.array([1])]
    assert len(second) == 1 and second.labels[0] == 2 and np.array_equal(second.images[0], IMAGES[1])


GOOD = idx(IMAGES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing; expected 00000803, an idx file of bytes"),
        (idx(LABELS), "begins with 00000801; expected 00000803"),
        (GOOD[:2] + b"\x0d" + GOOD[3:], "begins with 00000d03; expected 00000803"),
        (b"\x89PNG and so on", "begins with 89504e47"),
        (GOOD[:10], "10 bytes; expected 16 of sizes before any data"),
        (GOOD[:-1], r"23 bytes of data; expected 24 of \(2, 3, 4\)"),
        (GOOD + b"\0", r"25 bytes of data; expected 24 of \(2, 3, 4\)"),
        (gzip.compress(GOOD)[:-9], r"not readable \(.*\); expected an idx file, gzipped or not"),
        (gzip.compress(GOOD)[:10] + b"\xff" * 20, r"not readable \(.*\); expected an idx file"),
    ],
)
def test_files_of_another_kind_or_length_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: {message}.*; fetch the file again"):
        read_idx(path, 3)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, LABELS[:1], "train-images-idx3-ubyte: 2 images; expected 1 as in train-labels-idx1-ubyte.gz"),
        (IMAGES, LABELS + 5, "train-labels-idx1-ubyte.gz: 2 labels, the largest 12; expected digits, 0 to 9"),
        (IMAGES[:0], LABELS[:0], "train-labels-idx1-ubyte.gz: 0 labels"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(images: NDArray[np.uint8], labels: NDArray[np.uint8], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        load_digits(str(write(tmp_path, images, labels)))


def test_a_folder_that_is_named_has_to_hold_the_files(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"train-images-idx3-ubyte: not there, nor as \.gz; expected the four idx files of MNIST; give their folder"
    ):
        load_digits(str(tmp_path))


def test_without_a_folder_it_takes_scikit_learns_digits_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INFLUCODER_DATA", str(tmp_path))
    source, train, test = load_digits(None)
    assert source == "scikit-learn's digits" and f"{tmp_path}/mnist: not there; taking scikit-learn's" in capsys.readouterr().err
    assert (len(train), len(test)) == (1400, 397)
    assert train.images.shape[1:] == (8, 8) and train.images.max() == 255 and set(train.labels) == set(test.labels) == set(range(10))
    seen = {image.tobytes() for image in train.images}
    assert sum(image.tobytes() in seen for image in test.images) < 5


def test_the_variable_names_the_folder_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnist").mkdir()
    write(tmp_path / "mnist")
    monkeypatch.setenv("INFLUCODER_DATA", str(tmp_path))
    assert load_digits(None)[0] == "MNIST"


def test_the_real_files_are_mnist(data_folder: Path) -> None:
    if not (data_folder / "mnist").is_dir():
        pytest.skip(f"{data_folder}/mnist: MNIST is not here")
    _, train, test = load_digits(str(data_folder / "mnist"))
    assert (train.images.shape, test.images.shape) == ((60000, 28, 28), (10000, 28, 28))
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4] and test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert train.images.mean() == pytest.approx(33.318, abs=1e-3) and test.images.mean() == pytest.approx(33.791, abs=1e-3)


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (28, 31)])
def test_a_png_holds_the_image(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = matplotlib.image.imread(io.BytesIO(encode_png(image)), format="png")
    np.testing.assert_array_equal(np.round(found * 255), image)
    assert data_uri(image).startswith("data:image/png;base64,iVBORw0KGgo")


def test_digits_know_their_number() -> None:
    assert len(Digits(IMAGES, LABELS)) == 2
