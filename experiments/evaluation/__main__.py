"""``python -m experiments.evaluation``: see :mod:`.harness`."""

import sys

from context_diffusion.commands import run_command

from .harness import main

sys.exit(run_command(main))
