"""What a run can find wrong with its data and its checkpoints, in words."""

from __future__ import annotations

from fllmc.ir.diagnostics import Diagnostic, did_you_mean


class SourceMissing(Diagnostic, frozen=True):
    """A `source` names no file. A path or glob is taken relative to the folder of the spec."""

    code = "E0601"
    title = "no file matches the data source `{source}`"
    label = "looked in `{folder}`"
    help = ("write a path or a glob relative to the spec's folder, or `builtin:pydocs`",)

    source: str
    folder: str


class SourceUnreadable(Diagnostic, frozen=True):
    """A data file is there but the system does not let it be read."""

    code = "E0602"
    title = "cannot read the data file `{file}`: {reason}"
    label = "named here"

    file: str
    reason: str


class UnknownBuiltin(Diagnostic, frozen=True):
    """The name behind `builtin:` is none of the sources that come with Python."""

    code = "E0603"
    title = "there is no built-in data source `{name}`"

    name: str
    candidates: tuple[str, ...]

    def primary(self) -> str:
        """The names that there are."""
        return "known: " + ", ".join(f"`builtin:{name}`" for name in self.candidates)

    def helps(self) -> tuple[str, ...]:
        """The nearest name."""
        return did_you_mean(self.name, self.candidates)


class BuiltinAbsent(Diagnostic, frozen=True):
    """Some distributions of Python leave out the modules that a built-in source reads."""

    code = "E0604"
    title = "this Python has no data for `builtin:{name}`: {reason}"
    label = "asked for here"
    help = ("give a text file of your own as the source",)

    name: str
    reason: str


class SourceEmpty(Diagnostic, frozen=True):
    """The files of a source hold no byte between them."""

    code = "E0605"
    title = "the data source `{source}` is empty"
    label = "{files} file(s), 0 bytes"

    source: str
    files: int


class NotUtf8(Diagnostic, frozen=True):
    """Only the `bytes` tokenizer takes arbitrary bytes; all others read UTF-8 text."""

    code = "E0606"
    title = "the data source `{source}` is not UTF-8 text: byte {offset} is {value}"
    label = "the tokenizer `{tokenizer}` reads text"
    help = ("convert the files to UTF-8, or use `tokenizer: bytes`",)

    source: str
    offset: int
    value: str
    tokenizer: str


class TokenizerUnreadable(Diagnostic, frozen=True):
    """A tokenizer file is missing or is not a tokenizer in the `tokenizers` library's JSON."""

    code = "E0607"
    title = "cannot read the tokenizer `{file}`: {reason}"
    label = "named here"

    file: str
    reason: str


class TokenizerUnwritable(Diagnostic, frozen=True):
    """The tokenizer trained for a run is stored with it, and could not be."""

    code = "E0608"
    title = "cannot write the tokenizer `{file}`: {reason}"

    file: str
    reason: str


class UnknownTokenizer(Diagnostic, frozen=True):
    """A tokenizer is `bytes`, `bpe:SIZE`, or the path of a tokenizer file ending in `.json`."""

    code = "E0609"
    title = "`{tokenizer}` is not a tokenizer"
    label = "expected `bytes`, `bpe:SIZE` or a `.json` file"

    tokenizer: str


class VocabTooSmall(Diagnostic, frozen=True):
    """A token's number must be below the size of the model's `vocab` dim."""

    code = "E0610"
    title = "the tokenizer `{tokenizer}` numbers tokens up to {largest}, but `vocab` is {vocab}"

    tokenizer: str
    largest: int
    vocab: int

    @property
    def needed(self) -> int:
        """The smallest vocabulary that holds every token."""
        return self.largest + 1

    def primary(self) -> str:
        """The size that works."""
        return f"`vocab` must be at least {self.needed}"

    def helps(self) -> tuple[str, ...]:
        """The dim to write."""
        return (f"write `vocab = {self.needed}` under `dims`",)


class BpeTooSmall(Diagnostic, frozen=True):
    """A byte-level BPE vocabulary begins with the 256 bytes; merges come on top."""

    code = "E0611"
    title = "a BPE vocabulary of {size} is too small"
    label = "the 256 bytes come first: at least 257"

    size: int


class TooFewTokens(Diagnostic, frozen=True):
    """A training sample is `seq` tokens and the one behind them."""

    code = "E0612"
    title = "the {part} part of `{source}` has {tokens} token(s), too few for `seq` = {seq}"
    label = "at least {needed} are needed"
    help = ("use more text, a shorter `seq`, or another `holdout`",)

    source: str
    part: str
    tokens: int
    seq: int
    needed: int


class BadHoldout(Diagnostic, frozen=True):
    """`holdout` is the fraction of the source, at its end, that is only validated on."""

    code = "E0613"
    title = "`holdout` is {holdout}, but must be at least 0 and below 1"
    label = "a fraction of the bytes"

    holdout: float


