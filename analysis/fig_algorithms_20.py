"""GRPO, clip-higher and CE-GPPO with twenty seeds each: the README's figure. Reads the runs of
sweeps/algorithms_20.yaml."""

from pathlib import Path

from . import evolution


def draw(results: Path) -> None:
    evolution.draw(results, "algorithms_20", ["grpo", "clip_higher", "cegppo"])
