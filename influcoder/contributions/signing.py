"""Ed25519 signatures (RFC 8032) over the SHA-256 of a file, with keys in PEM files.

A signature says who reported, not that the report is right.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from influcoder.errors import ConfigError, require
from influcoder.runs import write_text_atomic

ALGORITHM = "ed25519 over sha-256"


def make_key(path: Path) -> Path:
    """Write a new private key, readable by its owner alone, and the public one beside it as `NAME.public.pem`; return the latter's path.

    Raises:
        ConfigError: when `path` exists already.
        MissingExtraError: when cryptography is not installed.
    """
    serialization, key = _serialization(), _ed25519().Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConfigError(
            f"{path}: exists already; expected a new place for a key; choose another, for a lost key is not made again"
        ) from error
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(pem)
    public = path.with_name(f"{path.stem}.public.pem")
    encoded = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    write_text_atomic(public, encoded.decode())
    return public


def load_private_key(path: Path) -> Any:
    """Return the private key of a PEM file.

    Raises:
        ConfigError: when it is missing, no such key, or others may read it.
    """
    try:
        pem = path.read_bytes()
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise ConfigError(f"{path}: others may read this private key; expected mode 0600; run: chmod 600 {path}")
        key = _serialization().load_pem_private_key(pem, password=None)
        if not isinstance(key, _ed25519().Ed25519PrivateKey):
            raise ValueError(f"it holds an {type(key).__name__}")
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{path}: not a private key ({error}); expected Ed25519 in a PEM file without password; "
            "make one: influcoder contributions --make-key KEY.pem"
        ) from error
    return key


def public_hex(key: Any) -> str:
    """Return the 64 hex digits of a private key's public half."""
    return str(key.public_key().public_bytes_raw().hex())


def read_public_key(path: Path) -> str:
    """Return the 64 hex digits of a public key in a PEM file.

    Raises:
        ConfigError: when it is no Ed25519 public key.
    """
    try:
        key = _serialization().load_pem_public_key(path.read_bytes())
        return str(key.public_bytes_raw().hex())
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{path}: not a public key ({error}); expected Ed25519 in a PEM file, as --make-key leaves beside a key"
        ) from error


def sign(content: bytes, key: Any) -> dict[str, str]:
    """Return what `signature.json` holds."""
    digest = hashlib.sha256(content)
    return {
        "algorithm": ALGORITHM,
        "public_key": public_hex(key),
        "sha256": digest.hexdigest(),
        "signature": key.sign(digest.digest()).hex(),
    }


def is_signed(content: bytes, record: Any) -> bool:
    """Return whether a signature record, of whatever shape, is one of `content` by the key that it names."""
    digest, key_class = hashlib.sha256(content), _ed25519().Ed25519PublicKey
    try:
        if (record["algorithm"], record["sha256"]) != (ALGORITHM, digest.hexdigest()):
            return False
        key_class.from_public_bytes(bytes.fromhex(record["public_key"])).verify(bytes.fromhex(record["signature"]), digest.digest())
    except (KeyError, TypeError, ValueError, require("cryptography.exceptions", "contributions").InvalidSignature):
        return False
    return True


def _ed25519() -> ModuleType:
    return require("cryptography.hazmat.primitives.asymmetric.ed25519", "contributions")


def _serialization() -> ModuleType:
    return require("cryptography.hazmat.primitives.serialization", "contributions")
