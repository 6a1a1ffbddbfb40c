"""An architecture in miniature against its own `model(...).logits`: what is found for it."""

import copy
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cegppo.model import bins
from cegppo.model.attention import packs
from cegppo.model.policy import Policy
from cegppo.rollout import Sampling
from cegppo.rollout.hf import HFSampler
from cegppo.types import BadInput, Prompt, Rollout, TokenBatch, requests

from .architectures import KINDS, model_of, save

TABLE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
HEAD = """# Models

What became of all {all} causal architectures of the transformers release that this project is tested with, in
miniature. `tests/test_architectures.py` keeps the table, `python -m tests.whole` writes it. *Taken*: sampler and
trainer agree with the model's own logits to 1e-4 nats, and so does the gradient of an update. *Cache*: what is kept
between two sampled tokens (`cegppo/model/cache.py`). *Bins*, *packed*: whether answers may share a row on a CPU, and
on a GPU ([memory.md](memory.md)); elsewhere they are padded. Of the others the line says why they are refused at the
start; *not made in miniature* says nothing of the architecture but that it was not tried.

| architecture | | cache | bins | packed |
|---|---|---|---|---|"""
NOT_MADE = "not made in miniature"
CACHES = dict(Slices="slices", Own="the model's", Fixed="the model's, rows stay", Whole="none")


@dataclass
class Found:
    """What became of an architecture: the policies of its layouts, or why there are none."""

    policies: dict[str, Policy]
    refused: str = ""

    def line(self, kind: str) -> str:
        """Its line of the table in docs/models.md."""
        if self.refused:
            return f"| `{kind}` | {self.refused} | | | |"
        taken = lambda layout: "yes" if layout in self.policies else "no"
        cache = CACHES[self.policies["padded"].cache.__name__]
        return f"| `{kind}` | taken | {cache} | {taken('binned')} | {taken('packed')} |"


def find(kind: str, folder: Path) -> Found:
    """Make `kind`, and load it in every layout that it takes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = model_of(kind)
    except Exception as error:  # each configuration fails in its own way
        return Found({}, f"{NOT_MADE} ({type(error).__name__})")
    try:
        padded = Policy.load(save(model, folder), "cpu", packing="never")
    except BadInput as error:
        return Found({}, reason(str(error)))
    made = {"padded": padded}
    if bins.taken(padded.model):
        made["binned"] = copy.copy(padded)
        made["binned"].in_bins = True
    if packs(padded.model, bfloat16=False):
        made["packed"] = copy.copy(padded)
        made["packed"].packing = True
    return Found(made)


def reason(message: str) -> str:
    """What a refusal says after the model's path and class."""
    said = message.split(": ", 1)[1].split(" ", 1)[1].replace("cannot be trained: ", "")
    return said.split(" (logit_scale")[0].replace("|", "/")  # the keys that are known stand in model/traits.py


def sampled(policy: Policy, temperature: float) -> list[Rollout]:
    """Two answers each to prompts of unlike length, sampled at `temperature`."""
    rng = np.random.default_rng(0)
    prompts = [Prompt(f"p/{n}", "p", "", tuple(rng.integers(4, 90, n).tolist()), "") for n in (3, 4, 9)]
    policy.temperature = temperature
    rules = Sampling(0, max_tokens=14, temperature=temperature, statistics=True)
    return HFSampler(policy, rules).sample(requests(prompts, 2), 0)


def right(model: torch.nn.Module, r: Rollout, temperature: float) -> tuple[Tensor, Tensor]:
    """([T] log-probabilities, [T] entropies) of response `r` by the model's own logits, alone."""
    token_1S = torch.tensor([[*r.prompt.token_ids, *r.token_ids]])
    logits_SV = model(input_ids=token_1S, use_cache=False).logits[0].float() / temperature
    logp_TV = logits_SV.log_softmax(-1)[len(r.prompt.token_ids) - 1 : -1]
    own_T = logp_TV.gather(1, torch.tensor(r.token_ids)[:, None])[:, 0]
    return own_T, -(logp_TV.exp() * logp_TV).sum(-1)


def advantages(count: int) -> np.ndarray:
    return np.linspace(-1, 1.5, count).astype(np.float32)


def batch(policy: Policy, rollouts: list[Rollout]) -> TokenBatch:
    zero = np.zeros(len(rollouts))
    return policy.collate(rollouts, advantages(len(rollouts)), zero, zero)


def gradient(policy: Policy, loss: Tensor) -> Tensor:
    """All of the trained parameters' gradients in one line, 0 where there is none."""
    trained = policy.trained()
    made = torch.autograd.grad(loss, trained, allow_unused=True)
    return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(trained, made)])


def gradient_of(policy: Policy, x: TokenBatch) -> Tensor:
    """That of Σ advantage · log π over the policy's passes."""
    total = torch.tensor(0.0)
    for _, micro in policy.micro_batches(x):
        total = total + (policy.statistics(micro).logprob_N * micro.advantage_BT[micro.mask_BT.bool()]).sum()
    return gradient(policy, total)


def errors(found: Found, temperature: float) -> dict[str, float]:
    """How far the sampler and each layout of the trainer are from the model's own logits: the
    largest in nats over log-probabilities and entropies, and of the gradient's norm."""
    padded = found.policies["padded"]
    rollouts = sampled(padded, temperature)
    known = [right(padded.model, r, temperature) for r in rollouts]
    weights = advantages(len(rollouts))
    exact = gradient(padded, sum(float(a) * own_T.sum() for a, (own_T, _) in zip(weights, known)))
    apart = lambda said, own: float((torch.as_tensor(said) - own.detach()).abs().max())
    made = {}
    for r, (own_T, entropy_T) in zip(rollouts, known):
        entropies = [statistics[0] for statistics in r.statistics]
        made["sampler"] = max(made.get("sampler", 0.0), apart(r.logprobs, own_T), apart(entropies, entropy_T))
    for layout, policy in found.policies.items():
        policy.temperature = temperature
        x = batch(policy, rollouts)
        said = policy.evaluate(x)
        made[layout] = max(
            max(apart(said["logprob_BT"][b, : len(own_T)], own_T), apart(said["entropy_BT"][b, : len(own_T)], H_T))
            for b, (own_T, H_T) in enumerate(known)
        )
        made[f"{layout} gradient"] = float((gradient_of(policy, x) - exact).norm() / exact.norm())
    return made


def written() -> dict[str, str]:
    """The table of docs/models.md, by architecture."""
    lines = TABLE.read_text().splitlines() if TABLE.exists() else []
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


def main() -> None:
    """Write docs/models.md anew."""
    lines = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(find(kind, Path(folder)).line(kind))
    TABLE.write_text("\n".join([HEAD.format(all=len(KINDS)), *lines, ""]))


if __name__ == "__main__":
    main()
