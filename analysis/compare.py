"""`run.py compare`: any runs side by side, whatever their arms: a table, paired differences, the
figure of their courses. Live folders and packs alike."""

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import yaml

from . import arms as naming
from . import broke, evolution, load, stats, style, tables

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
    folders: list[Path] = field(default_factory=list)  # of the runs that are compared

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
        tree = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=yaml.BaseLoader)  # names are text
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
    asked_for, damaged = folders, list[str]()
    frames, evaluated = dict[Path, pd.DataFrame](), dict[Path, pd.DataFrame]()
    for folder in asked_for:
        try:
            with load.undamaged(folder):
                load.settings(folder), load.meta(folder)
                evaluated[folder] = load.evaluated(folder)
                frames[folder] = load.run(folder)  # last: it says that all could be read
        except load.Missing as error:
            damaged.append(f"left out, damaged: {error}")
    folders = list(frames)
    if not folders:
        raise load.Missing(damaged[0].removeprefix("left out, damaged: "))
    ended = {f for f in folders if load.meta(f).get("status", "finished") == "finished" and not frames[f].empty}
    kept = [folder for folder in folders if (folder in ended if ended else not frames[folder].empty)]
    if not kept:
        raise load.Missing(f"{folders[0].parent.parent}: none of {len(folders)} runs has recorded a step yet")
    notes = damaged + [f"left out, not finished: {f} ({_state(f, frames[f])})" for f in folders if f not in kept]
    placed = places(kept)
    names = list(dict.fromkeys(arm for arm, _ in placed.values()))
    names.sort(key=lambda arm: order.index(arm) if arm in order else len(order))
    if to is not None:
        if to not in names:
            raise load.Missing(f"no arm '{to}' among {', '.join(names)}{load.nearest(to, names)}")
        names = [to, *(name for name in names if name != to)]
    label = lambda frame, folder: frame.assign(arm=placed[folder][0], seed=placed[folder][1])
    told = [label(frames[folder].dropna(axis="columns", how="all"), folder) for folder in kept]
    runs = pd.concat(told, ignore_index=True)
    tests = pd.concat([label(evaluated[folder], folder) for folder in kept], ignore_index=True)
    last = runs.groupby(["arm", "seed"])["step"].max()
    if last.nunique() > 1:
        notes.append(f"compared up to step {last.min()}, where {' seed '.join(map(str, last.idxmin()))} ends")
        runs = runs[runs["step"] <= last.min()]
    if begins := sorted({origin["step"] for folder in kept if (origin := forked_from(folder))}):
        notes.append(f"forks: up to step {', '.join(map(str, begins))} the lines are their parents'")
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
        part = len(experiments) == 1 and set(load.run_folders(kept[0].parent.parent)) > set(asked_for)
        name = ", ".join(experiments) + (f": {', '.join(names)}" if part else "")
    inside = kept[0].resolve().is_relative_to(results.resolve())
    root = results if inside else kept[0].parent.parent.parent
    return Compared(name, root, runs, tests, {arm: load.settings(first[arm]) for arm in names}, notes, kept)


def _state(folder: Path, frame: pd.DataFrame) -> str:
    return f"{load.meta(folder).get('status', 'unknown')}, step {0 if frame.empty else frame['step'].max()}"


def _experiment(folder: Path, results: Path) -> str:
    """The name of the experiment that the run in `folder` belongs to."""
    sweep = folder.parent.parent
    try:
        return str(sweep.resolve().relative_to(results.resolve()))
    except ValueError:
        return sweep.name


def places(folders: list[Path]) -> dict[Path, tuple[str, int | str]]:
    """(arm, seed) of each run, no two alike: by its folder, and by its configuration where that is
    no <arm>/seed<k>; the experiment before the arm where several have one of that name.

    Forks from several checkpoints pair by the parent's seed and the checkpoint: those of one change
    are one arm ("grpo@*,loss.beta2=1"), and the seed says both ("0@20"). Raises Missing: beside
    them stands a run that is no fork.
    """
    origins = {folder: origin for folder in folders if (origin := forked_from(folder))}
    several = len({origin["step"] for origin in origins.values()}) > 1
    if several and (whole := [folder for folder in folders if folder not in origins]):
        raise load.Missing(f"forks from several checkpoints pair with each other, and {whole[0]} is no fork")
    placed: dict[Path, tuple[str, int | str]] = {}
    homes: dict[str, set[Path]] = {}
    for folder in folders:
        number = folder.name.removeprefix("seed")
        regular = folder.name.startswith("seed") and number.isdecimal()
        arm, seed = folder.parent.name if regular else folder.name, load.settings(folder).get("seed", 0)
        seed = int(number) if regular else seed
        if several:
            step = origins[folder]["step"]
            arm, seed = arm.replace(f"@{step}", "@*", 1), f"{seed}@{step}"
        placed[folder] = (arm, seed)
        homes.setdefault(arm, set()).add(folder.parent.parent if several else folder.parent)
    return {
        folder: (arm if len(homes[arm]) == 1 else str(folder.parent.parent.name) + "/" + arm, seed)
        for folder, (arm, seed) in placed.items()
    }


def forked_from(folder: Path) -> dict:
    """Where the run in `folder` was forked (docs/record.md); {} for a run that is no fork."""
    origin = load.meta(folder).get("forked_from")
    return origin if isinstance(origin, dict) and isinstance(origin.get("step"), int) else {}


def write(c: Compared) -> str:
    """Write table (Markdown, CSV, LaTeX) and figure; what a person reads of them."""
    labels = naming.labels(c.settings)
    looks = style.looks(labels)
    rewards = list(dict.fromkeys(naming.reward(tree) for tree in c.settings.values()))
    reward = rewards[0] if len(rewards) == 1 else "differs by arm"
    title = "\n".join(textwrap.wrap(f"{style.shown(c.name)} · reward: {style.shown(reward)}", 100))
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
    width = evolution.window_of(c.runs)
    steps = f"{width} steps" if width > 1 else "step"
    said = [f"Reward: {reward}.", f"Entropy: mean of the first and of the last {steps}, to step"]
    said[-1] += f" {c.runs['step'].max()}; outside: share of tokens outside the clip, mean over the run;"
    said[-1] += f" length: mean of the last {steps}."
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
    known = {arm: evolution.by_seed(c.runs, c.tests, arm) for arm in c.arms}
    parted = broke.table(c.runs, known, {arm: looks[arm][0] for arm in c.arms})
    if not parted.empty:
        text = f"{broke.DEFINITION} Share with its Clopper–Pearson interval; of the rest mean [95 % t interval] (runs)"
        text += " at the end; minus the first arm over the seeds in which neither broke."
        made.append(tables.Section("Runs that broke, and the rest", text, parted))
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
        if not (broken := broke.broke(c.runs[c.runs["arm"] == arm])).empty:
            value, low, high = broke.share(broken)
            counted = {"section": "arm", "arm": arm, "label": labels[arm], "quantity": "broke", "value": value}
            rows.append(counted | {"low": low, "high": high, "seeds": len(broken)})
    for row in evolution.contrasts(c.runs, c.tests, c.arms).to_dict("records"):
        put(f"less {c.arms[0]}", row["arm"], row["quantity"], row["values"], p=row["p"], holm=row["holm"])
    order = ["section", "arm", "label", "quantity", "value", "low", "high", "p", "holm", "seeds"]
    return pd.DataFrame(rows, columns=order)


def text(names: list[str], results: Path, to: str | None = None) -> str:
    """`run.py compare`. Raises Missing."""
    return write(chosen(names, results, to))
