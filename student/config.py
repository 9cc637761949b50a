"""What the student stage can be told."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from influcoder.errors import ConfigError
from influcoder.program import Setting
from influcoder.splits import SplitConfig


@dataclass(frozen=True, kw_only=True)
class FreshEncoder:
    """A small BERT with random weights and a byte-level BPE tokenizer trained on the training split."""

    hidden_size: int = 192
    layers: int = 2
    heads: int = 4
    intermediate_size: int = 384
    vocab_size: int = 2048
    """pieces of the tokenizer, at most"""


@dataclass(frozen=True, kw_only=True)
class CausalLMEncoder:
    """A causal LM whose errors on the response are pooled: what a forward pass tells of a gradient. Its head is fitted in closed form."""

    path: str
    """hub id or folder of a causal LM: the teacher's decoder, or a smaller one of the same tokenizer family"""
    layers: int = 4
    """hidden states multiplied with the errors, spread evenly from the embeddings to the last"""
    rank: int = 48
    """leading directions kept of either factor; the pooled vector has layers * rank^2 numbers and some"""
    chat_template: str | None = None
    """Jinja template; null takes the tokenizer's own"""

    def __post_init__(self) -> None:
        if self.layers < 1 or self.rank < 1:
            raise ConfigError(f"encoder.causal_lm: layers {self.layers}, rank {self.rank}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class StaticEncoder:
    """A table of token vectors, whose mean is the embedding: the fastest student. Fitted in closed form, never trained."""

    tokenizer: str | None = None
    """hub id or folder of a fast tokenizer; null trains one, byte-level BPE, on the training split"""
    vocab_size: int = 8192
    """pieces of the tokenizer that is trained, at most"""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which text encoder to train. Give one of `path`, `causal_lm`, `static` and `fresh`."""

    path: str | None = None
    """hub id or folder of a SentenceTransformer (or of a plain transformer, which gets mean pooling)"""
    causal_lm: CausalLMEncoder | None = None
    """a causal LM and its errors instead"""
    static: StaticEncoder | None = None
    """a table of token vectors instead"""
    fresh: FreshEncoder | None = None
    """a new small one instead"""
    max_tokens: int = 128
    """tokens read of a text; what is beyond is cut, and the share of such texts is printed"""
    embedding_dim: int | None = None
    """width of a dense head after pooling; null is the pooled width, without a head unless it is fitted, and at most 384 where it is; of
    a table, its own width, null being 384"""
    head: Literal["random", "closed_form"] = "random"
    """where the head begins: random weights, or the ridge regression of the teacher's principal coordinates (seconds), which needs no
    training after it; a causal_lm has the latter, a static table is it"""
    trust_remote_code: bool = False
    """run code that the hub repository brings; only for sources that you trust"""

    @property
    def fitted(self) -> bool:
        """Whether the head, or the table, is fitted in closed form."""
        return self.head == "closed_form" or self.causal_lm is not None or self.static is not None

    @property
    def hub_id(self) -> str | None:
        """Hub id of what the encoder was before; None of a folder, and of what is made here."""
        path = self.path or (self.causal_lm.path if self.causal_lm else "")
        return path if re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not Path(path).exists() else None

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.path, self.causal_lm, self.static, self.fresh)) != 1:
            raise ConfigError("encoder: give exactly one of `path`, `causal_lm`, `static` and `fresh`")
        if self.max_tokens < 8:
            raise ConfigError(f"encoder.max_tokens: {self.max_tokens}; expected at least 8")


LOSSES = ("row_pearson", "block_pearson", "list_net", "rank_net", "soft_spearman", "cka", "coordinates")


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """Objective and batches."""

    objective: Literal["full_block", "reference"] = "full_block"
    """full_block: every pair of a block is a label, row and block Pearson. reference: the paper's authors' recipe,
    8 x 16 labels a step, Pearson and row KL"""
    block_rows: int = 128
    """full_block: texts of a block; its labels are block_rows^2 - block_rows; where queries ask, they are at most half of the texts"""
    max_batch_tokens: int = 16384
    """padded tokens that are embedded at once; a larger block is embedded twice, in chunks, for the same gradient in less memory"""
    target_exponent: float = 0.5
    """full_block: the teacher's cosines become sign(t) |t|^exponent; 1 leaves them, less lets small differences count more"""
    row_weight: float = 0.5
    """full_block: weight of the mean row-wise Pearson; the rest goes to the Pearson over the whole block"""
    num_queries: int = 8
    """reference: queries of a block"""
    num_candidates: int = 16
    """reference: candidates of a block"""
    kl_weight: float = 0.5
    """reference: weight of the row KL; the rest goes to the block's Pearson"""
    temperature: float = 0.05
    """list_net: of the row softmax; rank_net: of the difference between two scores; both are cosines"""
    losses: dict[str, float] = field(default_factory=dict)
    """weights of the losses to add up: row_pearson, block_pearson (correlation), list_net, rank_net, soft_spearman (ranking), cka,
    coordinates (the teacher's geometry). Empty: what the objective means. Blocks and target_exponent are the objective's either way"""
    tail_sharpness: float = 0.0
    """row_pearson, block_pearson: the ends of a row's ranking weigh cosh(tail_sharpness) times its middle; 0 weighs all alike"""
    uncertainty: bool = False
    """row_pearson, block_pearson: pairs of whose scores the teacher's first two seeds disagree weigh less"""
    matryoshka: list[int] = field(default_factory=list)
    """dimensions, such as [64, 128]: the loss is the mean over the whole embedding and these many of its first dimensions"""

    def __post_init__(self) -> None:
        if self.block_rows < 4 or self.num_queries < 1 or self.num_candidates < 2 or self.temperature <= 0:
            raise ConfigError(
                f"recipe: block_rows {self.block_rows}, num_queries {self.num_queries}, num_candidates {self.num_candidates}, "
                f"temperature {self.temperature}; expected at least 4, 1, 2, and a positive temperature"
            )
        if self.max_batch_tokens < 1:
            raise ConfigError(f"recipe: max_batch_tokens {self.max_batch_tokens}; expected at least 1")
        if self.target_exponent <= 0:
            raise ConfigError(f"recipe: target_exponent {self.target_exponent}; expected a positive number")
        if not (0 <= self.row_weight <= 1 and 0 <= self.kl_weight <= 1):
            raise ConfigError(f"recipe: row_weight {self.row_weight}, kl_weight {self.kl_weight}; expected shares in 0 to 1")
        self._check_losses()

    def _check_losses(self) -> None:
        for name, weight in self.losses.items():
            if name not in LOSSES or not 0 < weight < math.inf:
                raise ConfigError(f"recipe.losses: {name} {weight}; expected a positive weight for any of {', '.join(LOSSES)}")
        if self.tail_sharpness < 0 or min(self.matryoshka, default=2) < 2:
            raise ConfigError(
                f"recipe: tail_sharpness {self.tail_sharpness}, matryoshka {self.matryoshka}; expected 0 or more, 2 dimensions or more each"
            )
        if (self.tail_sharpness or self.uncertainty) and self.losses and not self.losses.keys() & {"row_pearson", "block_pearson"}:
            raise ConfigError(
                f"recipe: tail_sharpness {self.tail_sharpness}, uncertainty {self.uncertainty} with losses {', '.join(self.losses)}; "
                "expected row_pearson or block_pearson among them, which alone weigh pairs; add one, or leave the weighing out"
            )

    @property
    def needs_coordinates(self) -> bool:
        """Whether a loss compares embeddings with the teacher's coordinates."""
        return not self.losses.keys().isdisjoint({"cka", "coordinates"})


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up, then linear decay over `trainer.max_epochs`."""

    learning_rate: float = 5e-5
    """peak"""
    warmup_share: float = 0.1
    """share of the steps before the peak, 0 to 1"""
    weight_decay: float = 0.01
    ema: float | None = None
    """decay a step of an exponential moving average of the weights, such as .99; it is what is validated and saved. null: none"""

    def __post_init__(self) -> None:
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"optimizer: ema {self.ema}; expected a decay between 0 and 1, such as 0.99, or null")
        if self.learning_rate <= 0 or not 0 <= self.warmup_share <= 1:
            raise ConfigError(f"optimizer: learning_rate {self.learning_rate}, warmup_share {self.warmup_share}; expected > 0, 0 to 1")


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Distil a teacher's ranking into a text encoder (python -m student CONFIG.yaml)."""

    output: str
    """run directory to make; must not exist"""
    teacher: str
    """teacher run whose features are the target"""
    asks: Literal["rows", "queries"] = "rows"
    """rows: every row asks for the others. queries: the teacher's own queries ask for rows; these have a split of their own, by the
    same rule, and a teacher that was made of scores has no other target"""
    encoder: EncoderConfig
    """what is trained"""
    split: SplitConfig = field(default_factory=SplitConfig)
    """which rows train, validate and test the distillation"""
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    """objective and batches"""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """learning rate and its schedule"""
    patience: int = 10
    """validations without a better per-query Spearman before training stops; the best weights are kept"""
    seed: int = 0
    """batches, head and fresh weights"""
    shuffle_target: bool = False
    """control, never for use: every training and validation row (or query) gets the target of another; such a student must score
    like a floor"""
    save_every_seconds: float = 300.0
    """how often the state of the training is saved, at most: what a kill can cost. The same command goes on from there"""
    log_encoder: bool = False
    """send the encoder's folder to Weights & Biases as an artifact; needs a WandbLogger in trainer.logger"""
    trainer: dict[str, Setting] = field(default_factory=dict)
    """arguments of lightning.pytorch.Trainer: max_epochs, max_time, precision, devices, strategy (auto or ddp), logger, callbacks, ..."""

    def __post_init__(self) -> None:
        strategy = self.trainer.get("strategy", "auto")
        if strategy not in ("auto", "ddp"):
            raise ConfigError(f"trainer.strategy: {strategy!r}; expected auto, or ddp, whose processes share every block")
        if self.log_encoder and "WandbLogger" not in str(self.trainer.get("logger")):
            raise ConfigError("log_encoder: true without a WandbLogger; expected one in trainer.logger; name it, or leave log_encoder out")
        if self.encoder.static is not None and self.trainer.get("max_epochs", 0) != 0:
            raise ConfigError(
                f"trainer.max_epochs: {self.trainer['max_epochs']} with encoder.static, which is fitted, not trained; expected 0"
            )
        if self.save_every_seconds < 0:
            raise ConfigError(f"save_every_seconds: {self.save_every_seconds}; expected seconds, 0 to save after every step")
