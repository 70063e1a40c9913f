"""Tensors that lie one behind another, as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fllmc.ir.diagnostics import InternalError


def adjoining(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One flat view of tensors that lie one behind another; InternalError if they do not."""
    at = tensors[0].data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != at or not tensor.is_contiguous():
            raise InternalError("tensors that are used as one do not adjoin")
        at += tensor.numel() * tensor.element_size()
    return tensors[0].as_strided((sum(tensor.numel() for tensor in tensors),), (1,))
