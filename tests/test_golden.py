"""The golden runs: three steps of GRPO, CE-GPPO and PPO, and two of every other preset, every
metric as it was when tests/golden/ was written.

A change that only moves code leaves these numbers alone. One that is meant to change them writes
the files anew and says why:

    CEGPPO_GOLDEN=write python -m pytest -n0 tests/test_golden.py

On one machine `python -m tests.goldens` compares with ==, and more than metrics.

The model computes in float64, so that another processor's rounding stays far below the tolerance.
"""

import json
import os
from pathlib import Path

import pytest

from cegppo import config
from cegppo.state import build

from . import steps

FOLDER = Path(__file__).resolve().parent / "golden"
RELATIVE = 1e-6
# What only rounding and finite differences make: small, and not the same everywhere.
RESIDUAL = (
    "mismatch/max",
    "mismatch/mean",
    "ledger/gradient_residual",
    "ledger/influence_residual",
    "ledger/step_residual",
)
# Differences of log-probabilities, in which transformers' layers round to float32 whatever the
# model.
DIFFERENCES = ("ledger/predicted", "ledger/carried", "ledger/lever")
OVERRIDES = (
    "steps=3", "updates_per_step=4", "prompts_per_step=6", "update.lr=5e-3", "update.kl_coef=0.01",
    "update.entropy_coef=0.001",
    "update.nll_coef=0.1", "update.dual_clip=3", "update.weight_decay=0.01", "diagnostics.every=2",
    "diagnostics.parts=true", "diagnostics.probe=4", "critic.lr=1e-3",
    "rollout.old_logprobs=recompute",  # the sampler's are of float32
    "model.packing=never",  # the order of sums in bins is not that of padded rows, and layers round to float32
)  # fmt: skip


def rows(tiny, method: str, count: int = 3) -> list[dict[str, float]]:
    """Metrics of each step and, last, accuracy counts of an evaluation; without times."""
    loaded, _ = config.load(tiny, [f"method={method}", *OVERRIDES])
    state = build(loaded)
    state.policy.model.double()
    for other in (state.reference.model, state.critic):
        if other is not None:
            other.double()
    made = [steps.step(state) for _ in range(count)]
    counts = {f"eval/{row['benchmark']}": float(sum(row["correct"])) for row in state.evaluator.run(3)[0]}
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in [*made, counts]]


MAIN = ("grpo", "cegppo", "ppo")


def compared(then: list[dict[str, float]], now: list[dict[str, float]]) -> None:
    assert len(then) == len(now)
    for step, (old, new) in enumerate(zip(then, now), 1):
        assert old.keys() == new.keys(), step
        assert all(new[k] < 1e-2 for k in new if k.startswith(RESIDUAL))
        near = lambda k: pytest.approx(old[k], rel=1e-3 if k.startswith(DIFFERENCES) else RELATIVE, abs=1e-12)
        different = {k: (old[k], new[k]) for k in old if not k.startswith(RESIDUAL) and new[k] != near(k)}
        assert not different, f"step {step}: {different}"


@pytest.mark.parametrize("method", MAIN)
def test_golden(tiny, method):
    path, now = FOLDER / f"{method}.jsonl", rows(tiny, method)
    if os.environ.get("CEGPPO_GOLDEN") == "write":
        path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in now))
    then = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(then) == 4
    compared(then, now)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in config.methods() if name not in MAIN])
def test_golden_of_every_other_preset(tiny, method):
    """Two steps, the second of which is looked at. Numbers are kept to nine digits."""
    path, now = FOLDER / "presets.jsonl", rows(tiny, method, 2)
    kept = {line["method"]: line["rows"] for line in map(json.loads, path.read_text().splitlines())}
    if os.environ.get("CEGPPO_GOLDEN") == "write":
        kept[method] = [{k: float(f"{row[k]:.9g}") for k in sorted(row)} for row in now]
        lines = [json.dumps({"method": name, "rows": kept[name]}) for name in sorted(kept)]
        path.write_text("\n".join(lines) + "\n")
    compared(kept[method], now)
