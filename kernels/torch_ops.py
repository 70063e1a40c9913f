"""The namespace that generated code calls: every kernel in plain torch.

Kernels write into given views of any strides, take no part in autograd and never wait for a device,
but for the grouped products of experts: where torch has no single call for them, they read how many
rows each expert has.
"""

from fllmc.kernels.attention import attend, attend_grad
from fllmc.kernels.attention_parts import attend_part, attend_part_grad
from fllmc.kernels.blockwise import dequantize, quantize
from fllmc.kernels.convolution import conv, conv_input, conv_weight
from fllmc.kernels.dropout import random, random_parts
from fllmc.kernels.experts import combine, dispatch, grouped_dot, grouped_outer, tally, top_k
from fllmc.kernels.indexing import keep, pick, put_add, spread, take
from fllmc.kernels.recurrence import recur, recur_grad
from fllmc.kernels.rope import rope, rope_table

__all__ = [
    "attend",
    "attend_grad",
    "attend_part",
    "attend_part_grad",
    "combine",
    "conv",
    "conv_input",
    "conv_weight",
    "dequantize",
    "dispatch",
    "grouped_dot",
    "grouped_outer",
    "keep",
    "pick",
    "put_add",
    "quantize",
    "random",
    "random_parts",
    "recur",
    "recur_grad",
    "rope",
    "rope_table",
    "spread",
    "take",
    "tally",
    "top_k",
]
