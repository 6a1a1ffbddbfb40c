"""How much of a second worker arrives: the same runs one after the other and two at a time.

RUNS short runs of the testbed by `run.py sweep`, with one worker and with two, in turn; wall clock,
imports and everything that a sweep does included. 1.00 of linear is half the time with twice the
workers.

    python benchmarks/sweep.py
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine

ROOT = Path(__file__).resolve().parent.parent
RUNS, WORKERS, ROUNDS, STEPS = 4, 2, 3, 15


def seconds(workers: int, runs: int, steps: int) -> float:
    """Of a sweep of `runs` runs of `steps` steps, on a results folder of its own."""
    with tempfile.TemporaryDirectory() as where:
        described = Path(where) / "swept.yaml"
        described.write_text(
            f"experiment: {ROOT / 'experiments' / 'testbed.yaml'}\nseeds: {list(range(runs))}\nworkers: {workers}\n"
            f"common: {{results: {where}/results, steps: {steps}, eval_every: 0, wandb.mode: disabled}}\n"
            "varies: [method, loss]\narms: {cegppo: {method: cegppo}}\n"
        )
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(ROOT / "run.py"), "sweep", str(described)], capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return time.perf_counter() - start


def main() -> None:
    print(machine(), "\n")
    pairs = [(seconds(1, RUNS, STEPS), seconds(WORKERS, RUNS, STEPS)) for _ in range(ROUNDS)]
    shares = sorted(one / (WORKERS * many) for one, many in pairs)
    one, many = (statistics.median(column) for column in zip(*pairs))
    print(f"| {RUNS} runs of {STEPS} steps | one worker | {WORKERS} workers | of linear |\n|---|---|---|---|")
    print(
        f"| testbed | {one:.1f} s | {many:.1f} s | {statistics.median(shares):.2f} [{shares[0]:.2f},"
        f" {shares[-1]:.2f}] |"
    )


if __name__ == "__main__":
    main()
