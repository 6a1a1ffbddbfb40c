"""Derivatives of every token's log-probability and entropy along a direction in parameter space.

Exact, by forward-mode differentiation: one pass of dual numbers θ + ε d (torch.autograd's
forward_ad). Attention then takes its plain form, which holds tokens² scores. Where forward mode
cannot be had (weights divided among ranks, sequences too long for plain attention, an operation
without a forward-mode derivative) the derivative is a central difference

    (f(θ + s d') − f(θ − s d')) / 2s,      d' = d · ‖θ‖ / ‖d‖,

whose stride s is found anew for every direction: two strides a factor of four apart have to agree
on each of the sums that the derivative is taken for. A stride that is too long errs by curvature,
one that is too short by rounding, and which of the two it is depends on the size of the model.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..types import TokenBatch
from .optimizers import dot, local

FIRST_STRIDE = 3e-5  # of ‖θ‖, before anything is known of the model
CHANGE = 0.02  # nats by which a stride is to move log-probabilities, root mean square
FACTOR = 4.0  # between the two strides that are compared
AGREES = 0.01  # disagreement of two strides that is small enough
TRIES = 5  # how often a stride is changed, at most
FLOOR = 1e-3  # a sum in which terms cancel is compared to this share of its terms' absolute sum
PLAIN_BYTES = 512 << 20  # attention scores of one pass of forward mode, at most


class Statistics(Protocol):
    """Of the N response tokens of a batch, [N] each."""

    @property
    def logprob_N(self) -> Tensor: ...

    @property
    def entropy_N(self) -> Tensor: ...


class Model(Protocol):
    """What the instrument asks of a policy."""

    model: Any  # the torch module that the parameters are of

    def micro_batches(self, x: TokenBatch) -> Iterator[tuple[Tensor, TokenBatch]]: ...

    def statistics(self, x: TokenBatch, entropy_grad: bool = False) -> Statistics: ...

    def exactly(self) -> AbstractContextManager[Any]:
        """Compute in the weights' own precision inside."""

    def score_bytes(self, x: TokenBatch) -> int:
        """What plain attention holds of scores in a pass over `x`, in one layer."""


# [K, 2] sums over tokens of (log-probability derivative, entropy derivative), [B, T] each, and of
# their absolute terms. Every rank gets the same.
Sums = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Derivative:
    """Along one direction."""

    logprob_BT: Tensor  # float64, 0 outside the mask
    entropy_BT: Tensor
    stride: float  # as a share of ‖θ‖; 0: exact
    disagreement_K: Tensor  # of two strides, for each of the sums; 0 where exact


