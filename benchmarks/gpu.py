"""Training at a 1.5B model's size on one GPU: tokens/s, model FLOP utilisation, peak memory, what
the statistics cost. Under 8 minutes.

A randomly initialised model of the shape of DeepSeek-R1-Distill-Qwen-1.5B, sequences of 16k tokens,
one CE-GPPO update as the loop does it (bf16 compute over fp32 weights, gradient checkpointing). No
network, no vllm. It writes results/gpu/<machine>.json and .md. Without a GPU everything runs at a
small size on the CPU, says so, and writes nothing.

MFU counts 6 FLOPs a parameter and token (input embedding left out) and 6 · layers · heads · head
size · length for causal attention; nothing that is computed twice counts twice. The share of the
statistics is that of head and statistics, forward and backward, timed alone on the same number of
tokens.

    python benchmarks/gpu.py

Needs torch ≥ 2.11, transformers and omegaconf; reasoning-gym too for the testbed's part.
"""

import copy
import gc
import importlib.util
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import machine, one_step, one_update

from cegppo import config, losses
from cegppo.instrument.tally import Tally
from cegppo.model import memory
from cegppo.model.head import head_statistics, token_statistics
from cegppo.model.optimizer import OffloadedAdamW
from cegppo.model.policy import Policy
from cegppo.schedules import Schedules, objective_of
from cegppo.state import build
from cegppo.types import Prompt, Rollout

ROOT = Path(__file__).resolve().parent.parent
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
SHAPE = dict(
    hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2
)
SMALL = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
VOCABULARY, LENGTH, PROMPT = (151_936, 16_384, 512) if GPU else (2_000, 256, 16)
LEARNING_RATE = 1e-6
DENSE_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # the makers' figures, FLOP/s
LIMIT = 450  # seconds after which nothing new is started


def wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], rounds: int = 3) -> float:
    """Median of `rounds`, after one for warming up."""
    times = []
    for n in range(rounds + 1):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times += [time.perf_counter() - start] if n else []
    return statistics.median(times)


def measured(call: Callable[[], dict]) -> dict:
    """What `call` returns, with the peak memory above what stands before it; or that it ran out
    of memory."""
    gc.collect()
    if not GPU:
        return call()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        made = call()
    except torch.cuda.OutOfMemoryError:
        return {"out of memory": True}
    return made | {"peak GiB": torch.cuda.max_memory_allocated() / memory.GIB, "of which before": before / memory.GIB}


def matrix_rate() -> float:
    """bf16 FLOP/s of a large matrix product here."""
    size = 8192 if GPU else 512
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / (seconds(lambda: [a @ b for _ in range(10)]) / 10)


# --------------------------------------------------------------------------------------------------


def head_ways(tokens: int) -> dict[str, dict]:
    """Head, statistics and their backward pass on `tokens` tokens in bf16: seconds and peak
    memory of each way."""
    torch.manual_seed(0)
    width = (SHAPE if GPU else SMALL)["hidden_size"]
    weight = torch.randn(VOCABULARY, width, device=DEVICE).mul_(3 / width**0.5).requires_grad_()
    hidden = torch.randn(tokens, width, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    token = torch.randint(VOCABULARY, (tokens,), device=DEVICE)
    slope = torch.randn(tokens, device=DEVICE) / tokens

    def back(logprob, entropy) -> None:
        roots = [v for v in (logprob, entropy) if v.requires_grad]
        torch.autograd.backward(roots, [slope] * len(roots))
        weight.grad = hidden.grad = None

    def blocks(entropy_grad: bool) -> None:
        s = head_statistics(hidden, weight, token, entropy_grad=entropy_grad)
        back(s.logprob_N, s.entropy_N)

    def plain() -> None:
        s = token_statistics(hidden @ weight.bfloat16().T, token, entropy_grad=True)
        back(s.logprob_N, s.entropy_N)

    ways = {
        "blocks": lambda: blocks(False),
        "blocks, entropy with gradient": lambda: blocks(True),
        "plain, entropy with gradient": plain,
    }
    if importlib.util.find_spec("trl"):
        from trl.trainer.utils import entropy_from_logits, selective_log_softmax

        def trl() -> None:
            logits = hidden @ weight.bfloat16().T
            back(selective_log_softmax(logits, token), entropy_from_logits(logits))

        ways["TRL"] = trl
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

        loss = LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False, loss_type="dapo")
        narrow = weight.detach().bfloat16().requires_grad_()

        def liger() -> None:
            loss(hidden[None], narrow, token[None], torch.ones(1, tokens, device=DEVICE), slope[:1])[0].backward()
            narrow.grad = hidden.grad = None

        ways["Liger (no entropy)"] = liger
    return {name: measured(lambda call=call: {"seconds": seconds(call)}) for name, call in ways.items()}


