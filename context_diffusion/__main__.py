"""``python -m context_diffusion generate ...`` and ``python -m context_diffusion demo``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
