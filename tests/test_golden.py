"""The golden run: three steps of GRPO, CE-GPPO and PPO, every metric as it was when tests/golden/
was written.

A change that only moves code leaves these numbers alone. One that is meant to change them writes
the files anew and says why:

    CEGPPO_GOLDEN=write python -m pytest tests/test_golden.py

The model computes in float64, so that another processor's rounding stays far below the tolerance.
"""

import json
import os
from pathlib import Path

import pytest

from cegppo import config
from cegppo.trainer import Trainer

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


def rows(tiny, method: str) -> list[dict[str, float]]:
    """Metrics of each step and, last, accuracy counts of an evaluation; without times."""
    loaded, _ = config.load(tiny, [f"method={method}", *OVERRIDES])
    trainer = Trainer(loaded)
    trainer.policy.model.double()
    for other in (trainer.reference.model, trainer.critic):
        if other is not None:
            other.double()
    made = [trainer.run_step() for _ in range(3)]
    counts = {f"eval/{row['benchmark']}": float(sum(row["correct"])) for row in trainer.evaluator.run(3)}
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in [*made, counts]]


@pytest.mark.parametrize("method", ["grpo", "cegppo", "ppo"])
def test_golden(tiny, method):
    path, now = FOLDER / f"{method}.jsonl", rows(tiny, method)
    if os.environ.get("CEGPPO_GOLDEN") == "write":
        path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in now))
    then = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(then) == len(now) == 4
    for step, (old, new) in enumerate(zip(then, now), 1):
        assert old.keys() == new.keys(), step
        assert all(new[k] < 1e-2 for k in new if k.startswith(RESIDUAL))
        near = lambda k: pytest.approx(old[k], rel=1e-3 if k.startswith(DIFFERENCES) else RELATIVE, abs=1e-12)
        different = {k: (old[k], new[k]) for k in old if not k.startswith(RESIDUAL) and new[k] != near(k)}
        assert not different, f"step {step}: {different}"
