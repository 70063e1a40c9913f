"""A spec against the model of `transformers` that it is the spec of.

    report = parity(LlamaConfig(...), "llama3_8b", tmp_path, sets={"dims.layers": "2"})
    report.require()

makes a random model of the configuration in fp64, saves it with `save_pretrained`, imports the
folder by the spec's `checkpoint` section (sizes come from `config.json`), and compares:

- logits, the loss, and the gradient of every foreign tensor, ours mapped through the section;
- what is exported again: `from_pretrained` loads it, and every tensor is bit-equal.

The spec is a path or a shipped name, evaluated as its equations say (no plan is compiled). Sizes
that the configuration does not have go into `sets`; `data.batch` and `data.seq` are set here, so a
configuration with learned positions must have as many as `seq`. A configuration that the spec
refuses (another activation, another constant) raises DiagnosticError with what differs.

`transformers` computes norms, angles and some softmaxes in fp32 whatever the model's dtype; within
`Doubles` it computes them in fp64, so that tolerances can be those of fp64. `dtype` f32 leaves it
as it is, and tolerances are then those of fp32. `model_class` is the class where it is not the one
of `AutoModelForCausalLM`. It must take tokens and give logits; else `scores` says, of the model and
tokens, what logits are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fllmc.frontend import load
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import Parameter, Program
from fllmc.ir.settings import Spec
from fllmc.ir.types import Mesh
from fllmc.passes.base import Context
from fllmc.passes.differentiate import Differentiate
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import run_pipeline
from fllmc.runtime.checkpoint.load import Checkpoint, open_checkpoint
from fllmc.runtime.foreign.exporting import assembled, export
from fllmc.runtime.foreign.folder import open_folder, read_config
from fllmc.runtime.foreign.importing import FOREIGN, import_folder
from fllmc.runtime.foreign.reading import entries
from tests.oracle.reference import Batch, relative
from tests.oracle.reference import loss as loss_of

TOLERANCES = {"f64": 1e-9, "f32": 2e-4}
DTYPES = {"f64": torch.float64, "f32": torch.float32}
SMALL = 1e-3
"""A gradient is compared with its own norm, or with this part of the largest, if that is more."""


class Doubles(TorchFunctionMode):
    """Within it what asks for fp32 gets fp64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The call with fp32 replaced."""
        if func is Tensor.float:
            return args[0].double()
        wide = [torch.float64 if each is torch.float32 else each for each in args]
        named = {
            name: torch.float64 if value is torch.float32 else value
            for name, value in (kwargs or {}).items()
        }
        return func(*wide, **named)


class Same(TorchFunctionMode):
    """Changes nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The call as it is."""
        return func(*args, **(kwargs or {}))


class Report(NamedTuple):
    """Relative errors: of logits, of the loss, of the gradient of each foreign tensor.

    `changed` are tensors that did not come back bit-equal from an export that was loaded,
    `parameters` how many elements the model has.
    """

    logits: float
    loss: float
    gradients: dict[str, float]
    changed: tuple[str, ...]
    parameters: int
    tolerance: float

    @property
    def gradient(self) -> float:
        """The largest error of a gradient."""
        return max(self.gradients.values())

    def require(self) -> None:
        """AssertionError with what is not equal."""
        assert self.logits < self.tolerance, f"logits differ: {self.logits:.2e}"
        assert self.loss < self.tolerance, f"the loss differs: {self.loss:.2e}"
        wrong = {name: e for name, e in self.gradients.items() if not e < self.tolerance}
        assert not wrong, f"gradients differ: {wrong}"
        assert not self.changed, f"not bit-equal when exported: {self.changed}"


def parity(
    config: Any,
    spec: str,
    folder: Path,
    *,
    sets: Mapping[str, str] | None = None,
    model_class: Any = None,
    dtype: str = "f64",
    batch: int = 2,
    seq: int = 8,
    std: float = 0.2,
    seed: int = 0,
    scores: Callable[[Any, Tensor], Tensor] | None = None,
) -> Report:
    """Compare a random model of the configuration with the spec, as this module says."""
    mode = Doubles if dtype == "f64" else Same
    theirs, kind = _random(config, model_class, mode, DTYPES[dtype], std, seed)
    theirs.save_pretrained(folder / "theirs", max_shard_size="100KB")
    found = imported(
        spec, folder, {"data.batch": f"{batch}", "data.seq": f"{seq}", **(sets or {})}, dtype
    )
    with found.checkpoint as checkpoint:
        values = stacked(found.spec.program, checkpoint.read)
        given = _batch(found.spec.program, batch, seq, seed)
        with mode():
            tokens = torch.as_tensor(given["tokens"])
            expected = scores(theirs, tokens) if scores else theirs(tokens).logits
            loss = _loss(expected, given, found.spec.train.loss.z_loss)
            loss.backward()
        logits = _logits(found.spec.program, values, given)
        ours = _gradients(found.spec, values, given)
        their_grads = _named_gradients(theirs, folder / "gradients")
        errors = _errors(found.spec, ours, their_grads)
        changed = _exported(found, folder, kind, theirs, DTYPES[dtype], mode)
    return Report(
        relative(torch.as_tensor(logits), expected.detach()),
        abs(float(ours["loss"]) / loss.item() - 1),
        errors,
        changed,
        sum(each.numel() for each in theirs.parameters()),
        TOLERANCES[dtype],
    )


class Imported(NamedTuple):
    """A spec with its sizes, and the open checkpoint that was imported by it."""

    spec: Spec
    checkpoint: Checkpoint
    path: Path


def imported(spec: str, folder: Path, sets: Mapping[str, str], dtype: str) -> Imported:
    """`folder/theirs` imported to `folder/ours`. DiagnosticError where it does not fit."""
    theirs = folder / "theirs"
    options = {"train.precision": dtype, **sets}
    loaded, found, _ = load(spec, options, config=read_config(theirs))
    if loaded is None:
        raise DiagnosticError(*found)
    assert loaded.foreign is not None
    done = import_folder(loaded.foreign, open_folder(theirs), folder / "ours")
    return Imported(loaded, open_checkpoint(done.path), folder / "ours")


def stacked(program: Program, read: Callable[[str], Tensor]) -> dict[str, np.ndarray]:
    """What the evaluator takes for parameters: a stack's as one array."""

    def value(each: Parameter) -> np.ndarray:
        if not each.stack:
            return read(each.name).double().numpy()
        count = program.sizes.size(each.stack)
        return np.stack([read(each.layer_name(n)).double().numpy() for n in range(count)])

    return {each.name: value(each) for each in program.parameters}


