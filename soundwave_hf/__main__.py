"""`python -m soundwave_hf`: the command `soundwave-hf`."""

import sys

from .cli import main


sys.exit(main())
