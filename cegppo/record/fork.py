"""A fork: a new run from a checkpoint of another with other settings, the same prompts and random
streams.

In: the folder of the parent, a step, `key=value` items. Out: a folder of its own that a training
continues from: the fork's configuration, the parent's lines and its checkpoint up to that step, and
in meta.json `forked_from`, where it came from. The parent stays as it is.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import Config, as_override, as_yaml, digest, fork_config, under
from ..config.checks import MOST_BYTES
from ..types import BadInput
from .files import as_lines, as_page, put_folder, write_whole
from .read import packed, read_config, read_evaluations, read_meta, read_metrics, source
from .run import STEP, complete

# What a fork has from its parent: another value would be other prompts, other random streams or
# other weights.
KEPT = ("seed", "data", "model.path", "model.lora", "testbed")


def checkpoints(folder: Path) -> dict[int, Path | None]:
    """What the run in `folder` can be forked from, by step: its checkpoints, and None for its
    start, which needs none."""
    found: dict[int, Path | None] = {0: None}
    for root in dict.fromkeys((folder / "checkpoints", source(folder) / "checkpoints")):
        named = [path for path in root.glob("step*") if STEP.fullmatch(path.name)]
        for path in (*named, root / "best", root / "latest"):
            if complete(path):
                found.setdefault(_step(path), path.resolve())
    return dict(sorted(found.items()))


def _step(path: Path) -> int:
    try:
        return int(json.loads((path / "state.json").read_bytes())["step"])
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path}: unreadable checkpoint (its state.json names no step)") from None


def config_of(folder: Path, words: Sequence[str]) -> tuple[Config, int]:
    """The configuration of a fork of the run in `folder`, and the step it begins after. `words` are
    key=value items, `step=N` among them (default: the newest checkpoint). Raises BadInput."""
    if not packed(folder) and not (folder / "meta.json").is_file():
        raise BadInput(f"{folder}: no run there (it has no meta.json)")
    given = [word.removeprefix("step=") for word in words if word.startswith("step=")]
    words = [word for word in words if not word.startswith("step=")]
    step = _chosen(folder, given[-1] if given else None)
    parent = read_config(folder)
    made = fork_config(parent, str(folder / "config.yaml"), words)
    changed = changes(parent, made)
    for key in changed:
        if under(key, KEPT):
            raise BadInput(f"command line: a fork has the prompts, random streams and model of its parent; {key} stays")
    if made.advantage.kind == "gae" != parent.advantage.kind and step:
        raise BadInput(f"command line: advantage.kind=gae needs a critic, which {folder} has not trained")
    if made.steps <= step:
        raise BadInput(
            f"command line: the fork begins after step {step} and would end at steps={made.steps}; say a larger steps=…"
        )
    named = {word.partition("=")[0] for word in words}
    if "arm" not in named:
        made.arm = name(parent.arm, step, changed)
    if not named & {"run_dir", "results"}:
        regular = folder.name.startswith("seed")  # <arm>/seed<k>: then a fork is another arm of the same sweep
        beside = folder.parent.parent / made.arm / folder.name if regular else folder.with_name(made.arm)
        made.run_dir = str(beside)
    elif "run_dir" not in named:
        made.run_dir = ""
    if made.folder.resolve() == folder.resolve():
        raise BadInput(f"command line: {made.folder} is the run itself; choose another run_dir")
    return made, step


def _chosen(folder: Path, given: str | None) -> int:
    there = checkpoints(folder)
    if given is None:
        return max(there)
    if not given.isdecimal() or int(given) not in there:
        steps = ", ".join(str(step) if step else "0 (its start)" for step in there)
        raise BadInput(
            f"{folder}: no checkpoint at step={given}; there are: {steps}"
            " (checkpoint_keep=0 keeps all of a run that is to be forked)"
        )
    return int(given)


def changes(parent: Config, fork: Config) -> dict[str, Any]:
    """The keys in which two runs differ as runs, with the values of the second."""
    before, now = parent.identity(), fork.identity()
    skip = ("experiment", "method")
    return {key: now.get(key) for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)
            and key not in skip}  # fmt: skip


def name(arm: str, step: int, changed: dict[str, Any]) -> str:
    """The fork's arm: grpo@20,loss.beta2=1."""
    text = lambda value: str(value).replace("/", "_") if len(str(value)) <= 40 else digest(value)
    made = ",".join([f"{arm}@{step}", *(f"{key}={text(value)}" for key, value in changed.items() if value is not None)])
    if len(made.encode()) > MOST_BYTES:
        made = made.encode()[: MOST_BYTES - 13].decode(errors="ignore") + f",{digest(made)}"
    return made


