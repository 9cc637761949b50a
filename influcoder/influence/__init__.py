"""Gradient influence of a decoder: capture, projection, fine-tuning. Needs the extra `train` (torch)."""
