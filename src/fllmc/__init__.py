"""A declarative compiler for training large models, from one GPU to thousands.

`fllmc` is the door. Behind it, one way only: `frontend` (text to program), `passes` (program to
program), `codegen` (program to artifact), `runtime` (artifact to training run), all in the words
of `ir`. Importing this package imports nothing else.
"""

__version__ = "0.1.0"
