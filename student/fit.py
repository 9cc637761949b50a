"""The training: a Lightning Trainer that goes on from a saved state, in one process or in several that share every block.

    python -m student CONFIG.yaml --trainer.devices 2 --trainer.strategy ddp
    torchrun --nproc_per_node 2 -m student CONFIG.yaml --trainer.devices 2 --trainer.strategy ddp

All processes load the same and plan the same blocks; the first validates, saves, logs and writes the run.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from influcoder.runs import Run
from influcoder.training import make_trainer
from student.config import StudentConfig
from student.dashboard import wandb_loggers
from student.data import DistillationData
from student.module import Distillation, KeepBest
from student.state import SafetensorsIO, SaveState, state_file


def is_first_process() -> bool:
    """Return whether this process does what is done once; torchrun gives the others a RANK, Lightning a LOCAL_RANK or NODE_RANK."""
    return not any(int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def fit(config: StudentConfig, module: Distillation, data: DistillationData, best: KeepBest, made: Run) -> Trainer:
    """Train until the end, from the state in the run's folder where there is one; return the trainer, whose loggers are still open.

    Raises:
        ConfigError: when the trainer cannot be made, or there are more processes than texts in a block.
        RunError: when the state is damaged, of another teacher, or cannot be written.
    """
    saving, state = SaveState(made.folder, config.save_every_seconds, Path(config.teacher)), state_file(made.folder)
    trainer = make_trainer(
        config.trainer,
        made.folder,
        [best, saving],
        max_epochs=0 if config.encoder.fitted else 20,
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        reload_dataloaders_every_n_epochs=1,
    )
    trainer.strategy.checkpoint_io = SafetensorsIO()
    if isinstance(trainer.strategy, DDPStrategy):  # an encoder may have weights that no embedding needs, such as BERT's pooler
        trainer.strategy._ddp_kwargs["find_unused_parameters"] = True
    for logger in wandb_loggers(trainer):
        logger.log_hyperparams(asdict(config))
    module.train()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=state if state.exists() else None)
        module.to("cpu")
        if best.best < -1:  # the time was up before the first validation
            best.take(best.measure(module.result), module.result, trainer.current_epoch)
    finally:
        made.worth_resuming |= state.exists()
        made.seconds_before = saving.seconds_before
    return trainer