class NoCheckpoint(Diagnostic, frozen=True):
    """A folder of checkpoints holds at least one folder `step-NUMBER` with a `manifest.json`."""

    code = "E0701"
    title = "no checkpoint in `{folder}`"

    folder: str


class CheckpointFileMissing(Diagnostic, frozen=True):
    """The manifest lists a file that is not in the checkpoint's folder, or is not a plain file."""

    code = "E0702"
    title = "checkpoint `{checkpoint}`: the file `{file}` is missing"
    note = ("it holds {tensors}",)
    help = ("resume from an earlier checkpoint, or restore the file",)

    checkpoint: str
    file: str
    tensors: str


class CheckpointFileSize(Diagnostic, frozen=True):
    """A checkpoint's file is shorter or longer than when it was written."""

    code = "E0703"
    title = "checkpoint `{checkpoint}`: `{file}` has {found} bytes, not {expected}"
    note = ("it holds {tensors}",)
    help = ("resume from an earlier checkpoint, or restore the file",)

    checkpoint: str
    file: str
    found: int
    expected: int
    tensors: str


class CheckpointHash(Diagnostic, frozen=True):
    """A checkpoint's file has the right size but other bytes than were written."""

    code = "E0704"
    title = "checkpoint `{checkpoint}`: the bytes of `{file}` have changed since it was written"
    note = ("sha256 {found}", "expected {expected}", "it holds {tensors}")
    help = ("resume from an earlier checkpoint, or restore the file",)

    checkpoint: str
    file: str
    found: str
    expected: str
    tensors: str


class CheckpointManifest(Diagnostic, frozen=True):
    """`manifest.json` is unreadable, changed, or of a schema this version does not know."""

    code = "E0705"
    title = "checkpoint `{checkpoint}`: cannot use `manifest.json`: {reason}"
    help = ("resume from an earlier checkpoint, or restore the file",)

    checkpoint: str
    reason: str


class CheckpointHeader(Diagnostic, frozen=True):
    """The header of a piece file is damaged or lists other tensors than the manifest."""

    code = "E0706"
    title = "checkpoint `{checkpoint}`: bad header in `{file}`: {reason}"

    checkpoint: str
    file: str
    reason: str


class TensorMismatch(Diagnostic, frozen=True):
    """A stored tensor's dtype and shape must be those of the plan; nothing is cut.

    Only a parameter is read in another floating-point dtype, as W0702 says.
    """

    code = "E0707"
    title = "checkpoint `{checkpoint}`: `{tensor}` is `{found}`, but the plan has `{expected}`"
    help = ("use the checkpoint with the spec that wrote it",)

    checkpoint: str
    tensor: str
    found: str
    expected: str


class TensorMissing(Diagnostic, frozen=True):
    """The plan has a tensor that the checkpoint has not.

    Only the optimizer's states of a parameter that is there begin anew, as W0703 says.
    """

    code = "E0708"
    title = "checkpoint `{checkpoint}` has no tensor `{tensor}`"

    checkpoint: str
    tensor: str
    candidates: tuple[str, ...] = ()

    def helps(self) -> tuple[str, ...]:
        """The nearest name among those stored that the plan does not know."""
        return did_you_mean(self.tensor, self.candidates)


class TensorExtra(Diagnostic, frozen=True):
    """The checkpoint has a tensor that the plan has not; it would be lost at the next save."""

    code = "E0709"
    title = "checkpoint `{checkpoint}` has a tensor `{tensor}` that the plan does not know"

    checkpoint: str
    tensor: str


class TensorCoverage(Diagnostic, frozen=True):
    """The pieces of a stored tensor must cover every element exactly once."""

    code = "E0710"
    title = "checkpoint `{checkpoint}`: the pieces of `{tensor}` {reason}"

    checkpoint: str
    tensor: str
    reason: str


class SaveFailed(Diagnostic, frozen=True):
    """A checkpoint could not be written. The checkpoints written before it are untouched."""

    code = "E0711"
    title = "cannot save checkpoint `{checkpoint}`: {reason}"
    note = ("earlier checkpoints are untouched",)

    checkpoint: str
    reason: str


class PruneFailed(Diagnostic, frozen=True):
    """The new checkpoint is committed, but one that is no longer to be kept can't be removed."""

    code = "E0713"
    title = "checkpoint `{checkpoint}` is saved, but an older one cannot be removed: {reason}"

    checkpoint: str
    reason: str


class MetricsUnusable(Diagnostic, frozen=True):
    """The metrics file can be neither written nor continued."""

    code = "E0712"
    title = "cannot use the metrics file `{file}`: {reason}"

    file: str
    reason: str


class CheckpointSkipped(Diagnostic, frozen=True):
    """The newest checkpoint is damaged, so the run goes on from an older one."""

    code = "W0701"
    severity = "warning"
    title = "skipped the damaged checkpoint `{checkpoint}`: {reason}"

    checkpoint: str
    reason: str
