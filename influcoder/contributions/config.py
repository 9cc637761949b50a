"""Settings of the two commands, `influcoder contributions` and `influcoder verify`."""

from __future__ import annotations

from dataclasses import dataclass, field

from influcoder.contributions.values import ValueSettings
from influcoder.errors import ConfigError
from influcoder.readers import DataSource


@dataclass(frozen=True, kw_only=True)
class ContributionsConfig:
    """Value the contributors of an attributed pool: signed totals with intervals, rewards, a signed report and a page."""

    attribution: str
    """attribution run of this pool, these queries and this encoder"""
    encoder: str
    """encoder folder with `onnx/`"""
    pool: DataSource
    """rows that were attributed; `columns.contributor` names who gave a row"""
    queries: DataSource
    """behaviour that values are relative to; weight -1 is harm, or what is to be looked away from"""
    key: str
    """PEM file of the Ed25519 key that signs; `influcoder contributions --make-key KEY.pem` makes one"""
    output: str
    """run directory to make; must not exist"""
    budget: int = 1_000_000
    """whole units to share out, such as cents; the default gives shares in parts a million"""
    valuation: ValueSettings = field(default_factory=ValueSettings)
    """what a value is"""
    kinds: int = 8
    """kinds of data to look for; 0 looks for none and needs no scikit-learn"""
    dlp_id: int | None = None
    """number of a Vana data liquidity pool: writes vana.json; null does not"""
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    """onnxruntime's execution providers, best first; scores of a GPU need a larger `tolerance` of who verifies on a CPU"""

    def __post_init__(self) -> None:
        if self.budget < 1 or self.budget >= 10**38:
            raise ConfigError(f"budget: {self.budget}; expected at least 1 whole unit, and fewer than 39 digits")
        if self.kinds < 0:
            raise ConfigError(f"kinds: {self.kinds}; expected at least 0")


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Verify a contribution report against the pool, the queries and the encoder it was made of."""

    report: str
    """folder of the report; may be the first argument"""
    encoder: str
    """encoder folder with `onnx/`"""
    pool: DataSource
    """rows that were valued, with the same id and contributor columns"""
    queries: DataSource
    """queries that they were valued by"""
    public_key: str | None = None
    """PEM file of the public key of whom you expect to have signed; null takes the one that the report names itself"""
    audit_rows: int = 64
    """rows scored again: so many at random, and as many of the highest scores"""
    audit_seed: int | None = None
    """of the random rows; null draws them anew, so that nobody can know which"""
    tolerance: float = 1e-4
    """by how much a score may differ, relative to its query's largest one; float32 on a CPU"""

    def __post_init__(self) -> None:
        if self.audit_rows < 1:
            raise ConfigError(f"audit_rows: {self.audit_rows}; expected at least 1")
        if not 0 < self.tolerance < 1:
            raise ConfigError(f"tolerance: {self.tolerance}; expected a number between 0 and 1")
