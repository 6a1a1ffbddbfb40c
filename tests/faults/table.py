"""What a campaign tried and what failed, added to a csv of all of them."""

import csv
import sys
from pathlib import Path

COLUMNS = ("campaign", "what", "seed", "trials", "faults", "failures")


class Table:
    """Counts by what was tried. `out` keeps those of earlier campaigns; the same campaign, thing
    and seed again replaces them."""

    def __init__(self, campaign: str, seed: int | str, out: Path | None):
        self.campaign, self.seed, self.out = campaign, str(seed), out
        self.counts: dict[str, list[int]] = {}
        self.failures: list[str] = []

    def add(self, what: str, faults: int, wrong: str, trials: int = 1) -> None:
        """`trials` with `faults` in all; `wrong` says what failed, or is empty."""
        count = self.counts.setdefault(what, [0, 0, 0])
        count[0], count[1], count[2] = count[0] + trials, count[1] + faults, count[2] + bool(wrong)
        if wrong:
            self.failures.append(f"{what}: {wrong}")
            print(f"FAILED {self.failures[-1]}", file=sys.stderr, flush=True)

    def rows(self) -> list[dict[str, str]]:
        made = [(self.campaign, what, self.seed, *map(str, count)) for what, count in sorted(self.counts.items())]
        return [dict(zip(COLUMNS, row)) for row in made]

    def close(self) -> None:
        """Print, and write where it was asked for."""
        for row in self.rows():
            print("{what}: {trials} trials, {faults} faults, {failures} failures".format(**row))
        if self.out is None:
            return
        old = list(csv.DictReader(self.out.open())) if self.out.is_file() else []
        key = lambda row: (row["campaign"], row["what"], row["seed"])
        rows = {key(row): row for row in [*old, *self.rows()]}
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with open(self.out, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows[name] for name in sorted(rows))
