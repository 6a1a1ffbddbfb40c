"""`run.py compare`: any runs side by side, whatever their arms: a table, paired differences, the
figure of their courses. Live folders and packs alike."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from . import arms as naming
from . import evolution, load, stats, style, tables

SWEEPS = Path(__file__).resolve().parents[1] / "sweeps"
LONGEST_NAME = 80  # of a file, without its ending


@dataclass(frozen=True)
class Compared:
    """Runs by arm, the first being the one that the others are compared with."""

    name: str  # of the experiment
    results: Path
    runs: pd.DataFrame  # a row a step, columns arm and seed
    tests: pd.DataFrame  # a row an evaluation and benchmark
    settings: dict[str, dict]  # by arm: the configuration of its first run
    notes: list[str]  # what was left out, in words

    @property
    def arms(self) -> list[str]:
        return list(self.settings)

    def file(self) -> str:
        """The name of what is written."""
        return "compare_" + re.sub(r"[^\w.-]+", "_", self.name)[:LONGEST_NAME]


def find(name: str, results: Path) -> tuple[list[Path], list[str]]:
    """(run folders, arms in their order where a sweep file says it) of a sweep's YAML, its name,
    its folder, or a run's or an arm's folder. Raises Missing."""
    path = Path(name)
    file = path if path.suffix == ".yaml" else SWEEPS / f"{name}.yaml"
    if path.suffix == ".yaml":
        if not path.is_file():
            siblings = [p.name for p in path.parent.glob("*.yaml")]
            raise load.Missing(f"{path}: no such file{load.nearest(path.name, siblings)}")
        tried = [results / path.stem, results / path.parent.name / path.stem]
    else:
        tried = [path, results / name]
        if path.is_dir():  # a sweep that is named by its folder
            file = SWEEPS / f"{path.name}.yaml"
    for there in tried:
        if found := load.runs_at(there):
            return found, _order(file)
    known = [p.name for p in results.iterdir() if p.is_dir()] if results.is_dir() else []
    raise load.Missing(f"{tried[-1]}: no runs there{load.nearest(path.stem if path.suffix else name, known)}")


def _order(path: Path, seen: tuple[Path, ...] = ()) -> list[str]:
    """The arms of a sweep file in their order, or of the one that it includes."""
    if not path.is_file() or path in seen:
        return []
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise load.Unreadable(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("arms", {}), dict):
        raise load.Unreadable(f"{path}: is no sweep file")
    if "arms" in tree:
        return [str(arm) for arm in tree["arms"]]
    return _order(path.parent / str(tree.get("include", "")), (*seen, path))


def chosen(names: list[str], results: Path, to: str | None = None) -> Compared:
    """The runs that are asked for, as arms; `to` names the first. Raises Missing."""
    found = [find(name, results) for name in names]
    folders = list(dict.fromkeys(folder for runs, _ in found for folder in runs))
    return compared(folders, results, [arm for _, order in found for arm in order], to)


def compared(folders: list[Path], results: Path, order: list[str], to: str | None = None, name: str = "") -> Compared:
    """The runs in `folders` as arms in `order`, those that it does not name after them. Where some
    have finished, the others are left out; else all are read up to the step that each has. Raises
    Missing."""
    frames = {folder: load.run(folder) for folder in folders}
    ended = {f for f in folders if load.meta(f).get("status", "finished") == "finished" and not frames[f].empty}
    kept = [folder for folder in folders if (folder in ended if ended else not frames[folder].empty)]
    if not kept:
        raise load.Missing(f"{folders[0].parent.parent}: none of {len(folders)} runs has recorded a step yet")
    notes = [f"left out, not finished: {f} ({_state(f, frames[f])})" for f in folders if f not in kept]
    placed = places(kept)
    names = list(dict.fromkeys(arm for arm, _ in placed.values()))
    names.sort(key=lambda arm: order.index(arm) if arm in order else len(order))
    if to is not None:
        if to not in names:
            raise load.Missing(f"no arm '{to}' among {', '.join(names)}{load.nearest(to, names)}")
        names = [to, *(name for name in names if name != to)]
    label = lambda frame, folder: frame.assign(arm=placed[folder][0], seed=placed[folder][1])
    runs = pd.concat([label(frames[folder], folder) for folder in kept], ignore_index=True)
    tests = pd.concat([label(load.evaluated(folder), folder) for folder in kept], ignore_index=True)
    last = runs.groupby(["arm", "seed"])["step"].max()
    if last.nunique() > 1:
        notes.append(f"compared up to step {last.min()}, where {' seed '.join(map(str, last.idxmin()))} ends")
        runs = runs[runs["step"] <= last.min()]
    if not tests.empty:
        tests = tests[tests["step"] <= last.min()]
        asked = [set(mine["benchmark"]) for _, mine in tests.groupby(["arm", "seed"])]
        shared = set.intersection(*asked) if len(asked) == len(kept) else set()
        if set.union(*asked) != shared:
            notes.append(f"benchmarks that all runs have: {', '.join(sorted(shared)) or 'none'}")
            tests = tests[tests["benchmark"].isin(shared)]
    first = {arm: next(f for f in kept if placed[f][0] == arm) for arm in names}
    if not name:
        experiments = list(dict.fromkeys(_experiment(folder, results) for folder in kept))
        part = len(experiments) == 1 and set(load.run_folders(kept[0].parent.parent)) > set(folders)
        name = ", ".join(experiments) + (f": {', '.join(names)}" if part else "")
    inside = kept[0].resolve().is_relative_to(results.resolve())
    root = results if inside else kept[0].parent.parent.parent
    return Compared(name, root, runs, tests, {arm: load.settings(first[arm]) for arm in names}, notes)


def _state(folder: Path, frame: pd.DataFrame) -> str:
    return f"{load.meta(folder).get('status', 'unknown')}, step {0 if frame.empty else frame['step'].max()}"


def _experiment(folder: Path, results: Path) -> str:
    """The name of the experiment that the run in `folder` belongs to."""
    sweep = folder.parent.parent
    try:
        return str(sweep.resolve().relative_to(results.resolve()))
    except ValueError:
        return sweep.name


def places(folders: list[Path]) -> dict[Path, tuple[str, int]]:
    """(arm, seed) of each run, no two alike: by its folder, and by its configuration where that is
    no <arm>/seed<k>; the experiment before the arm where several have one of that name."""
    placed = {}
    for folder in folders:
        number = folder.name.removeprefix("seed")
        settings = load.settings(folder)
        regular = folder.name.startswith("seed") and number.isdecimal()
        placed[folder] = (folder.parent.name, int(number)) if regular else (folder.name, settings.get("seed", 0))
    homes: dict[str, set[Path]] = {}
    for folder, (arm, _) in placed.items():
        homes.setdefault(arm, set()).add(folder.parent)
    return {
        folder: (arm if len(homes[arm]) == 1 else str(folder.parent.parent.name) + "/" + arm, seed)
        for folder, (arm, seed) in placed.items()
    }


def write(c: Compared) -> str:
    """Write table (Markdown, CSV, LaTeX) and figure; what a person reads of them."""
    labels = naming.labels(c.settings)
    looks = style.looks(labels)
    rewards = list(dict.fromkeys(naming.reward(tree) for tree in c.settings.values()))
    reward = rewards[0] if len(rewards) == 1 else "differs by arm"
    title = f"{c.name} · reward: {reward}"
    figure = evolution.panels(c.runs, c.tests, c.arms, looks.__getitem__, title)
    said = [
        f"{evolution.caption(c.runs, c.name)}; reward: {reward}",
        f"{_problems(c.tests)}moving average over {evolution.WINDOW} steps (accuracy: none)",
        *c.notes,
    ]
    style.caption(figure, "\n".join(line for text in said for line in textwrap.wrap(text, 140)))
    picture = style.save(figure, c.results, c.file())
    made = sections(c, looks, reward)
    page = tables.save(c.results, c.file(), made, _numbers(c, labels))
    shown = [f"{s.title}\n{s.cells.to_string(index=False)}\n{s.caption}\n" for s in made]
    return "\n".join([*shown, f"table: {page} (.csv, .tex)", f"figure: {picture}"])


def _problems(tests: pd.DataFrame) -> str:
    if tests.empty:
        return ""
    asked = tests.drop_duplicates(["arm", "benchmark"]).groupby("arm")["n"].sum()
    return f"{' to '.join(map(str, sorted({asked.min(), asked.max()})))} problems; "


def sections(c: Compared, looks: dict, reward: str) -> list[tables.Section]:
    """The table of the arms, and of their paired differences to the first."""
    last = evolution.last_evaluation(c.tests)
    window = evolution.WINDOW
    said = [f"Reward: {reward}.", f"Entropy: mean of the first and of the last {window} steps, to step"]
    said[-1] += f" {c.runs['step'].max()}; outside: share of tokens outside the clip, mean over the run;"
    said[-1] += f" length: mean of the last {window} steps."
    if last is not None:
        said.append(f"Accuracy: mean of the benchmarks, avg@{load.samples(c.tests)}; best: of each run's evaluations,")
        said[-1] += " chosen on these same benchmarks, so optimistic; 95 % t intervals over seeds, from three up."
    if "ledger/lever_low" in c.runs and c.runs["ledger/lever_low"].notna().any():
        said.append("Lever: what a unit of β₁ (low), β₂ (high) would add to the entropy at once, 10⁻³ nats a step.")
    elif evolution.recorded(c.runs, "lever/low"):
        said.append("Lever: first-order entropy change of a unit of β₁ (low), β₂ (high) in logit space.")
    look = looks.__getitem__
    made = [
        tables.Section(
            f"{c.name}: {evolution.seeds(c.runs)} an arm",
            " ".join([*said, *(f"{note}." for note in c.notes)]),
            evolution.table(c.runs, c.tests, c.arms, look),
        )
    ]
    rows = evolution.differences(c.runs, c.tests, c.arms, look)
    if not rows.empty:
        text = "Mean over the seeds that both have [95 % t interval], from three pairs up. Holm's correction is over"
        text += " the arms, for each quantity by itself; * where p is below 0.05 after it."
        text += f" Accuracy, last: step {last}." if last is not None else ""
        made.append(tables.Section(f"Paired differences to {looks[c.arms[0]][0]}", text, rows))
    return made


def _numbers(c: Compared, labels: dict[str, str]) -> pd.DataFrame:
    """One number a row: section, arm, label, quantity, value, low, high, p, holm, seeds."""
    rows = []

    def put(section: str, arm: str, quantity: str, values: pd.Series, **more: float) -> None:
        value, low, high = stats.mean_over_seeds(values)
        interval = {"low": low, "high": high} if len(values) >= evolution.INTERVAL else {}
        row = {"section": section, "arm": arm, "label": labels[arm], "quantity": quantity, "value": value}
        rows.append(row | interval | more | {"seeds": len(values)})

    for arm in c.arms:
        for quantity, values in evolution.by_seed(c.runs, c.tests, arm).items():
            put("arm", arm, quantity, values)
    for row in evolution.contrasts(c.runs, c.tests, c.arms).to_dict("records"):
        put(f"less {c.arms[0]}", row["arm"], row["quantity"], row["values"], p=row["p"], holm=row["holm"])
    order = ["section", "arm", "label", "quantity", "value", "low", "high", "p", "holm", "seeds"]
    return pd.DataFrame(rows, columns=order)


def text(names: list[str], results: Path, to: str | None = None) -> str:
    """`run.py compare`. Raises Missing."""
    return write(chosen(names, results, to))
