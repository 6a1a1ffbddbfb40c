"""Log-probability and entropy at a real vocabulary: blocks against whole logits, Liger's chunked
loss and TRL's path.

2,048 tokens, width 1,536, vocabulary 151,936, fp32; forward and backward, gradients to hidden
states and head. Each way runs in a process of its own: peak memory is the process's largest
resident size less that before the first product (weights and hidden states allocated). It is given
with and without the gradients themselves, which no way can do without. Time is CPU time of one
thread (a busy machine stretches the clock, not the work).

* plain: `token_statistics` on whole logits, entropy with a gradient;
* blocks: `head_statistics`, the same numbers; and, as `no entropy gradient`, as every run without
  an entropy term uses it;
* TRL: `selective_log_softmax` and `entropy_from_logits` on whole logits, entropy with a gradient;
  no Σπ², Σπ² log π;
* Liger: `LigerFusedLinearGRPOLoss`, not compiled, one row a chunk; log-probabilities only, the loss
  fused in.

    pip install -c constraints.txt -e '.[run,benchmarks]'
    python benchmarks/head.py [rounds [tokens [ways]]]

`ways`: some of them, with commas between; plain is the first.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from common import machine

from cegppo.model.head import head_statistics, token_statistics

TOKENS, WIDTH, VOCABULARY, ROWS = 2048, 1536, 151_936, 8
WAYS = ("plain", "blocks", "no entropy gradient", "TRL", "Liger")


def resident() -> float:
    """GiB, the largest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def once(way: str) -> dict[str, float]:
    """Seconds of CPU, GiB above the start, and two numbers that tell whether the ways agree."""
    torch.manual_seed(0)
    weight = torch.randn(VOCABULARY, WIDTH).mul_(WIDTH**-0.5 * 3).requires_grad_()
    hidden = torch.randn(TOKENS, WIDTH, requires_grad=True)
    token = torch.randint(VOCABULARY, (TOKENS,))
    advantage, slope = torch.randn(ROWS), None
    if way == "Liger":
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

        loss = LigerFusedLinearGRPOLoss(
            beta=0.0, compiled=False, use_ref_model=False, loss_type="dapo", temperature=1.0
        )
    if way == "TRL":
        from trl.trainer.utils import entropy_from_logits, selective_log_softmax
    slope = (-advantage / TOKENS).repeat_interleave(TOKENS // ROWS)
    entropy_slope = torch.full((TOKENS,), -1e-3 / TOKENS)
    start, begin = resident(), time.process_time()
    if way == "Liger":
        rows = (hidden.view(ROWS, -1, WIDTH), weight, token.view(ROWS, -1), torch.ones(ROWS, TOKENS // ROWS), advantage)
        loss(*rows)[0].backward()
    else:
        if way == "plain":
            s = token_statistics(hidden @ weight.T, token, entropy_grad=True)
            logprob, entropy = s.logprob_N, s.entropy_N
        elif way == "TRL":
            logits = hidden @ weight.T
            logprob, entropy = selective_log_softmax(logits, token), entropy_from_logits(logits)
            del logits
        else:
            s = head_statistics(hidden, weight, token, entropy_grad=way == "blocks")
            logprob, entropy = s.logprob_N, s.entropy_N
        both = entropy.requires_grad
        torch.autograd.backward([logprob, entropy] if both else [logprob], [slope, entropy_slope] if both else [slope])
    seconds = time.process_time() - begin
    return {
        "seconds": seconds,
        "GiB": resident() - start,
        "hidden": float(hidden.grad.double().norm()),
        "weight": float(weight.grad.double().norm()),
    }


def main() -> None:
    rounds, tokens, chosen, *_ = [*sys.argv[1:], *("1", str(TOKENS), ",".join(WAYS))[len(sys.argv) - 1 :]]
    rounds, tokens, ways = int(rounds), int(tokens), chosen.split(",")
    print(
        machine(),
        f"\n\n{tokens:,} tokens × vocabulary {VOCABULARY:,}, width {WIDTH:,}, fp32, {rounds} round(s)\n",
        flush=True,
    )
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            done = subprocess.run(
                [sys.executable, __file__, "--once", str(tokens), way], stdout=subprocess.PIPE, text=True, check=True
            )
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(way, found[way][-1], file=sys.stderr, flush=True)
    gradients = 4 * (VOCABULARY + tokens) * WIDTH / 2**30
    print(f"the gradients alone: {gradients:.2f} GiB\n")
    print(
        "| way | peak memory | of plain | beyond the gradients | of plain | CPU time | of plain [least, most] |"
        " ‖∂/∂hidden‖, ‖∂/∂head‖ |"
    )
    print(f"|{'---|' * 8}")
    plain = found["plain"]
    for way, runs in found.items():
        ratios = sorted(a["seconds"] / b["seconds"] for a, b in zip(runs, plain))
        gib, base = (statistics.median(run["GiB"] for run in group) for group in (runs, plain))
        seconds = statistics.median(run["seconds"] for run in runs)
        memory = (
            f"{gib:.2f} GiB | 1/{base / gib:.1f} | {gib - gradients:.2f} GiB |"
            f" 1/{(base - gradients) / (gib - gradients):.0f}"
        )
        times = f"{seconds:.1f} s | {statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        print(f"| {way} | {memory} | {times} | {runs[0]['hidden']:.4e}, {runs[0]['weight']:.4e} |")


if __name__ == "__main__":
    if "--once" in sys.argv:
        TOKENS = int(sys.argv[-2])
        print(json.dumps(once(sys.argv[-1])))
    else:
        main()
