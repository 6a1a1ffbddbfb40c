"""The embedded default model: a small qwen3 that has learnt, by supervised warm-up, to work out
reasoning-gym problems.

Nothing is downloaded: tokenizer, worked solutions and weights are made here, once, and cached by a
hash of what made them. Three things are built in because a study of entropy needs them:

* many equally good wordings: after each step of a solution stands one of 16 connectives, drawn from
  a Zipf distribution (2.3 nats), so that entropy has something to lose that accuracy does not ask
  for;
* careless work: a step of the solutions it learns from is sometimes off by a little, so that it
  starts unsure of results it could know, and being surer is learnt fact by fact rather than at
  once;
* a worse strategy that starts common (answering at once) beside a better one that starts rare
  (working it out).
"""

import fcntl
import hashlib
import inspect
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from ..config import Source, digest
from ..types import present
from .data import WARM_UP, Problems

CONNECTIVES = (
    " so ", " then ", " next ", " thus ", " hence ", " and ", " now ", " also ",
    " after that ", " which means ", " from there ", " going on ", " in turn ", " likewise ", " moreover ", " finally ",
)  # fmt: skip
ZIPF = 1 / np.arange(1, len(CONNECTIVES) + 1)
ZIPF /= ZIPF.sum()
SLIP_RATE = 0.15  # of warm-up steps whose result is off
SLIPS = (-10, -2, -1, 1, 2, 10)
DIRECT_SHARE = 0.5  # of warm-up solutions that answer at once

# Whole phrases of the questions, and numbers with their sign, are single tokens; everything else is
# read character by character.
PHRASES = (
    "State the final answer to the following arithmetic problem: ",
    "Solve for ", "Find the value of ", " in the equation: ", "Determine the value of ", " that satisfies: ",
    "Find the Greatest Common Divisor (GCD) of these numbers: ", ". Give only the GCD as your final answer.",
    " + ", " - ", " = ", " =", ", ", "\\boxed{",
)  # fmt: skip
NUMBERS = (
    *(str(n) for n in range(10, 100)), *(f"-{n}" for n in range(64)), *(f"+{n}" for n in range(33)),
    *(f" {sign} {n}" for sign in "+-" for n in range(33)),
)  # fmt: skip
CHARACTERS = "\n !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"