def head_error() -> dict[str, float]:
    """Largest relative error (of a norm) of blocks in bf16 and in fp32 against the plain way in
    fp64 on the same numbers."""
    torch.manual_seed(0)
    tokens, width, size = 64, 256, min(VOCABULARY, 20_000)
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        weight = torch.randn(size, width, device=DEVICE).mul_(3 / width**0.5).to(dtype).requires_grad_()
        hidden = torch.randn(tokens, width, device=DEVICE).to(dtype).requires_grad_()
        token = torch.randint(size, (tokens,), device=DEVICE)
        wide = [v.detach().double().requires_grad_() for v in (hidden, weight)]
        pairs = []
        for s, rows in (
            (head_statistics(hidden, weight, token, entropy_grad=True, most_bytes=4 << 20), (hidden, weight)),
            (token_statistics(wide[0] @ wide[1].T, token, entropy_grad=True), wide),
        ):
            torch.autograd.backward([s.logprob_N, s.entropy_N], [torch.ones_like(s.logprob_N)] * 2)
            pairs.append([v.detach().double() for v in (s.logprob_N, s.entropy_N, *(v.grad for v in rows))])
        found[str(dtype).removeprefix("torch.")] = max(float((a - b).norm() / b.norm()) for a, b in zip(*pairs))
    return found


# --------------------------------------------------------------------------------------------------


def make_policy() -> Policy:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    c = Qwen2Config(
        vocab_size=VOCABULARY,
        max_position_embeddings=2 * LENGTH,
        tie_word_embeddings=False,
        **(SHAPE if GPU else SMALL),
    )
    c._attn_implementation = "variable_length" if GPU else "sdpa"  # what Policy.load asks for
    torch.manual_seed(0)
    with DEVICE:
        model = Qwen2ForCausalLM(c)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return Policy(model.eval(), None, micro_batch_tokens=LENGTH, bfloat16=True, packing=True)


class WholeLogits(Policy):
    """The plain way as it is usual in bf16: all logits at once, as autocast makes them."""

    def statistics(self, x, entropy_grad: bool = False):
        hidden_NH, token_N = self.states(self.model.get_decoder(), x)
        with self.autocast():
            logits_NV = self.model.get_output_embeddings()(hidden_NH)
        return token_statistics(logits_NV, token_N, entropy_grad)


def make_batch(p: Policy, lengths: list[int]):
    """Sequences of these total lengths, random tokens; old log-probabilities the policy's own."""
    rng = np.random.default_rng(0)
    draw = lambda n: tuple(rng.integers(0, VOCABULARY, n).tolist())
    rollouts = [
        Rollout(Prompt(str(i), "", "", draw(PROMPT), ""), 0, draw(n - PROMPT), (0.0,) * (n - PROMPT), "length", "")
        for i, n in enumerate(lengths)
    ]
    zeros = np.zeros(len(lengths))
    return p.collate(rollouts, rng.standard_normal(len(lengths)), zeros, zeros)


def settings() -> config.Config:
    """The configuration of the updates measured here, for the objective and for the estimate of
    memory."""
    params = losses.load("cegppo").Params()
    c = config.Config(loss={"name": "cegppo", **vars(params)}, prompts_per_step=1, group_size=2, updates_per_step=1)
    c.model.dtype, c.model.gradient_checkpointing = "bfloat16", True
    c.update.micro_batch_tokens, c.data.max_prompt_tokens, c.rollout.max_tokens = LENGTH, PROMPT, LENGTH - PROMPT
    return c


