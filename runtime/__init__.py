"""Executes an artifact: ranks, communication, buffers, data, checkpoints, training, metrics."""
