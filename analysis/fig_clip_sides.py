"""Random rewards with only one side of the clip (arXiv 2509.26114). Reads the runs of
sweeps/clip_sides.yaml."""

from pathlib import Path

from . import evolution


def draw(results: Path) -> None:
    evolution.draw(results, "clip_sides", ["both", "clip_low_only", "clip_high_only"])