def prepare(folder: Path, fork: Config, step: int) -> bool:
    """Fill the fork's folder, from which a training goes on; whether there was anything to do: a
    fork that has begun is left as it is. Raises BadInput when the folder holds another run."""
    target, parent = fork.folder, read_config(folder)
    meta = read_meta(folder)
    session = (meta.get("sessions") or [{}])[-1]
    origin = {
        "run": str(folder), "arm": parent.arm, "seed": parent.seed, "step": step, "changed": changes(parent, fork),
        "start": meta.get("start"), "commit": session.get("commit"), "diff": session.get("diff"),
    }  # fmt: skip
    if target.is_dir() and any(path.name != ".lock" for path in target.iterdir()) or packed(target):
        known = read_meta(target).get("forked_from")
        same = ("step", "changed", "start")
        if known is None or any(known.get(key) != origin[key] for key in same):
            raise BadInput(f"{target}: holds another run; choose another run_dir or arm")
        return False
    rows = [row for row in read_metrics(folder) if row["step"] <= step]
    if gaps := set(range(1, step + 1)) - {row["step"] for row in rows}:
        raise BadInput(f"{folder}: its record lacks step {min(gaps)} of the {step} before the checkpoint")
    tests = [row for row in read_evaluations(folder) if row["step"] <= step] if step else []

    def fill(new: Path) -> None:
        write_whole(new / "config.yaml", as_yaml(fork))
        write_whole(new / "meta.json", as_page({"status": "stopped", "forked_from": origin}))
        write_whole(new / "metrics.jsonl", as_lines(rows))
        write_whole(new / "eval.jsonl", as_lines(tests))
        if (checkpoint := checkpoints(folder)[step]) is not None:
            _copy(checkpoint, new / "checkpoints", step, parent, fork)

    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target.with_name(f"{target.name}.unfinished"), ignore_errors=True)  # of a process that was killed
    put_folder(target, fill)
    return True


def _copy(checkpoint: Path, root: Path, step: int, parent: Config, fork: Config) -> None:
    """The parent's checkpoint in the fork's: its files are shared (hard links, where the disk has
    them; no checkpoint is ever changed), its state is the fork's own."""
    new = root / f"step{step:06d}"
    new.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.is_file() and path.name != "state.json":
            try:
                os.link(path, new / path.name)
            except OSError:
                shutil.copy2(path, new / path.name)
    state = json.loads((checkpoint / "state.json").read_bytes())
    # A checkpoint older than that key: what a fork has besides starts afresh all the same.
    state.setdefault("parts", sorted(path.stem for path in checkpoint.glob("*.safetensors")))
    state["best"] = None  # the best of the fork is one of its own
    for part, section in (("controller", "controller"), ("explore", "explore"), ("knobs", "loss")):
        if getattr(parent, section)["name"] != getattr(fork, section)["name"]:
            state.pop(part, None)  # another's memory
    write_whole(new / "state.json", json.dumps(state))
    (root / "latest").symlink_to(new.name)


def said(folder: Path) -> str:
    """Where the run in `folder` was forked, for a person."""
    origin = read_meta(folder).get("forked_from", {})
    changed = ", ".join(as_override(key, value) for key, value in origin.get("changed", {}).items())
    return f"fork of {origin.get('run')} after step {origin.get('step')}; {changed or 'nothing else changed'}"
