"""Run folders made up for the page's tests: what a run would have recorded, without one."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

CLASSES = ("pa_hp", "pa_lp", "na_hp", "na_lp")
WORDS = ["so", " then", " 4", "+", "7", "=", "\n", " hence", " \\boxed{", "}", "<eos>", "", "é"]
EVIL = '</script><script>document.title = "evil"</script><img src=x onerror="document.title = 1">&amp;'


def write_run(
    folder: Path, steps: int = 30, looked: int = 3, prompts: int = 4, group: int = 4, length: int = 9, **settings
) -> Path:
    """A finished run with `looked` token records. The first prompt comes in every one of them."""
    rng = np.random.default_rng(int(folder.name.removeprefix("seed")))
    folder.mkdir(parents=True)
    config = {
        "experiment": "made", "seed": int(folder.name.removeprefix("seed")), "steps": steps, "method": "cegppo",
        "loss": {"name": "cegppo", "beta1": 0.5, "beta2": 1.0, "eps_low": 0.2, "eps_high": 0.2},
        "update": {"lr": 2e-4, "beta1": 0.9}, "diagnostics": {"every": max(1, steps // max(looked, 1))},
        "data": {"train": [{"name": "sums"}]}, **settings,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    session = {"start": "2026-11-21T10:00:00+00:00", "machine": "a machine", "commit": "c" * 40, "diff": None}
    session["command"] = "run.py train made.yaml method=cegppo"
    meta = {"status": "finished", "steps": steps, "seconds": 10.0, "sessions": [session]}
    (folder / "meta.json").write_text(json.dumps(meta))
    rows = [_step(step, steps, rng) for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tests = [
        {"step": step, "benchmark": name, "n": 8, "k": 4, "correct": rng.integers(0, 5, 8).tolist(), "avg@4": 0.5}
        for step in (0, steps)
        for name in ("sums", "gcd")
    ]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tests))
    for n in range(looked):
        step = (n + 1) * steps // looked
        write_tokens(folder, step, tokens(step, prompts, group, length, rng))
    seen = [_seen(step, name) for step in (0, steps) for name in ("sums/0", "gcd/0")]
    (folder / "completions").mkdir()
    (folder / "completions" / "seen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in seen))
    return folder


def write_tokens(folder: Path, step: int, frame: pd.DataFrame) -> None:
    (folder / "tokens").mkdir(exist_ok=True)
    frame.to_parquet(folder / "tokens" / f"step{step:06}.parquet")


def data_of(page: Path) -> dict:
    """What a page shows, as its script reads it."""
    _, _, rest = page.read_text().partition('<script type="application/json" id="data">')
    return json.loads(rest.partition("</script>")[0])


def _step(step: int, steps: int, rng: np.random.Generator) -> dict:
    shares = {f"{head}{key}": float(rng.random()) for head in ("tokens/", "grad/share_", "clip/") for key in CLASSES}
    noise = lambda value: float(value * rng.uniform(0.9, 1.1))
    return {
        "step": step, "entropy/mean": noise(0.6 - 0.2 * step / steps), "accuracy/mean": noise(0.4),
        "reward/mean": noise(0.4), "clip/low": noise(0.008), "clip/high": noise(0.003), "grad/norm": noise(1.5),
        "kl/old_k1": noise(0.002), "kl/old_k3": noise(0.003), "ratio/min": 0.5, "ratio/max": 2.0, "updates": 8.0,
        "length/mean": noise(18), "verdict/truncated": 0.01, "rollout/constant_groups": noise(0.3),
        "time/step": 0.5, **shares,
    }  # fmt: skip


def tokens(step: int, prompts: int, group: int, length: int, rng: np.random.Generator) -> pd.DataFrame:
    """A token record: `prompts` groups of `group` responses of `length` tokens."""
    names = ["sums/first", *(f"sums/{step}-{n}" for n in range(1, prompts))]
    n = prompts * group * length
    prob, ratio = rng.beta(2, 1, n), np.exp(rng.normal(0, 0.12, n))
    advantage = np.repeat(rng.choice([-1.2, 0.8], prompts * group), length)
    high = prob >= 0.5
    kind = np.where(advantage > 0, np.where(high, "pa_hp", "pa_lp"), np.where(high, "na_hp", "na_lp"))
    low_side, high_side = (advantage < 0) & (ratio < 0.8), (advantage > 0) & (ratio > 1.2)
    return pd.DataFrame(
        {
            "step": step, "update": np.repeat(np.arange(prompts * group) // group, length),
            "prompt_id": np.repeat(names, group * length),
            "rollout": np.tile(np.repeat(np.arange(group), length), prompts),
            "position": np.tile(np.arange(length), prompts * group), "token_id": rng.integers(0, 400, n),
            "text": rng.choice(WORDS, n), "prob": prob, "old_prob": prob / ratio, "ratio": ratio,
            "entropy": rng.exponential(0.5, n), "advantage": advantage, "weight": advantage * ratio, "scale": 0.01,
            "dentropy": rng.normal(0, 0.2, n), "dentropy_exact": rng.normal(0, 1e-5, n), "class": kind,
            "side": np.where(low_side, "low", np.where(high_side, "high", "inside")),
            "reward": (advantage > 0).astype(float), "verdict": np.where(advantage > 0, "correct", "wrong"),
            "prompt": "What is 3 + 4?", "answer": "7",
        }
    )  # fmt: skip


def _seen(step: int, name: str) -> dict:
    return {
        "step": step, "benchmark": name.split("/")[0], "id": name, "prompt": f"{name}: what is 3 + 4?", "answer": "7",
        "completions": [f"after {step}: 3+4=7", EVIL], "verdicts": ["correct", "no_answer"],
        "finish": ["stop", "length"], "tokens": [4, 12],
    }  # fmt: skip