class _Inside(nn.Module):
    """A module whose forward pass is a function that uses `model`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


class Differentiator:
    """Takes derivatives for one step's ledger."""

    def __init__(self, model: Model, parameters: list[Tensor], total: Callable[[Any], Any], stride: float = 0.0):
        """`stride`: of central differences, as a share of ‖θ‖; 0: exact where that can be had,
        else chosen. `total` sums over the ranks."""
        self.model, self.parameters, self.total = model, parameters, total
        self.fixed, self.stride = stride, stride  # 0: not chosen yet
        self.forward_mode = not stride and not any(hasattr(p, "to_local") for p in parameters)
        self.inside = _Inside(model.model)
        name_of = {id(p): f"model.{name}" for name, p in model.model.named_parameters()}
        self.names = [name_of[id(p)] for p in parameters]

    def along(self, theta: list[Tensor], direction: list[Tensor], rows: TokenBatch, sums: Sums) -> Derivative:
        """At parameters `theta`. May leave the model at other parameters than it had."""
        zeros = torch.zeros_like(rows.mask_BT, dtype=torch.float64)
        lengths = self.total(torch.tensor([dot(v, v) for v in (theta, direction)], dtype=torch.float64)).sqrt()
        if not lengths[1] > 0:
            return Derivative(zeros, zeros, 0.0, 0 * sums(zeros, zeros)[:, 0])
        with self.model.exactly():
            passes = list(self.model.micro_batches(rows))
            if self.forward_mode:
                parts = [part for each in passes for part in self._small_enough(*each)]
                self.forward_mode = bool(parts) and self._has_forward_mode(theta, direction, parts)
            if self.forward_mode:
                j_BT, entropy_j_BT = self._exact(theta, direction, rows, parts)
                return Derivative(j_BT, entropy_j_BT, 0.0, 0 * sums(zeros, zeros)[:, 0])
            unit = float(lengths[0] / lengths[1])
            difference = lambda stride: self._difference(theta, direction, stride * unit, rows, passes)
            return self._agreeing(difference, unit, sums)

    # -- forward mode

    def _small_enough(self, index: Tensor, micro: TokenBatch) -> list[tuple[Tensor, TokenBatch]]:
        """A pass in parts whose attention scores fit; none where a single row's do not."""
        if self.model.score_bytes(micro) <= PLAIN_BYTES:
            return [(index, micro)]
        if len(micro) == 1:
            return []
        half = len(micro) // 2
        cut = [torch.arange(half), torch.arange(half, len(micro))]
        halves = [self._small_enough(index[rows], micro.rows(rows).but(bin_B=None)) for rows in cut]
        return [part for each in halves for part in each] if all(halves) else []

    def _has_forward_mode(
        self, theta: list[Tensor], direction: list[Tensor], parts: list[tuple[Tensor, TokenBatch]]
    ) -> bool:
        """Whether every operation of the model has a forward-mode derivative, tried on one row."""
        one = parts[0][1].rows(torch.tensor([0])).but(bin_B=None)
        try:
            made = self._tangents(theta, direction, one)
        except (NotImplementedError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(w in str(error) for w in ("forward", "jvp", "Forward")):
                raise
            return False
        return all(value is not None for value in made)

    def _tangents(self, theta: list[Tensor], direction: list[Tensor], x: TokenBatch) -> tuple[Tensor, Tensor]:
        """[N] derivatives of the response tokens' log-probabilities and entropies."""
        # Gradients are on because a policy leaves the entropy out of the graph where they are off;
        # no input requires one, so no graph is made.
        with torch.enable_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            duals = {name: forward_ad.make_dual(t, d) for name, t, d in zip(self.names, theta, direction)}
            s = functional_call(self.inside, duals, (lambda: self.model.statistics(x, entropy_grad=True),))
            made = (forward_ad.unpack_dual(s.logprob_N).tangent, forward_ad.unpack_dual(s.entropy_N).tangent)
        return made

    def _exact(
        self,
        theta: list[Tensor],
        direction: list[Tensor],
        rows: TokenBatch,
        parts: list[tuple[Tensor, TokenBatch]],
    ) -> Tensor:
        made = rows.mask_BT.new_zeros(2, *rows.mask_BT.shape, dtype=torch.float64)
        for index, micro in parts:
            for part_BT, value_N in zip(made, self._tangents(theta, direction, micro)):
                _place(part_BT, index, micro, value_N)
        return self.total(made)

    # -- differences

    def _agreeing(self, difference: Callable[[float], Tensor], unit: float, sums: Sums) -> Derivative:
        """The difference at a stride that agrees with the next shorter one, or the one that comes
        nearest to it; the next direction begins with its stride. `unit`: ‖θ‖ / ‖d‖."""
        made: dict[float, tuple[Tensor, Tensor]] = {}

        def at(stride: float) -> tuple[Tensor, Tensor]:
            if stride not in made:
                value = difference(stride)
                made[stride] = value, sums(value[0], value[1])
            return made[stride]

        def apart(stride: float) -> Tensor:
            return disagreement(at(stride)[1], at(stride / FACTOR)[1])

        if not self.stride:
            # Far above the rounding of a log-probability, far below where curvature shows.
            j_BT = at(FIRST_STRIDE)[0][0]
            moved = 2 * FIRST_STRIDE * unit * float(j_BT[j_BT != 0].square().mean().sqrt())
            self.stride = FIRST_STRIDE * min(max(CHANGE / moved, 1e-2), 1e2) if moved > 0 else FIRST_STRIDE
        best = self.stride
        for _ in range(0 if self.fixed else TRIES):
            if float(apart(best).max()) <= AGREES:
                break
            # Rounding makes short strides disagree, curvature long ones.
            better = min((best * FACTOR, best / FACTOR), key=lambda stride: float(apart(stride).max()))
            if float(apart(better).max()) >= float(apart(best).max()):
                break
            best = better
        self.stride = best
        j_BT, entropy_j_BT = at(best)[0]
        return Derivative(j_BT, entropy_j_BT, best, apart(best))

    def _difference(
        self,
        theta: list[Tensor],
        direction: list[Tensor],
        epsilon: float,
        rows: TokenBatch,
        passes: list[tuple[Tensor, TokenBatch]],
    ) -> Tensor:
        """[2, B, T] central differences at θ ± `epsilon` d."""
        found = []
        for sign in (1, -1):
            put_along(self.parameters, theta, direction, sign * epsilon)
            found.append(self._evaluate(rows, passes))
        return (found[0] - found[1]) / (2 * epsilon)

    @torch.no_grad()
    def _evaluate(self, rows: TokenBatch, passes: list[tuple[Tensor, TokenBatch]]) -> Tensor:
        """[2, B, T] log-probabilities and entropies in float64, on every rank; `passes`: its
        micro-batches."""
        made = rows.mask_BT.new_zeros(2, *rows.mask_BT.shape, dtype=torch.float64)
        for index, micro in passes:
            s = self.model.statistics(micro)
            for part_BT, value_N in zip(made, (s.logprob_N, s.entropy_N)):
                _place(part_BT, index, micro, value_N)
        return self.total(made)


def disagreement(one_K2: Tensor, other_K2: Tensor) -> Tensor:
    """[K] differences of two sets of sums, relative to the larger of the two, or to FLOOR of the
    absolute sum of what was added up."""
    size_K = torch.maximum(one_K2[:, 0].abs(), other_K2[:, 0].abs())
    floor_K = FLOOR * torch.maximum(one_K2[:, 1], other_K2[:, 1])
    return (one_K2[:, 0] - other_K2[:, 0]).abs() / torch.maximum(size_K, floor_K).clamp(min=1e-60)


@torch.no_grad()
def put_along(parameters: list[Tensor], theta: list[Tensor], direction: list[Tensor], share: float) -> None:
    """θ + share · direction into the parameters, without a buffer of its own."""
    for p, t, d in zip(parameters, theta, direction):
        local(p).copy_(t).add_(d, alpha=share)


def _place(whole_BT: Tensor, index: Tensor, micro: TokenBatch, value_N: Tensor) -> None:
    """Add the [N] values of `micro`, the rows `index` of a batch, at their places in it."""
    inside = micro.mask_BT.bool()
    whole_BT[index, : inside.shape[1]] += torch.zeros_like(inside, dtype=torch.float64).masked_scatter(
        inside, value_N.detach().double()
    )
