"""The language server, spoken to by a client over pipes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from lsprotocol import types
from pygls.lsp.client import LanguageClient

from fllmc.editor import analysis
from fllmc.frontend.format import format_source

SPEC = """fllm 1

import "parts.fllm" (norm)

import "models/tiny_llama.fllm" (tiny_llama, text)

dims {
  batch
  seq
  embed = 16
  ffn = 32
}

block mlp(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param up: embed -> ffn
  param down: ffn -> embed
  sub before: norm

  hidden = silu(up(before(x)))  # é is one character
  return down(hidden) + x
}

adapter few on tiny_llama {
  freeze *
  tune body.*.attn
}

train run: few {
  data: text
  loss: cross_entropy()
  optimizer: adamw()
  rate: constant(peak: 1e-3)
  steps: 10
}
"""
PARTS = """fllm 1

dims {
  embed = 16
}

block norm(x: [embed]) -> [embed] {
  param scale: [embed] = ones()

  return x * scale
}
""".replace("(x: [embed]) -> [embed]", "(x: [batch, seq, embed]) -> [batch, seq, embed]").replace(
    "  embed = 16\n", "  batch\n  seq\n  embed = 16\n"
)


PATIENCE = 120
"""Seconds after which a server that does not answer has failed."""


class Editor:
    """An editor with one open file."""

    def __init__(self, client: LanguageClient, folder: Path) -> None:
        self.client = client
        self.folder = folder
        self.uri = (folder / "mine.fllm").as_uri()
        self.text = SPEC
        self.told: asyncio.Queue[types.PublishDiagnosticsParams] = asyncio.Queue()
        self.said: list[str] = []
        self.version = 0

        @client.feature(types.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)
        def told(params: types.PublishDiagnosticsParams) -> None:
            self.told.put_nowait(params)

        @client.feature(types.WINDOW_SHOW_MESSAGE)
        def said(params: types.ShowMessageParams) -> None:
            self.said.append(params.message)

    @property
    def document(self) -> types.TextDocumentIdentifier:
        return types.TextDocumentIdentifier(self.uri)

    async def open(self) -> list[types.Diagnostic]:
        item = types.TextDocumentItem(self.uri, "fllm", self.version, self.text)
        self.client.text_document_did_open(types.DidOpenTextDocumentParams(item))
        return await self.diagnostics()

    async def diagnostics(self) -> list[types.Diagnostic]:
        return list((await asyncio.wait_for(self.told.get(), 60)).diagnostics)

    async def write(self, text: str) -> list[types.Diagnostic]:
        """Type the whole text anew; the diagnostics that follow."""
        self.text, self.version = text, self.version + 1
        whole = types.TextDocumentContentChangeWholeDocument(text)
        where = types.VersionedTextDocumentIdentifier(self.version, self.uri)
        self.client.text_document_did_change(types.DidChangeTextDocumentParams(where, [whole]))
        return await self.diagnostics()

    def place(self, words: str, inside: int = 0) -> types.Position:
        """The position `inside` characters into the first `words`, in UTF-16 units."""
        offset = self.text.index(words) + inside
        line = self.text.count("\n", 0, offset)
        start = self.text.rfind("\n", 0, offset) + 1
        return types.Position(line, len(self.text[start:offset].encode("utf-16-le")) // 2)

    def applied(self, edits: list[types.TextEdit]) -> str:
        """The text with edits applied."""
        lines = self.text.splitlines(keepends=True)
        starts = [sum(map(len, lines[:n])) for n in range(len(lines) + 1)]
        text = self.text
        for edit in sorted(edits, key=lambda e: (e.range.start.line, e.range.start.character))[
            ::-1
        ]:
            first = starts[edit.range.start.line] + edit.range.start.character
            last = starts[min(edit.range.end.line, len(lines))] + edit.range.end.character
            text = text[:first] + edit.new_text + text[last:]
        return text


def session(folder: Path, play: Callable[[Editor], Awaitable[None]]) -> None:
    """Start the server, open the spec, and play."""
    (folder / "mine.fllm").write_text(SPEC, encoding="utf-8")
    (folder / "parts.fllm").write_text(PARTS, encoding="utf-8")

    async def run() -> None:
        client = LanguageClient("test", "1")
        await client.start_io(sys.executable, "-m", "fllmc", "lsp")
        try:
            editor = Editor(client, folder)
            await client.initialize_async(
                types.InitializeParams(types.ClientCapabilities(), root_uri=folder.as_uri())
            )
            client.initialized(types.InitializedParams())
            await play(editor)
        finally:
            await client.shutdown_async(None)
            client.exit(None)
            await client.stop()

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


def test_a_session(tmp_path: Path) -> None:
    """One server answers everything, so that it is started once."""

    async def play(editor: Editor) -> None:
        assert await editor.open() == []
        await diagnostics_and_fixes(editor)
        await hovers(editor)
        await definitions(editor)
        await renames(editor)
        await completes(editor)
        await formats(editor)

    session(tmp_path, play)


async def diagnostics_and_fixes(editor: Editor) -> None:
    (found,) = await editor.write(SPEC.replace("down(hidden)", "down(hiden)"))
    assert (found.code, found.source) == ("E0205", "fllmc")
    assert found.range.start == editor.place("hiden)") and "did you mean `hidden`?" in found.message
    params = types.CodeActionParams(editor.document, found.range, types.CodeActionContext([found]))
    actions = await editor.client.text_document_code_action_async(params)
    assert actions is not None
    (action,) = actions
    assert isinstance(action, types.CodeAction) and action.edit and action.edit.changes
    assert editor.applied(list(action.edit.changes[editor.uri])) == SPEC
    (found,) = await editor.write(SPEC.replace("block mlp", "blok mlp"))
    assert found.code == "E0102"
    assert await editor.write(SPEC) == []


async def hovers(editor: Editor) -> None:
    async def hover(words: str, inside: int = 0) -> str:
        params = types.HoverParams(editor.document, editor.place(words, inside))
        found = await editor.client.text_document_hover_async(params)
        assert found and isinstance(found.contents, types.MarkupContent)
        return found.contents.value.removeprefix("```fllm\n").removesuffix("\n```")

    assert await hover("up(before") == "param up: embed -> ffn\n16 x 32, 2.00 KiB in f32"
    assert (
        await hover("hidden) + x", 3) == "hidden: [batch, seq, ffn]\n8 x 32 x 32, 32.0 KiB in f32"
    )
    assert await hover("ffn = 32") == "dim ffn = 32"
    assert "block norm(x: [batch, seq, embed]) -> [batch, seq, embed]" in await hover("norm)")
    assert (await hover("silu(")).startswith("silu(")


async def definitions(editor: Editor) -> None:
    async def line(words: str, inside: int = 0) -> tuple[str, int]:
        params = types.DefinitionParams(editor.document, editor.place(words, inside))
        found = await editor.client.text_document_definition_async(params)
        assert isinstance(found, types.Location)
        return found.uri.rpartition("/")[2], found.range.start.line

    assert await line("hidden) + x") == ("mine.fllm", editor.place("hidden =").line)
    assert await line("embed -> ffn") == ("mine.fllm", editor.place("embed = 16").line)
    assert await line("sub before: norm", 13) == ("parts.fllm", 8)
    assert await line("few {\n  data") == ("mine.fllm", editor.place("adapter few").line)
    assert await line("tiny_llama {") == ("tiny_llama.fllm", 16)


async def renames(editor: Editor) -> None:
    async def rename(words: str, new: str) -> types.WorkspaceEdit | None:
        params = types.RenameParams(editor.document, editor.place(words), new)
        return await editor.client.text_document_rename_async(params)

    edit = await rename("hidden =", "wide")
    assert edit and edit.changes
    assert editor.applied(list(edit.changes[editor.uri])) == SPEC.replace("hidden", "wide")
    edit = await rename("before: norm", "first")
    assert edit and edit.changes
    assert editor.applied(list(edit.changes[editor.uri])) == SPEC.replace("before", "first")
    assert await rename("hidden =", "x") is None
    assert "already taken" in editor.said[-1]
    assert await rename("hidden =", "2nd") is None
    assert await rename("tiny_llama {", "mine") is None
    assert "ships" in editor.said[-1]
    edit = await rename("norm)", "rescale")
    assert edit and edit.changes and len(edit.changes) == 2


async def completes(editor: Editor) -> None:
    async def labels(words: str, inside: int) -> set[str]:
        params = types.CompletionParams(editor.document, editor.place(words, inside))
        found = await editor.client.text_document_completion_async(params)
        assert isinstance(found, list)
        return {item.label for item in found}

    assert {"hidden", "up", "x", "ffn", "softmax", "norm"} <= await labels("down(hidden)", 5)
    assert await editor.write(SPEC.replace("down(hidden) + x", "down(hid")) != []
    assert {"hidden", "down", "embed"} <= await labels("down(hid", 8)
    assert await editor.write(SPEC) == []
    paths = await labels("tune body.*.attn", 5)
    assert {"*", "body", "body.*.attn", "body.*.attn.wq", "embedding"} <= paths
    assert "hidden" not in paths


async def formats(editor: Editor) -> None:
    async def formatted() -> list[types.TextEdit]:
        options = types.FormattingOptions(tab_size=2, insert_spaces=True)
        params = types.DocumentFormattingParams(editor.document, options)
        return list(await editor.client.text_document_formatting_async(params) or [])

    assert await formatted() == []
    assert await editor.write(SPEC.replace("  hidden = ", "hidden=")) == []
    assert editor.applied(await formatted()) == format_source(SPEC)


@pytest.mark.parametrize("cut", range(0, len(SPEC), 97))
def test_half_a_text_is_analysed(cut: int, tmp_path: Path) -> None:
    (tmp_path / "parts.fllm").write_text(PARTS, encoding="utf-8")
    known = analysis.analysed(str(tmp_path / "mine.fllm"), SPEC[:cut])
    for offset in range(0, cut, 13):
        analysis.hover(known, offset)
        analysis.definition(known, offset)
        list(analysis.completions(known, offset, known))
        list(analysis.quick_fixes(known, 0, offset))
