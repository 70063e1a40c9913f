"""Checkpoints of other formats: folders of safetensors files with a `config.json`, both ways."""
