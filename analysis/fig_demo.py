"""The demo's figure and table: GRPO, clip-higher and CE-GPPO on the testbed, one seed. Reads the
runs of sweeps/demo.yaml."""

from pathlib import Path

from . import evolution


def draw(results: Path) -> None:
    evolution.draw(results, "demo", ["grpo", "clip_higher", "cegppo"])
