"""The embedded default model: a small qwen3 that has learnt, by supervised warm-up, to work out
reasoning-gym problems.

Nothing is downloaded: tokenizer, worked solutions and weights are made here, once, from a Recipe
(recipe.py), and cached by a hash of its values. Three things are built in because a study of
entropy needs them:

* many equally good wordings: after each step of a solution stands one of 16 connectives, drawn from
  a Zipf distribution (2.3 nats), so that entropy has something to lose that accuracy does not ask
  for; kinds of workers may each have wordings of their own, which then say how careful they are;
* careless work: a step of the solutions it learns from is sometimes off by a little, so that it
  starts unsure of results it could know, and being surer is learnt fact by fact rather than at
  once;
* a worse strategy that starts common (answering at once) beside a better one that starts rare
  (working it out).
"""

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from ..config import Source, digest
from ..config.recipe import FAMILIES, Recipe, Worker
from ..record.files import write_whole
from . import logic
from .data import WARM_UP, Problems

# Raised by hand when what this file makes of a recipe changes: phrases, families, wordings, the
# order of draws. A test holds the default's texts to it.
VERSION = 1
MADE_WITH = ("torch", "transformers", "tokenizers", "numpy", "reasoning-gym")  # whose versions may change weights

CONNECTIVES = (
    " so ", " then ", " next ", " thus ", " hence ", " and ", " now ", " also ",
    " after that ", " which means ", " from there ", " going on ", " in turn ", " likewise ", " moreover ", " finally ",
)  # fmt: skip
SLIPS = (-10, -2, -1, 1, 2, 10)  # what a result may be off by

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

WARMUP_SOURCES = (  # in the order of FAMILIES
    Source(task="chain_sum", params=dict(min_terms=2, max_terms=6, min_digits=1, max_digits=1)),
    Source(task="simple_equations", params=dict(min_terms=2, max_terms=2, min_value=1, max_value=9)),
    Source(task="gcd", params=dict(min_value=1, max_value=20)),
    *logic.SOURCES.values(),
)


def make_tokenizer(recipe: Recipe | None = None) -> PreTrainedTokenizerFast:
    """Characters and whole phrases, those of the recipe's tasks among them; any ASCII text survives
    encoding and decoding unchanged, the rest becomes <unk>."""
    shares = (recipe or Recipe()).tasks
    own = {phrase for task in logic.PHRASES if shares.get(task) for phrase in logic.PHRASES[task]}
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<eos>", *CHARACTERS])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens(
        [AddedToken(phrase, normalized=False) for phrase in sorted({*PHRASES, *NUMBERS, *CONNECTIVES, *own})]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<eos>",
        pad_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


def work_out(task: str, question: str, slip: Callable[[int], int] = int) -> tuple[list[str], str] | None:
    """(steps, answer) of a problem of the arithmetic families, each step an equation like `4-7=-3`;
    None for a form not covered. The other families are worked out in logic.py.

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
        ((left, right),) = re.findall(r": (.*) = (-?\d+)$", question)
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


def styles(recipe: Recipe) -> list[tuple[Worker, tuple[str, ...], np.ndarray]]:
    """(worker, its connectives, their probabilities) of each kind of worker."""
    made, first = [], 0
    for worker in recipe.workers or [Worker(slip_rate=recipe.slip_rate)]:
        words = CONNECTIVES[first : first + worker.wordings] or CONNECTIVES[: recipe.wordings]
        first += worker.wordings
        # Not a power of ranks: at the exponent −1 this rounds as 1/rank does.
        law = 1 / np.arange(1, len(words) + 1) ** -recipe.wordings_exponent
        made.append((worker, words, law / law.sum()))
    return made


def worked_solution(
    task: str, question: str, slip_rate: float, words: tuple[str, ...], law: np.ndarray, rng: np.random.Generator,
    entry: dict[str, Any] | None = None,
) -> str:  # fmt: skip
    """A full response of a careless worker: the steps, some with a slip, each followed by one of
    the connectives `words`, drawn by `law`, then the answer they lead to. A task of logic.py needs
    `entry`, reasoning-gym's."""

    def slip(result: int) -> int:
        return result + int(rng.choice(SLIPS)) if rng.random() < slip_rate else result

    if task in logic.SOURCES:
        steps, answer = logic.work_out(task, entry or {}, slip, rng)
    else:
        found = work_out(task, question, slip)
        if found is None:
            raise ValueError(f"{task}: no steps lead to an answer of {question!r}")
        steps, answer = found
    drawn = rng.choice(len(words), size=len(steps), p=law)
    return "".join(step + words[word] for step, word in zip(steps, drawn)) + direct_solution(answer)


