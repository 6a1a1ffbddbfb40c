"""Token statistics from hidden states and the LM head: the plain way, and in blocks that never hold
tokens × vocabulary.

In: hidden states [N, H], the head's weight [V, H] (and bias [V]), the N tokens. Out: log π of each
token, the full-vocabulary entropy H, Σπ² and Σπ² log π. `token_statistics` takes whole logits and
is the reference; `head_statistics` walks over blocks of tokens × vocabulary with a running maximum
(the online softmax of arXiv 1805.02867) and recomputes the logits in the backward pass. With s = ∂
loss / ∂ log π and e = ∂ loss / ∂ H of a token, and logits z divided by the temperature τ, the
gradient is exact:

    ∂ loss / ∂ z = (s (onehot − π) − e π (log π + H)) / τ

Some models scale the product or bound it before the softmax: `Scaling`.

Left out: skipping blocks in which π rounds to zero (Cut Cross-Entropy, arXiv 2411.09009), which is
not exact.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Bytes of one block of logits. On a CPU a block is to stay in the caches between the operations on
# it.
BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
CACHE_BYTES = 1 << 20
BLOCK_VOCABULARY = {"cpu": 2048, "cuda": 16384}
# Below it a difference of logits may as well be this: e^−10000 is 0 even in fp64, and 0 · FLOOR is
# 0 where 0 · ∞ is not.
FLOOR = -1e4
GONE = -1e4  # stands for log 0 in what is compared and never exponentiated into a sum


@dataclass(frozen=True)
class Scaling:
    """What a model does to its head's product x before the softmax: logits = cap · tanh(scale · x /
    cap), or scale · x where `cap` is 0. Gemma's final soft cap (arXiv 2408.00118, section 2),
    Cohere's `logit_scale`, Granite's `logits_scaling`."""

    scale: float = 1.0
    cap: float = 0.0

    def __call__(self, product: Tensor) -> Tensor:
        scaled = product * self.scale if self.scale != 1.0 else product
        return (scaled / self.cap).tanh() * self.cap if self.cap else scaled

    def in_place(self, product: Tensor) -> Tensor:
        """The same, in the memory of `product`."""
        scaled = product.mul_(self.scale) if self.scale != 1.0 else product
        return scaled.div_(self.cap).tanh_().mul_(self.cap) if self.cap else scaled

    def slope(self, logits: Tensor) -> Tensor | float:
        """∂ logits / ∂ product where it came out as `logits`."""
        return (1 - (logits / self.cap).square()) * self.scale if self.cap else self.scale


PLAIN = Scaling()


@dataclass(frozen=True)
class TokenStatistics:
    """What one forward pass says of each response token; flat over the N response tokens of a
    batch, row by row. fp32, nats."""

    logprob_N: Tensor
    entropy_N: Tensor
    sum_p2_N: Tensor
    sum_p2_logp_N: Tensor


def token_statistics(logits_NV: Tensor, token_N: Tensor, entropy_grad: bool = False) -> TokenStatistics:
    """Exact full-vocabulary statistics from logits that are already divided by the temperature.
    Computed in fp32 or wider.

    `logprob_N` carries a gradient, `entropy_N` only with `entropy_grad`, the sums never.
    """
    logp_NV = torch.log_softmax(logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)), dim=-1)
    logprob_N = logp_NV.gather(-1, token_N[:, None])[:, 0]
    if entropy_grad and torch.is_grad_enabled():
        entropy_N, *sums = distribution_sums(logp_NV)
    else:  # a few rows at a time, which stay in a CPU's caches between the passes over them
        with torch.no_grad():
            height = len(logp_NV) if logp_NV.is_cuda else max(1, CACHE_BYTES // (logp_NV.shape[1] * logp_NV.itemsize))
            parts = [distribution_sums(part_nv) for part_nv in logp_NV.detach().split(height)]
            entropy_N, *sums = (torch.cat(values) for values in zip(*parts))
    return TokenStatistics(logprob_N, entropy_N, *(value_N.detach() for value_N in sums))


def distribution_sums(logp_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy, Σπ² and Σπ² log π of each row. A token of probability 0 has log 0 = −∞ and counts
    as 0."""
    p_NV = logp_NV.exp()
    square_NV = p_NV.detach().square()
    entropy_N, sum_p2_logp_N = -torch.linalg.vecdot(p_NV, logp_NV), torch.linalg.vecdot(square_NV, logp_NV.detach())
    if entropy_N.isnan().any():
        finite_NV = logp_NV.clamp(min=torch.finfo(logp_NV.dtype).min)
        entropy_N, sum_p2_logp_N = -(p_NV * finite_NV).sum(-1), (square_NV * finite_NV.detach()).sum(-1)
    return entropy_N, square_NV.sum(-1), sum_p2_logp_N