WARMUP_SOURCES = (
    Source(task="chain_sum", params=dict(min_terms=2, max_terms=6, min_digits=1, max_digits=1), weight=4),
    Source(task="simple_equations", params=dict(min_terms=2, max_terms=2, min_value=1, max_value=9)),
    Source(task="gcd", params=dict(min_value=1, max_value=20)),
)
POOL = 1500  # distinct problems of each source in the warm-up; sympy makes an equation in milliseconds
CLEAN_STEPS, CARELESS_STEPS, ROWS, SEED = 480, 80, 64, 0
LR, CARELESS_LR = 5e-3, 1e-3
INIT_STD = 0.08  # of the order of 1/√width; the library's 0.02 is meant for wide models and learns far more slowly here
SHAPE = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Characters and whole phrases; any ASCII text survives encoding and decoding unchanged, the
    rest becomes <unk>."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<eos>", *CHARACTERS])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens(
        [AddedToken(phrase, normalized=False) for phrase in sorted({*PHRASES, *NUMBERS, *CONNECTIVES})]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<eos>",
        pad_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


def work_out(task: str, question: str, slip: Callable[[int], int] = int) -> tuple[list[str], str] | None:
    """(steps, answer) of a problem of the warm-up families, each step an equation like `4-7=-3`;
    None for a form not covered.

    `slip` is applied to the result of every step, and the solution goes on from what it returns.
    """
    steps: list[str] = []

    def step(left: str, result: int) -> int:
        result = slip(result)
        steps.append(f"{left}={result}")
        return result

    if task == "chain_sum":
        first, *rest = re.findall(r"[+-]?\d+", question.replace("+ ", "+").replace("- ", "-"))
        total = int(first)
        for term in rest:  # each with its sign
            total = step(f"{total}{term}", total + int(term))
        return steps, str(total)
    if task == "gcd":
        a, b = map(int, re.findall(r"\d+", question))
        while b:
            a, b = b, max(0, step(f"{a}%{b}", a % b))
        return steps, str(a)
    if task == "simple_equations":  # sympy writes a·x, a·x ± b, b - a·x
        left, right = present(re.search(r": (.*) = (-?\d+)$", question)).groups()
        match = re.fullmatch(
            r"(?:(?P<before>\d+) - )?(?:(?P<factor>\d+)\*)?[a-z](?: (?P<sign>[+-]) (?P<after>\d+))?", left
        )
        if match is None:
            return None
        value = int(right)
        if match["after"]:
            other = -int(match["after"]) if match["sign"] == "+" else int(match["after"])
            value = step(f"{value}{other:+d}", value + other)
        if match["before"]:
            value = step(f"{match['before']}{-value:+d}", int(match["before"]) - value)
        if match["factor"]:
            value = step(f"{value}/{match['factor']}", round(value / int(match["factor"])))
        return steps, str(value)
    return None


def worked_solution(task: str, question: str, slip_rate: float, rng: np.random.Generator) -> str:
    """A full response of a careless worker: the steps, some with a slip, in random wordings,
    then the answer they lead to."""

    def slip(result: int) -> int:
        return result + int(rng.choice(SLIPS)) if rng.random() < slip_rate else result

    steps, answer = present(work_out(task, question, slip))
    words = rng.choice(len(CONNECTIVES), size=len(steps), p=ZIPF)
    return "".join(step + CONNECTIVES[word] for step, word in zip(steps, words)) + direct_solution(answer)


def direct_solution(answer: str) -> str:
    """The same answer at once."""
    return f"\\boxed{{{answer}}}"


def warmup_texts(count: int, direct_share: float, slip_rate: float, seed: list[int]) -> list[tuple[str, str]]:
    """`count` (prompt, response) pairs of the warm-up mix, a share of them answered at once."""
    rng = np.random.default_rng(seed)
    weights = np.array([source.weight for source in WARMUP_SOURCES])
    kinds = rng.choice(len(WARMUP_SOURCES), size=count, p=weights / weights.sum())
    direct = rng.random(count) < direct_share
    places = rng.integers(POOL, size=count)
    pools = [warmup_pool(which) for which in range(len(WARMUP_SOURCES))]
    tasks = [present(source.task) for source in WARMUP_SOURCES]
    texts = []
    for kind, at_once, place in zip(kinds, direct, places):
        question, answer = pools[kind][place % len(pools[kind])]
        solution = direct_solution(answer) if at_once else worked_solution(tasks[kind], question, slip_rate, rng)
        texts.append((question + "\n", solution))
    return texts


@cache
def warmup_pool(which: int) -> list[tuple[str, str]]:
    """(question, answer) of the problems of warm-up source `which` that the solver can work out."""
    problems, task = Problems(WARMUP_SOURCES[which], WARM_UP, which), present(WARMUP_SOURCES[which].task)
    pool = [(str(question), answer) for question, answer, _ in map(problems.problem, range(POOL))]
    return [(question, answer) for question, answer in pool if work_out(task, question) is not None]


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A freshly initialised qwen3 of the testbed's shape."""
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=len(tokenizer), max_position_embeddings=512, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None, initializer_range=INIT_STD, bos_token_id=None, attention_dropout=0.0, use_cache=True,
        **SHAPE,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def warm_up(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> float:
    """Supervised training in place; the mean loss of the last ten steps, in nats per response
    token.

    First clean worked solutions, from which skill is learnt fastest (an answer that cannot be had
    at once teaches only noise); then, briefly, careless ones and many answers at once, which set
    the habits that RL starts from.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    losses: list[float] = []
    for phase, (steps, direct, slips) in enumerate(
        [(CLEAN_STEPS, 0.05, 0.0), (CARELESS_STEPS, DIRECT_SHARE, SLIP_RATE)]
    ):
        pairs = warmup_texts(steps * ROWS, direct, slips, [SEED, phase])
        rows = [(tokenizer.encode(q), tokenizer.encode(a) + [tokenizer.eos_token_id]) for q, a in pairs]
        for start in range(0, len(rows), 4 * ROWS):  # less padding: four batches at a time are cut by length
            rows[start : start + 4 * ROWS] = sorted(
                rows[start : start + 4 * ROWS], key=lambda row: len(row[0]) + len(row[1])
            )
        for start in range(0, len(rows), ROWS):
            batch = rows[start : start + ROWS]
            width = max(len(q) + len(a) for q, a in batch)
            token_BS = torch.tensor([q + a + [0] * (width - len(q) - len(a)) for q, a in batch])
            label_BS = torch.tensor([[-100] * len(q) + a + [-100] * (width - len(q) - len(a)) for q, a in batch])
            logits_BSV = model(input_ids=token_BS[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), label_BS[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = warmup_lr(len(losses))
            optimizer.step()
            losses.append(float(loss.detach()))
    model.eval()
    return float(np.mean(losses[-10:]))


def warmup_lr(step: int) -> float:
    """Up over 50 steps, down by a cosine to the careless phase's rate, then linearly to nothing."""
    if step >= CLEAN_STEPS:
        return CARELESS_LR * (CLEAN_STEPS + CARELESS_STEPS - step) / CARELESS_STEPS
    cosine = (1 + math.cos(math.pi * step / CLEAN_STEPS)) / 2
    return min(1, (step + 1) / 50) * (CARELESS_LR + (LR - CARELESS_LR) * cosine)


def cache_root() -> Path:
    """CEGPPO_CACHE, or cegppo/ in the user's cache folder."""
    root = os.environ.get("CEGPPO_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cegppo"
    return Path(root)


def weights_digest(model: Path) -> str:
    """A hash of the weights in folder `model`: machines may round differently, and then the same
    recipe makes other last bits."""
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()[:12]


def base_model() -> Path:
    """The folder of the embedded base model; made on first use, in under a minute on one core.

    Cached by a hash of this file and of the libraries that made it, so every run that compares
    algorithms starts from the same weights. Processes that ask at the same time wait for the one
    that makes it.
    """
    source = inspect.getsource(sys.modules[__name__])
    made_of = [source, *(version(name) for name in ("torch", "transformers", "tokenizers", "numpy", "reasoning-gym"))]
    folder = cache_root() / f"testbed-{digest(made_of)}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        print("making the embedded base model (once, under a minute) …", flush=True)
        start, threads = time.perf_counter(), torch.get_num_threads()
        torch.set_num_threads(1)  # two threads are slower at this size and could change the last bit
        tokenizer = make_tokenizer()
        model = make_model(tokenizer)
        loss = warm_up(model, tokenizer)
        torch.set_num_threads(threads)
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(folder)
        print(f"… made in {time.perf_counter() - start:.0f} s, loss {loss:.2f} nats a token: {folder}", flush=True)
    return folder