def direct_solution(answer: str) -> str:
    """The same answer at once."""
    return f"\\boxed{{{answer}}}"


def warmup_texts(recipe: Recipe, count: int, careless: bool, seed: list[int]) -> list[tuple[str, str]]:
    """`count` (prompt, response) pairs of the recipe's mix in one of its phases, a share of them
    answered at once."""
    rng = np.random.default_rng(seed)
    weights = np.array([recipe.tasks.get(task, 0.0) for task in FAMILIES])
    kinds = rng.choice(len(FAMILIES), size=count, p=weights / weights.sum())
    direct = rng.random(count) < (recipe.direct_share if careless else recipe.clean_direct_share)
    places = rng.integers(recipe.pool, size=count)
    pools = {which: warmup_pool(which, recipe.pool) for which in np.flatnonzero(weights).tolist()}
    styled = styles(recipe)
    workers = np.zeros(count, dtype=int)
    if len(styled) > 1:
        shares = np.array([worker.share for worker, *_ in styled])
        workers = rng.choice(len(styled), size=count, p=shares / shares.sum())
    texts = []
    for kind, at_once, place, who in zip(kinds, direct, places, workers):
        question, answer, entry = pools[kind][place % len(pools[kind])]
        worker, words, law = styled[who]
        slip_rate = worker.slip_rate if careless else 0.0
        if at_once and FAMILIES[kind] in logic.SOURCES:  # any right answer, written as its steps would write it
            answer = logic.work_out(FAMILIES[kind], entry, int, rng)[1]
        solution = (
            direct_solution(answer)
            if at_once
            else worked_solution(FAMILIES[kind], question, slip_rate, words, law, rng, entry)
        )
        texts.append((question + "\n", solution))
    return texts