def _random(
    config: Any, model_class: Any, mode: Any, dtype: torch.dtype, std: float, seed: int
) -> tuple[Any, Any]:
    """A model with all of its parameters drawn: its own would be ones and zeros in part."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config._attn_implementation = config._experts_implementation = "eager"
    with mode():
        theirs = model_class(config) if model_class else AutoModelForCausalLM.from_config(config)
    theirs = theirs.to(dtype).eval()
    with torch.no_grad():
        for value in theirs.state_dict(keep_vars=True).values():
            torch.nn.init.normal_(value, std=std)
    return theirs, type(theirs)


def _batch(program: Program, batch: int, seq: int, seed: int) -> dict[str, Any]:
    """Tokens, targets, weights of tokens, and of one document each."""
    rng = np.random.default_rng(seed)
    index = next(t.index for t in program.function("model").types if t.index)
    vocab = program.sizes.size(index)
    tokens, targets = (rng.integers(0, vocab, (batch, seq)) for _ in range(2))
    weights, starts = rng.random((batch, seq)) + 0.1, np.zeros((batch, seq), np.int64)
    positions = np.broadcast_to(np.arange(seq), (batch, seq))
    counted = {"targets": targets, "weights": weights}
    return {"tokens": tokens, **counted, "starts": starts, "positions": positions}


def _loss(logits: Tensor, given: Mapping[str, Any], z_loss: float) -> Tensor:
    batch = Batch(*(torch.as_tensor(given[name]) for name in ("tokens", "targets", "weights")))
    return loss_of(logits, batch, z_loss)


def _logits(program: Program, values: Mapping[str, Any], given: Mapping[str, Any]) -> np.ndarray:
    model = program.function("model")
    arguments = {each.name: {**values, **given}[each.name] for each in model.inputs}
    return evaluate(program, "model", arguments)[model.outputs[0]]


def _gradients(spec: Spec, values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The loss and `grad.NAME` of every parameter, by the evaluator."""
    passes = standard_pipeline(spec)
    behind = next(n for n, step in enumerate(passes) if isinstance(step, Differentiate))
    cx = Context(Mesh(), lambda found: None)
    program, _ = run_pipeline(spec.program, passes[: behind + 1], cx, lambda: 0.0)
    arguments: dict[str, Any] = {**values, **given, "seed": np.ones(())}
    taken = {each.name: arguments[each.name] for each in program.function("gradient").inputs}
    found = evaluate(program, "gradient", taken)
    total = float(given["weights"].sum())
    return {name: value if name == "count" else value / total for name, value in found.items()}


