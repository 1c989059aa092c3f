"""The training loop and what it keeps: evaluation, checkpoints, tracking."""
