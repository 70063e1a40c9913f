"""A language server for `.fllm`, by pygls: `fllmc lsp` runs it on stdin and stdout."""

from __future__ import annotations

from lsprotocol import types
from pygls import uris
from pygls.lsp.server import LanguageServer
from pygls.workspace import TextDocument

from fllmc import __version__
from fllmc.editor import analysis
from fllmc.editor.analysis import Analysis, Refused
from fllmc.frontend.format import format_source
from fllmc.frontend.library import on_disk
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError, Edit
from fllmc.ir.span import Span

SEVERITIES = {
    "error": types.DiagnosticSeverity.Error,
    "warning": types.DiagnosticSeverity.Warning,
}


MOST = 100
"""How many diagnostics an editor is told of: what is near a name takes time to find."""


class Server(LanguageServer):
    """Keeps the last analysis of each open text, and the last of one that could be read."""

    def __init__(self) -> None:
        super().__init__("fllmc", __version__)
        self.known: dict[str, Analysis] = {}
        self.good: dict[str, Analysis] = {}

    def document(self, uri: str) -> TextDocument:
        """An open text."""
        return self.workspace.get_text_document(uri)

    def analysis(self, uri: str) -> Analysis:
        """What is known of the current version."""
        document = self.document(uri)
        known = self.known.get(uri)
        if known is None or known.text != document.source:
            known = analysis.analysed(uris.to_fs_path(uri) or uri, document.source)
            self.known[uri] = known
            if not any(found.code < "E0203" for found in known.found):
                self.good[uri] = known
        return known

    def publish(self, uri: str) -> None:
        """Tell the editor what is wrong now."""
        known, document = self.analysis(uri), self.document(uri)
        told = [_diagnostic(found, known, document) for found in known.found[:MOST]]
        self.text_document_publish_diagnostics(
            types.PublishDiagnosticsParams(uri=uri, diagnostics=told, version=document.version)
        )


def _range(span: Span, document: TextDocument) -> types.Range:
    """A place in an open text, in the editor's units."""
    return types.Range(
        start=document.client_position_at_offset(span.start),
        end=document.client_position_at_offset(span.end),
    )


def _location(span: Span, document: TextDocument | None = None) -> types.Location:
    """A place in any file."""
    path = on_disk(span.file).absolute()
    text = document or TextDocument(path.as_uri(), path.read_text(encoding="utf-8"))
    return types.Location(uri=uris.from_fs_path(str(path)) or "", range=_range(span, text))


def _diagnostic(found: Diagnostic, known: Analysis, document: TextDocument) -> types.Diagnostic:
    """A diagnostic of the open text; one of an imported file stands at the first line."""
    here = found.span.file == known.file
    words = [found.message(), found.primary(), *found.notes(), *found.helps()]
    if not here:
        words.insert(0, str(found.span))
    place = (
        _range(found.span, document)
        if here
        else types.Range(start=types.Position(0, 0), end=types.Position(0, 0))
    )
    related = [
        types.DiagnosticRelatedInformation(_location(each.span, document), each.text)
        for each in found.secondary()
        if each.span.file == known.file
    ]
    return types.Diagnostic(
        range=place,
        message="\n".join(word for word in words if word),
        severity=SEVERITIES[found.severity],
        code=found.code,
        source="fllmc",
        related_information=related,
    )


def _edits(edits: tuple[Edit, ...], known: Analysis, document: TextDocument) -> types.WorkspaceEdit:
    """Edits of the open text and of files on disk."""
    changes: dict[str, list[types.TextEdit]] = {}
    for edit in edits:
        own = edit.span.file == known.file
        where = _location(edit.span, document if own else None)
        uri = document.uri if own else where.uri
        changes.setdefault(uri, []).append(types.TextEdit(where.range, edit.text))
    return types.WorkspaceEdit(changes=changes)


