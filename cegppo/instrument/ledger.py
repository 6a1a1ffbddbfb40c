"""The entropy ledger: what each token of a step's updates did to the entropy, in parameter space.

A step of the optimizer is linear in the gradient once its preconditioner is known. With D its slope
(AdamW: −lr · s (1 − β₁) / ((1 − β₁ᵗ)(√v̂ + ε)), elementwise, s the factor of gradient-norm
clipping), ∇H the gradient of the entropy of a fixed probe, and λ_t = ∂ loss / ∂ log π(y_t), a token
changes the probe's entropy by

    ΔH_t = λ_t J_t,      J_t = ⟨D ∘ ∇H, ∇_θ log π(y_t)⟩,

and J_t of ALL tokens is one directional derivative of their log-probabilities, along D ∘ ∇H
(derivative.py): one pass for any number of tokens and of classes. Any split (class, clip side,
position, reward …) is a sum of ΔH_t afterwards.

What a gradient does at once is a share 1 − β₁ of what it will have done: the rest acts through the
momentum of later updates. Within a step that is followed up: the same tokens differentiated along
Σ_u β₁ᵘ D_u ∘ ∇H_u of the updates after theirs, which is exact (`carried`), where the parameters of
all updates fit into EXACT_BYTES; else by the recursion carried_u = β₁ (carried_{u−1} + at
once_{u−1}), which holds D and ∇H where they were.

Nothing but torch: the model is whatever has the methods of `derivative.Model`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..objective import Gradient, WeightedTokens
from ..types import TokenBatch
from .derivative import Derivative, Differentiator, Model
from .entropy import CLASSES, SIDES, ClassRule, clip_side, entropy_change, returned_weight
from .optimizers import Slope, chunks, dot, local, momentum_of, put
from .parts import REST, Parts, fresh_gradients

UNSURE = 0.05  # disagreement of two strides above which a sum is not logged
EXACT_BYTES = 256 << 20  # for the parameters and directions of a step's updates, on each rank


@dataclass
class Seen:
    """One update as the ledger saw it. [B, T] like its mini-batch, 0 where another rank worked."""

    mini: TokenBatch
    own_BT: Tensor  # 1.0 on the response tokens that this rank worked on
    code_BT: Tensor  # class
    side_BT: Tensor
    slope_BT: Tensor  # λ of the policy loss, aggregated
    total_slope_BT: Tensor  # λ of every term
    entropy_slope_BT: Tensor  # ∂ loss / ∂ H
    lever_BT: Tensor  # λ of a token outside the clip if its side's β were 1: −bound · A · scale
    logit_BT: Tensor  # first-order ΔH in logit space
    scale_BT: Tensor
    influence_BT: Tensor  # J, float64; NaN where it was not taken
    theta: list[Tensor] = field(default_factory=list)  # parameters before the step, while they are needed
    direction: list[Tensor] = field(default_factory=list)  # (1 − β₁) preconditioner ∘ ∇H: D ∘ ∇H without the clipping
    clip: float = 1.0  # what gradient-norm clipping multiplied the gradient by
    sums: dict[str, float] = field(default_factory=dict)  # of this rank

    @classmethod
    def blank(cls, mini: TokenBatch) -> "Seen":
        zeros = lambda: torch.zeros_like(mini.mask_BT)
        codes = lambda: torch.zeros_like(mini.mask_BT, dtype=torch.int64)
        unknown_BT = torch.full_like(mini.mask_BT, torch.nan, dtype=torch.float64)
        return cls(mini, zeros(), codes(), codes(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), unknown_BT)


class Ledger:
    """The ledger of one step. For each update `before` and `after` around the optimizer's step,
    then `close`.

    It looks on: parameters and gradients are what they were, bit for bit, after each call.
    """

    def __init__(
        self,
        model: Model,
        optimizer: torch.optim.Optimizer,
        probe: TokenBatch,
        rule: ClassRule,
        *,
        updates: int = 1,
        apart: bool = False,
        stride: float = 0.0,
        total: Callable[[Any], Any] = lambda value: value,
        choose: Callable[[TokenBatch], Tensor] | None = None,
        within: Callable[[Callable[[], Any]], Any] = lambda function: function(),
    ):
        """`updates`: how many the step has. `apart`: take the last one apart by backward passes too
        (parts.py). `stride`: of central differences, as a share of ‖θ‖; 0: none is needed, or it is
        chosen (derivative.py). `total` sums a float or tensor over the ranks. `choose` picks the
        rows ([n] int64) of a mini-batch whose influence is taken; default: all. `within` calls a
        function that makes passes of the model, and may call it again with smaller ones."""
        self.model, self.optimizer, self.probe, self.rule = model, optimizer, probe, rule
        self.total, self.choose, self.within = total, choose, within
        self.updates, self.takes_apart = updates, apart
        self.parameters: list[Tensor] = optimizer.param_groups[0]["params"]
        self.derivative = Differentiator(model, self.parameters, total, stride)
        self.stride = 0.0  # the longest that a difference was taken with
        self.disagreement: dict[str, float] = {}  # of two strides, the largest over the updates, by sum
        self.beta1 = momentum_of(optimizer)
        here = sum(local(p).numel() * p.element_size() for p in self.parameters)
        # All ranks or none: what is exact takes more passes, in which all take part.
        self.exact = float(total(torch.tensor(float(2 * updates * here > EXACT_BYTES)))) == 0
        self.seen: list[Seen] = []
        self.parts: Parts | None = None  # of the update under way
        self.apart: dict[str, float] = {}  # what was measured of the update that was taken apart
        self.entropy: list[float] = []  # of the probe, before each update
        self.seconds = 0.0

    def _watch(self, seen: Seen, part: WeightedTokens) -> None:
        """Fill in what a micro-batch says of its rows."""
        x, w, scale_BT, inside = part.x, part.weights, part.scale_BT, part.x.mask_BT.bool()
        code_BT = self.rule.codes(x.logprob_BT, x.entropy_BT, x.advantage_BT)
        side_BT = clip_side(x.log_ratio_BT.exp(), x.advantage_BT, w.clip_low_BT, w.clip_high_BT)
        returned_BT = returned_weight(side_BT, x.advantage_BT, w.clip_low_BT, w.clip_high_BT) * w.factor_BT
        facts = {
            "own": x.mask_BT,
            "code": code_BT,
            "side": side_BT,
            "slope": w.slope_BT,
            "total_slope": w.total_slope_BT,
            "entropy_slope": torch.zeros_like(x.mask_BT) if w.entropy_slope_BT is None else w.entropy_slope_BT,
            "lever": -returned_BT * scale_BT,
            "logit": entropy_change(-w.slope_BT, x.logprob_BT, x.entropy_BT, x.sum_p2_BT, x.sum_p2_logp_BT),
            "scale": scale_BT,
        }
        for name, value_BT in facts.items():
            whole_BT = getattr(seen, f"{name}_BT")
            whole_BT[part.index, : value_BT.shape[1]] += torch.where(inside, value_BT, 0).to(whole_BT.dtype)

    def before(self, gradient: Gradient, clip: float) -> None:
        """After the backward pass, whose weights are `gradient`, and the clipping by factor `clip`;
        before the step."""
        start = time.perf_counter()
        seen = Seen.blank(gradient.mini)
        self.seen.append(seen)
        seen.clip = clip
        last = len(self.seen) == self.updates  # the furthest off-policy
        self.parts = Parts(self.optimizer, self.rule, self.total) if self.takes_apart and last else None
        for part in gradient.parts:
            if self.parts is not None:  # the pass again, for the graph
                s = self.model.statistics(part.x, entropy_grad=part.weights.entropy_slope_BT is not None)
                self.parts.watch(s.logprob_N, s.entropy_N, part.x, part.weights)
            self._watch(seen, part)
        seen.direction, entropy = self.within(self._probe_gradient)
        seen.theta = [local(p.detach()).clone() for p in self.parameters]
        self.entropy.append(entropy)
        self.seconds += time.perf_counter() - start

    def after(self) -> None:
        """After the step."""
        start = time.perf_counter()
        seen = self.seen[-1]
        seen.sums |= self._take_apart(seen)
        if self.parts is not None:
            self.apart |= self.parts.after(seen.theta, seen.clip, self._probe_entropy, self.entropy[-1])
        if not self.exact:
            now = [local(p.detach()).clone() for p in self.parameters]
            self._influence(seen, None)
            put(self.parameters, now)
            seen.theta, seen.direction = [], []
        self.seconds += time.perf_counter() - start

    def close(self) -> dict[str, float]:
        """The step's metrics (docs/metrics.md)."""
        start = time.perf_counter()
        if self.exact:
            now = [local(p.detach()).clone() for p in self.parameters]
            later: list[Tensor] | None = None  # Σ β₁^(u−v) direction_u over the updates u after v
            for seen in reversed(self.seen):
                self._influence(seen, later)
                own = seen.direction
                later = [self.beta1 * (d if later is None else d + later[i]) for i, d in enumerate(own)]
                seen.theta, seen.direction = [], []
            put(self.parameters, now)
        made = self._metrics(self._probe_entropy())
        self.seconds += time.perf_counter() - start
        return made | {"time/ledger": self.seconds}

    # -- one update

    def _probe_gradient(self) -> tuple[list[Tensor], float]:
        """(this rank's part of ∇ of the probe's mean entropy, that entropy); .grad stays as it
        was."""
        tokens, value = float(self.probe.mask_BT.sum()), 0.0
        with fresh_gradients(self.parameters), self.model.exactly():
            for _, micro in self.model.micro_batches(self.probe):
                entropy_N = self.model.statistics(micro, entropy_grad=True).entropy_N
                value += float(entropy_N.detach().double().sum()) / tokens
                torch.autograd.backward([entropy_N.sum() / tokens])
            made = [
                torch.zeros_like(local(p.detach())) if p.grad is None else local(p.grad).contiguous()
                for p in self.parameters
            ]
        return made, self.total(value)

    def _probe_entropy(self) -> float:
        return self.within(lambda: probe_entropy(self.model, self.probe, self.total))

    def _take_apart(self, seen: Seen) -> dict[str, float]:
        """⟨∇H, ·⟩ of the step just taken and of its parts that are no token's. Leaves, in the place
        of ∇H, the direction that the tokens' log-probabilities are differentiated along.

        This rank's part of each sum, some elements at a time: no buffer of all of them is made.
        """
        made = dict.fromkeys(("step", "gradient", "momentum", "decay", "step_square", "left_square"), 0.0)
        for p, entropy_slope, theta in zip(self.parameters, seen.direction, seen.theta):
            now, before, flat_slope = (value.reshape(-1) for value in (local(p.detach()), theta, entropy_slope))
            for part in chunks(len(now)):
                slope = Slope.of(self.optimizer, p, theta, part)
                taken, at_once = now[part] - before[part], slope.at_once * slope.gradient
                parts = {"step": taken, "gradient": at_once, "momentum": slope.carried, "decay": slope.shrunk}
                for name, value in parts.items():
                    made[name] += dot([flat_slope[part]], [value])
                left = taken.double() - at_once.double() - slope.carried.double() - slope.shrunk.double()
                made["step_square"] += dot([taken], [taken])
                made["left_square"] += dot([left], [left])
                flat_slope[part].mul_(slope.at_once)
        return made

    def _influence(self, seen: Seen, later: list[Tensor] | None) -> None:
        """J of the update's tokens, and every sum that it enters. `later`: the direction in which
        their gradients act through the momentum of the step's later updates."""
        chosen = torch.arange(len(seen.mini)) if self.choose is None else self.choose(seen.mini)
        rows = seen.mini.rows(chosen)
        cut = lambda value_BT: value_BT[chosen][:, : rows.mask_BT.shape[1]]
        # Where not all tokens were looked at, sums are estimates from those that were.
        share = float(rows.mask_BT.sum() / seen.mini.mask_BT.sum())
        seen.sums |= {"looked": float(cut(seen.own_BT).sum()), "tokens": float(seen.own_BT.sum())}
        for c, name in enumerate(CLASSES[1:], 1):
            seen.sums[f"logit_{name}"] = float(torch.where(seen.code_BT == c, seen.logit_BT, 0.0).double().sum())
        parts = self._parts(seen, cut)
        for kind, direction in (("predicted", seen.direction), ("carried", later)):
            if direction is None:
                continue
            names = [name for name in parts if kind == "predicted" or name in (*CLASSES[1:], "other")]
            sums = lambda j_BT, entropy_j_BT: torch.tensor(
                [sums_of(*parts[name], j_BT, entropy_j_BT) for name in names], dtype=torch.float64
            )
            all_ranks = lambda *values: self.total(sums(*values))
            made = self.within(partial(self.derivative.along, seen.theta, direction, rows, all_ranks))
            self._note(kind, names, made)
            value_K = sums(made.logprob_BT, made.entropy_BT)[:, 0] * seen.clip / share
            for name, value in zip(names, value_K.tolist()):
                key = name if name.startswith("lever_") else f"{kind}_{name}"
                seen.sums[key] = seen.sums.get(key, 0.0) + value
            if kind == "predicted":
                seen.influence_BT[chosen, : rows.mask_BT.shape[1]] = made.logprob_BT * seen.clip

    def _parts(self, seen: Seen, cut: Callable[[Tensor], Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """What a token's derivatives of log-probability and of entropy are multiplied by, [B, T]
        each, in every sum over tokens; 0 where another rank worked."""
        own, code, side = cut(seen.own_BT) > 0, cut(seen.code_BT), cut(seen.side_BT)
        slope, nothing = cut(seen.slope_BT), torch.zeros_like(cut(seen.slope_BT))
        where = lambda condition, value: torch.where(condition & own, value, 0.0)
        made = {name: (where(code == c, slope), nothing) for c, name in enumerate(CLASSES[1:], 1)}
        other = cut(seen.total_slope_BT) - torch.where(code > 0, slope, 0.0)
        made["other"] = (where(own, other), where(own, cut(seen.entropy_slope_BT)))
        for s, name in enumerate(SIDES[1:], 1):
            made[f"clip_{name}"] = (where((side == s) & (code > 0), slope), nothing)
            made[f"lever_{name}"] = (where(side == s, cut(seen.lever_BT)), nothing)
        return made

    def _note(self, kind: str, names: list[str], made: Derivative) -> None:
        self.stride = max(self.stride, made.stride)
        for name, value in zip(names, made.disagreement_K.tolist()):
            key = name if name.startswith("lever_") else f"{kind}_{name}"
            self.disagreement[key] = max(self.disagreement.get(key, 0.0), value)

    # -- the step

    def _metrics(self, entropy_after: float) -> dict[str, float]:
        names = sorted({name for seen in self.seen for name in seen.sums})
        rows = [[seen.sums.get(name, 0.0) for name in names] for seen in self.seen]
        table_UM = self.total(torch.tensor(rows, dtype=torch.float64))
        each = {name: table_UM[:, m] for m, name in enumerate(names)}  # by update, over all ranks
        blank = torch.zeros(len(self.seen), dtype=torch.float64)
        of = lambda name: each.get(name, blank)
        tokens = (*CLASSES[1:], "other")
        if not self.exact:  # β₁ (what was carried to the update before + what its gradient did at once)
            for name in tokens:
                carried = blank.clone()
                for u in range(1, len(self.seen)):
                    carried[u] = self.beta1 * (carried[u - 1] + of(f"predicted_{name}")[u - 1])
                each[f"carried_{name}"] = carried
        made = {
            "dentropy/measured": entropy_after - self.entropy[0],
            "ledger/predicted": float(of("step").sum()),
            "ledger/updates": float(len(self.seen)),
            "ledger/empty_updates": float(self._empty_updates()),
            "ledger/carried_exact": float(self.exact),
            "ledger/clip_factor": sum(seen.clip for seen in self.seen) / len(self.seen),
            "ledger/looked": float(of("looked").sum() / of("tokens").sum()),
            "ledger/step_residual": float((of("left_square").sum() / of("step_square").sum().clamp(min=1e-60)).sqrt()),
        }
        made["ledger/remainder"] = made["dentropy/measured"] - made["ledger/predicted"]
        for name in tokens:
            made[f"ledger/predicted_{name}"] = float(of(f"predicted_{name}").sum())
            made[f"ledger/carried_{name}"] = float(of(f"carried_{name}").sum())
        carried_within = sum(of(f"carried_{name}").sum() for name in tokens)
        made["ledger/predicted_momentum"] = float(of("momentum").sum() - carried_within)
        made["ledger/predicted_decay"] = float(of("decay").sum())
        for side in SIDES[1:]:
            made[f"ledger/predicted_clip_{side}"] = float(of(f"predicted_clip_{side}").sum())
            made[f"ledger/lever_{side}"] = float(of(f"lever_{side}").sum())
        for name in CLASSES[1:]:
            made[f"ledger/logit_{name}"] = float(of(f"logit_{name}").sum())
        made["ledger/logit"] = sum(made[f"ledger/logit_{name}"] for name in CLASSES[1:])
        # Σ λ J against ⟨D ∘ ∇H, g⟩: the same thing by two ways.
        all_tokens = torch.stack([of(f"predicted_{name}") for name in tokens])
        size = torch.maximum(of("gradient").abs(), all_tokens.abs().sum(0)).sum()
        made["ledger/influence_residual"] = float(
            (all_tokens.sum(0) - of("gradient")).abs().sum() / size.clamp(min=1e-60)
        )
        made["ledger/stride"] = self.stride
        made["ledger/influence_disagreement"] = max(self.disagreement.values(), default=0.0)
        for name in self.unsure:
            del made[f"ledger/{name}"]
        if self.apart:  # what first order says of the update that was taken apart
            first_order = {name: float(of(f"predicted_{name}")[-1]) for name in tokens}
            first_order |= {"momentum": float(of("momentum")[-1]), "decay": float(of("decay")[-1])}
            made |= {f"ledger/first_order_{name}": first_order[name] for name in (*CLASSES[1:], *REST)}
        return made | self.apart

    @property
    def unsure(self) -> list[str]:
        """The sums on which the differences of two strides do not agree: they are not logged."""
        return [name for name, value in self.disagreement.items() if value > UNSURE]

    def _empty_updates(self) -> int:
        """Updates without a token of any class."""
        counts = self.total(torch.tensor([float((seen.code_BT > 0).sum()) for seen in self.seen]))
        return int((counts == 0).sum())


def sums_of(j_weight_BT: Tensor, entropy_weight_BT: Tensor, j_BT: Tensor, entropy_j_BT: Tensor) -> list[float]:
    """Σ of (weight · J + weight · derivative of the entropy) over all tokens, and of its absolute
    terms, in float64."""
    term_BT = j_weight_BT.double() * j_BT + entropy_weight_BT.double() * entropy_j_BT
    return [float(term_BT.sum()), float(term_BT.abs().sum())]


@torch.no_grad()
def probe_entropy(model: Model, probe: TokenBatch, total: Callable[[Any], Any] = lambda value: value) -> float:
    """Mean full-vocabulary entropy over the probe's response tokens, summed in float64."""
    with model.exactly():
        value = sum(float(model.statistics(micro).entropy_N.double().sum()) for _, micro in model.micro_batches(probe))
    return total(value) / float(probe.mask_BT.sum())
