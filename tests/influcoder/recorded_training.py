"""One small training for the tests of recorders, as a user of Lightning or of transformers' Trainer would write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler
from transformers import DataCollatorForSeq2Seq, TrainerCallback, TrainingArguments
from transformers import Trainer as HfTrainer

from influcoder.influence.decoder import Decoder
from influcoder.influence.tokens import TokenizedRow, pad, row_losses, tokenize
from influcoder.training import silence_hints
from tests.influcoder.tiny_decoders import ROWS

SIZE, BATCH, EPOCHS = 10, 4, 3
STEPS = 9
"""batches of 4, 4, 2 rows an epoch"""


def rows_of(decoder: Decoder) -> list[TokenizedRow]:
    """Return ten rows, the four of the tiny decoders over and over."""
    return [tokenize(ROWS, decoder)[place % len(ROWS)] for place in range(SIZE)]


def record_of(folder: Path) -> dict[str, bytes]:
    """Return all files of a recording."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def query_loss(model: nn.Module) -> Tensor:
    """Return the mean loss of two rows under the model."""
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    loss: Tensor = model(input_ids=ids, labels=ids).loss
    return loss


class Module(LightningModule):
    """AdamW at a falling learning rate."""

    def __init__(self, decoder: Decoder, optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW) -> None:
        super().__init__()
        self.model, self.rows, self.kind, self.seen = decoder.model, rows_of(decoder), optimizer, list[list[str]]()

    def train_dataloader(self) -> DataLoader[Any]:
        pairs: Any = [(f"row-{place}", row) for place, row in enumerate(self.rows)]
        order: DistributedSampler[Any] = DistributedSampler(
            pairs, num_replicas=1, rank=0
        )  # of the epoch, so that a resumed training has the same
        return DataLoader(pairs, batch_size=BATCH, sampler=order, collate_fn=self.collate)

    def collate(self, rows: Sequence[tuple[str, TokenizedRow]]) -> dict[str, Any]:
        return {"row_id": [row_id for row_id, _ in rows], "batch": pad([row for _, row in rows], 0, torch.device("cpu"))}

    def training_step(self, batch: Mapping[str, Any], batch_index: int) -> Tensor:
        self.seen.append(batch["row_id"])
        return row_losses(self.model, *batch["batch"]).mean()

    def configure_optimizers(self) -> Any:
        optimizer = self.kind(self.model.parameters(), lr=1e-2)  # type: ignore[call-arg]  # every one has it
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_lightning(
    decoder: Decoder,
    folder: Path,
    callbacks: Sequence[Callback],
    *,
    state: Path | None = None,
    module: Module | None = None,
    **settings: Any,
) -> Module:
    """Train; from a saved state when it is given."""
    silence_hints()
    torch.manual_seed(0)  # dropout's
    module = module or Module(decoder)
    chosen: dict[str, Any] = {"max_epochs": EPOCHS, "log_every_n_steps": 1} | settings
    trainer = Trainer(
        accelerator="cpu", callbacks=list(callbacks), logger=CSVLogger(folder, name="log", version=""), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **chosen,
    )  # fmt: skip
    trainer.fit(module, ckpt_path=state, weights_only=False if state else None)
    return module


def train_transformers(decoder: Decoder, folder: Path, callbacks: Sequence[TrainerCallback], **settings: Any) -> HfTrainer:
    """Train; settings are TrainingArguments', and `resume_from_checkpoint`."""
    state = settings.pop("resume_from_checkpoint", None)
    trainer = make_transformers(decoder, folder, callbacks, **settings)
    trainer.train(resume_from_checkpoint=state)
    return trainer


def make_transformers(decoder: Decoder, folder: Path, callbacks: Sequence[TrainerCallback], **settings: Any) -> HfTrainer:
    """Return a Trainer whose dataset has a column of row ids, 100 and up."""
    silence_hints()
    rows = rows_of(decoder)
    dataset = Dataset.from_list([
        {"input_ids": row.input_ids, "labels": [-100] * row.response_start + list(row.input_ids[row.response_start :]), "row_id": 100 + place}
        for place, row in enumerate(rows)
    ])  # fmt: skip
    chosen: dict[str, Any] = {"num_train_epochs": EPOCHS, "per_device_train_batch_size": BATCH, "save_strategy": "no", "report_to": []}
    chosen |= {"learning_rate": 1e-2, "remove_unused_columns": False, "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False}
    arguments = TrainingArguments(str(folder), **(chosen | settings))
    collator = DataCollatorForSeq2Seq(decoder.tokenizer, padding=True)
    return HfTrainer(
        decoder.model, arguments, data_collator=collator, train_dataset=dataset, eval_dataset=dataset, callbacks=list(callbacks)
    )
