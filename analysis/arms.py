"""Anybody's arms: how they are called, from what differs between their configurations."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from . import style

# Keys that change no run, or that only name it.
NAMES = (
    "experiment", "arm", "seed", "results", "run_dir", "report", "wandb", "tensorboard", "grader", "diagnostics",
    "eval_every",
    "checkpoint_every", "checkpoint_keep", "threads", "model.device", "update.micro_batch_tokens", "rollout.vllm",
)  # fmt: skip
# What a method sets: said where arms of one method differ in it, else the method says it.
OF_A_METHOD = (
    "loss", "advantage", "critic", "reward_values", "overlong_buffer", "update.aggregate", "update.dual_clip",
    "update.nll_coef", "rollout.drop_constant_groups", "rollout.prompts_per_round",
)  # fmt: skip
BETA = ("loss.beta1", "loss.beta2")
MISSING = object()


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """{a: {b: [1]}} as {"a.b[0]": 1}; what is empty stays a value."""
    if isinstance(value, dict) and value:
        return {
            k: v for key, part in value.items() for k, v in flat(part, f"{prefix}.{key}" if prefix else key).items()
        }
    if isinstance(value, list) and any(isinstance(part, (dict, list)) for part in value):
        return {k: v for n, part in enumerate(value) for k, v in flat(part, f"{prefix}[{n}]").items()}
    return {prefix: value}


def under(key: str, names: Iterable[str]) -> bool:
    """Whether `key` is one of `names` or lies in a section that is."""
    return any(key == name or key.startswith((f"{name}.", f"{name}[")) for name in names)


def differing(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys in which flat configurations differ, in their order; a key that one lacks is no
    difference, since it may be older than the key."""
    every = list(settings)
    keys = dict.fromkeys(key for one in every for key in one)
    return [k for k in keys if len({json.dumps(one[k]) for one in every if k in one}) > 1]


def reward(settings: Mapping[str, Any]) -> str:
    """What a run was rewarded for, in words."""
    if "reward" not in settings:
        return "unknown"
    source, signal = settings["reward"], settings.get("reward_signal", 1.0)
    if source == "random" or signal == 0:
        return "random (a coin)"
    named = "task" if source == "task" else str(source)
    return named if signal == 1 else f"{named} for {100 * signal:g} % of the answers, a coin for the rest"


def labels(settings: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """{arm: what it is called} for {arm: configuration}: its method where methods differ, CE-GPPO
    with its β, and what else differs. An arm without a configuration has its own name."""
    known = {arm: flat(tree) for arm, tree in settings.items() if tree}
    differ = [key for key in differing(known.values()) if not under(key, NAMES)]
    made = {}
    for arm in settings:
        made[arm] = (_label(known[arm], list(known.values()), differ) if arm in known else "") or arm
    twice = {label for label in made.values() if list(made.values()).count(label) > 1}
    return {arm: f"{label} [{arm}]" if label in twice else label for arm, label in made.items()}


def _label(mine: dict[str, Any], every: list[dict[str, Any]], differ: list[str]) -> str:
    method = mine.get("method")
    alike = [one for one in every if one.get("method") == method]
    within = differing(alike)
    parts, said = [], {"method", "loss.name"}
    beta = _beta(mine)
    if {"method", "loss.name"} & set(differ):
        name = style.LOOK.get(str(method), (str(method),))[0].partition(" (")[0]
        parts.append(f"{name} {beta}" if beta and name == "CE-GPPO" else name)
        said |= set(BETA) if beta and name == "CE-GPPO" else set()
    elif beta and set(BETA) & set(differ):
        parts.append(f"β = {beta}")
        said |= set(BETA)
    if {"reward", "reward_signal"} & set(differ):
        parts.append(f"reward {reward(mine)}")
        said |= {"reward", "reward_signal"}
    shown = [k for k in differ if k in mine and k not in said and (k in within or not under(k, OF_A_METHOD))]
    return ", ".join([*parts, *(f"{key} = {_short(mine[key])}" for key in shown)])


def _beta(mine: Mapping[str, Any]) -> str:
    """(β₁, β₂) of a loss that has them, else nothing."""
    if mine.get("loss.name") != "cegppo":
        return ""
    values = [mine.get(key, MISSING) for key in BETA]
    return (
        f"({', '.join(_short(value) for value in values)})" if all(isinstance(v, (int, float)) for v in values) else ""
    )


def _short(value: Any) -> str:
    """A value as part of a label."""
    text = f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
    return text if len(text) <= 32 else f"{text[:31]}…"
