"""From a named source to batches: bytes, tokens, windows in a fixed order, and a baseline."""
