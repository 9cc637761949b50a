"""The truth here: the same training without a recorder, the batches that the model was given, an uninterrupted recording."""

from __future__ import annotations

import csv
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from influcoder.callbacks.transformers_recorder import TransformersRecorder
from influcoder.influence.checkpoints import load_checkpoints
from influcoder.influence.decoder import Decoder, fingerprint_model
from tests.influcoder.recorded_training import STEPS, make_transformers, query_loss, record_of, rows_of, train_transformers
from tests.influcoder.tiny_decoders import fresh_decoder, gpt2_decoder, with_adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # PEFT's own
    pytest.mark.filterwarnings("ignore:.*mtime may not be reliable"),
]


class Watch(TrainerCallback):
    """Notes what the model reads while it trains, and weights after each step; ends where it is told to."""

    def __init__(self, die_at: int = -1) -> None:
        self.die_at = die_at
        self.inputs: list[Tensor] = []
        self.weights: list[dict[str, Tensor]] = []
        self.gradients: list[Tensor] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        def look(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            assert "row_id" not in named
            if module.training:
                self.inputs.append(named["input_ids"].clone())

        kwargs["model"].register_forward_hook(look, with_kwargs=True)

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        model: nn.Module = kwargs["model"]
        self.gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        model: nn.Module = kwargs["model"]
        self.weights.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        if state.global_step == self.die_at:
            raise RuntimeError("power cut")


def record(folder: Path, decoder: Decoder | None = None, **settings: Any) -> tuple[Watch, Any]:
    """Train with a recorder in `folder / "record"`; settings of the recorder, the rest are TrainingArguments'."""
    names = ("count", "max_bytes", "query_loss", "agreement_every", "row_ids")
    chosen = {"count": 3} | {name: settings.pop(name) for name in names if name in settings}
    watch = Watch(settings.pop("die_at", -1))
    trainer = train_transformers(
        decoder or fresh_decoder(), folder / "state", [TransformersRecorder(folder / "record", **chosen), watch], **settings
    )
    return watch, trainer


def rates(steps: int = STEPS) -> list[float]:
    return [1e-2 * (1 - step / steps) for step in range(steps)]


def test_points_hold_weights_rates_and_whose_rows_the_batch_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch, _ = record(tmp_path, eval_strategy="steps", eval_steps=2)  # evaluation's batches are not the training's
    rows = rows_of(fresh_decoder())
    found = load_checkpoints(tmp_path / "record")
    assert [point.step for point in found] == [3, 6, 9]
    for place, point in enumerate(found):
        assert point.learning_rate == pytest.approx(sum(rates()[3 * place : 3 * place + 3]) / 3)
        assert point.batch_size == pytest.approx(10 / 3)
        batch = watch.inputs[point.step - 1]
        assert point.row_ids is not None and len(point.row_ids) == len(batch)
        for row_id, ids in zip(point.row_ids, batch, strict=True):
            expected = rows[int(row_id) - 100].input_ids
            assert tuple(ids[: len(expected)].tolist()) == expected
        other = fresh_decoder(seed=1)
        point.load_weights(other.model)
        assert all(torch.equal(parameter, watch.weights[point.step - 1][name]) for name, parameter in other.model.named_parameters())
    with (tmp_path / "record" / "steps.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [float(line["learning_rate"]) for line in lines] == pytest.approx(rates())
    assert [int(line["rows"]) for line in lines] == [4, 4, 2] * 3
    assert f"{tmp_path}/record: 3 points of 9 steps recorded" in capsys.readouterr().out


def test_recording_leaves_the_training_as_it_is(tmp_path: Path) -> None:
    plain, recorded = gpt2_decoder(), gpt2_decoder()  # its dropout draws random numbers
    train_transformers(plain, tmp_path / "plain", [], remove_unused_columns=True)
    record(tmp_path, recorded, query_loss=query_loss, agreement_every=1)
    assert fingerprint_model(recorded.model) == fingerprint_model(plain.model)


def test_without_the_column_there_are_points_without_ids(tmp_path: Path) -> None:
    record(tmp_path, remove_unused_columns=True)
    point = load_checkpoints(tmp_path / "record")[0]
    assert point.row_ids is None and point.batch_size == pytest.approx(10 / 3)


def test_after_the_training_the_model_is_the_users_again(tmp_path: Path) -> None:
    watch, trainer = record(tmp_path)
    assert len(watch.inputs) == STEPS and not trainer.model._forward_pre_hooks


def test_agreement_goes_to_the_log_history_the_steps_and_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    fake: Any = types.SimpleNamespace(run=object(), log=told.append)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    watch, trainer = record(tmp_path, query_loss=query_loss, agreement_every=4)
    with (tmp_path / "record" / "steps.csv").open(newline="") as stream:
        noted = {int(line["step"]) - 1: float(line["agreement"]) for line in csv.DictReader(stream) if line["agreement"]}
    history = {entry["step"]: entry["influence_agreement"] for entry in trainer.state.log_history if "influence_agreement" in entry}
    assert list(noted) == [0, 4, 8] and history == pytest.approx(noted)
    assert [(entry["train/global_step"], entry["train/influence_agreement"]) for entry in told] == list(history.items())
    model = fresh_decoder().model.eval()
    query_loss(model).backward()
    wanted = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert noted[0] == pytest.approx(float(torch.cosine_similarity(watch.gradients[0], wanted, dim=0)), rel=1e-4)


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    watch, _ = record(tmp_path, gradient_accumulation_steps=2, count=9)
    found = load_checkpoints(tmp_path / "record")
    assert [point.step for point in found] == [1, 2, 3, 4, 5, 6]
    assert [point.batch_size for point in found] == [8, 2] * 3
    assert found[0].row_ids is not None and len(set(found[0].row_ids)) == 8 == len(watch.inputs[0]) + len(watch.inputs[1])


@pytest.mark.parametrize("kill_at", [4, 8])
def test_a_killed_and_resumed_training_records_the_same(kill_at: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"count": 4, "query_loss": query_loss, "agreement_every": 3, "save_strategy": "steps", "save_steps": 2}
    record(tmp_path / "whole", **settings)
    folder = tmp_path / "killed"
    with pytest.raises(RuntimeError, match="power cut"):
        record(folder, die_at=kill_at, **settings)
    state = folder / "state" / f"checkpoint-{kill_at - 2}"
    record(folder, fresh_decoder(seed=1), resume_from_checkpoint=str(state), **settings)
    assert record_of(folder / "record") == record_of(tmp_path / "whole" / "record")


def test_of_an_adapter_the_adapter_alone_is_recorded(tmp_path: Path) -> None:
    decoder = with_adapter(fresh_decoder())
    record(tmp_path, decoder, label_names=["labels"])
    other = with_adapter(fresh_decoder(seed=1))
    load_checkpoints(tmp_path / "record")[-1].load_weights(other.model)
    trained = dict(decoder.model.named_parameters())
    assert all(torch.equal(p, trained[name]) for name, p in other.model.named_parameters() if p.requires_grad)


def test_a_callback_may_be_added_later(tmp_path: Path) -> None:
    trainer = make_transformers(fresh_decoder(), tmp_path / "state", [], max_steps=2)
    trainer.add_callback(TransformersRecorder(tmp_path / "record"))
    trainer.train()
    assert [point.step for point in load_checkpoints(tmp_path / "record")] == [1, 2]
