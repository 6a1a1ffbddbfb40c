"""What both benchmarks share: the machine's name, a paired timing, prompts of the testbed, a
fixed-length or natural model."""

import dataclasses
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd  # noqa: E402
import torch  # noqa: E402

from analysis import stats  # noqa: E402
from cegppo.gradient import weighted_gradient  # noqa: E402
from cegppo.log import Log  # noqa: E402
from cegppo.model.optimizer import clip_grad_norm  # noqa: E402
from cegppo.problems import testbed  # noqa: E402
from cegppo.stop import StopSignal  # noqa: E402
from cegppo.train import train  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


class LastStep(Log):
    """The metrics and the token record of the last step; saves nothing."""

    def __init__(self):
        self.line, self.tokens = {}, None

    def step(self, step, metrics, elapsed, tokens):
        self.line, self.tokens = metrics, tokens

    def checkpoint(self, state, best): ...


class AtOnce(StopSignal):
    """A stop that is asked for after every step."""

    def requested(self) -> bool:
        return True


def one_step(state) -> LastStep:
    """The loop, for one step without an evaluation."""
    log, c = LastStep(), state.config
    train(dataclasses.replace(c, steps=max(c.steps, state.step + 2), eval_every=0), state, log, AtOnce())
    return log


def one_update(policy, optimizer, mini, objective, tally, grad_clip: float = 0.0) -> None:
    """An optimizer step on a mini-batch, everything counted, as the loop does it."""
    gradient = weighted_gradient(policy, mini, objective)
    clip_grad_norm(policy.model, grad_clip)
    optimizer.step()
    tally.add_gradient(gradient)


def machine() -> str:
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def paired(ours: Callable[[], None], theirs: Callable[[], None], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each, in turn, after one warm-up of both: a drift of the machine hits both
    alike."""
    times: tuple[list[float], list[float]] = ([], [])
    for n in range(rounds + 1):
        for which, call in enumerate((ours, theirs)):
            start = time.perf_counter()
            call()
            if n:
                times[which].append(time.perf_counter() - start)
    return times


def ratio_line(name: str, ours: list[float], theirs: list[float]) -> str:
    """`name | ours | theirs | ours / theirs` with medians; the ratio pair by pair, median [min,
    max]."""
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    a, b, r = statistics.median(ours), statistics.median(theirs), statistics.median(ratios)
    return f"| {name} | {a:.3f} s | {b:.3f} s | {r:.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}] |"


def mean_ratio_line(name: str, ours: list[float], theirs: list[float]) -> str:
    """The same with the geometric mean of the ratios and its 95 % t interval, for a difference that
    is smaller than what one pair scatters."""
    ratios = [math.log(a / b) for a, b in zip(ours, theirs)]
    mean, low, high = (math.exp(value) for value in stats.mean_over_seeds(pd.Series(ratios)))
    a, b = statistics.median(ours), statistics.median(theirs)
    return f"| {name} | {a:.3f} s | {b:.3f} s | {mean:.3f} [{low:.3f}, {high:.3f}], {len(ratios)} pairs |"


def testbed_model():
    """(folder, model, tokenizer) of the embedded base model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = testbed.base_model(testbed.Recipe())
    return (
        folder,
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )
