"""The token records of runs as columns for the page: every recorded token of as many whole
responses as fit.

Which responses: looked-at steps evenly over the run, in each of them whole groups, those of a
prompt that other steps have too first, then at random (by a fixed seed); never a part of a
response.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import embed, ledger, load

CLASSES = [*ledger.CLASSES, "none"]
SIDES = ("inside", "low", "high")
NUMBERS = ("entropy", "advantage", "weight", "dentropy", "dentropy_exact")  # as the record has them
RESPONSE = ["update", "prompt_id", "rollout", "copy"]  # what a response is, within a step
LEAST = 2000  # tokens of a step that are worth showing: with fewer to go round, fewer steps are shown
MARKS = {"Ġ": " ", "▁": " ", "Ċ": "\n"}  # of tokenizers, in records that have no `text`


def gather(runs: dict[str, Path], budget: int) -> dict[str, Any]:
    """The records of `runs` (label: folder), about `budget` tokens of them. `runs`: label, bounds
    of the clip, steps; `responses` and `tokens`: columns; `prompts`, `answers`, `words`: texts that
    columns point to; `recorded` and `unread`: what was there. {} when no run has any."""
    there = {label: load.token_records(folder) for label, folder in runs.items()}
    there = {label: records for label, records in there.items() if records}
    frames: list[pd.DataFrame] = []
    shown: list[dict[str, Any]] = []
    unread: list[str] = []
    recorded = 0
    for label, records in there.items():
        steps, count, bad = _chosen(records, budget // len(there))
        unread += bad
        recorded += count
        if steps:
            made = pd.concat(steps, ignore_index=True).assign(run=len(shown))
            shown.append(
                {"label": label, "bounds": _bounds(runs[label], made), "steps": sorted(map(int, made["step"].unique()))}
            )
            frames.append(made)
    if not frames:
        return {"unread": unread} if unread else {}
    every = pd.concat(frames, ignore_index=True)
    return {"runs": shown, "recorded": recorded, "shown": len(every), "unread": unread, **_columns(every)}


def _chosen(records: dict[int, Path], budget: int) -> tuple[list[pd.DataFrame], int, list[str]]:
    """(a frame a step that is shown, tokens recorded in all steps, steps that cannot be read)."""
    counts = {step: load.token_rows(path) for step, path in records.items()}
    unread = [f"{records[step]}: damaged, left out" for step, count in counts.items() if count is None]
    steps = [step for step, count in counts.items() if count]
    recorded = sum(count for count in counts.values() if count)
    most = max(2, budget // LEAST)
    if len(steps) > most:
        steps = [steps[i] for i in np.linspace(0, len(steps) - 1, most).round().astype(int)]
    frames = [_read(records[step]) for step in steps]
    if sum(map(len, frames)) > budget:
        at = pd.concat([frame[["step", "prompt_id"]].drop_duplicates() for frame in frames])
        often = at["prompt_id"].value_counts()
        frames = [_whole_groups(frame, budget // len(frames), often) for frame in frames]
    return frames, recorded, unread


def _read(path: Path) -> pd.DataFrame:
    """A token record in its order, a response after the other, with every column that is shown."""
    frame = load.read_tokens(path)
    numbers = ("prob", "ratio", *NUMBERS, "reward")
    texts = {"class": "none", "side": "inside", "verdict": "", "prompt": "", "answer": ""}
    frame = frame.assign(**{name: np.nan for name in numbers if name not in frame})
    frame = frame.assign(**{name: value for name, value in texts.items() if name not in frame})
    if "update" not in frame:
        frame["update"] = 0
    if "text" not in frame:
        spoken = frame["token"].astype(str)
        for mark, text in MARKS.items():
            spoken = spoken.str.replace(mark, text, regex=False)
        frame["text"] = spoken
    # Two responses may have the same names where a prompt was drawn twice.
    keys = ["update", "prompt_id", "rollout"]
    frame["copy"] = frame.groupby([*keys, "position"], sort=False).cumcount()
    return frame.sort_values([*RESPONSE, "position"], kind="stable")


def _whole_groups(frame: pd.DataFrame, quota: int, often: pd.Series) -> pd.DataFrame:
    """Groups of one step, whole as long as they fit, at least one response."""
    sizes = frame.groupby(RESPONSE, sort=False).size().reset_index(name="size")
    names = sizes["prompt_id"].drop_duplicates().sample(frac=1, random_state=0).tolist()
    rank = {name: n for n, name in enumerate(sorted(names, key=lambda name: -often[name]))}
    sizes = sizes.assign(rank=sizes["prompt_id"].map(rank)).sort_values("rank", kind="stable")
    kept = sizes[(sizes["size"].cumsum() <= quota) | (np.arange(len(sizes)) == 0)]
    return frame.merge(kept[RESPONSE], on=RESPONSE)


def _bounds(folder: Path, frame: pd.DataFrame) -> list[float] | None:
    """The clip's bounds of the ratio, by the loss's own ε or the instrument's 0.2; None where the
    recorded sides say otherwise (ε that is scheduled, or of another kind)."""
    loss = load.settings(folder).get("loss", {})
    loss = loss if isinstance(loss, dict) else {}  # of another framework it is a name
    for low, high in ((loss.get("eps_low"), loss.get("eps_high")), (0.2, 0.2)):
        if not isinstance(low, int | float) or not isinstance(high, int | float):
            continue
        bounds = [1 - low, 1 + high]
        ratio, advantage, outside = frame["ratio"], frame["advantage"], frame["side"] != "inside"
        below, above = (advantage < 0) & (ratio < bounds[0]), (advantage > 0) & (ratio > bounds[1])
        if (outside == (below | above)).mean() > 0.999:  # a ratio at a bound may round to either side
            return bounds
    return None


def _columns(every: pd.DataFrame) -> dict[str, Any]:
    codes, words = pd.factorize(every["text"].astype(str))
    kinds = every["class"].map({name: n for n, name in enumerate(CLASSES)}).fillna(len(CLASSES) - 1)
    sides = every["side"].map({name: n for n, name in enumerate(SIDES)}).fillna(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        # log π and log r: what is near 1 keeps its digits, and so does what is near 0.
        logs = {"logp": np.log(every["prob"]).clip(-100), "logr": np.log(every["ratio"]).clip(-100)}
    tokens = {"word": embed.column(codes, "index")}
    tokens["kind"] = embed.column((kinds * len(SIDES) + sides).astype(int).to_numpy(), "index")
    for name, values in {**logs, **{name: every[name] for name in NUMBERS}}.items():
        if values.notna().any():
            tokens[name] = embed.column(values.to_numpy(float), "half")
    keys = ["run", "step", *RESPONSE]
    starts = np.flatnonzero((every[keys] != every[keys].shift()).any(axis=1))
    first = every.iloc[starts]
    named, ids = pd.factorize(first["prompt_id"].astype(str))
    place = pd.Series(np.arange(len(first))).groupby(named).first()
    verdicts, kinds_of = pd.factorize(first["verdict"].astype(str))
    whole = lambda name: first[name].astype(int).tolist()
    return {
        "words": list(words),
        "prompts": [
            {"id": str(name), "text": str(first["prompt"].iloc[at]), "answer": str(first["answer"].iloc[at])}
            for name, at in zip(ids, place)
        ],
        "verdicts": list(kinds_of),
        "responses": {
            "run": whole("run"),
            "step": whole("step"),
            "update": whole("update"),
            "prompt": named.tolist(),
            "rollout": whole("rollout"),
            "verdict": verdicts.tolist(),
            "reward": [None if pd.isna(v) else round(float(v), 4) for v in first["reward"]],
            "start": starts.tolist(),
            "length": np.diff([*starts, len(every)]).tolist(),
        },
        "tokens": tokens,
    }
