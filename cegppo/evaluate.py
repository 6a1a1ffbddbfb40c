"""k samples a problem. What is stored are counts, not estimates; avg@k and the unbiased pass@k
follow from them.

Training evaluates lightly (`Evaluator.run`: counts, and a few completions to look at); `run.py
eval` keeps every completion (`Evaluator.run_kept`) and can be killed and continued.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import ranks
from .checkpoint import read_state
from .config import SAMPLING, Config, Eval, Limits, digest, is_rule, load
from .model.policy import load_policy
from .problems import data, instructions, testbed
from .problems.counts import maj_at_k, miss_at_k, pass_at_k, vote
from .problems.reward import verdicts
from .record.files import Completions, as_lines, read_lines, write_whole
from .record.read import packed, read_config
from .record.run import checkpoint, fingerprint
from .rollout import Sampler
from .rollout.engines import fitted, start_sampler
from .shipped import find
from .types import BadInput, Prompt, Rollout, Verdict, requests, thinks_on

SEEN_PROMPTS = 8  # of an evaluation inside training, whose completions are kept; at least one a benchmark
SAMPLES_AT_ONCE = 512  # of an evaluation that keeps completions: what a killed one has to sample again at most


def summary(benchmark: str, k: int, correct: list[int], verdicts: dict[str, int]) -> dict[str, Any]:
    """One row of eval.jsonl: problems, samples each, correct per problem, avg@k, pass@1, 2, 4 …
    k."""
    counts = np.array(correct)
    powers = sorted({*(2**i for i in range(k.bit_length()) if 2**i <= k), k})
    return {
        "benchmark": benchmark,
        "n": len(correct),
        "k": k,
        "correct": correct,
        f"avg@{k}": float(counts.mean() / k),
        **{f"pass@{j}": pass_at_k(k, counts, j) for j in powers},
        "verdicts": verdicts,
    }


def per_problem(row: dict[str, Any]) -> dict[str, np.ndarray]:
    """[problems] values whose means are the estimates `avg@k`, `pass@j` and, when completions
    were kept, `maj@k` of `row`."""
    k, correct = row["k"], np.array(row["correct"])
    made = {f"avg@{k}": correct / k, **{f"pass@{j}": 1 - miss_at_k(k, correct, j) for j in range(1, k + 1)}}
    return made | ({f"maj@{k}": np.array(row["majority"])} if "majority" in row else {})


@dataclass(frozen=True)
class Benchmark:
    """Problems and how they are sampled."""

    name: str
    prompts: list[Prompt]
    k: int
    rules: dict[str, float]  # temperature, top_p, top_k, max_tokens


@dataclass
class Evaluator:
    """Benchmarks and the sampler that answers them. Samples depend on (eval.seed, step, problem,
    index) only."""

    sampler: Sampler
    benchmarks: list[Benchmark]
    limits: Limits | None = None  # of the grader's workers

    def run(self, step: int) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
        """(a row for each benchmark, for each a few prompts with what the model wrote and what
        became of it, as `lines` has them)."""
        rows, seen = [], []
        few = max(1, SEEN_PROMPTS // max(1, len(self.benchmarks)))
        for b in self.benchmarks:
            rollouts = self.sampler.but(**b.rules).sample(requests(b.prompts, b.k), step)
            found = ranks.divided(lambda part: verdicts(part, self.limits), rollouts)
            completions = lines(b.prompts[:few], rollouts, found, b.k)
            seen.append([{"step": step, "benchmark": b.name, **row} for row in completions])
            good = np.array([v is Verdict.CORRECT for v in found]).reshape(len(b.prompts), b.k)
            row = summary(b.name, b.k, good.sum(1).tolist(), {v.value: found.count(v) for v in Verdict})
            rows.append(row | measures(((r.prompt, r.text) for r in rollouts), self.limits))
        return rows, seen

    def identity(self, b: Benchmark, step: int, model: list[Any]) -> str:
        """A digest of everything the samples of `b` depend on; `model` is the model's
        fingerprint."""
        prompts: list[list[Any]] = [[p.id, p.token_ids, p.answer] for p in b.prompts]
        for p, row in zip(b.prompts, prompts):  # other verifiers may read all of it
            row += [] if p.verifier == "answer" else [p.verifier, p.entry]
        return digest([*self.sampler.identity, b.name, b.k, b.rules, self.sampler.rules.seed, step, model, prompts])

    def run_kept(self, b: Benchmark, step: int, path: Path, said: Callable[[str], None]) -> dict[str, Any]:
        """The row of one benchmark with its completions kept in `path`, one line a problem; goes
        on where that file ends."""
        with ranks.together():
            kept = Completions(path) if ranks.rank() == 0 else ranks.Elsewhere()
        rows = list(ranks.gathered(kept.rows if isinstance(kept, Completions) else [])[0])
        asked = [p.id for p in b.prompts[: len(rows)]]
        if [row.get("id") for row in rows] != asked or any(len(row.get("verdicts", ())) != b.k for row in rows):
            kept.close()
            raise BadInput(f"{path}: holds other problems or counts than this evaluation; move it away to sample again")
        try:
            at_once = max(1, SAMPLES_AT_ONCE // b.k)  # the same whether interrupted or not, so that batches are
            for start in range(len(rows), len(b.prompts), at_once):
                if start:
                    said(f"{b.name}: {start} of {len(b.prompts)} problems")
                chosen = b.prompts[start : start + at_once]
                rollouts = self.sampler.but(**b.rules).sample(requests(chosen, b.k), step)
                fresh = graded(chosen, rollouts, b.k, self.limits)
                kept.append(fresh)
                rows += fresh
        finally:
            kept.close()
        right = [[v == Verdict.CORRECT for v in row["verdicts"]] for row in rows]
        found = Counter(v for row in rows for v in row["verdicts"])
        made = summary(b.name, b.k, [sum(r) for r in right], {v.value: found[v] for v in Verdict})
        counts = np.array(made["correct"])
        made["pass"] = [pass_at_k(b.k, counts, j) for j in range(1, b.k + 1)]
        every = ((p, text) for p, row in zip(b.prompts, rows) for text in row["completions"])
        made |= measures(every, self.limits)
        if any(p.verifier != "answer" for p in b.prompts):  # what is no final answer has no vote
            return made
        answers = [[vote(text, p.final) for text in row["completions"]] for p, row in zip(b.prompts, rows)]
        return made | {
            f"maj@{b.k}": maj_at_k(answers, right, b.k),
            "majority": [maj_at_k([a], [r], b.k) for a, r in zip(answers, right)],
        }


def measures(answered: Iterable[tuple[Prompt, str]], limits: Limits | None) -> dict[str, Any]:
    """{"measures": accuracies that the verifier instructions has beside the verdict}, of (prompt,
    response) pairs; nothing for other verifiers."""
    said = lambda prompt, text: "" if thinks_on(prompt, text) else text
    pairs = [(prompt.entry, said(prompt, text)) for prompt, text in answered if prompt.verifier == "instructions"]
    return {"measures": instructions.measures(pairs, limits)} if pairs else {}


def graded(prompts: list[Prompt], rollouts: list[Rollout], k: int, limits: Limits | None) -> list[dict[str, Any]]:
    """A line of completions for each prompt, from its `k` rollouts."""
    return lines(prompts, rollouts, ranks.divided(lambda part: verdicts(part, limits), rollouts), k)


def lines(prompts: list[Prompt], rollouts: list[Rollout], found: list[Verdict], k: int) -> list[dict[str, Any]]:
    """A line for each prompt, from the `k` rollouts of each and their verdicts."""
    rows = []
    for p, prompt in enumerate(prompts):
        mine = slice(p * k, (p + 1) * k)
        rows.append(
            {
                "id": prompt.id,
                "prompt": prompt.text,
                "answer": prompt.answer,
                "completions": [r.text for r in rollouts[mine]],
                "verdicts": [v.value for v in found[mine]],
                "finish": [r.finish for r in rollouts[mine]],
                "tokens": [len(r.token_ids) for r in rollouts[mine]],
                "ended_by": [r.ended_by for r in rollouts[mine]],
            }
        )
    return rows


def evaluator(sampler: Sampler, e: Eval, max_tokens: int, limits: Limits, made: dict[str, list[Prompt]]) -> Evaluator:
    """The evaluator of the benchmarks of `e`, whose prompts are `made`: `sampler` with each one's
    own rules or else the evaluation's, and its first `eval.limit` problems. `max_tokens` is
    training's limit, which holds where none is given."""
    max_tokens = max_tokens if e.max_tokens is None else e.max_tokens
    listed = []
    for source in e.benchmarks:
        own = {key: getattr(source, key) for key in SAMPLING if getattr(source, key) is not None}
        rules = dict(k=e.k, temperature=e.temperature, top_p=e.top_p, top_k=e.top_k, max_tokens=max_tokens) | own
        listed.append(Benchmark(source.name, made[source.name][: e.limit], int(rules.pop("k")), rules))
    return Evaluator(sampler.but(seed=e.seed, statistics=False), listed, limits)


