"""The truth here: the same training without a recorder, watched by other means; what an uninterrupted recording holds."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from influcoder.callbacks.lightning_recorder import LightningRecorder
from influcoder.callbacks.recorder import Recorder, count_rows, gradient_agreement, remaining_steps
from influcoder.errors import ConfigError
from influcoder.influence.checkpoints import load_checkpoints
from influcoder.influence.decoder import Decoder, fingerprint_model
from tests.influcoder.recorded_training import BATCH, STEPS, Module, query_loss, record_of, train_lightning
from tests.influcoder.tiny_decoders import fresh_decoder, gpt2_decoder, with_adapter

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT's own
RATES = [1e-2 * (1 - step / 20) for step in range(STEPS)]


class Watch(Callback):
    """Notes weights, learning rates and gradients by other hooks; saves the trainer's own state, and ends, where it is told to."""

    def __init__(self, save_at: int = -1, state: Path | None = None, die_at: int = -1) -> None:
        self.save_at, self.state, self.die_at = save_at, state, die_at
        self.weights: list[dict[str, Tensor]] = []
        self.gradients: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *others: Any) -> None:
        self.weights.append({name: parameter.detach().clone() for name, parameter in decoder_of(pl_module).named_parameters()})

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.gradients.append({n: p.grad.clone() for n, p in decoder_of(pl_module).named_parameters() if p.grad is not None})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.save_at:
            trainer.save_checkpoint(self.state)  # type: ignore[arg-type]  # given with save_at

    def on_train_batch_end(self, trainer: Trainer, *others: Any) -> None:
        if trainer.global_step == self.die_at:
            raise RuntimeError("power cut")


def decoder_of(module: LightningModule) -> nn.Module:
    assert isinstance(module.model, nn.Module)
    return module.model


def lines_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "steps.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def record(folder: Path, decoder: Decoder | None = None, **settings: Any) -> tuple[Module, Watch]:
    """Train with a recorder in `folder / "record"`."""
    trainer = {name: settings.pop(name) for name in ("max_epochs", "max_steps", "accumulate_grad_batches") if name in settings}
    watch, recorder = Watch(), LightningRecorder(folder / "record", **({"count": 3} | settings))
    return train_lightning(decoder or fresh_decoder(), folder, [watch, recorder], **trainer), watch


def test_points_hold_weights_rates_and_whose_rows_the_batch_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, watch = record(tmp_path)
    found = load_checkpoints(tmp_path / "record")
    assert [point.step for point in found] == [3, 6, 9]
    for place, point in enumerate(found):
        assert point.learning_rate == pytest.approx(sum(RATES[3 * place : 3 * place + 3]) / 3)
        assert point.batch_size == pytest.approx(10 / 3)
        assert point.row_ids == tuple(module.seen[point.step - 1])
        other = fresh_decoder(seed=1)
        point.load_weights(other.model)
        expected = watch.weights[point.step] if point.step < STEPS else dict(module.model.named_parameters())
        assert all(torch.equal(parameter, expected[name]) for name, parameter in other.model.named_parameters())
    lines = lines_of(tmp_path / "record")
    assert [int(line["step"]) for line in lines] == list(range(1, STEPS + 1))
    assert [float(line["learning_rate"]) for line in lines] == pytest.approx(RATES)
    assert [int(line["rows"]) for line in lines] == [len(ids) for ids in module.seen] == [4, 4, 2] * 3
    assert json.loads((tmp_path / "record" / "recording.json").read_text()) == {"steps": STEPS, "points": [3, 6, 9]}
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith(f"{tmp_path}/record: 3 points of 9 steps recorded, ") and said.endswith("% of the training")


def test_recording_leaves_the_training_as_it_is(tmp_path: Path) -> None:
    plain, recorded = gpt2_decoder(), gpt2_decoder()  # its dropout draws random numbers
    train_lightning(plain, tmp_path / "plain", [])
    record(tmp_path, recorded, query_loss=query_loss, agreement_every=1)
    assert fingerprint_model(recorded.model) == fingerprint_model(plain.model)


def test_agreement_is_the_cosine_of_the_batch_and_the_queries_gradients(tmp_path: Path) -> None:
    _, watch = record(tmp_path, query_loss=query_loss, agreement_every=4)
    lines = lines_of(tmp_path / "record")
    assert [line["agreement"] != "" for line in lines] == [step % 4 == 0 for step in range(STEPS)]
    logged = {int(line["step"]): float(line["influence_agreement"]) for line in metrics_of(tmp_path)}
    for step in (0, 4, 8):
        other = fresh_decoder()
        other.model.load_state_dict(watch.weights[step], strict=False)
        other.model.zero_grad()
        query_loss(other.model.eval()).backward()
        wanted = {name: parameter.grad for name, parameter in other.model.named_parameters()}
        pairs = [(watch.gradients[step][name].double(), gradient.double()) for name, gradient in wanted.items() if gradient is not None]
        product = sum(float((a * b).sum()) for a, b in pairs)
        lengths = math.sqrt(sum(float((a * a).sum()) for a, _ in pairs) * sum(float((b * b).sum()) for _, b in pairs))
        assert float(lines[step]["agreement"]) == pytest.approx(product / lengths, rel=1e-4)
        assert logged[step] == pytest.approx(float(lines[step]["agreement"]))


