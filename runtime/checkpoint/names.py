"""The names of tensors in a checkpoint: those the user sees, whatever the storage."""

from __future__ import annotations

STATE_MARK = "#"


def layer_path(path: str, stack: str, layer: int) -> str:
    """The name of a stacked parameter's layer: `body.attn.wq` in `body` is `body.7.attn.wq`."""
    inner = path.removeprefix(f"{stack}.")
    if inner == path:
        raise ValueError(f"`{path}` is not in the stack `{stack}`")
    return f"{stack}.{layer}.{inner}"


def state_path(path: str, state: str) -> str:
    """The name of an optimizer's state for a parameter: `body.7.attn.wq#m`."""
    return f"{path}{STATE_MARK}{state}"
