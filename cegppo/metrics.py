"""A step's metrics, by the names of docs/metrics.md."""

import time
from collections import Counter
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from .instrument.tally import Tally
from .types import ORIGINS, Group, Origin, TokenBatch, Verdict


def mismatch(x: TokenBatch) -> tuple[float, float]:
    """Largest and mean absolute difference, in nats, of the sampler's log-probabilities of its
    own tokens to the trainer's with the same weights, over the policy's own responses that the
    trainer computed again; 0 where there are none."""
    own_BT = of_origin(x, "policy") * x.checked_B[:, None]
    trainer_BT = torch.where(x.behaviour_logprob_BT.isnan(), x.old_logprob_BT, x.behaviour_logprob_BT)
    difference_BT = ((x.sampler_logprob_BT - trainer_BT) * own_BT).abs()
    return float(difference_BT.max()), float(difference_BT.sum() / own_BT.sum().clamp(min=1))


def of_origin(x: TokenBatch, origin: Origin) -> Tensor:
    """[B, T] 1.0 on response tokens of that origin, 0.0 elsewhere."""
    return x.mask_BT * (x.origin_B == ORIGINS.index(origin))[:, None]


def by_origin(x: TokenBatch) -> dict[str, float]:
    """Of each origin the share of the tokens that train, and their mean entropy before the
    updates."""
    made = {}
    for origin in ORIGINS:
        tokens_BT = of_origin(x, origin)
        made[f"origin/{origin}"] = float(tokens_BT.sum() / x.mask_BT.sum())
        if tokens_BT.any():
            made[f"entropy/{origin}"] = float((x.old_entropy_BT * tokens_BT).sum() / tokens_BT.sum())
    return made


def rollout_metrics(sampled: list[Group], trained: list[Group]) -> dict[str, float]:
    """Of everything a step sampled, and of what of it trains."""
    scores = [score for group in sampled for score in group.scores]
    lengths = [len(rollout.token_ids) for group in sampled for rollout in group.rollouts]
    verdicts = Counter(score.verdict for score in scores)
    return {
        "reward/mean": float(np.mean([s.reward for s in scores])),
        "accuracy/mean": verdicts[Verdict.CORRECT] / len(scores),
        "length/mean": float(np.mean(lengths)),
        **{f"verdict/{v.value}": verdicts[v] / len(scores) for v in Verdict},
        "tokens/total": float(sum(lengths)),
        "rollout/groups": float(len(sampled)),
        "rollout/constant_groups": sum(group.constant for group in sampled) / len(sampled),
        "rollout/trained": sum(map(len, trained)) / len(scores),
    }


def batch_metrics(x: TokenBatch) -> dict[str, float]:
    """Of what trains, before the updates."""
    made = {"entropy/mean": float((x.old_entropy_BT * x.mask_BT).sum() / x.mask_BT.sum())}
    made["mismatch/max"], made["mismatch/mean"] = mismatch(x)
    made["mismatch/checked"] = float(x.checked_B.mean())
    return made


def update_metrics(stats: Tally, norms: list[float]) -> dict[str, float]:
    """Of the updates: `stats` over all ranks, the gradient norm of each. Nothing where there was
    none."""
    if not norms:
        return {}
    made = {"grad/norm": float(np.mean(norms))} | stats.metrics(updates=len(norms))
    made |= {k: float(v) / len(norms) for k, v in stats.sums.items() if k.startswith("loss/")}
    return made | {k: float(v / stats.sums["tokens"].sum()) for k, v in stats.sums.items() if k.startswith("fact/")}


def critic_metrics(sums: dict[str, float], minis: list[TokenBatch]) -> dict[str, float]:
    """Of the critic's updates, from sums over all ranks, and of its values before them."""
    if not sums:
        return {}
    inside = [mini.mask_BT.bool() for mini in minis]
    return_N = torch.cat([mini.return_BT[own] for mini, own in zip(minis, inside)])
    value_N = torch.cat([mini.old_value_BT[own] for mini, own in zip(minis, inside)])
    spread, error = return_N.var(), (return_N - value_N).var()
    return {
        "loss/value": sums["loss"] / sums["tokens"],
        "critic/clip": sums["clip"] / sums["tokens"],
        "critic/grad_norm": sums["norm"] / sums["updates"],
        "critic/value_mean": float(value_N.mean()),
        "critic/explained_variance": float(1 - error / spread) if spread > 0 else float("nan"),
    }


def total(sums: Iterable[dict[str, float]]) -> dict[str, float]:
    """The sum of several dictionaries of sums, key by key."""
    parts = list(sums)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in dict.fromkeys(k for p in parts for k in p)}


class Timer:
    """Seconds of a step, by its laps."""

    def __init__(self) -> None:
        self.begin = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """What has passed since the last lap was `name`."""
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    @property
    def total(self) -> float:
        """From the first moment to the last lap."""
        return self.last - self.begin

    def metrics(self) -> dict[str, float]:
        return {f"time/{name}": seconds for name, seconds in self.laps.items()} | {"time/step": self.total}
