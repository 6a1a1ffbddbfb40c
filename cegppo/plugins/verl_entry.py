"""What the entry point `verl.plugins` loads. verl mentions an entry point that fails at debug level
only, and would go on without our losses: so it is said here."""

import sys

from ..types import said

try:
    from . import verl as _registered  # noqa: F401
except Exception as error:  # whatever it is, verl swallows it
    print(f"cegppo: its losses are NOT registered with verl: {type(error).__name__}: {said(error)}", file=sys.stderr)
    raise