def head_statistics(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    token_N: Tensor,
    bias_V: Tensor | None = None,
    temperature: float = 1.0,
    entropy_grad: bool = False,
    most_bytes: int | None = None,
    scaling: Scaling = PLAIN,
) -> TokenStatistics:
    """The same as `token_statistics` of `scaling(hidden @ weight.T + bias)`, divided by
    `temperature`, holding one block of logits at a time, of at most `most_bytes` (a single row of a
    block may be more).

    Matrix products take the dtype of `hidden_NH` and accumulate in fp32; everything after them is
    fp32 (fp64 for fp64). Gradients go to hidden states, weight and bias, whichever ask for one;
    backward may be called again while the graph is kept.
    """
    block = _block(hidden_NH.device, most_bytes)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        made = _HeadStatistics.apply(hidden_NH, weight_VH, bias_V, token_N, temperature, block, scaling)
    logprob_N, entropy_N, sum_p2_N, sum_p2_logp_N = made
    return TokenStatistics(logprob_N, entropy_N if entropy_grad else entropy_N.detach(), sum_p2_N, sum_p2_logp_N)


@torch.no_grad()
def proxy_logprob(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    token_N: Tensor,
    least: float,
    bias_V: Tensor | None = None,
    temperature: float = 1.0,
    most_bytes: int | None = None,
    scaling: Scaling = PLAIN,
) -> Tensor:
    """[N] log-probability of each token under π without its tail, renormalised: the tail is what
    is less probable than `least` times π's most probable token ("min-p"). GONE for a token of the
    tail.

    In blocks as `head_statistics`, in two passes over them: which tokens are the tail is known only
    after the last block. No gradient.
    """
    wide = torch.promote_types(hidden_NH.dtype, torch.float32)
    count = hidden_NH.shape[0]
    with torch.autocast(hidden_NH.device.type, enabled=False):
        block = _block(hidden_NH.device, most_bytes)
        blocks = lambda: _blocks(hidden_NH, weight_VH, bias_V, temperature, block, wide, scaling)
        top_N = torch.full((count,), torch.finfo(wide).min, dtype=wide, device=hidden_NH.device)
        picked_N, total_N = torch.zeros(2, count, dtype=wide, device=hidden_NH.device)
        for _, rows, begin, logits_nv in blocks():
            inside_n, place_n = _places(token_N[rows], begin, logits_nv.shape[1])
            picked_N[rows] += torch.where(inside_n, logits_nv.gather(1, place_n)[:, 0], 0)
            top_N[rows] = torch.maximum(top_N[rows], logits_nv.amax(-1))
        edge_N = top_N + math.log(least)
        for _, rows, _, logits_nv in blocks():
            kept_nv = logits_nv >= edge_N[rows, None]
            total_N[rows] += torch.where(kept_nv, logits_nv.sub_(top_N[rows, None]).exp_(), 0).sum(-1)
    return torch.where(picked_N >= edge_N, picked_N - top_N - total_N.log(), GONE)


def _block(device: torch.device, most_bytes: int | None) -> tuple[int, int]:
    """(bytes, width of the vocabulary) of a block of logits on `device`."""
    kind = "cpu" if device.type == "cpu" else "cuda"
    return min(most_bytes or BLOCK_BYTES[kind], BLOCK_BYTES[kind]), BLOCK_VOCABULARY[kind]


