"""What a model writes, token by token: responses to prompts of the user's or of a benchmark, each
token with its log-probability and the entropy of the distribution that it was drawn from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .config import Config, Source, of_overrides
from .evaluate import subject
from .model.memory import within
from .model.policy import Policy, load_policy
from .problems import data
from .problems.reward import verdicts
from .record.read import packed
from .rollout.engines import fitted, start_sampler
from .shipped import find
from .types import BadInput, Prompt, Rollout, Verdict, requests

UNFINISHED = "\ufffd"  # what a tokenizer shows of a character whose bytes are not all there


@dataclass(frozen=True)
class Token:
    """One token of a response."""

    text: str  # what it adds; nothing inside a character that a later token completes
    id: int
    logprob: float  # log π(token), nats
    entropy: float  # nats

    @property
    def surprisal(self) -> float:
        return -self.logprob


@dataclass(frozen=True)
class Response:
    """One sampled response, and what became of it."""

    rollout: Rollout
    tokens: tuple[Token, ...]
    verdict: Verdict | None  # None: nobody knows the answer


def respond(
    target: str, overrides: Sequence[str], which: str, texts: Sequence[str], problem: int, n: int
) -> list[Response]:
    """`n` responses to each of `texts`, or where there are none to problem number `problem` of the
    first of `eval.benchmarks`.

    `target`: the folder of a run, of which checkpoint `which` (latest, best, or a step) is taken;
    an experiment file, whose starting model is; or a model (a folder, or its name on the hub).
    Sampled by the hf engine, at the temperature of training unless `overrides` say otherwise.
    Raises BadInput.
    """
    config, model = _chosen(target, list(overrides), which)
    r = config.rollout
    policy = load_policy(model, config.model, r.temperature, config.update.micro_batch_tokens)
    if _is_model(target) and not any(word.startswith("data.chat_template=") for word in overrides):
        config = replace(config, data=replace(config.data, chat_template=bool(policy.tokenizer.chat_template)))
    if config.threads:
        torch.set_num_threads(config.threads)
    prompts = _prompts(config, policy, texts, problem)
    longest = fitted(policy, config.data, r.max_tokens).max_prompt_tokens + r.max_tokens
    rollouts = start_sampler(policy, config, longest).sample(requests(prompts, n), 0)
    graded = verdicts(rollouts, config.grader)
    known = [None if rollout.prompt.verifier == "none" else verdict for rollout, verdict in zip(rollouts, graded)]
    return [Response(*found) for found in zip(rollouts, tokens_of(policy, rollouts), known)]


def _is_model(target: str) -> bool:
    """Whether `target` is no run and no experiment of ours: a folder of weights, or a name."""
    path = find(target)
    run = (path / "config.yaml").is_file() or packed(path)
    return path.suffix not in (".yaml", ".yml") and not run


def _chosen(target: str, overrides: list[str], which: str) -> tuple[Config, str]:
    """(configuration, model)."""
    hf = ["rollout.engine=hf", *overrides]
    if not _is_model(target):
        config, model, *_ = subject(Path(target), hf, which)
        return config, model
    path = find(target)
    if path.is_dir() and not (path / "config.json").is_file():
        raise BadInput(f"{path}: holds neither a run (config.yaml) nor a model (config.json)")
    owner, _, name = target.partition("/")
    if not path.exists() and ("/" in name or Path(owner).exists()):  # a name of the hub has one slash at most
        raise BadInput(f"{target}: no such run, experiment or model folder")
    model = str(path if path.is_dir() else target)
    return of_overrides([*hf, f"model.path={model}"]), model


def _prompts(config: Config, policy: Policy, texts: Sequence[str], problem: int) -> list[Prompt]:
    if texts:
        own = Source(name="prompt", verifier="none")
        return [
            data.make_prompt(text, "", {}, own, str(n), policy.tokenizer, config.data) for n, text in enumerate(texts)
        ]
    if not config.eval.benchmarks:
        raise BadInput("sample: name a prompt, or a benchmark: eval.benchmarks=[NAME]")
    first = config.eval.benchmarks[0]
    made = data.benchmarks(replace(config.eval, benchmarks=[first]), config.data, policy.tokenizer)[first.name]
    if not 0 <= problem < len(made):
        raise BadInput(f"sample: {first.name} has {len(made)} problems; problem={problem} is none of them")
    return [made[problem]]


def tokens_of(policy: Policy, rollouts: Sequence[Rollout]) -> list[tuple[Token, ...]]:
    """The tokens of each response under the policy, at its temperature."""
    zeros = np.zeros(len(rollouts))
    x = within(policy, partial(policy.collate, rollouts, zeros, zeros, zeros))
    made = []
    for row, rollout in enumerate(rollouts):
        size = len(rollout.token_ids)
        logprobs, entropies = (value_BT[row, :size].tolist() for value_BT in (x.old_logprob_BT, x.old_entropy_BT))
        texts = pieces(policy.tokenizer, rollout.token_ids)
        made.append(tuple(Token(*each) for each in zip(texts, rollout.token_ids, logprobs, entropies)))
    return made


def pieces(tokenizer: Any, token_ids: Sequence[int]) -> Iterator[str]:
    """What each token adds to the text. A tokenizer may write a space only between two tokens, so
    each is decoded behind those of the piece before it."""
    start = done = 0
    for end in range(1, len(token_ids) + 1):
        before, after = (tokenizer.decode(token_ids[start:stop]) for stop in (done, end))
        if after.endswith(UNFINISHED) and end < len(token_ids):
            yield ""
            continue
        yield after[len(before) :]
        start, done = done, end
