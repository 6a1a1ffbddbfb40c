"""Everything that short runs leave, before and after a change that must not change a number.

    python -m tests.goldens record FILE [NAME …]     train every case, or those named, and keep it
    python -m tests.goldens compare FILE [NAME …]    again: every number has to be the same with ==

On one machine, with a FILE outside git. A case is a run of the front door on the tiny model: every
preset of a method, every controller and rule of exploration, a critic, the ledger with its parts,
resumed runs, two ranks, memory that runs out, an update that is not finite. What is kept: metrics,
evaluations, token records, broken batches, and digests of what the last checkpoint holds. Times are
left out; the ledger's numbers are compared apart, since an instrument may be made more exact.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from safetensors.torch import load_file

import run
from cegppo import config
from cegppo.model.policy import Policy
from cegppo.record.files import read_lines
from cegppo.record.run import newest

from . import conftest

ROOT = Path(__file__).resolve().parent.parent
COMMON = ("update.lr=5e-3", "updates_per_step=4", "diagnostics.every=2", "diagnostics.probe=4", "wandb.mode=disabled")
TERMS = ("update.kl_coef=0.01", "update.entropy_coef=0.001", "update.nll_coef=0.1", "update.dual_clip=3")
WARM, FALLING = "update.warmup_steps=2", "update.lr=[[0,5e-3],[3,1e-3,cosine]]"
FEW = "diagnostics.influence_tokens=40"
PAIRS = ("prompts_per_step=8", "group_size=2")
UEC = (
    "explore.replay_every=2", "explore.replay_least=0.0", "explore.replay_size=1.5", "explore.retries=6",
    "explore.keep_retried=0.1", "explore.drop_truncated=false",
)  # fmt: skip
CASES: dict[str, list[tuple[str, ...]]] = {  # the words of each start of a run, in one folder
    f"preset {name}": [(f"method={name}", "steps=2")] for name in config.methods()
} | {
    "terms": [("method=cegppo", "steps=3", *TERMS, "update.weight_decay=0.01", "diagnostics.parts=true")],
    "sequence": [("method=cegppo", "steps=2", *TERMS, "update.aggregate=sequence", "update.correction=truncate")],
    "mask": [("steps=2", "update.correction=mask", "update.correction_level=sequence", "rollout.temperature=0.8")],
    "ppo and kl": [("method=ppo", "steps=4", *TERMS, "critic.lr=1e-3", "critic.warmup_steps=1")],
    "critic schedule": [("method=soft_ppo", "steps=3", "critic.lr=[[0,1e-3],[50%,1e-4,linear]]", WARM)],
    "schedules": [("method=cegppo", "steps=4", "loss.beta1=[[0,0.0],[50%,0.5]]", FALLING)],
    "parts and influence": [("method=clip_cov", "steps=2", "diagnostics.parts=true", FEW)],
    "classes": [("method=grpo", "steps=2", "diagnostics.classes=surprisal", "diagnostics.max_tokens=50")],
    "logit levers": [("method=cegppo_auto", "steps=6", "controller.levers=logit")],
    "ledger levers": [("method=cegppo_auto", "steps=6", "diagnostics.every=1", "controller.target=2.5")],
    "bonus": [("method=adaptive_bonus", "steps=4", "controller.target=5", "controller.delta=0.001")],
    "uec_rl": [("method=uec_rl", "steps=5", *PAIRS, *UEC)],
    "aepo": [("method=aepo", "steps=3", *PAIRS, "explore.replace=0.3", "explore.prompts=0.5")],
    "oger policy": [("method=oger", "steps=3", "explore.ratio=policy")],
    "drop": [("method=grpo", "steps=3", "rollout.drop_constant_groups=drop", "group_size=2", "prompts_per_step=8")],
    "refill": [("method=dapo", "steps=2", "reward=task", "overlong_buffer=0.9", "rollout.max_refills=1")],
    "one update": [("method=grpo", "steps=2", "updates_per_step=1")],
    "small passes": [("method=clip_cov", "steps=2", "update.micro_batch_tokens=60", "model.packing=never")],
    "packed": [("method=cegppo", "steps=2", "model.packing=always", "rollout.old_logprobs=recompute")],
    "bfloat16": [("method=cegppo", "steps=2", "model.dtype=bfloat16", "update.kl_coef=0.01")],
    "checkpointing": [("method=cegppo", "steps=2", "model.gradient_checkpointing=true", "update.grad_clip=0.05")],
    "lora": [("method=cegppo", "steps=3", "model.lora.rank=4", "update.kl_coef=0.01")],
    "resumed": [("method=cegppo", f"steps={n}", *TERMS) for n in (2, 4)],
    "resumed ppo": [("method=ppo", f"steps={n}", "update.kl_coef=0.01") for n in (1, 3)],
    "resumed uec_rl": [("method=uec_rl", f"steps={n}", *PAIRS, *UEC) for n in (3, 5)],
    "resumed auto": [("method=cegppo_auto", f"steps={n}", "controller.levers=logit") for n in (4, 6)],
    "memory": [("method=ppo", "steps=2", "model.packing=never", "update.kl_coef=0.01")],
    "not finite, skipped": [("method=cegppo", "steps=3", "update.on_nonfinite=skip")],
    "not finite, critic": [("method=ppo", "steps=3", "update.on_nonfinite=skip")],
    "not finite, stopped": [("method=cegppo", "steps=3")] * 2,
    "two ranks": [("method=ppo", "steps=3", *TERMS, "diagnostics.parts=true")],
    "two ranks, resumed": [("method=cegppo", f"steps={n}", "rollout.drop_constant_groups=refill") for n in (2, 3)],
}  # fmt: skip


@contextmanager
def scarce(tokens: int) -> Iterator[None]:
    """A backward pass will not fit over more than `tokens` tokens of sequences."""
    whole = Policy.states

    def states(self: Policy, decoder: torch.nn.Module, x: Any) -> Any:
        made = whole(self, decoder, x)
        if x.sequence_BS.numel() > tokens and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made

    with patch.object(Policy, "states", states):
        yield


@contextmanager
def poisoned(call: int) -> Iterator[None]:
    """Gradient number `call` (1 the first) is not finite."""
    whole, calls = torch.nn.utils.clip_grad_norm_, []

    def clip(parameters: Any, *arguments: Any) -> Any:
        parameters = list(parameters)
        calls.append(None)
        if len(calls) == call:
            for p in parameters:
                p.grad *= float("nan")
        return whole(parameters, *arguments)

    with patch.object(torch.nn.utils, "clip_grad_norm_", clip):
        yield


def start(name: str, words: list[str]) -> None:
    """One start of the front door; the case's disturbance around it."""
    if name.startswith("two ranks"):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([*torchrun, str(ROOT / "run.py"), *words], env=environment, check=True, capture_output=True)
        return
    with ExitStack() as stack:
        if name == "memory":
            stack.enter_context(scarce(50))
        if name.startswith("not finite"):
            stack.enter_context(poisoned(14 if "critic" in name else 6))
        code = run.main(words)
    assert code in (0, 1), f"{name}: exit code {code}"


