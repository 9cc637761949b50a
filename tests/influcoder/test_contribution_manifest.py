"""What is hashed and signed: canonical JSON, Merkle roots, keys."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from influcoder.contributions.canonical_json import BILLION, canonical_bytes, canonical_sha256, fixed_decimal, plain_decimal
from influcoder.contributions.checks import differing
from influcoder.contributions.manifest import read_settings, write_settings
from influcoder.contributions.merkle import merkle_root, row_leaf
from influcoder.contributions.values import ValueSettings
from influcoder.errors import ConfigError
from influcoder.examples import Example, Turn

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_canonical_json_is_json_and_the_same_however_it_was_put_together(content: Any) -> None:
    written = canonical_bytes(content)
    assert json.loads(written) == content
    assert canonical_bytes(json.loads(json.dumps(content, indent=3))) == written
    if isinstance(content, dict):
        assert canonical_bytes(dict(reversed(content.items()))) == written
    assert list(differing(content, json.loads(written))) == []


def test_canonical_json_to_the_byte() -> None:
    assert canonical_bytes({"b": ["ü", 2, None], "a": {"z": True, "Z": "1\n"}}) == '{"a":{"Z":"1\\n","z":true},"b":["ü",2,null]}'.encode()
    assert canonical_sha256({}) == hashlib.sha256(b"{}").hexdigest()


@pytest.mark.parametrize("wrong", [1.5, {"a": [0.0]}, {1: "a"}, {"a": b"x"}, float("nan")])
def test_what_has_several_spellings_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError):
        canonical_bytes(wrong)


@given(st.integers(-(10**22), 10**22))
def test_fixed_decimals_lose_nothing(billionths: int) -> None:
    written = fixed_decimal(billionths)
    whole, digits = written.lstrip("-").split(".")
    assert len(digits) == 9 and (int(whole) * BILLION + int(digits)) * (-1 if written.startswith("-") else 1) == billionths


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_plain_decimals_give_the_float_back(number: float) -> None:
    assert float(plain_decimal(number)) == number and "e" not in plain_decimal(number)


def test_settings_come_back_from_the_manifest() -> None:
    settings = ValueSettings(near_duplicate_jaccard=None, copies="first", commit_column="when", cap_quantile=0.975, confidence=1 / 3)
    content = write_settings(settings) | {"top": None}
    canonical_bytes(content)
    assert read_settings(content) == (settings, None)


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def test_merkle_roots_done_by_hand() -> None:
    leaves = [hashlib.sha256(bytes([place])).digest() for place in range(7)]
    a, b, c, d, e, f, g = leaves
    assert merkle_root([a]) == a
    assert merkle_root([a, b]) == node(a, b)
    assert merkle_root([a, b, c]) == node(node(a, b), c)
    assert merkle_root([a, b, c, d, e]) == node(node(node(a, b), node(c, d)), e)
    assert merkle_root(leaves) == node(node(node(a, b), node(c, d)), node(node(e, f), g))
    with pytest.raises(ValueError, match="no leaves"):
        merkle_root([])


def slow_root(leaves: list[bytes]) -> bytes:
    """RFC 9162, 2.1.1, word by word."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return node(slow_root(leaves[:k]), slow_root(leaves[k:]))


@given(st.integers(1, 70))
def test_merkle_roots_are_those_of_the_rfc(count: int) -> None:
    leaves = [hashlib.sha256(bytes([place])).digest() for place in range(count)]
    assert merkle_root(leaves) == slow_root(leaves)


def test_a_leaf_is_the_whole_row_under_its_own_salt() -> None:
    row = Example(id="r", context=(Turn(role="user", content="a"),), response="b", contributor="ada")
    secret = bytes(32)
    leaf = row_leaf(row, secret)
    others = [
        replace(row, id="s"),
        replace(row, contributor="bo"),
        replace(row, response="B"),
        replace(row, response="b "),
        replace(row, context=(Turn(role="system", content="a"),)),
        replace(row, context=(Turn(role="user", content="a"), Turn(role="user", content=""))),
        replace(row, context=()),
        replace(row, weight=-1.0),
    ]
    leaves = [row_leaf(other, secret) for other in others]
    assert len({leaf, *leaves}) == len(others) + 1
    assert row_leaf(row, b"1" * 32) != leaf and row_leaf(replace(row), secret) == leaf
    # by hand, from the standard library alone
    import hmac

    salt = hmac.new(secret, b"r", hashlib.sha256).digest()
    assert leaf == hashlib.sha256(b"\0" + salt + b'["r","ada",[["user","a"]],"b","1.0"]').digest()


def test_a_signature_holds_for_its_content_and_key_alone(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from influcoder.contributions.signing import is_signed, load_private_key, make_key, read_public_key, sign

    public = make_key(tmp_path / "keys" / "a.pem")
    assert public == tmp_path / "keys" / "a.public.pem" and (tmp_path / "keys" / "a.pem").stat().st_mode & 0o777 == 0o600
    make_key(tmp_path / "b.pem")
    key, other = load_private_key(tmp_path / "keys" / "a.pem"), load_private_key(tmp_path / "b.pem")
    record = sign(b"content", key)
    assert is_signed(b"content", record) and record["public_key"] == read_public_key(public)
    assert record["sha256"] == hashlib.sha256(b"content").hexdigest()
    assert not is_signed(b"Content", record)
    wrong: list[Any] = [record | {name: value} for name, value in sign(b"content", other).items() if name in ("public_key", "signature")]
    wrong += [record | {"algorithm": "none"}, record | {"signature": "00" * 64}, record | {"signature": "x"}, {}, None, []]
    wrong += [record | {"sha256": hashlib.sha256(b"Content").hexdigest()}]
    assert not any(is_signed(b"content", found) for found in wrong)


def test_keys_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    curves = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
    forms = pytest.importorskip("cryptography.hazmat.primitives.serialization")

    from influcoder.contributions.signing import load_private_key, make_key, read_public_key

    path = tmp_path / "a.pem"
    with pytest.raises(ConfigError, match=r"a\.pem: not a private key .*--make-key"):
        load_private_key(path)
    make_key(path)
    with pytest.raises(ConfigError, match="exists already"):
        make_key(path)
    with pytest.raises(ConfigError, match="not a public key"):
        read_public_key(path)
    os.chmod(path, 0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_private_key(path)
    other = curves.generate_private_key(curves.SECP256K1())
    path.write_bytes(other.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()))
    os.chmod(path, 0o600)
    with pytest.raises(ConfigError, match="expected Ed25519"):
        load_private_key(path)
