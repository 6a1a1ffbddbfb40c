"""Table 1: GRPO, clip-higher and CE-GPPO, the paper's numbers, re-runs by others, ours. Reads
the runs of sweeps/algorithms.yaml."""

from pathlib import Path

from . import comparison


def draw(results: Path) -> None:
    note = (
        "avg@32; MATH500, HumanEval, LCB and IFBench avg@4. Clip-higher is what the paper calls DAPO. Arms are not"
        " treated alike: for 7B on AIME24, CE-GPPO's 66.0 is the peak of its curve in Figure 2, clip-higher's 59.7 the"
        " end of its (results/paper/README.md)."
    )
    comparison.draw(results, "table1", "Table 1", ["grpo", "clip_higher", "cegppo", "cegppo_0.75"], note)