def metrics_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "log" / "metrics.csv").open(newline="") as stream:
        return [line for line in csv.DictReader(stream) if line.get("influence_agreement")]


def test_agreement_of_opposite_and_of_absent_gradients() -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    model.train()
    assert gradient_agreement(model, lambda m: -m(torch.tensor([[3.0, 4.0]])).sum()) == pytest.approx(-1)
    assert gradient_agreement(model, lambda m: m(torch.tensor([[4.0, -3.0]])).sum()) == pytest.approx(0, abs=1e-7)
    assert gradient_agreement(model, lambda m: 0 * m(torch.ones(1, 2)).sum()) == 0
    assert model.training and torch.equal(model.weight.grad, torch.tensor([[3.0, 4.0]]))


@pytest.mark.parametrize("kill_at", [4, 5, 8])
def test_a_killed_and_resumed_training_records_the_same(kill_at: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"count": 4, "query_loss": query_loss, "agreement_every": 3}
    train_lightning(fresh_decoder(), tmp_path / "whole", [LightningRecorder(tmp_path / "whole" / "record", **settings)])
    folder, state, saved_at = tmp_path / "killed", tmp_path / "state.ckpt", 3 if kill_at < 6 else 6
    recorder = LightningRecorder(folder / "record", **settings)
    with pytest.raises(RuntimeError, match="power cut"):
        train_lightning(fresh_decoder(), folder, [recorder, Watch(saved_at, state, kill_at)])
    assert len(lines_of(folder / "record")) == kill_at
    (folder / "record" / ".2.writing").mkdir()
    with (folder / "record" / "steps.csv").open("a") as stream:
        stream.write("1")  # the kill cut a line, of step 10 or more
    for point in load_checkpoints(folder / "record"):
        if point.step > saved_at:
            (point.folder / "weights.safetensors").write_bytes(b"of a step that is taken again")
    train_lightning(fresh_decoder(seed=1), folder, [LightningRecorder(folder / "record", **settings)], state=state)
    assert record_of(folder / "record") == record_of(tmp_path / "whole" / "record")


