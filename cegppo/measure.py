"""The sensitivity of entropy to β₁ and β₂, measured: forks of a run with β and with β ± δ from
several of its checkpoints, with common random numbers.

In: the folder of a run (of the losses ppo_clip, which is β = (0, 0), and cegppo). Out: forks under
<run>/measured/<k>steps/step<n>/, each k + 1 steps long: entropy is measured on what a step samples,
before its updates, so step n + k + 1 shows what k steps did. `analysis/measured.py` reads them. A
fork that is there already is not run again.
"""

import gc
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import Config, as_override
from .config.schema import SCHEDULES
from .evaluate import no_code_of_others
from .knobs import first_step
from .record import fork
from .record.read import read_config, read_meta
from .train import run_training
from .types import BadInput

SIDES = ("low", "high")  # of β₁ and of β₂
MOST = 6  # checkpoints that are taken where none are named


@dataclass(frozen=True)
class Point:
    """What one checkpoint is asked of one side: entropy at `above` minus entropy at `below`, over
    `width` units of β; `base` has the run's own β."""

    seed: int
    step: int
    side: str
    below: Path
    above: Path
    base: Path
    width: float


def beta_of(folder: Path, config: Config) -> tuple[float, float]:
    """(β₁, β₂) of a run. Raises BadInput: they cannot be asked about."""
    loss = config.loss
    if loss["name"] not in ("ppo_clip", "cegppo"):
        raise BadInput(f"{folder}: --measure moves β of the losses cegppo and ppo_clip, not of '{loss['name']}'")
    beta = loss.get("beta1", 0.0), loss.get("beta2", 0.0)
    if any(isinstance(value, list) for value in beta):
        raise BadInput(f"{folder}: --measure needs one β, and loss.beta1 or loss.beta2 is a schedule")
    if config.controller["name"] != "none":
        raise BadInput(f"{folder}: --measure needs one β, and controller.name={config.controller['name']} may move it")
    return beta


def steps_of(folder: Path, asked: Sequence[int]) -> list[int]:
    """The checkpoints that are asked, or at most MOST of those there are, spread evenly."""
    there = list(fork.checkpoints(folder))
    if asked:
        for step in asked:
            fork.config_of(folder, [f"step={step}", f"steps={step + 1}"])  # says which there are
        return list(dict.fromkeys(asked))
    places = {round(i * (len(there) - 1) / (MOST - 1)) for i in range(MOST)} if len(there) > MOST else range(len(there))
    return [there[place] for place in sorted(places)]


def words(config: Config, step: int, steps: int, beta: tuple[float, float], looks: bool) -> list[str]:
    """What the fork with `beta` says differently; `looks`: with a ledger of every step."""
    loss = config.loss
    changed: dict[str, Any] = {
        "steps": step + steps + 1, "loss.name": "cegppo", "loss.eps_low": loss["eps_low"],
        "loss.eps_high": loss["eps_high"], "loss.beta1": beta[0], "loss.beta2": beta[1],
        "diagnostics.every": int(looks), "diagnostics.parts": False, "diagnostics.influence_tokens": 0,
        "eval_every": 0, "eval.k": 1, "checkpoint_every": step + steps + 1, "report": False, "tensorboard": False,
        "wandb.mode": "disabled",
    }  # fmt: skip
    flat = {"update.lr": config.update.lr, "critic.lr": config.critic.lr}
    flat |= {f"loss.{key}": value for key, value in loss.items()}
    for key in (*SCHEDULES, "loss.eps_low", "loss.eps_high"):  # shares of the run are those of the run, not of the fork
        if isinstance(value := flat[key], list):
            changed[key] = [[first_step(when, config.steps), *rest] for when, *rest in value]
    return [f"step={step}", *(as_override(key, value) for key, value in changed.items())]


def points(
    folder: Path, steps: int, delta: float, asked: Sequence[int], overrides: Sequence[str], show: Any
) -> list[Point]:
    """Run the forks of the run in `folder` that are not there yet; what to compare. Raises
    BadInput."""
    config = read_config(folder)
    if read_config(folder, overrides).rollout.engine == "vllm":
        raise BadInput(
            f"{folder}: --measure runs its forks in one process, and vllm gives its memory back with the process only;"
            " say rollout.engine=hf, or fork and compare"
        )
    beta = beta_of(folder, config)
    made = []
    for step in steps_of(folder, asked):
        root = folder / "measured" / f"{steps}steps" / f"step{step:06d}"

        def run(pair: tuple[float, float], looks: bool = False, step: int = step, root: Path = root) -> Path:
            name = f"beta_{pair[0]:g}_{pair[1]:g}"
            said = [*words(config, step, steps, pair, looks), as_override("run_dir", str(root / name)), *overrides]
            return _forked(folder, said, show)

        base = run(beta, looks=True)
        for place, side in enumerate(SIDES):
            low, high = max(0.0, beta[place] - delta), beta[place] + delta
            moved = [(value, beta[1]) if side == "low" else (beta[0], value) for value in (low, high)]
            below, above = (base if pair == beta else run(pair) for pair in moved)
            made.append(Point(config.seed, step, side, below, above, base, high - low))
    return made


def _forked(folder: Path, said: list[str], show: Any) -> Path:
    """The folder of a finished fork, without the checkpoint that it ended with."""
    made, step = fork.config_of(folder, said)
    no_code_of_others(folder, made, said, trains=True)
    if not fork.prepare(folder, made, step) and read_meta(made.folder).get("status") == "finished":
        return made.folder
    if run_training(made, show) != "finished":
        raise KeyboardInterrupt
    shutil.rmtree(made.folder / "checkpoints", ignore_errors=True)
    gc.collect()  # a trainer and its explorer hold each other, and what they hold is large
    return made.folder
