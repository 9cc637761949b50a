"""The truth here: the schedule written out, and the optimiser and the model that the training left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from influcoder.callbacks.lightning_recorder import LightningRecorder
from influcoder.errors import RunError
from influcoder.influence.capture import gradient_layers
from influcoder.influence.checkpoints import Checkpoint, load_checkpoints, save_checkpoint
from influcoder.influence.decoder import Decoder
from influcoder.influence.finetune import AdapterConfig, FinetuneConfig, add_adapter, finetune
from influcoder.influence.tokens import token_batches, tokenize
from influcoder.training import make_trainer, silence_hints
from tests.influcoder.tiny_decoders import ROWS, fresh_decoder, gpt2_decoder

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT's own


class Watch(Callback):
    """Notes the weights after every step, and Adam's moments after the last."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *others: object) -> None:
        model = pl_module.model
        assert isinstance(model, torch.nn.Module)
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.weights.append({name: parameter.detach().clone() for name, parameter in trained.items()})
        state = trainer.optimizers[0].state
        if trainer.global_step:
            self.moments = {
                name: (state[parameter]["exp_avg"].clone(), state[parameter]["exp_avg_sq"].clone()) for name, parameter in trained.items()
            }


def train(decoder: Decoder, folder: Path, count: int, epochs: int = 3, accumulate: int = 1) -> tuple[Watch, FinetuneConfig]:
    silence_hints()
    watch = Watch()
    config = FinetuneConfig(epochs=epochs, learning_rate=1e-2, warmup_share=0.25, max_batch_tokens=60, checkpoints=count)
    callbacks = [LightningRecorder(folder / "checkpoints", count=config.checkpoints), watch]
    trainer = make_trainer(
        {"enable_progress_bar": False, "accelerator": "cpu", "accumulate_grad_batches": accumulate},
        folder,
        callbacks,
        max_epochs=epochs,
        log_every_n_steps=1,
        gradient_clip_val=1.0,
    )
    finetune(decoder, tokenize(ROWS, decoder), config, trainer)
    return watch, config


