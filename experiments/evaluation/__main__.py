"""``python -m experiments.evaluation``: see :mod:`.harness`."""

import sys

from .harness import main

sys.exit(main())
