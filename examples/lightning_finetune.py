"""A Lightning fine-tuning of one's own, recorded for influence by two lines; then the teacher reads the recording.

    python -m examples.lightning_finetune --rows pool.jsonl --output runs/lightning [--decoder PATH] [--queries queries.jsonl]

Rows: jsonl with prompt and response. Without --decoder a tiny fresh one is trained. The same command goes on where a killed one stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from examples.finetune_data import EPOCHS, load, teacher_command
from influcoder.callbacks.lightning_recorder import LightningRecorder  # 1: import
from influcoder.influence.decoder import Decoder
from influcoder.influence.tokens import TokenizedRow, pad, pad_token_id, row_losses
from influcoder.program import run_program
from influcoder.training import silence_hints


class FineTuning(LightningModule):
    """AdamW on the responses."""

    def __init__(self, decoder: Decoder, rows: Mapping[str, TokenizedRow]) -> None:
        super().__init__()
        self.model, self.rows, self.padding = decoder.model, list(rows.items()), pad_token_id(decoder.tokenizer)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the rows in an order of the epoch, so that a resumed training has the same."""
        order: DistributedSampler[Any] = DistributedSampler(self.rows, num_replicas=1, rank=0)  # type: ignore[arg-type]  # any sequence is a dataset
        return DataLoader(self.rows, batch_size=4, sampler=order, collate_fn=self.collate)  # type: ignore[arg-type]  # as above

    def collate(self, rows: Sequence[tuple[str, TokenizedRow]]) -> dict[str, Any]:
        """Return a padded batch that says whose rows it is made of."""
        input_ids, attention_mask, response_mask = pad([row for _, row in rows], self.padding, torch.device("cpu"))
        masks = {"attention_mask": attention_mask, "response_mask": response_mask}
        return {"row_id": [row_id for row_id, _ in rows], "input_ids": input_ids, **masks}

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Return the mean of the rows' losses."""
        return row_losses(self.model, batch["input_ids"], batch["attention_mask"], batch["response_mask"]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.model.parameters(), lr=1e-3)


def main(arguments: Sequence[str]) -> None:
    """Train, save, and say how to ask for influence."""
    parser = argparse.ArgumentParser(prog="python -m examples.lightning_finetune", description=main.__doc__)
    for name in ("--rows", "--output", "--queries", "--decoder"):
        parser.add_argument(name, type=Path, required=name in ("--rows", "--output"))
    options = parser.parse_args(arguments)
    silence_hints()
    seed_everything(0, verbose=False)
    decoder, rows = load(options.rows, options.decoder)
    trainer = Trainer(
        max_epochs=EPOCHS, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        logger=CSVLogger(options.output, name="log", version=""),
        callbacks=[
            ModelCheckpoint(options.output / "state", save_last=True, save_top_k=0, every_n_epochs=1, enable_version_counter=False),
            LightningRecorder(options.output / "record", count=4),  # 2: add the callback
        ],
    )  # fmt: skip
    state = options.output / "state" / "last.ckpt"
    decoder.model.train()
    trainer.fit(FineTuning(decoder, rows), ckpt_path=state if state.exists() else None, weights_only=False)
    decoder.model.save_pretrained(options.output / "decoder")
    decoder.tokenizer.save_pretrained(options.output / "decoder")
    print(teacher_command(options.output, options.rows, options.queries))


if __name__ == "__main__":
    run_program(main)
