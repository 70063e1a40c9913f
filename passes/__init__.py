"""Program to program, one pass a file; every pass is a frozen value and a pure function."""
