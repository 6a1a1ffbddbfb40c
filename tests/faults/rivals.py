"""A campaign of rivals: the same command twice at once on one folder, the second at a random moment
of the first. Each does its work or says in a line why not, one of them does it, and what is left is
what one alone leaves.
"""

import random
import shutil
import time
from pathlib import Path

from .children import Child, differences, left
from .kills import PATIENCE, SCENARIOS, fresh
from .table import Table

COMMANDS = {"train": 12, "eval": 8, "report": 6, "keep": 6, "compare": 4, "sweep": 1}  # and how often


class Campaign:
    def __init__(self, folder: Path, table: Table):
        self.folder, self.table = folder, table

    def trial(self, name: str, wanted: dict, seconds: float) -> str:
        """What was wrong, or ""; the second starts after `seconds`."""
        root = fresh(self.folder, name, f"tried {name}")
        first = Child(SCENARIOS[name].command(root), self.folder / "output")
        first.wait(seconds)
        second = Child(SCENARIOS[name].command(root), self.folder / "output of the second")
        codes = [child.wait(PATIENCE) for child in (first, second)]
        said = [child.said() for child in (first, second)]
        if None in codes:
            first.kill(), second.kill()
            return "hangs"
        if 0 not in codes or not set(codes) <= {0, 1, 2} or any("Traceback" in text for text in said):
            return f"exit codes {codes}: {said[0][-300:]} | {said[1][-300:]}"
        again = Child(SCENARIOS[name].command(root), self.folder / "output")
        if again.wait(PATIENCE) != 0:
            again.kill()
            return f"after {codes} it does not go on: {again.said()[-300:]}"
        unlike = differences(wanted, left(root))
        return f"after {codes} not alike: {', '.join(unlike[:5])}" if unlike else ""

    def run(self, seconds: float, only: list[str], seed: int) -> None:
        until = time.monotonic() + seconds
        for name in only or COMMANDS:
            root, begun = fresh(self.folder, name, f"tried {name}"), time.monotonic()
            child = Child(SCENARIOS[name].command(root), self.folder / "output")
            assert child.wait(PATIENCE) == 0, child.said()
            took, wanted = time.monotonic() - begun, left(root)
            shutil.rmtree(root)
            rng = random.Random(f"{seed} {name}")
            for _ in range(COMMANDS[name]):
                if time.monotonic() > until:
                    return
                # Half of them at the same moment, where most is decided.
                self.table.add(name, 1, self.trial(name, wanted, rng.choice((0.0, rng.random())) * took))
