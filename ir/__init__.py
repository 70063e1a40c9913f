"""The vocabulary of the compiler: dims, types, ops, programs, their text, verifier and meaning."""
