"""Bugs that a compiler of training steps could have, each as one change of a pass's source.

`old` stands exactly once in the module. With `new` instead, compiling or computing a step with
these techniques must show that something is wrong.
"""

from __future__ import annotations

import msgspec


class Bug(msgspec.Struct, frozen=True):
    """One planted bug: what it does, where, and the techniques that it is looked for with.

    `compute` is the dtype of computation; casts change no number that the evaluator gives.
    """

    name: str
    module: str
    old: str
    new: str
    techniques: tuple[str, ...]
    compute: str = "f64"


MICRO = ("data", "accumulate")
GRID = ("data", "tensor", "accumulate")
HYBRID = ("data", "zero 2", "accumulate")
WHOLE = ("zero 3", "accumulate")
LATE = ("zero 1", "accumulate")

BUGS = (
    Bug(
        "a transfer is waited for an op too late",
        "passes.flights",
        "for flight in flights.values() if flight.end == at)",
        "for flight in flights.values() if flight.end == at - 1)",
        ("zero 3",),
    ),
    Bug(
        "what one call gives is waited for in part",
        "passes.prefetch",
        "done = b.emit(Wait(), *(mapping[value] for value in op.results))",
        "done = b.emit(Wait(), *(mapping[value] for value in op.results[:1]))",
        ("zero 3",),
    ),
    Bug(
        "what the next turn takes is put away behind it",
        "passes.side_work",
        "carried = set(self.function.results[: self.attrs.carries])",
        "carried = set(self.function.results[:0])",
        ("tensor",),
    ),
    Bug(
        "a sum that the turn needs is put behind it",
        "passes.side_work",
        "if all(self.users.get(value, set()) <= late for value in op.results):",
        "if moves or all(self.users.get(value, set()) <= late for value in op.results):",
        ("tensor",),
    ),
    Bug(
        "the last turn of its own takes its operands in their old order",
        "passes.prefetch",
        "for number in self.operands(range(len(final.inputs))):",
        "for number in range(len(final.inputs)):",
        ("zero 3", "accumulate", "frozen"),
    ),
    Bug(
        "gradients of a stack come back in their old order",
        "passes.prefetch",
        "results = [op.results[r] for r in (*self.carries, *self.kept, *self.moved)]",
        "results = [*op.results[:1], *reversed(op.results[1:])]",
        ("zero 3",),
    ),
    Bug(
        "all but the last micro-batch's gradient is lost",
        "passes.accumulate",
        "results.append(b.add(sums[output], share))",
        "results.append(share)",
        MICRO,
    ),
    Bug(
        "a stack's gradient is that of the last micro-batch",
        "passes.accumulate",
        "results[result] = b.add(total, in_precision(b, results[result], reduce))",
        "results[result] = in_precision(b, results[result], reduce)",
        MICRO,
    ),
    Bug(
        "gradients are sums over tokens, not means",
        "passes.accumulate",
        "seed = b.div(b.constant(1.0), count)",
        "seed = b.constant(1.0)",
        MICRO,
    ),
    Bug(
        "the loss is not divided by the count",
        "passes.accumulate",
        "done = b.finish([b.div(loss, count), *grads]",
        "done = b.finish([loss, *grads]",
        MICRO,
    ),
    Bug(
        "a value used twice has the gradient of one use",
        "passes.reverse",
        "total = self.b.one(Add() if len(found) == 2 else AddN(), *found)",
        "total = found[0]",
        GRID,
    ),
    Bug(
        "a reciprocal root's slope has the wrong sign",
        "passes.gradients",
        "return s.b.mul(s.b.constant(-0.5), cube)",
        "return s.b.mul(s.b.constant(0.5), cube)",
        ("data",),
    ),
    Bug(
        "rotary positions are not turned back",
        "passes.gradients",
        "back = msgspec.structs.replace(attrs, inverse=not attrs.inverse)",
        "back = attrs",
        ("data",),
    ),
    Bug(
        "a partial sum is used as if it were whole",
        "passes.place.reshard",
        "axes = tuple(axis for axis in kind.partial if axis not in keep)\n    if axes:",
        "axes = ()\n    if axes:",
        GRID,
    ),
    Bug(
        "one gradient is missing in the norm",
        "passes.optimizer_step",
        'outputs["grad_norm"] = norm(b, list(found.values()))',
        'outputs["grad_norm"] = norm(b, list(found.values())[1:])',
        ("data",),
    ),
    Bug(
        "gradients are never clipped",
        "passes.optimizer_step",
        "slope = b.mul(b.cast(slope, b.types[scale].dtype), scale)",
        "slope = b.cast(slope, b.types[scale].dtype)",
        ("data",),
    ),
    Bug(
        "decay is spared for all",
        "passes.step_equations",
        '"" if parameter.decays else "no_decay"',
        '"no_decay"',
        ("data",),
    ),
    Bug(
        "differences sink as sums",
        "passes.sink_sums",
        "MulSub() if isinstance(op.attrs, Sub) else MulAdd()",
        "MulAdd()",
        ("data",),
    ),
    Bug(
        "ops of different attributes are taken for equal",
        "passes.share_equal",
        "key = (encode(op.attrs), operands)",
        "key = (op.kind.encode(), operands)",
        ("data",),
    ),
    Bug(
        "a layer is recomputed from another layer's input",
        "passes.recompute_rewrite",
        "return msgspec.structs.replace(scan, function=name, slices=len(inlets.slices))",
        "return msgspec.structs.replace(\n"
        "        scan, function=name, slices=len(inlets.slices), reverse=not scan.reverse\n    )",
        ("recompute",),
    ),
    Bug(
        "what is frozen is stepped",
        "passes.optimizer_step",
        "changed = [parameter for parameter in program.parameters if parameter.trainable]",
        "changed = list(program.parameters)",
        ("frozen",),
    ),
    Bug(
        "a rank keeps its part of its own sum, not of all ranks'",
        "passes.place.reshard",
        "step(ReduceScatter(dim, run) if is_open else LocalSlice(dim, run))",
        "step(LocalSlice(dim, run))",
        LATE,
    ),
    Bug(
        "a gradient is summed over one axis of two",
        "passes.place.reshard",
        "axes = tuple(axis for axis in kind.partial if axis not in keep)",
        "axes = tuple(axis for axis in kind.partial[:1] if axis not in keep)",
        HYBRID,
    ),
    Bug(
        "a whole value is added to a part of a sum",
        "passes.place.rules",
        "axis for axis in set[str]().union(*held) if all(axis in h for h in held)",
        "axis for axis in set[str]().union(*held)",
        GRID,
    ),
    Bug(
        "all parameters are used as the first one's copy",
        "passes.place.copies",
        "key = values[number], dtype",
        "key = 0, dtype",
        LATE,
        compute="bf16",
    ),
    Bug(
        "queries see the keys of their own rank alone",
        "passes.place.attention",
        "queries, keys = home, {**home, attrs.over: ()}",
        "queries, keys = home, home",
        ("context gather",),
    ),
    Bug(
        "ranks of a pipeline have each other's layers",
        "passes.stages.cut_stages",
        "layers=tuple(own)) if own is not None",
        "layers=tuple(own)[::-1]) if own is not None",
        ("1f1b",),
    ),
    Bug(
        "chunks of a pipeline all run the first one's layers",
        "passes.stages.cut_step",
        "rows.get(stretch.whole, 0)))",
        "0))",
        ("interleaved",),
    ),
    Bug(
        "the norm of the gradients is one stage's",
        "passes.stages.cut_step",
        "            self.resolved |= terms\n",
        "",
        ("1f1b",),
    ),
    Bug(
        "a stage's sums begin anew with the second micro-batch",
        "passes.stages.cut_step",
        "parts = [part for part in parts if part[0] != part[1]]",
        "parts = parts[:0]",
        ("interleaved",),
    ),
    Bug(
        "the first micro-batch never goes backward",
        "passes.schedule.families",
        'row.append(Action("B", rank, micro))',
        'row += [Action("B", rank, micro)] if micro else []',
        ("1f1b",),
    ),
    Bug(
        "a V's weight gradient is that of the micro-batch before",
        "passes.schedule.families",
        "row.append(Action(kind, stage, done[kind, stage]))",
        'row.append(Action(kind, stage, max(0, done[kind, stage] - (kind == "W"))))',
        ("zb-v",),
    ),
    Bug(
        "the last micro-batch's weight gradient is never asked for",
        "passes.schedule.families",
        'row += actions("W", rank, range(max(0, micros - rank), micros))',
        'row += actions("W", rank, range(max(0, micros - rank), micros - 1))',
        ("zb-h1",),
    ),
    Bug(
        "rows that train are put one row too late",
        "passes.split_rows",
        "rows, first = part.row_dim, part.rows[0]",
        "rows, first = part.row_dim, part.rows[0] + 1",
        ("tensor", "rows"),
    ),
    Bug(
        "a lookup in rows that train is one row off",
        "passes.early_rows",
        "self.b.one(Reindex(rows.dim.name, rows.first), self.mapping[index])",
        "self.b.one(Reindex(rows.dim.name, max(rows.first - 1, 0)), self.mapping[index])",
        ("data", "rows"),
    ),
    Bug(
        "gradients of rows are those of the first rows",
        "passes.early_rows",
        "return self.b.one(attrs, self.mapping[value], self.mapping[index])",
        "return self.b.one(attrs, self.mapping[value], self.b.one("
        "structs.replace(self.makers[index].attrs, first=0)))",
        ("zero 2", "rows"),
    ),
    Bug(
        "of several stretches of rows the last alone counts",
        "passes.split_rows",
        "whole = b.add(whole, b.one(Put",
        "whole = b.add(b.cast(frozen, dtype), b.one(Put",
        ("tensor", "rows"),
    ),
    Bug(
        "maps of one shape share the value that is made of their codes",
        "passes.stored_forms",
        "key = (stored, dtype or wanted)",
        "key = (min(v for v in self.held if self.held[v].base.type == self.held[stored].base.type),"
        " dtype or wanted)",
        ("tensor", "4 bits"),
    ),
    Bug(
        "a block has the scale of the one before",
        "ir.evaluate_blockwise",
        "np.moveaxis(scales, at, -1)[..., None]",
        "np.roll(np.moveaxis(scales, at, -1), 1, -1)[..., None]",
        ("zero 3", "4 bits"),
    ),
    Bug(
        "of two codes in a byte the second comes first",
        "ir.evaluate_blockwise",
        "np.stack((blocks // 16, blocks % 16), axis=-1)",
        "np.stack((blocks % 16, blocks // 16), axis=-1)",
        ("zero 3", "4 bits"),
    ),
    Bug(
        "codes are those of another layer than their scales",
        "ir.evaluate",
        "own = [tuple(part[step] for part in parts) for parts in slices]",
        "own = [tuple(part[steps[-1 - step] if part.dtype == np.int64 else step] for part in parts)"
        " for parts in slices]",
        ("zero 3", "8 bits"),
    ),
    Bug(
        "a rank cuts its stretch into as many blocks as there are in all",
        "passes.place.rules",
        "axes.update(dict.fromkeys((attrs.dim, attrs.codes, attrs.blocks), () if whole else dim.",
        "axes.update({attrs.dim: dim.axes, attrs.codes: dim.axes, attrs.blocks: ()} if dim.axes "
        "else dict.fromkeys((attrs.dim, attrs.codes, attrs.blocks), () if whole else dim.",
        ("tensor", "4 bits"),
    ),
    Bug(
        "the forward pass reads what is compressed",
        "passes.compress",
        "made[value] = b.emit(wanted[value].quantize(), mapping[value])",
        "made[value] = b.emit(wanted[value].quantize(), mapping[value])\n"
        "                dtype = body.types[value].dtype\n"
        "                mapping[value] = b.one(wanted[value].dequantize(dtype), *made[value])",
        ("data", "compress"),
    ),
    Bug(
        "codes are restored with the scales of others",
        "passes.compress",
        "scales = dict(zip(sorted(blocks), made[len(op.results) :], strict=True))",
        "scales = dict(zip(sorted(blocks), made[: len(op.results) - 1 : -1], strict=True))",
        ("tensor", "compress"),
    ),
    Bug(
        "blocks are larger than on other meshes",
        "passes.compress",
        "count = block_count(size)",
        "count = max(block_count(size) // 2, 1)",
        ("zero 2", "compress"),
    ),
    Bug(
        "results of a joined collective are mixed up",
        "passes.coalesce",
        "mapping.update(zip((v for op in ops for v in op.results), results, strict=True))",
        "mapping.update(zip((v for op in ops for v in op.results), results[::-1], strict=True))",
        WHOLE,
    ),
    Bug(
        "joined gathers are all along the first one's dim",
        "passes.coalesce",
        'return Coalesced("all_gather", first.axes, dims)',
        'return Coalesced("all_gather", first.axes, dims[:1] * len(dims))',
        WHOLE,
    ),
    Bug(
        "sums over different axes are joined",
        "passes.coalesce",
        "return op.kind, op.attrs.axes, kind.dtype, kind.combine",
        'return op.kind, ("",), kind.dtype, kind.combine',
        ("data", "zero 1", "tensor"),
    ),
    Bug(
        "a collective is joined with one whose result it needs",
        "passes.coalesce",
        "if fits and self.clusters.may_join(at, cluster):",
        "if fits:",
        ("data", "zero 1", "tensor"),
    ),
    Bug(
        "penalties are no part of what is trained on",
        "passes.apply_loss",
        "nll = b.add(nll, penalty)",
        "pass",
        ("experts",),
    ),
    Bug(
        "a stack's penalties are those of the last layer",
        "frontend.lowering.model",
        "total = summed(builder, [*carried, *within.penalties], kind)",
        "total = summed(builder, within.penalties, kind)",
        ("experts",),
    ),
    Bug(
        "a penalty counts once for each micro-batch, not for each token",
        "passes.apply_loss",
        "nll = b.add(nll, penalty)",
        "nll = b.add(nll, b.div(penalty, b.sum(weights, dims)))",
        ("experts", "accumulate"),
    ),
    Bug(
        "choices are counted on each rank of a sequence alone",
        "ir.ops.experts",
        "parts = merged(index.axes_of(self.along))",
        "parts = ()",
        ("experts", "context gather"),
    ),
    Bug(
        "rows of a part of a sequence are taken for those of a group of experts",
        "ir.ops.experts",
        "divided = (*of[0].axes[parts:],",
        "divided = (*of[0].axes,",
        ("experts", "context gather"),
    ),
    Bug(
        "what waits in host memory is neither kept nor made again",
        "passes.recompute_budget",
        "decision = decision_of(held.all,",
        "decision = decision_of(held.kept,",
        ("budget",),
    ),
    Bug(
        "what decays and what does not are stepped alike",
        "passes.buckets",
        "groups.setdefault((part.form, axes, stack), {})[name] = part",
        "groups.setdefault((axes, stack), {})[name] = part",
        ("data",),
    ),
    Bug(
        "the steps of a bucket's parameters are mixed up",
        "passes.join_updates",
        "values = [part.writes[number] for part in parts]",
        "values = [part.writes[number] for part in parts[::-1]]",
        WHOLE,
    ),
    Bug(
        "the norm lacks the gradients of a bucket",
        "passes.join_updates",
        "self.gone.update(values[1:])",
        "self.gone.update(values)",
        GRID,
    ),
    Bug(
        "the backward of a stage takes one kept value for all",
        "passes.stages.keep",
        'name = self.sent.get(value) or f"kept{len(self.kept)}"',
        'name = self.sent.get(value) or "kept0"',
        ("budget in pipeline",),
    ),
    Bug(
        "the forward of a stage does not give what is kept",
        "passes.stages.keep",
        "before = Half(stage, range(stage.first), {}).run(outputs | half.kept, forward)",
        "before = Half(stage, range(stage.first), {}).run(outputs, forward)",
        ("budget in pipeline",),
    ),
    Bug(
        "what is moved on to join other terms of a sum is left out",
        "passes.place.carry_out",
        "parts.append(self.build.one(move.attrs, number))",
        "self.build.one(move.attrs, number)",
        ("tensor", "experts"),
    ),
    Bug(
        "of terms that are added first only one is left when sums are taken apart",
        "passes.place.sums",
        "terms += one[1].terms",
        "terms += one[1].terms[:1]",
        ("tensor", "experts"),
    ),
)
