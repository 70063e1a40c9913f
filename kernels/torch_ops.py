"""The namespace that generated code calls: every kernel in plain torch.

Kernels write into given views of any strides, take no part in autograd and never wait for a device.
"""

from fllmc.kernels.attention import attend, attend_grad
from fllmc.kernels.attention_parts import attend_part, attend_part_grad
from fllmc.kernels.dropout import random, random_parts
from fllmc.kernels.indexing import keep, pick, put_add, spread, take
from fllmc.kernels.rope import rope, rope_table

__all__ = [
    "attend",
    "attend_grad",
    "attend_part",
    "attend_part_grad",
    "keep",
    "pick",
    "put_add",
    "random",
    "random_parts",
    "rope",
    "rope_table",
    "spread",
    "take",
]