def _errors(
    spec: Spec, ours: Mapping[str, Any], theirs: Mapping[str, Tensor | None]
) -> dict[str, float]:
    """Relative errors of gradients, ours put where the mapping says."""
    assert spec.foreign is not None
    grads: dict[str, Tensor] = {}
    for each in spec.program.parameters:
        value = torch.as_tensor(np.asarray(ours[f"grad.{each.name}"]))
        value = torch.zeros_like(value) if each.stepped_by else value
        for n in range(len(value) if each.stack else 1):
            grads[each.layer_name(n)] = value[n] if each.stack else value
    largest = max(g.norm().item() for g in theirs.values() if g is not None)
    errors: dict[str, float] = {}
    for entry in entries(spec.foreign):
        name = next(name for name in entry.names if name in theirs)
        wanted = theirs[name]
        found = assembled(entry, "f64", lambda each: grads[each])
        wanted = torch.zeros_like(found) if wanted is None else wanted.double()
        scale = max(wanted.norm().item(), SMALL * largest)
        errors[name] = (found - wanted).norm().item() / scale
    missing = theirs.keys() - errors.keys()
    assert not missing, f"parameters that the mapping leaves out: {sorted(missing)}"
    return errors


def _named_gradients(theirs: Any, folder: Path) -> dict[str, Tensor]:
    """Gradients by the names of a checkpoint, which may have a model's tensors in other pieces.

    They are saved in place of what they are gradients of, and zeros in place of what has none.
    """
    held = theirs.state_dict()
    found = {name: each.grad for name, each in theirs.named_parameters()}
    before = {name: value.clone() for name, value in held.items()}
    for value in held.values():
        value.zero_()
    for name, grad in found.items():
        if grad is not None:
            held[name].copy_(grad)
    theirs.save_pretrained(folder)
    for name, value in held.items():
        value.copy_(before[name])
    files = sorted(folder.glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


def _exported(
    found: Imported, folder: Path, kind: Any, theirs: Any, dtype: torch.dtype, mode: Any
) -> tuple[str, ...]:
    """The tensors of theirs that an export, loaded again, does not have bit for bit."""
    assert found.spec.foreign is not None
    out = folder / "exported"
    export(found.spec.foreign, found.checkpoint, out, found.path / FOREIGN, shard_bytes=200_000)
    with mode():
        again, told = kind.from_pretrained(out, dtype=dtype, output_loading_info=True)
    odd = [n for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for n in told[key]]
    before, after = theirs.state_dict(), again.state_dict()
    differ = [n for n, value in before.items() if not torch.equal(value, after[n])]
    return (*map(str, odd), *differ)
