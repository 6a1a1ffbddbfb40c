"""Entropy, accuracy and clip shares of the six algorithms on the testbed. Reads the runs of
sweeps/algorithms.yaml."""

from pathlib import Path

from . import evolution

ARMS = ["grpo", "clip_higher", "cispo", "gspo", "cegppo", "cegppo_0.75"]

BLOCKS = ("algorithms",)


def draw(results: Path) -> None:
    evolution.draw(results, "algorithms", ARMS)


def blocks(results: Path) -> dict[str, str]:
    return {"algorithms": evolution.block(results, "algorithms", ARMS)}
