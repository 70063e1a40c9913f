"""Diagnostics of which no quick command gives an example: what their pages print.

They need a run, a damaged file or a text of the IR; that they are found there, the tests of
`runtime/`, `passes/` and `codegen/` show. A code stands here only if a page's command can't.
"""

from __future__ import annotations

from fllmc.cli import errors as command
from fllmc.codegen import errors as artifact
from fllmc.frontend import config_errors as config
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.span import NOWHERE
from fllmc.passes import errors, place_errors
from fllmc.passes.schedule.errors import NoSolver
from fllmc.runtime import data_errors as data
from fllmc.runtime import errors as stored
from fllmc.runtime import run_errors as run
from fllmc.runtime.checkpoint import change_errors as change
from fllmc.runtime.foreign import errors as foreign

LAST = "step-00000100"
HOLDS = "`body.mlp.gate` and 3 more"

PASSES: tuple[Diagnostic, ...] = (
    place_errors.SelectsNothing(NOWHERE, "body.*.mlp.gat", ("body.*.mlp.gate",)),
    errors.RecomputesNothing(NOWHERE, "body.*.silo", ("body.*.silu",)),
    errors.MixedUse(NOWHERE, "body.attn.wq", "embed", "embed, heads"),
    errors.BlocksCut(NOWHERE, "body.mlp.gate", "ffn", 4, 8),
    NoSolver(NOWHERE),
)
DATA: tuple[Diagnostic, ...] = (
    stored.SourceMissing(NOWHERE, "corpus/*.text", "."),
    stored.SourceUnreadable(NOWHERE, "corpus/part.txt", "permission denied"),
    stored.UnknownBuiltin(NOWHERE, "pydoc", ("pydocs",)),
    stored.BuiltinAbsent(NOWHERE, "pydocs", "no module named `pydoc_data`"),
    stored.SourceEmpty(NOWHERE, "corpus/*.txt", 2),
    stored.NotUtf8(NOWHERE, "corpus/*.txt", 17, "0xe9", "bpe:512"),
    stored.TokenizerUnreadable(NOWHERE, "words.json", "no such file"),
    stored.TokenizerUnwritable(NOWHERE, "runs/tiny/tokenizer.json", "no space left on device"),
    stored.UnknownTokenizer(NOWHERE, "words"),
    stored.VocabTooSmall(NOWHERE, "bpe:512", 511, 300),
    stored.BpeTooSmall(NOWHERE, 200),
    stored.TooFewTokens(NOWHERE, "training", "corpus/*.txt", 20, 32, 33),
    stored.BadHoldout(NOWHERE, 1.5),
    data.BadTokenFile(NOWHERE, "web/0.bin", "4097 bytes are not whole tokens of 2 bytes"),
    data.BadRecord(NOWHERE, "talk.jsonl:17", "it has no number `trusted`, which `columns` names"),
    data.MixedKinds(NOWHERE, "corpus/*", "records, text"),
    data.UnknownToken(NOWHERE, "<eos>", "bytes"),
    data.NoTextForTokenizer(NOWHERE, "bpe:512", "web/*.bin"),
    data.NoSuchColumn(NOWHERE, "trusted", "none of its own"),
)
FOREIGN: tuple[Diagnostic, ...] = (
    foreign.NoTensors(NOWHERE, "folder", ""),
    foreign.BadIndex(NOWHERE, "folder/model.safetensors.index.json", "it is not JSON"),
    foreign.BadTensorFile(NOWHERE, "folder/model.safetensors", "it ends early", "`up.weight`"),
    foreign.ForeignMissing(NOWHERE, "folder", "up.weight", "up", ("up.weights",)),
    foreign.ForeignExtra(NOWHERE, "folder/model.safetensors", "up.bias", "hf"),
    foreign.ForeignTwice(NOWHERE, "up.weight", "two files"),
    foreign.ForeignDiffers(
        NOWHERE, "folder/model.safetensors", "up.weight", "F32 [16, 32]", "[32, 16]", "`up`"
    ),
    config.ConfigMissing(NOWHERE, "hidden_size", "embed"),
    config.ConfigDiffers(NOWHERE, "hidden_act", '"gelu"', '"silu"'),
    config.ConfigNotSize(NOWHERE, "hidden_size", "0", "embed"),
    foreign.TiedDiffer(
        NOWHERE, "embed.weight", "lm_head.weight", "one.safetensors", "two.safetensors"
    ),
    foreign.NoForeignNames(NOWHERE, "model `tiny`"),
    foreign.FolderInUse(NOWHERE, "folder"),
    foreign.RoundTrip(NOWHERE, "up.weight", "7 of 512 elements differ"),
    config.ConfigUnread(NOWHERE, 2, "`pad_token_id`, `use_cache`"),
    config.ConfigUnsaid(NOWHERE, "`hidden_act`"),
)
CHECKPOINTS: tuple[Diagnostic, ...] = (
    stored.NoCheckpoint(NOWHERE, "runs/tiny/checkpoints"),
    stored.CheckpointFileMissing(NOWHERE, LAST, "rank-00001.safetensors", HOLDS),
    stored.CheckpointFileSize(NOWHERE, LAST, "rank-00001.safetensors", 512, 4096, HOLDS),
    stored.CheckpointHash(NOWHERE, LAST, "rank-00001.safetensors", "9f2c...", "41d8...", HOLDS),
    stored.CheckpointManifest(NOWHERE, LAST, "it is not JSON"),
    stored.CheckpointHeader(NOWHERE, LAST, "rank-00001.safetensors", "it is not JSON"),
    stored.TensorMismatch(NOWHERE, LAST, "head", "f32[32, 256]", "f32[64, 256]"),
    stored.TensorMissing(NOWHERE, LAST, "body.mlp.gate", ("body.mlp.gat",)),
    stored.TensorExtra(NOWHERE, LAST, "body.mlp.gat"),
    stored.TensorCoverage(NOWHERE, LAST, "head", "leave 32 elements out"),
    stored.SaveFailed(NOWHERE, LAST, "no space left on device"),
    stored.PruneFailed(NOWHERE, LAST, "permission denied"),
    stored.MetricsUnusable(NOWHERE, "runs/tiny/metrics.jsonl", "permission denied"),
    run.ResumeMismatch(NOWHERE, LAST, "the seed", "1", "2"),
    stored.CheckpointSkipped(NOWHERE, LAST, "the bytes of a file have changed"),
    change.ParametersConverted(NOWHERE, LAST, 12, "f32 to bf16"),
    change.StatesBegun(NOWHERE, LAST, 24, "body.mlp.gate#m"),
    change.StatesDropped(NOWHERE, LAST, 24, "body.mlp.gate#m"),
    change.ParametersQuantized(NOWHERE, LAST, 7, "body.mlp.gate"),
    change.ParametersDequantized(NOWHERE, LAST, 7, "body.mlp.gate"),
)
ARTIFACTS: tuple[Diagnostic, ...] = (
    artifact.ArtifactChanged(NOWHERE, "tiny.fllmx/schedule/step.py"),
    artifact.ArtifactStranger(NOWHERE, "tiny.fllmx/notes.txt"),
    command.SpecChanged(NOWHERE, "wrong.fllm"),
    command.NotReadable(NOWHERE, "missing.safetensors", "no such file"),
)
MACHINES: tuple[Diagnostic, ...] = (
    run.WorldSize(NOWHERE, "data=2,tensor=2", 4, 6, "data=6"),
    run.MeshTooLarge(NOWHERE, "data=4096,tensor=2", 8192, 16, 2, 0, "data=8,tensor=2"),
    run.TooLittleMemory(NOWHERE, "80 GiB", "15 GiB", "40 GiB", 2),
    run.TorchMissing(NOWHERE, "torch"),
    run.RunFolderInUse(NOWHERE, "runs/tiny"),
    run.RunFolderUnusable(NOWHERE, "runs/tiny", "permission denied"),
    run.NotFinite(NOWHERE, 131, "the loss", "nan", f"the newest checkpoint is {LAST}"),
    run.WorkerFailed(NOWHERE, 1, "ValueError: no such luck", "runs/tiny/rank-1.txt"),
    run.WorkerKilled(NOWHERE, 1, "signal 9 (SIGKILL)"),
    run.BadEnvironment(NOWHERE, "RANK", "first", "a number"),
    run.TooFewGpus(NOWHERE, "data=8", 8, 2),
)
SAMPLES: tuple[Diagnostic, ...] = (
    *PASSES,
    *DATA,
    *FOREIGN,
    *CHECKPOINTS,
    *ARTIFACTS,
    *MACHINES,
)
