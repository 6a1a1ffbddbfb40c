"""Random rewards with only one side of the clip (arXiv 2509.26114). Reads the runs of
sweeps/clip_sides.yaml."""

from pathlib import Path

from . import evolution

ARMS = ["both", "clip_low_only", "clip_high_only"]
BLOCKS = ("clip_sides",)


def draw(results: Path) -> None:
    evolution.draw(results, "clip_sides", ARMS)


def blocks(results: Path) -> dict[str, str]:
    return {"clip_sides": evolution.block(results, "clip_sides", ARMS)}
