"""Runs of TRL's GRPOTrainer with our losses, to be drawn beside ours (analysis/fig_trl.py).

Same starting weights, prompts in the same order, group size, updates a rollout, mini-batches' size,
learning rate, AdamW, gradient clipping, rewards and token limit as the experiment says; TRL
samples, forms advantages and mini-batches and updates. Appends to results/trl/runs.csv, a row a
rollout; a run that is there is not repeated. A minute a run on an idle core.

    python benchmarks/trl_runs.py experiments/regimes/coin_updates16.yaml grpo,cegppo 1 2 3
"""

import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from common import one_step  # also sets threads and paths
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback

from cegppo import config
from cegppo import train as loop
from cegppo.problems import testbed
from cegppo.problems.data import PromptStream, benchmarks
from cegppo.problems.reward import grade
from cegppo.state import build
from cegppo.types import Rollout, Verdict

ROLLOUTS = 30
ARMS = {"grpo": {"loss": "ppo_clip"}, "cegppo": {"loss": "cegppo", "beta1": 0.5, "beta2": 1.0}}
SHUFFLED = "grpo_shuffled"  # ours, with TRL's way of dealing a rollout's responses to its updates
TABLE = Path(__file__).resolve().parent.parent / "results" / "trl" / "runs.csv"
COLUMNS = [
    "entropy/mean",
    "accuracy/mean",
    "length/mean",
    "clip/low",
    "clip/high",
    "lever/low",
    "lever/high",
    "grad/norm",
]


def run(c: config.Config, arm: str) -> list[dict]:
    """A row a rollout of a run of TRL under configuration `c`."""
    from cegppo.plugins.trl import CEGPPOConfig, CEGPPOTrainer

    folder = testbed.base_model(c.testbed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_out = {p.text for prompts in benchmarks(c.eval, c.data, tokenizer).values() for p in prompts}
    prompts = PromptStream(c.data, c.seed, tokenizer, held_out).take(c.prompts_per_step * ROLLOUTS)
    assert all(tuple(tokenizer(p.text)["input_ids"]) == p.token_ids for p in prompts[:100])
    step = 0

    def reward(completions, completion_ids, number, log_metric, **_):
        nonlocal step
        rollouts = [
            Rollout(prompts[n], i % c.group_size, tuple(ids), (0.0,) * len(ids), "stop" if done else "length", text)
            for i, (n, ids, text) in enumerate(zip(number, completion_ids, completions))
            for done in [ids[-1] == tokenizer.eos_token_id]
        ]
        scores = grade(
            rollouts, source=c.reward, signal=c.reward_signal, seed=c.seed, step=step, values=tuple(c.reward_values),
            max_tokens=c.rollout.max_tokens, overlong_buffer=c.overlong_buffer, limits=c.grader,
        )  # fmt: skip
        step += 1
        log_metric("accuracy/mean", sum(s.verdict is Verdict.CORRECT for s in scores) / len(scores))
        return [s.reward for s in scores]

    rows = c.prompts_per_step * c.group_size
    with tempfile.TemporaryDirectory() as where:
        arguments = CEGPPOConfig(
            output_dir=where, use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,
            gradient_checkpointing=False, seed=c.seed, **ARMS[arm],
            per_device_train_batch_size=rows // c.updates_per_step, gradient_accumulation_steps=1,
            steps_per_generation=c.updates_per_step, num_generations=c.group_size, shuffle_dataset=False,
            max_steps=ROLLOUTS * c.updates_per_step, logging_steps=c.updates_per_step,
            max_completion_length=c.rollout.max_tokens, temperature=1.0, top_p=1.0, top_k=0,
            learning_rate=c.update.lr, lr_scheduler_type="constant", adam_beta1=c.update.beta1,
            adam_beta2=c.update.beta2, weight_decay=c.update.weight_decay, max_grad_norm=c.update.grad_clip,
            loss_type="bnpo",  # the mean over the update's own tokens, as ours
        )  # fmt: skip
        data = Dataset.from_list([{"prompt": p.text, "number": n} for n, p in enumerate(prompts)])
        trainer = CEGPPOTrainer(str(folder), reward, arguments, train_dataset=data, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    log = [row for row in trainer.state.log_history if "entropy/mean" in row]
    names = {"length/mean": "completions/mean_length", "grad/norm": "grad_norm"}
    return [
        {"step": row["step"] // c.updates_per_step, **{name: row.get(names.get(name, name)) for name in COLUMNS}}
        for row in log
    ]


def shuffled(c: config.Config) -> list[dict]:
    """A row a rollout of a run of ours whose updates get a rollout's responses at random, and not
    group by group."""
    state, rng = build(c), np.random.default_rng(c.seed)
    shuffled = lambda x: x.rows(torch.from_numpy(rng.permutation(len(x))))
    in_order = loop.split_evenly
    with patch.object(loop, "split_evenly", lambda c, x, *rest: in_order(c, shuffled(x), *rest)):
        steps = [one_step(state).line for _ in range(ROLLOUTS)]
    return [{"step": n, **{name: row[name] for name in COLUMNS}} for n, row in enumerate(steps, 1)]


def main(experiment: str, arms: str, *seeds: str) -> None:
    for seed in map(int, seeds or (1, 2, 3)):
        for arm in arms.split(","):
            c, _ = config.load(Path(experiment), [f"seed={seed}", "method=grpo", "diagnostics.every=0"])
            key = {"experiment": c.experiment, "arm": arm, "seed": seed}
            before = pd.read_csv(TABLE) if TABLE.is_file() else pd.DataFrame(columns=list(key))
            if (before[list(key)] == pd.Series(key)).all(axis=1).any():
                continue
            start = time.perf_counter()
            made = pd.DataFrame([{**key, **row} for row in (shuffled(c) if arm == SHUFFLED else run(c, arm))])
            TABLE.parent.mkdir(exist_ok=True)
            pd.concat([before, made] if len(before) else [made]).to_csv(TABLE, index=False, float_format="%.6g")
            print(f"{key}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
