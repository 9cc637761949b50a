"""Grey images as PNG, inside a page."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray


def data_uri(image: NDArray[np.uint8]) -> str:
    """Return a (H, W) grey image as the `data:` address of a PNG."""
    return f"data:image/png;base64,{base64.b64encode(encode_png(image)).decode()}"


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Return the PNG of a (H, W) grey image: eight bits a pixel, no filter, one chunk of data (ISO/IEC 15948)."""
    height, width = image.shape
    lines = b"".join(b"\0" + line.tobytes() for line in image)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines, 9)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
