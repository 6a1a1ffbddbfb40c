"""`python -m cegppo VERB`, also for torchrun."""

import sys

from .cli import installed

sys.exit(installed())
