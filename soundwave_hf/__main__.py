"""`python -m soundwave_hf`: the command `soundwave-hf`."""

import sys

from .cli import main


if __name__ == "__main__":
    sys.exit(main())
