"""What tests/test_parallel.py starts with torchrun: checks that need several ranks at once. Rank
0 writes what they gave."""

import sys
import types
from pathlib import Path

import torch

import run
from cegppo import config, ranks
from cegppo.instrument.tally import Tally
from cegppo.losses import ppo_clip
from cegppo.model import parallel
from cegppo.objective import Objective
from cegppo.state import build
from cegppo.train import run_training
from cegppo.types import BadInput
from tests import steps
from tests.test_train import Silent

PPO = ["method=ppo", "update.kl_coef=0.1"]
EVAL = ["eval.k=3", "eval.size=5"]
SWITCHES = [
    "model.packing=always",
    "model.gradient_checkpointing=true",
    "update.offload_optimizer=true",
    "update.correction=truncate",
]
GRADIENT = ["update.entropy_coef=0.01", "update.nll_coef=0.1", "update.grad_clip=0"]


def spread_loss(x, p):
    """Needs the spread of the whole mini-batch's log-probabilities."""
    logprob_N = x.logprob_BT.detach()[x.mask_BT.bool()]
    return -x.advantage_BT * x.logprob_BT * logprob_N.std(), {"positive": x.advantage_BT > 0}


def gradients(experiment: Path) -> dict[str, torch.Tensor]:
    """Gradients of mini-batches of 16, 3 and 1 rows, a row a micro-batch, and what the tally says
    of them; of a loss over the whole mini-batch; and with every switch of docs/memory.md and the
    head in blocks."""
    whole_batch = types.SimpleNamespace(Params=ppo_clip.Params, token_loss=spread_loss, WHOLE_BATCH=True)
    made = {}
    for name, keys in {"plain": [], "whole": [], "switches": SWITCHES}.items():
        state = build(config.load(experiment, [*GRADIENT, *keys])[0])
        state.policy.micro_batch_tokens = 1
        if name == "switches":
            state.policy.head_chunk = 0  # MiB: even these few logits are too many at once
        x = steps.batch(state)
        x = x.but(correct_B=torch.arange(len(x)).remainder(2).float())
        model = state.policy.model
        objective = (
            Objective(whole_batch, ppo_clip.Params(), steps.now(state).terms) if name == "whole" else steps.now(state)
        )
        for rows in (16, 3, 1):
            tally = Tally()
            steps.update(
                state.policy,
                torch.optim.SGD(model.parameters(), lr=0.0),
                x.rows(torch.arange(rows)),
                objective,
                tally,
            )
            made[f"{name}{rows}"] = torch.cat([parallel.whole(p.grad).flatten() for p in model.parameters()])
            sums = Tally.merged(ranks.gathered(tally)).sums
            made[f"{name}{rows}.loss"] = torch.tensor([float(sums["loss/policy"]), float(sums["tokens"].sum())])
    return made


def main(experiment: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    ranks.join()
    status = run_training(config.load(experiment, [*PPO, "steps=4", f"run_dir={folder}"])[0], Silent())
    assert status == "finished"
    said = None
    try:
        with ranks.together():
            if ranks.rank() == 1:
                raise BadInput("only here")
    except BadInput as error:
        said = str(error)
    made = gradients(experiment)
    everyone = ranks.gathered(said)
    if ranks.rank() == 0:
        torch.save({"said": everyone, **made}, folder / "made.pt")
    assert run.main(["eval", str(folder), *EVAL]) == 0  # leaves the other ranks at its end


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