@cache
def warmup_pool(which: int, size: int) -> list[tuple[str, str, dict[str, Any]]]:
    """(question, answer, reasoning-gym's entry) of those of the first `size` problems of family
    `which` that the solver can work out."""
    problems, task = Problems(WARMUP_SOURCES[which], WARM_UP, which), FAMILIES[which]
    pool = [(str(question), answer, entry) for question, answer, entry in map(problems.problem, range(size))]
    return [row for row in pool if task in logic.SOURCES or work_out(task, row[0]) is not None]


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A freshly initialised qwen3 of the recipe's shape."""
    torch.manual_seed(recipe.seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer), max_position_embeddings=512, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None, initializer_range=recipe.init_std, bos_token_id=None, attention_dropout=0.0, use_cache=True,
        hidden_size=recipe.hidden, intermediate_size=recipe.intermediate, num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads, num_key_value_heads=recipe.heads, head_dim=recipe.head_dim,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def warm_up(recipe: Recipe, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> float:
    """Supervised training in place; the mean loss of the last ten steps, in nats per response
    token.

    First clean worked solutions, from which skill is learnt fastest (an answer that cannot be had
    at once teaches only noise); then, briefly, careless ones and many answers at once, which set
    the habits that RL starts from.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    losses: list[float] = []
    size = recipe.rows
    for phase, steps in enumerate([recipe.clean_steps, recipe.careless_steps]):
        pairs = warmup_texts(recipe, steps * size, phase == 1, [recipe.seed, phase])
        rows = [(tokenizer.encode(q), tokenizer.encode(a) + [tokenizer.eos_token_id]) for q, a in pairs]
        for start in range(0, len(rows), 4 * size):  # less padding: four batches at a time are cut by length
            rows[start : start + 4 * size] = sorted(
                rows[start : start + 4 * size], key=lambda row: len(row[0]) + len(row[1])
            )
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            width = max(len(q) + len(a) for q, a in batch)
            token_BS = torch.tensor([q + a + [0] * (width - len(q) - len(a)) for q, a in batch])
            label_BS = torch.tensor([[-100] * len(q) + a + [-100] * (width - len(q) - len(a)) for q, a in batch])
            logits_BSV = model(input_ids=token_BS[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), label_BS[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = warmup_lr(recipe, len(losses))
            optimizer.step()
            losses.append(float(loss.detach()))
    model.eval()
    return float(np.mean(losses[-10:]))


def warmup_lr(recipe: Recipe, step: int) -> float:
    """Up over 50 steps, down by a cosine to the careless phase's rate, then linearly to nothing."""
    clean, careless = recipe.clean_steps, recipe.careless_steps
    if step >= clean:
        return recipe.careless_lr * (clean + careless - step) / careless
    cosine = (1 + math.cos(math.pi * step / clean)) / 2
    return min(1, (step + 1) / 50) * (recipe.careless_lr + (recipe.lr - recipe.careless_lr) * cosine)


def cache_root() -> Path:
    """CEGPPO_CACHE, or cegppo/ in the user's cache folder."""
    root = os.environ.get("CEGPPO_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cegppo"
    return Path(root)


def weights_digest(model: Path) -> str:
    """A hash of the weights in folder `model`: machines may round differently, and then the same
    recipe makes other last bits."""
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()[:12]


def cached(recipe: Recipe) -> Path:
    """The folder in which the model of `recipe` is or will be: a hash of the recipe's values and
    of the libraries that make it."""
    made_of = [VERSION, recipe.values(), *(version(name) for name in MADE_WITH)]
    return cache_root() / f"testbed-{digest(made_of)}"


def intact(folder: Path) -> bool:
    """Whether the weights in `folder` are those that were once made there."""
    try:
        noted = json.loads((folder / "testbed.json").read_text())
        return noted["weights"] == weights_digest(folder)
    except (OSError, ValueError, KeyError, TypeError):  # a file is gone, cut short, or of someone else
        return False


def base_model(recipe: Recipe) -> Path:
    """The folder of the embedded model that `recipe` makes; made on first use, the default in under
    a minute on one core.

    Every run that compares algorithms starts from the same weights. Their fingerprint is kept
    beside them, and a damaged model is made anew. Processes that ask at the same time wait for the
    one that makes it.
    """
    folder = cached(recipe)
    if intact(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if intact(folder):
            return folder
        if folder.exists():
            print(f"{folder}: its weights are not the ones that were made there; made anew", flush=True)
            shutil.rmtree(folder)
        print("making the embedded base model (once, a minute or two) …", flush=True)
        start, threads = time.perf_counter(), torch.get_num_threads()
        torch.set_num_threads(1)  # two threads are slower at this size and could change the last bit
        tokenizer = make_tokenizer(recipe)
        model = make_model(recipe, tokenizer)
        loss = warm_up(recipe, model, tokenizer)
        torch.set_num_threads(threads)
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        noted = {"version": VERSION, "recipe": recipe.values(), "weights": weights_digest(unfinished)}
        write_whole(unfinished / "testbed.json", json.dumps(noted, indent=1) + "\n")
        unfinished.rename(folder)
        print(f"… made in {time.perf_counter() - start:.0f} s, loss {loss:.2f} nats a token: {folder}", flush=True)
    return folder
