"""What wandb and TensorBoard cost a run: the testbed's steps with a mirror and without.

Two trainers of the same run do the same steps, bit for bit, in turns of TURN steps, one of which is
looked at (ledger, token record, histograms, table). A turn ends when the mirror's queue is empty,
which a run does not wait for: so this is the most that it can cost.

    python benchmarks/mirror.py [wandb|tensorboard|both]
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import machine, one_step, ratio_line

TURN, TURNS = 10, 5
MODES = {
    "wandb": ["wandb.mode=offline"],
    "tensorboard": ["wandb.mode=disabled", "tensorboard=true"],
    "both": ["wandb.mode=offline", "tensorboard=true"],
}


class Run:
    """A run's state with its record."""

    def __init__(self, folder: Path, *overrides: str):
        from cegppo import config
        from cegppo.record.run import Record
        from cegppo.state import build

        testbed = Path(__file__).resolve().parent.parent / "experiments" / "testbed.yaml"
        words = ["method=cegppo", f"diagnostics.every={TURN}", f"run_dir={folder}", *overrides]
        loaded = config.load(testbed, words)[0]
        self.record, self.state = Record(loaded), build(loaded)
        self.state.draw_probe()
        self.record.begin(0)

    def turn(self) -> tuple[float, float]:
        """(seconds, seconds of CPU of this process) of TURN steps, logged as the loop does."""
        start, used = time.perf_counter(), time.process_time()
        for _ in range(TURN):
            done = one_step(self.state)
            if done.tokens is not None:
                self.record.log_tokens(self.state.step, done.tokens)
            self.record.log(self.state.step, done.line)
        for mirror in self.record._mirrors:
            while not mirror._queue.empty():
                time.sleep(0.001)
        return time.perf_counter() - start, time.process_time() - used


def main() -> None:
    mode = sys.argv[1] if len(sys.argv) > 1 else "wandb"
    if mode not in MODES:
        sys.exit(f"'{mode}' is none of {', '.join(MODES)}")
    print(machine(), "\n")
    with tempfile.TemporaryDirectory() as where:
        with_it, without = Run(Path(where, "with"), *MODES[mode]), Run(Path(where, "without"), "wandb.mode=disabled")
        turns: list[tuple[tuple[float, float], tuple[float, float]]] = []
        for n in range(TURNS + 1):  # the first is of warm-up
            if n % 2:
                ours, theirs = with_it.turn(), without.turn()
            else:
                theirs = without.turn()
                ours = with_it.turn()
            if n:
                turns.append((ours, theirs))
        for run in (with_it, without):
            run.record.close("finished")
    print(f"{TURNS} turns of {TURN} steps each\n")
    print(f"| {mode}, {TURN} steps | with | without | with / without |\n|---|---|---|---|")
    for which, name in enumerate(("wall clock", "CPU of the process")):
        print(ratio_line(name, [a[which] for a, _ in turns], [b[which] for _, b in turns]))
    added = statistics.mean(a[1] - b[1] for a, b in turns)
    print(f"\nadded: {1000 * added:.0f} ms of CPU a turn")


if __name__ == "__main__":
    main()
