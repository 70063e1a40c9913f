"""Names, dims and types of what was written: syntax tree to typed blocks."""
