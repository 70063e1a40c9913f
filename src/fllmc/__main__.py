"""`python -m fllmc` is the command `fllmc`."""

import sys

from fllmc.cli import main

if __name__ == "__main__":
    sys.exit(main())
