"""Settings of `influcoder serve`."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field, fields

from influcoder.aggregation import DEFAULT_TOP
from influcoder.errors import ConfigError
from influcoder.onnx_settings import Variant
from influcoder.readers import DataSource

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
"""as a browser on this machine names it"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for; more is refused in one line."""

    body_bytes: int = 1 << 20
    """of a request's body"""
    queries: int = 16
    """of a request"""
    k: int = 100
    """rows of a query at either end"""
    text_chars: int = 20_000
    """of a prompt or a response; the encoder's own budgets then cut it further"""
    seconds: float = 30.0
    """for a body to arrive, for an answer to be found, and for requests in progress to end when the server stops"""
    waiting: int = 256
    """requests that may wait for an answer; further ones are told to come back"""
    batch_queries: int = 64
    """queries that are embedded and searched together"""
    highlight_spans: int = 32
    """parts of a row's response, and of the queries' together, that /highlights leaves out one by one; longer texts have larger parts"""
    connections: int = 1024
    """open at a time"""

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self)):
            if not 0 < getattr(self, name) < float("inf") or (name != "seconds" and getattr(self, name) < 1):
                raise ConfigError(f"limits.{name}: {getattr(self, name)}; expected {'more than 0' if name == 'seconds' else 'at least 1'}")
        if self.batch_queries < self.queries:
            raise ConfigError(f"limits.batch_queries: {self.batch_queries}; expected at least limits.queries, {self.queries}")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve an index over HTTP: POST /attribute and /highlights, GET /rows/{id}, /health, /metrics, /openapi.json, and the explorer at /."""

    encoder: str
    """encoder folder with `onnx/` that the index was made with"""
    index: str
    """index to search, as `influcoder attribute` leaves it in its run's `index/`; rows appended later are seen after a restart"""
    rows: DataSource | None = None
    """the pool that was indexed, for the texts of its rows; null serves ids and scores alone"""
    host: str = "127.0.0.1"
    """address to listen on; one that is not loopback needs a token"""
    port: int = 8000
    """port to listen on; 0 takes a free one and says which"""
    token_variable: str | None = None
    """environment variable that holds the bearer token which requests must bring; null asks for none"""
    top: int | None = DEFAULT_TOP
    """a row's place in the ranking over all queries is by the mean over so many of its best ones; null takes all"""
    limits: Limits = field(default_factory=Limits)
    """what one request may ask for"""
    log_requests: bool = False
    """write a line for each request to standard error: path, status, seconds; never a text or an id"""
    variant: Variant = "fp32"
    """as the index was made with"""
    dim: int | None = None
    """as the index was made with"""
    providers: tuple[str, ...] = ()
    """onnxruntime's execution providers, best first, or OpenVINO; empty takes CUDA when there, else CPU"""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port: {self.port}; expected a number from 0 to 65535")
        if self.top is not None and self.top < 1:
            raise ConfigError(f"top: {self.top}; expected at least 1, or null")
        if self.token_variable is None and not is_loopback(self.host):
            raise ConfigError(
                f"host: {self.host} can be reached from other machines; expected a token with it; set token_variable, or listen on 127.0.0.1"
            )

    def read_token(self) -> str | None:
        """Return the token; None when requests need none.

        Raises:
            ConfigError: when the variable is not set, or holds what no header can.
        """
        if self.token_variable is None:
            return None
        token = os.environ.get(self.token_variable, "")
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError(
                f"token_variable: ${self.token_variable} is {'malformed' if token else 'not set'}; expected printable ASCII without blanks; "
                f"do: export {self.token_variable}=$(openssl rand -hex 32)"
            )
        return token


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address; other names than `localhost` are not looked up."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
