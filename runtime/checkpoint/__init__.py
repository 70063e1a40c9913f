"""Checkpoints: safetensors pieces and a manifest with hashes, committed by one rename."""