def longest_answer(rollout_max_tokens: int, e: Eval) -> int:
    """The most tokens that a response may have, in training or in any benchmark."""
    return max(rollout_max_tokens, e.max_tokens or 0, *(source.max_tokens or 0 for source in e.benchmarks), 0)


def evaluate_target(
    target: Path,
    overrides: list[str],
    which: str,
    intervals: Callable[[dict[str, np.ndarray]], dict[str, Any]],
    say: Callable[[str], None],
) -> tuple[list[dict[str, Any]], Path]:
    """Evaluate checkpoint `which` (latest, best, or a step) of the run in folder `target`, or the
    model that experiment file `target` starts from: (a row a benchmark, the file they were written
    to). Completions are kept beside it, and the same call continues an evaluation that was killed.
    Raises BadInput."""
    with ranks.together():
        config, model, folder, name, step = subject(target, overrides, which)
        if not config.eval.benchmarks:
            raise BadInput(f"{target}: eval.benchmarks: no benchmarks; name at least one source")
        if config.threads:
            torch.set_num_threads(config.threads)
        r = config.rollout
        policy = load_policy(model, config.model, r.temperature, config.update.micro_batch_tokens)
        made = data.benchmarks(config.eval, config.data, policy.tokenizer)
        answer = longest_answer(r.max_tokens, config.eval)
        longest = fitted(policy, config.data, answer).max_prompt_tokens + answer
        base = start_sampler(policy, config, longest)
    evaluating = evaluator(base, config.eval, r.max_tokens, config.grader, made)
    out, rows = folder / f"eval-{name}.jsonl", []
    for benchmark in evaluating.benchmarks:
        identity = evaluating.identity(benchmark, 0, fingerprint(model))
        path = folder / "completions" / f"{name}-{benchmark.name.replace('/', '_')}-{identity}.jsonl.gz"
        row = evaluating.run_kept(benchmark, 0, path, say)
        rules = {**benchmark.rules, "seed": config.eval.seed}
        row |= {"interval": intervals(per_problem(row)), "rules": rules, "completions": path.name}
        rows.append(row)
        if ranks.rank() == 0:  # others stay: benchmarks, settings, checkpoints
            before = [r for r in read_lines(out) if r.get("completions") != path.name]
            write_whole(out, as_lines([*before, {"step": step, **row}]))
    return rows, out


