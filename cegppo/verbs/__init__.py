"""What the front door can do, a file a verb: `add(verbs)` says to argparse what it takes, `run`
does it and returns the exit code.

Nothing slow is imported before a verb runs. `named` is the argument that must name something there;
a verb that is `files_alone` reads records and does without torch, and says Missing (analysis/)
where others say BadInput.
"""

from typing import Any

OVERRIDES: dict[str, Any] = dict(
    nargs="*", metavar="key=value", help="any key of the configuration, e.g. method=grpo seed=1 update.lr=3e-5"
)
RESULTS: dict[str, Any] = dict(default="results", metavar="DIR", help="the root of the run folders (default: results)")