def flops(p: Policy, lengths: list[int]) -> float:
    """Of one forward and backward pass over sequences of these lengths."""
    c = p.model.config
    weights = sum(v.numel() for v in p.model.parameters()) - p.model.get_input_embeddings().weight.numel()
    attention = 6 * c.num_hidden_layers * c.hidden_size
    return sum(6 * weights * n + attention * n * n for n in lengths)


def updates(p: Policy, optimizer, x, lengths: list[int], peak: float) -> dict:
    objective = objective_of(settings(), Schedules(settings()).at(0))
    spent = seconds(lambda: one_update(p, optimizer, x, objective, Tally()), rounds=2)
    return {"seconds": spent, "tokens/s": sum(lengths) / spent, "MFU": flops(p, lengths) / spent / peak}


def agreement(p: Policy) -> dict[str, float]:
    """Largest difference of a log-probability: packed against padded, and blocks against whole
    logits (at the small size none)."""
    x = make_batch(p, [LENGTH // 16, LENGTH // 8, LENGTH // 11])
    base = p.evaluate(x)["logprob_BT"]
    found = {}
    padded, fp32_head = copy.copy(p), copy.copy(p)
    padded.packing, fp32_head.head_chunk = False, 1 << 20
    for name, other in {
        "packed against padded": padded,
        "blocks in bf16 against whole logits in fp32": fp32_head,
    }.items():
        difference = (other.evaluate(x)["logprob_BT"] - base)[x.mask_BT.bool()].abs()
        found |= {f"{name}, mean": float(difference.mean()), f"{name}, max": float(difference.max())}
    return found


def offloading(p: Policy) -> dict:
    """Three small steps of AdamW with its moments here and in the CPU's memory: the same bits?"""
    made = []
    for kind in (torch.optim.AdamW, OffloadedAdamW):
        torch.manual_seed(0)
        values = [torch.nn.Parameter(torch.randn(257, 129, device=DEVICE)) for _ in range(3)]
        optimizer = kind(values, lr=1e-2)
        for _ in range(3):
            for v in values:
                v.grad = torch.randn_like(v)
            optimizer.step()
        held = {str(optimizer.state[v]["exp_avg"].device) for v in values}
        made.append((torch.cat([v.detach().flatten() for v in values]), sorted(held)))
    return {"same bits": bool(torch.equal(made[0][0], made[1][0])), "moments on": made[1][1]}


# --------------------------------------------------------------------------------------------------


def testbed_steps(device: str, steps: int = 4) -> dict:
    """Seconds of a step of the testbed's CE-GPPO run, and its metrics after `steps`, by which
    two devices can be compared."""
    with tempfile.TemporaryDirectory() as where:
        given = [
            "method=cegppo",
            f"model.device={device}",
            "diagnostics.every=0",
            f"run_dir={where}",
            "wandb.mode=disabled",
        ]
        state = build(config.load(ROOT / "experiments" / "testbed.yaml", given)[0])
        rows = [one_step(state).line for _ in range(steps)]
    names = ("time/rollout", "time/update", "time/step")
    return {name: statistics.median(row[name] for row in rows[1:]) for name in names} | {
        name: [row[name] for row in rows] for name in ("entropy/mean", "accuracy/mean", "grad/norm")
    }


# --------------------------------------------------------------------------------------------------


def main() -> None:
    start = time.perf_counter()
    name = torch.cuda.get_device_name() if GPU else machine()
    made: dict = {
        "machine": name,
        "torch": torch.__version__,
        "size": "1.5B" if GPU else "small, on a CPU: no figure of a GPU",
    }

    def note(key: str, call: Callable[[], object]) -> None:
        if time.perf_counter() - start > LIMIT:
            made[key] = "not run: out of time"
        else:
            try:
                made[key] = call()
            except Exception as error:  # one part that fails on a machine never seen before is not to cost the others
                made[key] = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        print(f"[{time.perf_counter() - start:5.0f} s] {key}: {json.dumps(made[key])}", flush=True)

    if not GPU:
        print("no GPU here: a small size on the CPU, to show that the program runs; nothing is written")
    note("bf16 matrix product, FLOP/s", matrix_rate)
    known = next((rate for chip, rate in DENSE_BF16.items() if chip in name), None)
    peak = known or made["bf16 matrix product, FLOP/s"]
    made["MFU is of, FLOP/s"] = peak
    note("head, error against fp64", head_error)
    for tokens in (2048, LENGTH) if GPU else (LENGTH,):
        note(f"head and statistics, {tokens} tokens", lambda tokens=tokens: head_ways(tokens))
    note("offloaded moments", lambda: offloading(None))
    note("testbed on this device", lambda: testbed_steps(DEVICE.type))
    if GPU:
        note("testbed on the CPU", lambda: testbed_steps("cpu"))
    p = make_policy()
    note("agreement", lambda: agreement(p))
    optimizer = torch.optim.AdamW(p.model.parameters(), lr=LEARNING_RATE)
    full, mixed = [LENGTH] * 2, [LENGTH // n for n in (1, 2, 3, 4, 6, 8, 8, 8)]
    x = make_batch(p, full)
    note(
        "estimate, GiB",
        lambda: {k: v / memory.GIB for k, v in memory.estimate(settings(), p.model, DEVICE.type).items()},
    )
    note("update, 2 full sequences, blocks", lambda: measured(lambda: updates(p, optimizer, x, full, peak)))
    whole = WholeLogits(p.model, None, micro_batch_tokens=LENGTH, bfloat16=True, packing=True)
    note("update, 2 full sequences, whole logits", lambda: measured(lambda: updates(whole, optimizer, x, full, peak)))
    y = make_batch(p, mixed)
    for packing in (True, False):
        p.packing = packing
        key = f"update, sequences of a half to an eighth too, {'packed' if packing else 'padded'}"
        note(key, lambda: measured(lambda: updates(p, optimizer, y, mixed, peak)))
    alone = made.get(f"head and statistics, {LENGTH} tokens")
    blocks = made["update, 2 full sequences, blocks"]
    if isinstance(alone, dict) and isinstance(blocks, dict) and "seconds" in alone["blocks"] and "seconds" in blocks:
        made["share of head and statistics in an update"] = len(full) * alone["blocks"]["seconds"] / blocks["seconds"]
        print(f"share of head and statistics in an update: {made['share of head and statistics in an update']:.3f}")
    print(line(made))
    if GPU:
        folder = ROOT / "results" / "gpu"
        folder.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        (folder / f"{stem}.json").write_text(json.dumps(made, indent=1) + "\n")
        (folder / f"{stem}.md").write_text(line(made) + "\n")


def line(made: dict) -> str:
    """The update's figures as one row of a Markdown table."""
    whole, plain = made["update, 2 full sequences, blocks"], made["update, 2 full sequences, whole logits"]

    def cells(row) -> str:
        if not isinstance(row, dict) or "seconds" not in row:
            return "out of memory | | " if isinstance(row, dict) else f"{row} | | "
        return f"{row['tokens/s']:,.0f} | {100 * row['MFU']:.0f} % | {row.get('peak GiB', float('nan')):.1f} GiB"

    share = made.get("share of head and statistics in an update", float("nan"))
    head = (
        "| machine | model | tokens/s | MFU | peak memory | head and statistics | whole logits: tokens/s | MFU | peak"
        " memory |"
    )
    model, share_text = f"{made['size']}, {LENGTH:,} tokens a sequence", f"{100 * share:.0f} %"
    row = f"| {made['machine']}, torch {made['torch']} | {model} | {cells(whole)} | {share_text} | {cells(plain)} |"
    return f"{head}\n|{'---|' * 9}\n{row}"


if __name__ == "__main__":
    with torch.random.fork_rng(devices=[]):
        sys.exit(main())
