"""A fine-tuning of one's own with transformers' Trainer, recorded for influence by two lines; then the teacher reads the recording.

    python -m examples.hf_finetune --rows pool.jsonl --output runs/hf [--decoder PATH] [--queries queries.jsonl]

Rows: jsonl with prompt and response. Without --decoder a tiny fresh one is trained. The same command goes on where a killed one stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

from examples.finetune_data import EPOCHS, load, teacher_command
from influcoder.callbacks.transformers_recorder import TransformersRecorder  # 1: import
from influcoder.program import run_program
from influcoder.training import silence_hints


def main(arguments: Sequence[str]) -> None:
    """Train, save, and say how to ask for influence."""
    parser = argparse.ArgumentParser(prog="python -m examples.hf_finetune", description=main.__doc__)
    for name in ("--rows", "--output", "--queries", "--decoder"):
        parser.add_argument(name, type=Path, required=name in ("--rows", "--output"))
    options = parser.parse_args(arguments)
    silence_hints()
    set_seed(0)
    decoder, rows = load(options.rows, options.decoder)
    dataset = Dataset.from_list([
        {"input_ids": row.input_ids, "labels": [-100] * row.response_start + list(row.input_ids[row.response_start :]), "row_id": place}
        for place, row in enumerate(rows.values())
    ])  # fmt: skip
    trainer = Trainer(
        decoder.model,
        TrainingArguments(
            str(options.output / "state"), num_train_epochs=EPOCHS, per_device_train_batch_size=4, learning_rate=1e-3, use_cpu=True,
            save_steps=5, save_total_limit=2, report_to=[], disable_tqdm=True,
            remove_unused_columns=False,  # keeps row_id, so that the points say what their batches were made of
        ),
        data_collator=DataCollatorForSeq2Seq(decoder.tokenizer, padding=True),
        train_dataset=dataset,
        callbacks=[TransformersRecorder(options.output / "record", count=4)],  # 2: add the callback
    )  # fmt: skip
    states = [path for path in (options.output / "state").glob("checkpoint-*") if (path / "trainer_state.json").exists()]
    last = max(states, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    trainer.save_model(str(options.output / "decoder"))
    decoder.tokenizer.save_pretrained(options.output / "decoder")
    print(teacher_command(options.output, options.rows, options.queries))


if __name__ == "__main__":
    run_program(main)
