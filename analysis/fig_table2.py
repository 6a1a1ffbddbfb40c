"""Table 2: CISPO, GSPO and CE-GPPO, with GRPO to compare; the paper's numbers and ours. Reads
the runs of sweeps/algorithms.yaml."""

from pathlib import Path

from . import comparison


def draw(results: Path) -> None:
    comparison.draw(results, "table2", "Table 2", ["grpo", "cispo", "gspo", "cegppo"], "avg@32; MATH500 avg@4.")
