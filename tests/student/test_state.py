"""The saved state: what it holds, what is refused, and a training that goes on from it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from influcoder.errors import ConfigError, InflucoderError, RunError
from influcoder.runs import open_run, partial_folder
from student.config import OptimizerConfig, RecipeConfig, StudentConfig
from student.stage import run
from student.state import SafetensorsIO, state_file
from tests.student.test_kill import products
from tests.student.test_stage import make_config, run_stage

TRAINER = {"max_epochs": 3, "enable_progress_bar": False, "accelerator": "cpu", "log_every_n_steps": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average": {"optimizer": OptimizerConfig(learning_rate=5e-3, ema=0.8), "recipe": RecipeConfig(block_rows=16, max_batch_tokens=150)},
    "steps": {"trainer": TRAINER | {"max_epochs": -1, "max_steps": 8}},
    "one block": {"recipe": RecipeConfig(block_rows=64)},
    "no progress": {"optimizer": OptimizerConfig(learning_rate=1e-12), "patience": 1},
}


class Stopped(Exception):
    """Stands for a kill."""


class Stop(Callback):
    """Ends the training after a step, or after an epoch's validation."""

    def __init__(self, step: int = -1, epoch: int = -1) -> None:
        self.step, self.epoch = step, epoch

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise Stopped

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise Stopped


def config_of(teacher: Path, output: Path, **changes: Any) -> StudentConfig:
    return make_config(teacher, output, **({"save_every_seconds": 0.0, "trainer": TRAINER} | changes))


def run_until(config: StudentConfig, **moment: int) -> Path:
    """Run as far as a moment; return the state that is left."""
    stop = {"class_path": "tests.student.test_state.Stop", "init_args": moment}
    with pytest.raises(Stopped):
        run_stage(replace(config, trainer=config.trainer | {"callbacks": [stop]}))
    return state_file(partial_folder(Path(config.output)))