def _checkpoint(folder: Path, which: str) -> Path:
    """The folder of checkpoint `which` of a run. Raises BadInput that names the steps there are."""
    if not which.isdecimal():
        return checkpoint(folder, which)
    name = f"step{int(which):06d}"
    if not (folder / "checkpoints" / name / "state.json").is_file():
        known = sorted(path.parent.name for path in (folder / "checkpoints").glob("step*/state.json"))
        there = (
            f"there are: {', '.join(str(int(n.removeprefix('step'))) for n in known)}" if known else "there are none"
        )
        raise BadInput(f"{folder}: no checkpoint of step {int(which)}; {there} (a run keeps its latest and its best)")
    return folder / "checkpoints" / name


def no_code_of_others(target: Path, config: Config, overrides: Sequence[str], trains: bool = False) -> None:
    """Raises BadInput when the folder of a run, which may be anybody's, would choose code that
    runs: what grades, and where it `trains` what rewards. Rules run outside any sandbox, so that
    the flag for programs in it allows none."""
    verifiers = lambda sources: [source.verifier for source in sources]
    named = {"eval.benchmarks": verifiers(config.eval.benchmarks)}
    if trains:
        named |= {"reward": [config.reward], "data.train": verifiers(config.data.train)}
    for key, names in named.items():
        rule = next(filter(is_rule, names), None)
        if rule is not None and not any(word.startswith(f"{key}=") for word in overrides):
            raise BadInput(
                f"{target}: its config.yaml names {rule}, which is code that would run; say {key}=… yourself"
            )


def subject(target: Path, overrides: list[str], which: str) -> tuple[Config, str, Path, str, int]:
    """(configuration, model, folder to write to, name of what is evaluated, its step)."""
    target = find(target)
    if target.is_dir() or packed(target):
        if not (target / "config.yaml").is_file() and not packed(target):
            raise BadInput(f"{target}: holds no config.yaml; not a run's folder")
        model = _checkpoint(target, which)
        name = f"step{int(which):06d}" if which.isdecimal() else which
        found = read_config(target, overrides)
        no_code_of_others(target, found, overrides)
        return found, str(model), target, name, read_state(model)["step"]
    if which != "latest":
        raise BadInput(f"{target}: an experiment's starting model has no checkpoint '{which}'; name a run's folder")
    config, _ = load(target, overrides)
    path = str(testbed.base_model(config.testbed)) if config.model.path == "testbed" else config.model.path
    return config, path, Path(config.run_dir or Path(config.results) / config.experiment / "base"), "base", 0