def left(folder: Path) -> dict[str, Any]:
    """What a run left in its folder: {part: {name: value}}; numbers as they were written."""
    made: dict[str, Any] = {"metrics": {}, "ledger": {}, "eval": {}, "tokens": {}, "checkpoint": {}}
    for row in read_lines(folder / "metrics.jsonl"):
        for key, value in row.items():
            if not key.startswith("time/"):
                made["ledger" if key.startswith("ledger/") else "metrics"][f"{row['step']} {key}"] = value
    for row in read_lines(folder / "eval.jsonl"):
        made["eval"] |= {f"{row['step']} {row['benchmark']} {key}": value for key, value in row.items()}
    for path in sorted(folder.glob("tokens/*.parquet")):
        for name, column in pd.read_parquet(path).items():
            digest = hashlib.sha256(json.dumps(column.tolist()).encode()).hexdigest()[:16]
            part = "ledger" if name in ("influence", "dentropy_exact") else "tokens"
            made[part][f"{path.stem} {name}"] = digest
    for path in sorted(folder.glob("broken/*")):
        made["checkpoint"] |= {f"{path.name} {key}": value for key, value in digests(path).items()}
    saved = newest(folder)
    assert saved is not None
    state = json.loads((saved / "state.json").read_text())
    made["checkpoint"] |= {f"state {k}": v for k, v in state.items() if k not in ("elapsed", "start")}
    for path in sorted(saved.glob("*.safetensors")):
        made["checkpoint"] |= {f"{path.name} {key}": value for key, value in digests(path).items()}
    return made


def digests(path: Path) -> dict[str, str]:
    return {k: hashlib.sha256(v.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
            for k, v in load_file(path).items() if v.dim()} | {
        k: str(v.item()) for k, v in load_file(path).items() if not v.dim()}  # fmt: skip


def trained(name: str, root: Path) -> dict[str, Any]:
    experiment, folder = root / "tiny.yaml", root / name.replace(" ", "_").replace(",", "")
    if not experiment.is_file():
        conftest.save_tiny_model(root / "model")
        experiment.write_text(conftest.TINY.format(model=root / "model"))
    for words in CASES[name]:
        start(name, ["train", str(experiment), f"run_dir={folder}", *COMMON, *words])
    return left(folder)


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line for each part that is not the same."""
    said = []
    for part in then:
        names = sorted(then[part].keys() | now[part].keys())
        there = [n for n in names if then[part].get(n) != now[part].get(n)]
        if there:
            few = ", ".join(f"{n}: {then[part].get(n)} -> {now[part].get(n)}" for n in there[:4])
            said.append(f"{part}: {len(there)} of {len(names)} differ: {few}")
    return said


def main(verb: str, file: str, *names: str) -> int:
    chosen = [name for name in CASES if not names or any(part in name for part in names)]
    path = Path(file)
    then = json.loads(path.read_text()) if path.is_file() else {}
    worse = 0
    with tempfile.TemporaryDirectory() as root:
        for name in chosen:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                now = json.loads(json.dumps(trained(name, Path(root))))
            if verb == "record":
                then[name] = now
                path.write_text(json.dumps(then))
            said = differences(then.get(name, {}), now) if name in then else ["not recorded"]
            worse += any(not line.startswith("ledger:") for line in said)
            print(f"{name}: {'; '.join(said) or '=='}", flush=True)
    print(f"{len(chosen)} cases, {worse} of them differ")
    return int(worse > 0)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("record", "compare"):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