@pytest.fixture(scope="module")
def wholes(finished_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An uninterrupted run of each variant."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: run_stage(config_of(finished_teacher, folder / name, **changes)) for name, changes in VARIANTS.items()}


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        ("plain", [{"step": 1}, {"step": 3}, {"step": 5}, {"epoch": 0}, {"epoch": 2}]),  # an epoch has three steps
        ("average", [{"step": 2}, {"step": 8}, {"epoch": 1}]),
        ("steps", [{"step": 2}, {"step": 3}, {"step": 8}, {"epoch": 0}, {"epoch": 2}]),
        ("one block", [{"step": 2}, {"epoch": 0}, {"epoch": 1}]),
        ("no progress", [{"step": 5}, {"epoch": 1}]),  # after the second epoch it is to stop
    ],
)
def test_a_stopped_training_goes_on_to_the_same_bytes(
    name: str, moments: list[dict[str, int]], wholes: dict[str, Path], finished_teacher: Path, tmp_path: Path
) -> None:
    expected = products(wholes[name])
    for place, moment in enumerate(moments):
        config = config_of(finished_teacher, tmp_path / str(place), **VARIANTS[name])
        assert run_until(config, **moment).exists()
        made = run_stage(config)
        assert products(made) == expected, moment
        assert not state_file(made).exists()


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    saved: dict[str, Any] = {
        "state": {0: {"first": shared, "step": torch.tensor(3.0)}, 1: {"first": shared[:2], "half": torch.ones(2, 2).bfloat16().T}},
        "betas": (0.9, 0.999),
        "loops": {"tensor": "a word", "items": [], "none": None, "rate": 0.1 + 0.2},
        "empty": torch.empty(0, dtype=torch.int64),
    }
    SafetensorsIO().save_checkpoint(saved, tmp_path / "state.safetensors")
    found = SafetensorsIO().load_checkpoint(tmp_path / "state.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "state.safetensors"]
    assert found["betas"] == [0.9, 0.999] and found["loops"] == saved["loops"] and list(found) == list(saved)
    for place, state in saved["state"].items():
        for name, tensor in state.items():
            assert torch.equal(found["state"][place][name], tensor) and found["state"][place][name].dtype == tensor.dtype
    assert found["empty"].shape == (0,)


def test_a_state_that_cannot_be_saved_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.callbacks: one keeps what is neither a tensor nor JSON \(.*set.*\)"):
        SafetensorsIO().save_checkpoint({"callbacks": {"mine": {1, 2}}}, tmp_path / "state.safetensors")
    with pytest.raises(RunError, match=r"state\.safetensors: cannot be written \(.*\); the state before is kept"):
        SafetensorsIO().save_checkpoint({}, tmp_path / "missing" / "state.safetensors")


@pytest.fixture
def stopped(finished_teacher: Path, tmp_path: Path) -> tuple[StudentConfig, Path]:
    """A run that ended after its fifth step, and its state."""
    config = config_of(finished_teacher, tmp_path / "run", trainer=TRAINER | {"max_time": "00:01:00:00"})
    return config, run_until(config, step=5)


@pytest.mark.parametrize("place", [3, 40, 0.3, -1])
def test_a_damaged_state_is_refused_in_one_line(place: float, stopped: tuple[StudentConfig, Path]) -> None:
    config, state = stopped
    content = bytearray(state.read_bytes())
    content[int(place * len(content)) if isinstance(place, float) else place] ^= 0x15
    state.write_bytes(content)
    expected = (
        r"state\.safetensors: (checksum \S+, expected \S+; it is damaged|not a readable state .*); remove it to begin the training anew"
    )
    with pytest.raises(RunError, match=expected) as caught:
        run_stage(config)
    assert "\n" not in str(caught.value)
    state.unlink()
    run_stage(config)


@pytest.mark.parametrize("content", [b"", b"half of it"])
def test_what_is_no_state_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(content)
    with pytest.raises(RunError, match="not a readable state of a training"):
        SafetensorsIO().load_checkpoint(tmp_path / "state.safetensors")


def test_another_config_or_another_teacher_is_refused(
    stopped: tuple[StudentConfig, Path], finished_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = stopped
    with pytest.raises(RunError, match=r"unfinished work of another config \(there `resolved: yaml`, now `resolved: other`\)"):
        run(config, "resolved: other\n")
    teacher = Path(shutil.copytree(finished_teacher, tmp_path / "teacher"))
    record = json.loads((teacher / "run.json").read_text())
    (teacher / "run.json").write_text(json.dumps(record | {"seconds": 1e9}))
    with pytest.raises(
        InflucoderError, match=r"began with a teacher whose run\.json had checksum \w+, that of .* has \w+; expected the same"
    ):
        run_stage(replace(config, teacher=str(teacher)))
    run_stage(config)  # nothing was lost


def change_state(state: Path, callback: str, **changes: Any) -> None:
    """Write a state anew, in which a callback keeps something else."""
    content = SafetensorsIO().load_checkpoint(state)
    content["callbacks"][callback] |= changes
    SafetensorsIO().save_checkpoint(content, state)


def test_the_time_that_was_used_counts(stopped: tuple[StudentConfig, Path]) -> None:
    config, state = stopped
    change_state(state, "Timer", time_elapsed={"train": 3601.0})
    change_state(state, "SaveState", seconds=5000.0)
    record = open_run(run_stage(config), "student")
    log = (Path(config.output) / "log" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log[1:]] == ["0"] * 4 + ["1"] * 2  # as far as it was saved
    assert record["validation"]["epoch"] == 0
    assert 5000 < record["seconds"] < 5100


def test_a_training_whose_time_was_up_before_its_first_validation_has_a_figure(finished_teacher: Path, tmp_path: Path) -> None:
    config = config_of(finished_teacher, tmp_path / "run", trainer=TRAINER | {"max_time": "00:01:00:00"})
    change_state(run_until(config, step=2), "Timer", time_elapsed={"train": 3601.0})
    assert -1 <= open_run(run_stage(config), "student")["validation"]["per_query_spearman"] <= 1


def test_a_state_is_saved_no_more_often_than_asked(finished_teacher: Path, tmp_path: Path) -> None:
    config = config_of(finished_teacher, tmp_path / "run", save_every_seconds=3600.0)
    assert not run_until(config, epoch=1).exists()
    assert not partial_folder(tmp_path / "run").exists()  # nothing worth resuming
