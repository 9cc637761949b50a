"""Callbacks for a training of one's own: record points at which influence can be asked afterwards (`python -m teacher`, `checkpoints:`).

Lightning:     Trainer(callbacks=[LightningRecorder("runs/record")])
transformers:  Trainer(..., callbacks=[TransformersRecorder("runs/record")])
"""
