"""What editors use: highlighting from the token table, and a language server."""