def scheduled(config: FinetuneConfig, steps: int) -> list[float]:
    """Return the learning rate of every step: a line up from 0 to the peak, a line down towards 0."""
    warm = int(config.warmup_share * steps)
    return [config.learning_rate * (step / warm if step < warm else (steps - step) / (steps - warm)) for step in range(steps)]


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_points_lie_at_equal_distances_with_their_mean_learning_rate_and_weights(count: int, tmp_path: Path) -> None:
    decoder = fresh_decoder()
    watch, config = train(decoder, tmp_path, count)
    steps = 3 * len(token_batches(tokenize(ROWS, decoder), 60))
    assert steps == len(watch.weights) == 6
    found = load_checkpoints(tmp_path / "checkpoints")
    ends = [6 * (place + 1) // count for place in range(count)]
    assert [checkpoint.step for checkpoint in found] == ends and ends[-1] == 6
    rates = scheduled(config, steps)
    for place, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        assert found[place].folder == tmp_path / "checkpoints" / str(place)
        assert found[place].learning_rate == pytest.approx(sum(rates[start:end]) / (end - start))
        other = fresh_decoder()
        other.model.requires_grad_(False)  # weights come all the same
        found[place].load_weights(other.model)
        for name, parameter in other.model.named_parameters():
            assert torch.equal(parameter, watch.weights[end - 1][name]), name
    for name, parameter in decoder.model.named_parameters():
        assert torch.equal(parameter, watch.weights[-1][name]), "the last point is the finished decoder"


def test_more_points_than_steps_are_one_a_step(tmp_path: Path) -> None:
    train(fresh_decoder(), tmp_path, count=5, epochs=1)
    assert [checkpoint.step for checkpoint in load_checkpoints(tmp_path / "checkpoints")] == [1, 2]


def test_steps_of_several_batches_are_counted_as_steps(tmp_path: Path) -> None:
    _, config = train(fresh_decoder(), tmp_path, count=5, accumulate=2)
    found = load_checkpoints(tmp_path / "checkpoints")
    assert [checkpoint.step for checkpoint in found] == [1, 2, 3]
    assert [checkpoint.learning_rate for checkpoint in found] == pytest.approx(scheduled(config, 3))


def test_moments_are_the_optimizers_and_lie_as_gradients_do(tmp_path: Path) -> None:
    decoder = gpt2_decoder()
    watch, _ = train(decoder, tmp_path, count=2)
    (_, last), layers = load_checkpoints(tmp_path / "checkpoints"), gradient_layers(decoder.model)
    moments = last.moments(decoder.model, layers)
    assert moments.first.keys() == moments.second.keys() == layers.keys()
    for name, layer in layers.items():
        first, second = watch.moments[f"{name}.weight"]
        assert torch.equal(moments.first[name], first.T) and torch.equal(moments.second[name], second.T)  # a Conv1D's weight is (I, O)
        assert moments.first[name].shape == (layer.out_features, layer.in_features)


def test_of_an_adapter_training_the_adapter_alone_is_kept(tmp_path: Path) -> None:
    decoder = add_adapter(fresh_decoder(), AdapterConfig(rank=2), seed=0)
    watch, _ = train(decoder, tmp_path, count=1)
    (checkpoint,) = load_checkpoints(tmp_path / "checkpoints")
    layers = gradient_layers(decoder.model)
    weights = load_file(checkpoint.folder / "weights.safetensors")
    assert len(weights) == 28 and all("lora_" in name for name in weights)
    other = add_adapter(fresh_decoder(), AdapterConfig(rank=2), seed=1)
    checkpoint.load_weights(other.model)
    expected = dict(decoder.model.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in other.model.named_parameters())
    moments = checkpoint.moments(other.model, layers_of_other := gradient_layers(other.model))
    assert layers_of_other.keys() == layers.keys()
    for name in layers:
        first, second = watch.moments[f"{name}.weight"]
        assert torch.equal(moments.first[name], first) and torch.equal(moments.second[name], second)


def saved(folder: Path, decoder: Decoder, step: int = 1, rate: float = 0.5) -> Checkpoint:
    """Save a point after one step of AdamW."""
    trained = [parameter for parameter in decoder.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    save_checkpoint(folder, decoder.model, optimizer, step, rate)
    return Checkpoint(folder, step, rate)


def test_points_come_in_the_order_of_their_steps(tmp_path: Path) -> None:
    steps = [30, 4, 100]
    expected = [saved(tmp_path / str(place), fresh_decoder(), step, step / 7) for place, step in enumerate(steps)]
    assert load_checkpoints(tmp_path) == [expected[1], expected[0], expected[2]]


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "0", fresh_decoder())
    other = gpt2_decoder()
    before = [parameter.clone() for parameter in other.model.parameters()]
    with pytest.raises(
        RunError, match=r"weights\.safetensors: parameter 'model\.\S+' is not the decoder's; expected a checkpoint"
    ) as caught:
        checkpoint.load_weights(other.model)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(one, two) for one, two in zip(before, other.model.parameters(), strict=True)), "nothing was changed"


