"""How the cost of a step grows: processor time and memory against the tokens of an answer, the
number of answers, the vocabulary and the number of updates, one at a time from the same point.

A decoder of the testbed's shape with random weights samples answers of exactly so many tokens to
prompts of eight, and is updated on them with CE-GPPO, everything counted. Each point is measured in
a process of its own: CPU seconds of the fastest of three steps, and the largest resident size above
that before the first. Writes results/growth/growth.csv, which `python run.py figures --only growth`
draws.

    python benchmarks/growth.py
"""

import csv
import itertools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, one_update
from transformers import Qwen3Config, Qwen3ForCausalLM

from cegppo import config, losses
from cegppo.instrument.tally import Tally
from cegppo.metrics import mismatch
from cegppo.model.optimizer import adamw
from cegppo.model.policy import Policy
from cegppo.rollout import Sampling
from cegppo.rollout.hf import HFSampler
from cegppo.schedules import Schedules, objective_of
from cegppo.types import Prompt, requests

BASE = {"tokens": 32, "answers": 256, "vocabulary": 1024, "updates": 8}
AXES = {
    "tokens": (16, 32, 64, 128, 256),
    "answers": (64, 128, 256, 512, 1024),
    "vocabulary": (256, 1024, 4096, 16384, 32768),
    "updates": (1, 2, 4, 8, 16, 32, 64),
}
PROMPT, GROUP, STEPS = 8, 8, 3
OUT = Path(__file__).resolve().parent.parent / "results" / "growth" / "growth.csv"


class Numbers:
    """A tokenizer of numbers, in which nothing ends an answer."""

    eos_token_id = -1

    def decode(self, tokens: list[int], **_: Any) -> str:
        return ""


def model(vocabulary: int) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    shape = dict(hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, head_dim=16)
    return Qwen3ForCausalLM(
        Qwen3Config(vocab_size=vocabulary, num_key_value_heads=4, tie_word_embeddings=True, **shape)
    ).eval()


def measure(point: dict[str, int]) -> dict[str, float]:
    """CPU seconds of a step's parts, and MiB of memory that it takes at most."""
    settings = config.Config(loss={"name": "cegppo", **vars(losses.load("cegppo").Params())})
    policy = Policy(model(point["vocabulary"]), Numbers())
    objective = objective_of(settings, Schedules(settings).at(0))
    optimizer = adamw(policy.trained(), 1e-4, settings.update)
    rng = np.random.default_rng(0)
    prompts = [
        Prompt(str(n), "", "", tuple(rng.integers(0, point["vocabulary"], PROMPT).tolist()), "")
        for n in range(point["answers"] // GROUP)
    ]
    sampler = HFSampler(policy, Sampling(seed=0, max_tokens=point["tokens"], statistics=True))
    resident = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before, steps = resident(), []
    for step in range(STEPS):
        marks = [time.process_time()]
        rollouts = sampler.sample(requests(prompts, GROUP), step)
        marks.append(time.process_time())
        advantages = rng.standard_normal(len(rollouts))
        x = policy.collate(rollouts, advantages, advantages, advantages, range(len(rollouts)))
        assert mismatch(x)[1] < 1e-4
        tally = Tally()
        for mini in x.split(point["updates"]):
            one_update(policy, optimizer, mini, objective, tally, grad_clip=1.0)
        tally.metrics(point["updates"])
        marks.append(time.process_time())
        steps.append(np.diff(marks))
    rollout, rest = min(steps, key=sum)
    return {"rollout": float(rollout), "update": float(rest), "mib": resident() - before}


def points() -> list[tuple[str, dict[str, int]]]:
    return [(axis, BASE | {axis: value}) for axis, values in AXES.items() for value in values]


def main(out: Path = OUT) -> None:
    print(machine(), "\n")
    print("| axis | value | rollout, s | update, s | memory, MiB |\n|---|---|---|---|---|")
    rows = []
    for axis, point in points():
        words = [sys.executable, __file__, "--once", json.dumps(point)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append({"axis": axis, "value": point[axis]} | {name: f"{value:.4g}" for name, value in found.items()})
        print("| " + " | ".join(map(str, rows[-1].values())) + " |", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", newline="") as file:
        writer = csv.DictWriter(file, list(itertools.chain(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    if "--once" in sys.argv:
        print(json.dumps(measure(json.loads(sys.argv[-1]))))
    else:
        main()
