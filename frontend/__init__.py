"""Text to tree to typed model program: grammar, spans, names, types, formatter, library loader."""