def test_a_killed_training_that_begins_anew_records_anew(tmp_path: Path) -> None:
    record(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        train_lightning(fresh_decoder(), tmp_path, [LightningRecorder(tmp_path / "record", count=9), Watch(die_at=4)])
    record(tmp_path)
    assert record_of(tmp_path / "record") == record_of(tmp_path / "whole" / "record")


def test_a_longer_training_goes_on_behind_a_finished_one(tmp_path: Path) -> None:
    state = tmp_path / "state.ckpt"
    train_lightning(fresh_decoder(), tmp_path, [LightningRecorder(tmp_path / "record", count=3), Watch(9, state)])
    recorder = LightningRecorder(tmp_path / "record", count=5)
    train_lightning(fresh_decoder(), tmp_path, [recorder], state=state, max_epochs=6)
    assert [point.step for point in load_checkpoints(tmp_path / "record")] == [3, 6, 9, 14, 18]
    assert [int(line["step"]) for line in lines_of(tmp_path / "record")] == list(range(1, 19))


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    module, _ = record(tmp_path, accumulate_grad_batches=2, count=9)
    found = load_checkpoints(tmp_path / "record")
    assert [point.step for point in found] == [1, 2, 3, 4, 5, 6]
    assert found[0].row_ids == tuple(module.seen[0] + module.seen[1]) and found[1].row_ids == tuple(module.seen[2])
    assert [point.batch_size for point in found] == [8, 2] * 3


def test_the_last_step_of_a_training_that_stops_early_is_a_point(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *others: Any) -> None:
            trainer.should_stop = trainer.global_step >= 5

    train_lightning(fresh_decoder(), tmp_path, [Stop(), LightningRecorder(tmp_path / "record", count=2)])
    assert [point.step for point in load_checkpoints(tmp_path / "record")] == [4, 5]


def test_disk_is_bounded(tmp_path: Path) -> None:
    record(tmp_path / "free", count=1)
    each = sum(path.stat().st_size for path in (tmp_path / "free" / "record" / "0").iterdir())
    record(tmp_path, count=9, max_bytes=int(2.5 * each))
    assert [point.step for point in load_checkpoints(tmp_path / "record")] == [4, 9]
    with pytest.raises(ConfigError, match=r"a point takes [\d,]+ bytes, max_bytes is 1,000; expected room for one"):
        record(tmp_path / "less", max_bytes=1000)


def test_of_an_adapter_the_adapter_alone_is_recorded(tmp_path: Path) -> None:
    decoder = with_adapter(fresh_decoder())
    record(tmp_path, decoder)
    other = with_adapter(fresh_decoder(seed=1))
    load_checkpoints(tmp_path / "record")[-1].load_weights(other.model)
    trained = dict(decoder.model.named_parameters())
    assert all(torch.equal(p, trained[name]) for name, p in other.model.named_parameters() if p.requires_grad)


def test_ids_may_come_from_a_function_or_not_at_all(tmp_path: Path) -> None:
    module, _ = record(tmp_path / "a", row_ids=lambda batch: [f"{row_id}!" for row_id in batch["row_id"]])
    assert load_checkpoints(tmp_path / "a" / "record")[0].row_ids == tuple(f"{row_id}!" for row_id in module.seen[2])
    record(tmp_path / "b", row_ids="nothing")
    point = load_checkpoints(tmp_path / "b" / "record")[0]
    assert point.row_ids is None and point.batch_size == pytest.approx(10 / 3)


def test_several_processes_make_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "_from_first", lambda self, number: number)
    monkeypatch.setattr(Recorder, "_gathered", lambda self, ids: [*ids, "theirs"])
    decoder, recorder = fresh_decoder(), Recorder(tmp_path / "record", count=1)
    optimizer = torch.optim.AdamW(decoder.model.parameters())
    recorder.begin(decoder.model, optimizer, done=0, total=1, processes=2)
    recorder.batch(1, ["mine"])
    recorder.before_step(0.5)
    recorder.step()
    (point,) = load_checkpoints(tmp_path / "record")
    assert point.batch_size == 2 and point.row_ids == ("mine", "theirs")
    silent = Recorder(tmp_path / "other")
    silent.begin(decoder.model, optimizer, done=0, total=1, writes=False, processes=2)
    silent.batch(1, None)
    silent.before_step(0.5)
    silent.step()
    assert silent.end() is None and not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("total", "count", "done", "saved", "expected"),
    [
        (9, 3, 0, 0, [3, 6, 9]),
        (10, 4, 0, 0, [2, 5, 7, 10]),
        (10, 4, 5, 2, [7, 10]),
        (10, 4, 4, 1, [5, 7, 10]),
        (10, 4, 5, 0, [7, 10]),
        (2, 5, 0, 0, [1, 2]),
        (18, 5, 9, 3, [14, 18]),
        (18, 3, 9, 3, []),
        (18, 6, 9, 5, [18]),
    ],
)
def test_points_are_spread_over_the_run(total: int, count: int, done: int, saved: int, expected: list[int]) -> None:
    assert remaining_steps(total, count, done, saved) == expected


def test_rows_are_counted_however_a_batch_is_nested() -> None:
    assert count_rows({"id": ["a"], "x": (torch.zeros(3, 2),)}) == 3
    assert count_rows([torch.tensor(1.0)]) == 1 and count_rows({"a": "b"}) == 0 and count_rows(None) == 0


def test_what_cannot_be_recorded_is_refused_in_one_line(tmp_path: Path) -> None:
    record(tmp_path)
    before = record_of(tmp_path / "record")
    with pytest.raises(ConfigError, match="record: holds a finished recording; expected a new place"):
        record(tmp_path)
    assert record_of(tmp_path / "record") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match="mine: holds something else than a recording"):
        train_lightning(fresh_decoder(), tmp_path, [LightningRecorder(tmp_path / "mine")])
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(ConfigError, match="Module has no module 'lm'; expected the decoder there"):
        train_lightning(fresh_decoder(), tmp_path, [LightningRecorder(tmp_path / "new", model="lm")])
    with pytest.raises(ConfigError, match="to take inf steps; expected a number that is known"):
        train_lightning(fresh_decoder(), tmp_path, [LightningRecorder(tmp_path / "new")], max_epochs=-1)
    empty = nn.Linear(2, 1)
    empty.weight = nn.Parameter(torch.empty(0))
    with pytest.raises(ConfigError, match="sharded over processes"):
        Recorder(tmp_path / "new").begin(empty, torch.optim.SGD(empty.parameters()), done=0, total=1)
    for wrong in ({"count": 0}, {"agreement_every": 0}, {"max_bytes": -1}):
        with pytest.raises(ConfigError, match="expected at least 1 each"):
            Recorder(tmp_path / "new", **wrong)  # type: ignore[arg-type]  # a dict of numbers
    assert not (tmp_path / "new").exists() and BATCH == 4