def server() -> Server:
    """A server with all that it answers."""
    made = Server()

    @made.feature(types.TEXT_DOCUMENT_DID_OPEN)
    def opened(ls: Server, params: types.DidOpenTextDocumentParams) -> None:
        ls.publish(params.text_document.uri)

    @made.feature(types.TEXT_DOCUMENT_DID_CHANGE)
    def changed(ls: Server, params: types.DidChangeTextDocumentParams) -> None:
        ls.publish(params.text_document.uri)

    @made.feature(types.TEXT_DOCUMENT_DID_CLOSE)
    def closed(ls: Server, params: types.DidCloseTextDocumentParams) -> None:
        ls.known.pop(params.text_document.uri, None)
        ls.good.pop(params.text_document.uri, None)

    _reading(made)
    _writing(made)
    return made


def _reading(made: Server) -> None:
    """Requests that change nothing."""

    @made.feature(types.TEXT_DOCUMENT_HOVER)
    def hover(ls: Server, params: types.HoverParams) -> types.Hover | None:
        uri = params.text_document.uri
        text = analysis.hover(ls.analysis(uri), _offset(ls, uri, params.position))
        if text is None:
            return None
        content = types.MarkupContent(types.MarkupKind.Markdown, f"```fllm\n{text}\n```")
        return types.Hover(content)

    @made.feature(types.TEXT_DOCUMENT_DEFINITION)
    def definition(ls: Server, params: types.DefinitionParams) -> types.Location | None:
        uri = params.text_document.uri
        known = ls.analysis(uri)
        span = analysis.definition(known, _offset(ls, uri, params.position))
        if span is None:
            return None
        return _location(span, ls.document(uri) if span.file == known.file else None)

    @made.feature(types.TEXT_DOCUMENT_COMPLETION)
    def completion(ls: Server, params: types.CompletionParams) -> list[types.CompletionItem]:
        uri = params.text_document.uri
        known = ls.analysis(uri)
        offset = _offset(ls, uri, params.position)
        items = analysis.completions(known, offset, ls.good.get(uri, known))
        return [types.CompletionItem(label=name, detail=what) for name, what in items]


def _writing(made: Server) -> None:
    """Requests that give edits."""

    @made.feature(types.TEXT_DOCUMENT_FORMATTING)
    def formatting(
        ls: Server, params: types.DocumentFormattingParams
    ) -> list[types.TextEdit] | None:
        document = ls.document(params.text_document.uri)
        try:
            text = format_source(document.source)
        except DiagnosticError:
            return None
        if text == document.source:
            return []
        whole = types.Range(types.Position(0, 0), types.Position(len(document.lines), 0))
        return [types.TextEdit(whole, text)]

    @made.feature(types.TEXT_DOCUMENT_RENAME)
    def rename(ls: Server, params: types.RenameParams) -> types.WorkspaceEdit | None:
        uri = params.text_document.uri
        known = ls.analysis(uri)
        try:
            edits = analysis.rename(known, _offset(ls, uri, params.position), params.new_name)
        except Refused as reason:
            message = types.ShowMessageParams(types.MessageType.Error, str(reason))
            ls.window_show_message(message)
            return None
        return _edits(edits, known, ls.document(uri))

    @made.feature(types.TEXT_DOCUMENT_CODE_ACTION)
    def actions(ls: Server, params: types.CodeActionParams) -> list[types.CodeAction]:
        uri = params.text_document.uri
        known, document = ls.analysis(uri), ls.document(uri)
        first, last = (_offset(ls, uri, p) for p in (params.range.start, params.range.end))
        return [
            types.CodeAction(
                title=fix.title,
                kind=types.CodeActionKind.QuickFix,
                diagnostics=[_diagnostic(found, known, document)],
                edit=_edits(fix.edits, known, document),
            )
            for found, fix in analysis.quick_fixes(known, first, last)
        ]


def _offset(ls: Server, uri: str, position: types.Position) -> int:
    return ls.document(uri).offset_at_position(position)
