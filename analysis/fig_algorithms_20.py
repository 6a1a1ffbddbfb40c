"""GRPO, clip-higher and CE-GPPO with twenty seeds each: the README's figure. Reads the runs of
sweeps/algorithms_20.yaml."""

from pathlib import Path

from . import evolution

ARMS = ["grpo", "clip_higher", "cegppo"]
BLOCKS = ("algorithms_20",)


def draw(results: Path) -> None:
    evolution.draw(results, "algorithms_20", ARMS)


def blocks(results: Path) -> dict[str, str]:
    return {"algorithms_20": evolution.block(results, "algorithms_20", ARMS)}