class _HeadStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NH, weight_VH, bias_V, token_N, temperature, block, scaling):
        wide = torch.promote_types(hidden_NH.dtype, torch.float32)
        count = hidden_NH.shape[0]
        top_N = torch.full((count,), torch.finfo(wide).min, dtype=wide, device=hidden_NH.device)  # the running maximum
        picked_N, total_N, mean_N, square_N, cubed_N = torch.zeros(5, count, dtype=wide, device=hidden_NH.device)
        for _, rows, begin, logits_nv in _blocks(hidden_NH, weight_VH, bias_V, temperature, block, wide, scaling):
            inside_n, place_n = _places(token_N[rows], begin, logits_nv.shape[1])
            picked_N[rows] += torch.where(inside_n, logits_nv.gather(1, place_n)[:, 0], 0)
            # Sums of e^(z−m), e^(z−m)(z−m), e^2(z−m), e^2(z−m)(z−m) over the vocabulary; a new
            # maximum m shifts the old ones.
            top_n = torch.maximum(top_N[rows], logits_nv.amax(-1))
            shift_n = (top_N[rows] - top_n).clamp(min=FLOOR)
            scale_n = shift_n.exp()
            mean_N[rows] = scale_n * (mean_N[rows] + shift_n * total_N[rows])
            cubed_N[rows] = scale_n.square() * (cubed_N[rows] + shift_n * square_N[rows])
            total_N[rows] *= scale_n
            square_N[rows] *= scale_n.square()
            top_N[rows] = top_n
            weight_nv = logits_nv.sub_(top_n[:, None]).clamp_(min=FLOOR).exp()
            total_N[rows] += weight_nv.sum(-1)
            square_N[rows] += torch.linalg.vecdot(weight_nv, weight_nv)
            mean_N[rows] += torch.linalg.vecdot(weight_nv, logits_nv)
            cubed_N[rows] += torch.linalg.vecdot(weight_nv, logits_nv.mul_(weight_nv))
        log_total_N, mean_N = total_N.log(), mean_N / total_N
        sum_p2_N = square_N / total_N.square()
        sum_p2_logp_N = cubed_N / total_N.square() - log_total_N * sum_p2_N
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, token_N, top_N, total_N, mean_N)
        ctx.temperature, ctx.block, ctx.wide, ctx.scaling = temperature, block, wide, scaling
        ctx.mark_non_differentiable(sum_p2_N, sum_p2_logp_N)
        ctx.set_materialize_grads(False)
        return picked_N - top_N - log_total_N, log_total_N - mean_N, sum_p2_N, sum_p2_logp_N

    @staticmethod
    @once_differentiable
    def backward(ctx, slope_N, entropy_slope_N, *_):
        hidden_NH, weight_VH, bias_V, token_N, top_N, total_N, mean_N = ctx.saved_tensors
        wanted = dict(zip(("hidden", "weight", "bias"), ctx.needs_input_grad))
        slope_N = torch.zeros_like(total_N) if slope_N is None else slope_N / ctx.temperature
        hidden_grad_NH = hidden_NH.new_zeros(hidden_NH.shape, dtype=ctx.wide) if wanted["hidden"] else None
        weight_grad_VH = torch.zeros_like(weight_VH) if wanted["weight"] else None
        bias_grad_V = torch.zeros_like(bias_V) if wanted["bias"] else None
        with torch.autocast(hidden_NH.device.type, enabled=False):
            for weight_vH, rows, begin, logits_nv in _blocks(
                hidden_NH, weight_VH, bias_V, ctx.temperature, ctx.block, ctx.wide, ctx.scaling
            ):
                inside_n, place_n = _places(token_N[rows], begin, logits_nv.shape[1])
                inner = ctx.scaling.slope(logits_nv * ctx.temperature) if ctx.scaling != PLAIN else None
                weight_nv = (
                    logits_nv.sub_(top_N[rows, None]).clamp_(min=FLOOR).exp()
                )  # π · total, so log π + H = z − m − mean
                if entropy_slope_N is None:
                    grad_nv = weight_nv.mul_((-slope_N[rows] / total_N[rows])[:, None])
                else:
                    by_entropy_n = entropy_slope_N[rows] / (ctx.temperature * total_N[rows])
                    grad_nv = logits_nv.sub_(mean_N[rows, None]).mul_(-by_entropy_n[:, None])
                    grad_nv = grad_nv.sub_((slope_N[rows] / total_N[rows])[:, None]).mul_(weight_nv)
                grad_nv.scatter_add_(1, place_n, torch.where(inside_n, slope_N[rows], 0)[:, None])
                if inner is not None:
                    grad_nv = grad_nv.mul_(inner)
                if bias_grad_V is not None:
                    bias_grad_V[begin : begin + grad_nv.shape[1]] += grad_nv.sum(0)
                grad_nv = grad_nv.to(hidden_NH.dtype)
                if hidden_grad_NH is not None:
                    hidden_grad_NH[rows] += _product(grad_nv, weight_vH, ctx.wide)
                if weight_grad_VH is not None:
                    weight_grad_VH[begin : begin + grad_nv.shape[1]] += _product(grad_nv.t(), hidden_NH[rows], ctx.wide)
        return (
            None if hidden_grad_NH is None else hidden_grad_NH.to(hidden_NH.dtype),
            weight_grad_VH,
            bias_grad_V,
            *(None,) * 4,
        )


def _blocks(hidden_NH, weight_VH, bias_V, temperature, block, wide, scaling):
    """(weight of the block, its rows, its first token of the vocabulary, its logits [n, v]), the
    vocabulary outermost."""
    block_bytes, width = block
    for begin in range(0, weight_VH.shape[0], width):
        weight_vH = weight_VH[begin : begin + width].to(hidden_NH.dtype)
        height = max(1, block_bytes // (wide.itemsize * weight_vH.shape[0]))
        for start in range(0, hidden_NH.shape[0], height):
            rows = slice(start, start + height)
            logits_nv = _product(hidden_NH[rows], weight_vH.t(), wide)
            if bias_V is not None:
                logits_nv += bias_V[begin : begin + width]
            logits_nv = scaling.in_place(logits_nv)
            yield weight_vH, rows, begin, logits_nv.div_(temperature) if temperature != 1.0 else logits_nv


def _product(left: Tensor, right: Tensor, wide: torch.dtype) -> Tensor:
    """left @ right with the result in `wide`, never rounded to a narrower dtype on the way."""
    if left.dtype == wide:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=wide)
    return left.to(wide) @ right.to(wide)  # PyTorch has no such product on a CPU


def _places(token_n: Tensor, begin: int, width: int) -> tuple[Tensor, Tensor]:
    """Whether each token lies in the vocabulary's block, [n], and where (somewhere, if it does
    not), [n, 1]."""
    place_n = token_n - begin
    return (place_n >= 0) & (place_n < width), place_n.clamp(0, width - 1)[:, None]