def test_moments_that_lack_a_layer_are_refused(tmp_path: Path) -> None:
    decoder = fresh_decoder()
    decoder.model.model.layers[1].mlp.requires_grad_(False)
    checkpoint = saved(tmp_path / "0", decoder)
    with pytest.raises(RunError, match=r"adam\.safetensors: no 'first\.model\.layers\.1\.mlp\.gate_proj\.weight'; expected Adam's moments"):
        checkpoint.moments(decoder.model, gradient_layers(decoder.model))
    layers = {name: layer for name, layer in gradient_layers(decoder.model).items() if "layers.1.mlp" not in name}
    moments = checkpoint.moments(decoder.model, layers)
    for name in layers:  # one step on a gradient of ones
        torch.testing.assert_close(moments.first[name], torch.full_like(moments.first[name], 0.1))
        torch.testing.assert_close(moments.second[name], torch.full_like(moments.second[name], 0.001))
    state = load_file(checkpoint.folder / "adam.safetensors")
    del state["second.model.layers.0.mlp.up_proj.weight"]
    save_file(state, checkpoint.folder / "adam.safetensors")
    with pytest.raises(RunError, match=r"no 'second\.model\.layers\.0\.mlp\.up_proj\.weight'"):
        checkpoint.moments(decoder.model, layers)


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", '{"step": 3}', '{"step": "x", "learning_rate": 1}', '{"step": 1, "learning_rate": null}']
)
def test_an_unfinished_point_is_refused(content: str | None, tmp_path: Path) -> None:
    decoder = fresh_decoder()
    saved(tmp_path / "0", decoder)
    saved(tmp_path / "1", decoder)
    (tmp_path / "1" / "checkpoint.json").unlink()
    if content is not None:
        (tmp_path / "1" / "checkpoint.json").write_text(content)
    with pytest.raises(RunError, match=r"1.checkpoint\.json: not the record of a checkpoint .*; remove \S+1 or fine-tune anew") as caught:
        load_checkpoints(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("exists", [True, False])
def test_no_points_are_refused(exists: bool, tmp_path: Path) -> None:
    folder = tmp_path if exists else tmp_path / "none"
    with pytest.raises(RunError, match="no checkpoints; expected what a fine-tuning saves"):
        load_checkpoints(folder)


@pytest.mark.parametrize("name", ["weights", "adam"])
def test_an_unreadable_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    decoder = fresh_decoder()
    checkpoint = saved(tmp_path / "0", decoder)
    (checkpoint.folder / f"{name}.safetensors").write_bytes(b"cut off")
    with pytest.raises(RunError, match=rf"{name}\.safetensors: not readable \(.*\); expected part of a checkpoint") as caught:
        if name == "weights":
            checkpoint.load_weights(decoder.model)
        else:
            checkpoint.moments(decoder.model, gradient_layers(decoder.model))
    assert "\n" not in str(caught.value)


def test_the_record_says_what_is_known_of_the_step(tmp_path: Path) -> None:
    saved(tmp_path / "0", fresh_decoder(), step=12, rate=3e-4)
    expected = {"step": 12, "learning_rate": 3e-4, "batch_size": None, "row_ids": None}
    assert json.loads((tmp_path / "0" / "checkpoint.json").read_text()) == expected
    decoder = fresh_decoder()
    save_checkpoint(tmp_path / "1", decoder.model, torch.optim.AdamW(decoder.model.parameters()), 13, 1e-4, 7.5, ["a", "b"])
    assert load_checkpoints(tmp_path)[1] == Checkpoint(tmp_path / "1", 13, 1e-4, 7.5, ("a", "b"))
    (tmp_path / "0" / "checkpoint.json").write_text('{"step": 12, "learning_rate": 0.5}')  # of an older version
    assert load_checkpoints(tmp_path)[0] == Checkpoint(tmp_path / "0", 12, 0.5)


def test_a_point_that_is_being_written_is_none_yet(tmp_path: Path) -> None:
    saved(tmp_path / "0", fresh_decoder())
    (tmp_path / ".1.writing").mkdir()
    (tmp_path / "steps.csv").write_text("step\n")
    assert [checkpoint.step for checkpoint in load_checkpoints(tmp_path)] == [1]


def test_another_optimiser_leaves_no_moments(tmp_path: Path) -> None:
    decoder = fresh_decoder()
    optimizer = torch.optim.SGD(decoder.model.parameters(), lr=0.1, momentum=0.9)
    for parameter in decoder.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    save_checkpoint(tmp_path / "0", decoder.model, optimizer, 1, 0.1)
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == ["checkpoint.json", "weights.safetensors"]
    with pytest.raises(RunError, match=r"adam\.safetensors: not readable"):
        load_checkpoints(tmp_path)[0].moments(decoder.model, gradient_layers(decoder.model))


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    model = nn.Linear(3, 2, bias=False)
    save_file({"weight": torch.ones(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(RunError, match=r"'weight' has shape \(1,\), expected \(2, 3\)"):
        Checkpoint(tmp_path, 1, 0.1).load_weights(model)
