"""The ops: each defined once, by the class of its attributes.

Whatever else is known of an op stands in one table per interpretation, kept with the interpreter
(evaluator, gradients, placement, torch and JAX lowerings). A test walks ops and tables.
"""

from fllmc.ir.ops.attention import Attend, AttendGrad, RingAttend, RingAttendGrad, Rope
from fllmc.ir.ops.base import Attrs, Env, Signature, TypeRuleError
from fllmc.ir.ops.blockwise import Blockwise, Dequantize, Quantize
from fllmc.ir.ops.bucketed import Bucketed
from fllmc.ir.ops.collective import (
    COLLECTIVES,
    AllGather,
    AllReduce,
    AllToAll,
    Coalesced,
    LocalSlice,
    ReduceScatter,
    Share,
)
from fllmc.ir.ops.contraction import (
    Dot,
    DotAdd,
    Pick,
    Put,
    PutAdd,
    Reduce,
    ReduceMax,
    ReduceSum,
    Reindex,
    Spread,
    Take,
)
from fllmc.ir.ops.convolution import Conv, ConvInput, ConvWeight
from fllmc.ir.ops.elementwise import (
    Add,
    AddN,
    Cast,
    Cos,
    Div,
    Elementwise,
    Erf,
    Exp,
    Fill,
    Iota,
    Less,
    Log,
    Maximum,
    Minimum,
    Mul,
    MulAdd,
    MulSub,
    Neg,
    Number,
    Pow,
    Random,
    Rename,
    Rsqrt,
    Sigmoid,
    Silu,
    SiluGrad,
    Sin,
    Sqrt,
    Stop,
    Sub,
    Tanh,
    Transpose,
    Where,
)
from fllmc.ir.ops.experts import (
    Combine,
    Dispatch,
    ExchangeRows,
    GroupedDot,
    GroupedOuter,
    Tally,
    TopK,
)
from fllmc.ir.ops.flight import STARTABLE, Wait
from fllmc.ir.ops.pipeline import Pipeline
from fllmc.ir.ops.record import Record
from fllmc.ir.ops.recurrence import Recur, RecurGrad
from fllmc.ir.ops.shift import Shift
from fllmc.ir.ops.structure import Call, Chunk, FromHost, Fused, Scan, ToHost, Unchunk

AnyAttrs = (
    Add
    | AddN
    | AllGather
    | AllReduce
    | AllToAll
    | Attend
    | AttendGrad
    | Bucketed
    | Call
    | Cast
    | Chunk
    | Coalesced
    | Combine
    | Conv
    | ConvInput
    | ConvWeight
    | Cos
    | Dequantize
    | Dispatch
    | Div
    | Dot
    | DotAdd
    | Erf
    | ExchangeRows
    | Exp
    | Fill
    | FromHost
    | Fused
    | GroupedDot
    | GroupedOuter
    | Iota
    | Less
    | LocalSlice
    | Log
    | Maximum
    | Minimum
    | Mul
    | MulAdd
    | MulSub
    | Neg
    | Number
    | Pick
    | Pipeline
    | Pow
    | Put
    | PutAdd
    | Quantize
    | Random
    | Recur
    | RecurGrad
    | Record
    | ReduceMax
    | ReduceScatter
    | ReduceSum
    | Reindex
    | Rename
    | RingAttend
    | RingAttendGrad
    | Rope
    | Rsqrt
    | Scan
    | Share
    | Shift
    | Sigmoid
    | Silu
    | SiluGrad
    | Sin
    | Spread
    | Sqrt
    | Stop
    | Sub
    | Take
    | Tally
    | Tanh
    | ToHost
    | TopK
    | Transpose
    | Unchunk
    | Wait
    | Where
)

OPS: dict[str, type[Attrs]] = {
    str(cls.__struct_config__.tag): cls for cls in AnyAttrs.__args__ if issubclass(cls, Attrs)
}

__all__ = [
    "COLLECTIVES",
    "OPS",
    "STARTABLE",
    "Add",
    "AddN",
    "AllGather",
    "AllReduce",
    "AllToAll",
    "AnyAttrs",
    "Attend",
    "AttendGrad",
    "Attrs",
    "Blockwise",
    "Bucketed",
    "Call",
    "Cast",
    "Chunk",
    "Coalesced",
    "Combine",
    "Conv",
    "ConvInput",
    "ConvWeight",
    "Cos",
    "Dequantize",
    "Dispatch",
    "Div",
    "Dot",
    "DotAdd",
    "Elementwise",
    "Env",
    "Erf",
    "ExchangeRows",
    "Exp",
    "Fill",
    "FromHost",
    "Fused",
    "GroupedDot",
    "GroupedOuter",
    "Iota",
    "Less",
    "LocalSlice",
    "Log",
    "Maximum",
    "Minimum",
    "Mul",
    "MulAdd",
    "MulSub",
    "Neg",
    "Number",
    "Pick",
    "Pipeline",
    "Pow",
    "Put",
    "PutAdd",
    "Quantize",
    "Random",
    "Record",
    "Recur",
    "RecurGrad",
    "Reduce",
    "ReduceMax",
    "ReduceScatter",
    "ReduceSum",
    "Reindex",
    "Rename",
    "RingAttend",
    "RingAttendGrad",
    "Rope",
    "Rsqrt",
    "Scan",
    "Share",
    "Shift",
    "Sigmoid",
    "Signature",
    "Silu",
    "SiluGrad",
    "Sin",
    "Spread",
    "Sqrt",
    "Stop",
    "Sub",
    "Take",
    "Tally",
    "Tanh",
    "ToHost",
    "TopK",
    "Transpose",
    "TypeRuleError",
    "Unchunk",
    "Wait",
    "Where",
]
