"""A step's metrics, by the names of docs/metrics.md."""

from collections import Counter

import numpy as np
from torch import Tensor

from .instrument.tally import Tally
from .rollout.collect import Collected
from .types import ORIGINS, Origin, TokenBatch, Verdict, present


def mismatch(x: TokenBatch) -> tuple[float, float]:
    """Largest and mean absolute difference, in nats, of the sampler's log-probabilities of its
    own tokens to the trainer's, over the policy's own responses that the trainer computed again; 0
    where there are none."""
    own_BT = of_origin(x, "policy")
    if x.checked_B is not None:
        own_BT = own_BT * x.checked_B[:, None]
    difference_BT = ((present(x.sampler_logprob_BT) - x.old_logprob_BT) * own_BT).abs()
    return float(difference_BT.max()), float(difference_BT.sum() / own_BT.sum().clamp(min=1))


def of_origin(x: TokenBatch, origin: Origin) -> Tensor:
    """[B, T] 1.0 on response tokens of that origin, 0.0 elsewhere."""
    return x.mask_BT * (present(x.origin_B) == ORIGINS.index(origin))[:, None]


def by_origin(x: TokenBatch) -> dict[str, float]:
    """Of each origin the share of the tokens that train, and their mean entropy before the
    updates."""
    made = {}
    for origin in ORIGINS:
        tokens_BT = of_origin(x, origin)
        made[f"origin/{origin}"] = float(tokens_BT.sum() / x.mask_BT.sum())
        if tokens_BT.any():
            made[f"entropy/{origin}"] = float((present(x.old_entropy_BT) * tokens_BT).sum() / tokens_BT.sum())
    return made


def summarize(
    collected: Collected, x: TokenBatch | None, tally: Tally, norms: list[float], critic: dict[str, float]
) -> dict[str, float]:
    """A step's metrics. `x` is what trained, `norms` the gradient norm of each update; `tally` and
    the `critic`'s sums are over all ranks."""
    scores = collected.scores
    found = Counter(score.verdict for score in scores)
    lengths = [len(r.token_ids) for r in collected.rollouts]
    made = {
        "reward/mean": float(np.mean([s.reward for s in scores])),
        "accuracy/mean": found[Verdict.CORRECT] / len(scores),
        "length/mean": float(np.mean(lengths)),
        **{f"verdict/{v.value}": found[v] / len(scores) for v in Verdict},
        "tokens/total": float(sum(lengths)),
        "rollout/groups": float(len(collected.groups)),
        "rollout/constant_groups": collected.constant_groups / len(collected.groups),
        "rollout/trained": sum(map(len, collected.trained)) / len(scores),
        "updates": float(len(norms)),
    }
    if x is None:
        return made
    tokens = x.mask_BT.sum()
    made["entropy/mean"] = float((present(x.old_entropy_BT) * x.mask_BT).sum() / tokens)
    made["mismatch/max"], made["mismatch/mean"] = mismatch(x)
    made["mismatch/checked"] = 1.0 if x.checked_B is None else float(x.checked_B.mean())
    if norms:
        made["grad/norm"] = float(np.mean(norms))
        made |= tally.metrics(updates=len(norms))
        made |= {k: float(v) / len(norms) for k, v in tally.sums.items() if k.startswith("loss/")}
        made |= {k: float(v / tally.sums["tokens"].sum()) for k, v in tally.sums.items() if k.startswith("fact/")}
    if critic:
        inside = x.mask_BT.bool()
        return_BT, old_value_BT = present(x.return_BT), present(x.old_value_BT)
        spread, error = return_BT[inside].var(), (return_BT - old_value_BT)[inside].var()
        made["loss/value"] = critic["loss"] / critic["tokens"]
        made["critic/clip"] = critic["clip"] / critic["tokens"]
        made["critic/grad_norm"] = critic["norm"] / critic["updates"]
        made["critic/value_mean"] = float(old_value_BT[inside].mean())
        made["critic/explained_variance"] = float(1 - error / spread) if spread > 0 else float("nan")
    return made


def total(sums: list[dict[str, float]]) -> dict[str, float]:
    """The sum of several dictionaries of sums, key by key."""
    return {name: sum(part.get(name, 0.0) for part in sums) for name in dict.fromkeys(k for part in sums for k in part)}
