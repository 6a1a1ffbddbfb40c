"""What a practised eye would raise about a run, each with its number; and what was looked at and
found in order.

The thresholds are rules of thumb, said beside each number, not tests of anything.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from . import evolution, ledger, regimes
from .curves import MEAN

DOUBLED = 2.0  # entropy at the end over the start: an explosion
CONSTANT = 0.5  # share of groups that teach nothing
TRUNCATED = 0.05  # share of answers cut at the token limit
UNANSWERED = 0.2  # share of answers without a final answer
EMPTY = 0.3  # share of a ledger's updates in which no token had an advantage
KL = 0.05  # nats between old policy and new within a step: the updates have left where the batch was sampled
RATIO = 100.0  # where A < 0 a few tokens of ten are common
SPIKE = 20.0  # times the median gradient norm
FELL = 0.02  # accuracy lost on the benchmarks


LEVELS = ("bad", "look", "fine")


@dataclass(frozen=True)
class Note:
    """`level` is one of LEVELS; `number` is what it rests on, `why` what it means, and
    `metric` the curve that shows it."""

    level: str
    what: str
    number: str
    why: str
    metric: str = ""


def notes(metrics: pd.DataFrame, settings: dict[str, Any], meta: dict[str, Any], scores: pd.DataFrame) -> list[Note]:
    """What there is to say of one run, the worst first. `metrics` has a row a step, `scores` a row
    an evaluation and benchmark (`accuracy`)."""
    found = [note for check in CHECKS for note in check(metrics.sort_values("step"), settings)]
    found += [*_status(meta, settings, metrics), *_benchmarks(scores)]
    return sorted(found, key=lambda note: LEVELS.index(note.level))


def _has(metrics: pd.DataFrame, key: str) -> bool:
    return key in metrics and bool(metrics[key].notna().any())


def _ends(metrics: pd.DataFrame, key: str) -> tuple[float, float]:
    """Mean over the first and over the last steps (`evolution.window`)."""
    values = metrics[key].dropna()
    width = evolution.window(len(values))
    return float(values[:width].mean()), float(values[-width:].mean())


def _entropy(metrics: pd.DataFrame, settings: dict[str, Any]) -> Iterator[Note]:
    if not _has(metrics, "entropy/mean") or len(metrics) < 2:
        return
    start, end = _ends(metrics, "entropy/mean")
    number = f"{start:.3f} → {end:.3f} nats (means of {evolution.window(len(metrics))} steps)"
    if regimes.trend({"entropy_start": start, "entropy_end": end}) == "collapses":
        why = "more than half is gone: samples of a group become alike, and with them goes what a group teaches"
        yield Note("bad", "entropy collapsed", number, why, "entropy/mean")
    elif end > DOUBLED * start:
        yield Note("bad", "entropy exploded", number, "more than doubled: the policy drifts to noise", "entropy/mean")
    else:
        yield Note("fine", "entropy", number, "neither halved nor doubled", "entropy/mean")


def _clip(metrics: pd.DataFrame, settings: dict[str, Any]) -> Iterator[Note]:
    sides = [key for key in ("clip/low", "clip/high") if _has(metrics, key)]
    if not sides:
        return
    low, high = (float(metrics[key].mean()) if key in sides else 0.0 for key in ("clip/low", "clip/high"))
    number = f"{low:.2%} low, {high:.2%} high (mean of the run)"
    if low + high:
        yield Note("fine", "clip acts", number, "share of tokens outside the clip on each side", sides[0])
    elif _has(metrics, "updates") and metrics["updates"].max() == 1:
        why = "the ratio is 1 by construction: every token is trained on by the policy that sampled it"
        yield Note("look", "clip is zero: one update a step", number, why, "ratio/max")
    else:
        if _has(metrics, "ratio/min") and _has(metrics, "ratio/max"):
            number += f"; ratio {metrics['ratio/min'].min():.3f} to {metrics['ratio/max'].max():.3f}"
        yield Note(
            "look", "clip never acts", number, "clipping rules cannot differ here: the steps are small", sides[0]
        )


def _constant_groups(metrics: pd.DataFrame, settings: dict[str, Any]) -> Iterator[Note]:
    if not _has(metrics, "rollout/constant_groups"):
        return
    end = _ends(metrics, "rollout/constant_groups")[1]
    number = f"{end:.0%} of the groups (mean of the last steps)"
    if end > CONSTANT:
        why = "all their answers have the same reward, so their advantage is 0 and they teach nothing"
        yield Note("look", "constant groups", number, why, "rollout/constant_groups")
    else:
        yield Note(
            "fine", "constant groups", number, "groups of equal rewards teach nothing", "rollout/constant_groups"
        )


def _mismatch(metrics: pd.DataFrame, settings: dict[str, Any]) -> Iterator[Note]:
    if not _has(metrics, "mismatch/mean"):
        return
    worst, bound = float(metrics["mismatch/mean"].max()), _mismatch_bound(settings)
    number = f"{worst:.2g} nats (worst step; bound {bound:g})"
    why = "the sampler's log-probabilities are not the trainer's: the ratio is off from its start"
    level = "bad" if worst > bound else "look" if worst > bound / 10 else "fine"
    what = "sampler and trainer agree" if level == "fine" else "sampler and trainer differ"
    yield Note(level, what, number, why if level != "fine" else "mean |Δ log π| of sampled tokens", "mismatch/mean")


def _mismatch_bound(settings: dict[str, Any]) -> float:
    """rollout.vllm.max_mismatch, or what stands for it (docs/rollouts.md)."""
    engine = settings.get("rollout", {}).get("vllm") or {}
    exact = settings.get("model", {}).get("dtype") == "float32" and engine.get("dtype", "float32") in (
        "float32",
        "auto",
    )
    return float(engine.get("max_mismatch") or (1e-3 if exact else 0.1))


def _verdicts(metrics: pd.DataFrame, settings: dict[str, Any]) -> Iterator[Note]:
    sources = settings.get("data", {}).get("train") or [{}]
    if all(source.get("verifier") == "none" for source in sources):
        return  # nobody says what is right, so that no answer can lack what is graded
    own = settings.get("reward", "task") != "task"
    counts = "accuracy counts them as failed, the reward need not" if own else "graded as failed"
    said = {
        "truncated": (
            "truncated answers",
            TRUNCATED,
            f"cut at rollout.max_tokens before a final answer: {counts}",
        ),
        "no_answer": ("answers without an answer", UNANSWERED, "nothing there to grade"),
        "grader_error": ("grader failed", 0.0, "what was not graded counts as not right, and is noise in the reward"),
    }
    for name, (what, most, why) in said.items():
        key = f"verdict/{name}"
        if not _has(metrics, key):
            continue
        end = float(metrics[key].max()) if name == "grader_error" else _ends(metrics, key)[1]
        over = "worst step" if name == "grader_error" else "mean of the last steps"
        level = "fine" if end <= most else "bad" if end > 4 * TRUNCATED and name == "truncated" and not own else "look"
        yield Note(level, what, f"{end:.1%} of what was sampled ({over})", why, key)


def _updates(metrics: pd.DataFrame, settings: dict[str, Any]) -> Iterator[Note]:
    """What says that the updates went too far, or failed."""
    if _has(metrics, "kl/old_k3") and (worst := float(metrics["kl/old_k3"].max())) > KL:
        why = "within a step the policy has left the one that sampled the batch: first order and clip say little"
        yield Note("look", "large steps", f"KL {worst:.2g} nats (worst step, above {KL:g})", why, "kl/old_k3")
    if _has(metrics, "ratio/max") and (worst := float(metrics["ratio/max"].max())) > RATIO:
        why = "where A < 0 nothing bounds a ratio above 1 unless update.dual_clip does"
        yield Note("look", "very large ratio", f"{worst:.3g} (worst token)", why, "ratio/max")
    if _has(metrics, "grad/norm") and (median := float(metrics["grad/norm"].median())) > 0:
        worst = float(metrics["grad/norm"].max())
        step = int(metrics["step"].iloc[int(metrics["grad/norm"].argmax())])
        number = f"{worst:.3g} at step {step}, {worst / median:.1f} times the median"
        spike = worst > SPIKE * median
        why = "a batch far from the others; gradient-norm clipping hides its size, not its direction"
        what, why = ("gradient spike", why) if spike else ("gradient norm", "no spike")
        yield Note("look" if spike else "fine", what, number, why, "grad/norm")
    if _has(metrics, "update/skipped") and (skipped := int(metrics["update/skipped"].sum())):
        yield Note("bad", "updates left out", f"{skipped} updates", "their gradient was not finite", "update/skipped")


def _ledger(metrics: pd.DataFrame, settings: dict[str, Any]) -> Iterator[Note]:
    rows, every = ledger.entries(metrics), settings.get("diagnostics", {}).get("every", 0)
    if rows.empty:
        if "diagnostics" not in settings:  # of another framework
            return
        if not every:
            yield Note(
                "fine", "no ledger", "diagnostics.every = 0", "nothing was looked at, because none was asked for"
            )
        elif ledger.is_old(metrics) or every <= len(metrics):
            kind = "of the old kind" if ledger.is_old(metrics) else f"none in {len(metrics)} steps, one every {every}"
            yield Note("look", "empty ledger", kind, "what moved the entropy cannot be said of this run")
        return
    share = float(rows["ledger/empty_updates"].sum() / rows["ledger/updates"].sum())
    number = f"{share:.0%} of the updates in {len(rows)} looked-at steps"
    why = "no token of theirs had an advantage: momentum alone moved the policy"
    empty = share > EMPTY
    yield Note("look" if empty else "fine", "empty updates", number, why, "ledger/empty_updates")


def _critic(metrics: pd.DataFrame, settings: dict[str, Any]) -> Iterator[Note]:
    if _has(metrics, "critic/explained_variance"):
        end = _ends(metrics, "critic/explained_variance")[1]
        why = "below 0 the critic is worse than a constant, and its advantages are noise"
        level = "look" if end < 0 else "fine"
        yield Note(level, "critic", f"explained variance {end:.2f}", why, "critic/explained_variance")


CHECKS = (_entropy, _clip, _constant_groups, _mismatch, _verdicts, _updates, _ledger, _critic)


def _status(meta: dict[str, Any], settings: dict[str, Any], metrics: pd.DataFrame) -> Iterator[Note]:
    status = meta.get("status", "unknown")
    if status != "finished" and meta:
        number = f"step {int(metrics['step'].max())} of {settings.get('steps', '?')}"
        why = {"failed": "it ended with an error", "stopped": "the same command continues it"}
        level = "bad" if status == "failed" else "look"
        yield Note(level, f"not finished: {status}", number, why.get(status, "a live process, or one that was killed"))


def _benchmarks(scores: pd.DataFrame) -> Iterator[Note]:
    if scores.empty or scores["step"].nunique() < 2:
        return
    means = scores.groupby("step")["accuracy"].mean()
    first, last = float(means.iloc[0]), float(means.iloc[-1])
    number = f"{first:.3f} → {last:.3f} (mean of the benchmarks)"
    if np.isfinite(last) and last < first - FELL:
        yield Note("look", "benchmarks fell", number, f"by more than {FELL:g} since step {means.index[0]}", MEAN)
    else:
        yield Note("fine", "benchmarks", number, f"did not fall by more than {FELL:g}", MEAN)
