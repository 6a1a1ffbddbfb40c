"""The paper's tables with what became of them: its numbers, re-runs by others, ours. Never two
sources in one section.

Ours are of the testbed: other benchmarks, another model. Last and best checkpoint are reported
alike for every arm; the paper's Table 1 takes the peak for one and the end for another
(results/paper/README.md).
"""

from pathlib import Path

import pandas as pd

from . import load, stats, tables

EXPERIMENT = "algorithms"
METHODS = {"base": "base model", "grpo": "GRPO", "clip_higher": "clip-higher", "cispo": "CISPO", "gspo": "GSPO"}
OURS = {
    "cegppo": "CE-GPPO (0.5, 1)",
    "cegppo_0.75": "CE-GPPO (0.75, 1)",
    **METHODS,
}  # an arm is a method, or a method with its β
COLUMNS = {
    "aime24": "AIME24", "aime25": "AIME25", "hmmt25": "HMMT25", "math500": "MATH500", "amc23": "AMC23",
    "olympiad": "Olympiad",
    "minerva": "Minerva", "avg_math": "mean", "avg": "mean", "humaneval": "HumanEval", "lcb_v6": "LCB v6",
    "ifbench_prompt": "IFBench, prompt", "ifbench_instruction": "IFBench, instr.",
}  # fmt: skip
PUBLISHED = "Percent correct, one run an arm, no intervals."


def draw(results: Path, name: str, title: str, arms: list[str], note: str) -> None:
    """Write <results>/figures/<name>.md, .csv and .tex, print ours; `note` goes with the paper's
    numbers. Raises Missing."""
    published = load.paper(results, f"{name}.csv")
    reruns = load.paper(results, "reruns.csv")
    reruns = reruns[reruns["method"].isin(published["method"]) & reruns["model"].isin(published["model"])]
    tests = load.evaluations(results, EXPERIMENT, arms)
    load.refuse_unfinished(tests, results / EXPERIMENT)
    others = (
        "Percent correct, one run an arm. Compare within a source: data, recipe and benchmarks differ, and the mean is"
        " over the source's own benchmarks."
    )
    if "clip_higher" in set(reruns["method"]):
        others += " IC-DAPO's 1.5B clip-higher row equals the paper's to the digit and is probably copied."
    sections = [
        tables.Section(f"The paper (arXiv 2509.20712 v5), {title}", f"{PUBLISHED} {note}", _published(published)),
        tables.Section("Re-runs by others", others, _published(reruns)),
    ]
    numbers = [_long(published, "paper"), _long(reruns, "re-run")]
    for which in ("last", "best"):
        made = _ours(tests, arms, which)
        numbers.append(made.assign(section="ours", source="testbed", checkpoint=which))
        sections.append(tables.Section(f"Ours, testbed: {which} checkpoint", _caption(tests, which), _cells(made)))
    order = ["section", "source", "model", "method", "checkpoint", "column", "value", "low", "high", "seeds"]
    path = tables.save(results, name, sections, pd.concat(numbers, ignore_index=True)[order])
    for section in sections[2:]:
        print(f"{section.title}\n{section.cells.to_string(index=False)}\n{section.caption}\n")
    print(f"table: {path}")


def _method(row: pd.Series) -> str:
    betas = f" ({row['beta1']:g}, {row['beta2']:g})" if pd.notna(row.get("beta1")) else ""
    return METHODS.get(row["method"], "CE-GPPO") + betas


def _published(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a line of the source, in its order; columns that nobody reports are left out."""
    cells = {"source": frame["source"]} if frame["source"].nunique() > 1 else {}
    cells |= {"model": frame["model"].str.removeprefix("DeepSeek-R1-Distill-"), "method": frame.apply(_method, axis=1)}
    known = [key for key in COLUMNS if key in frame and frame[key].notna().any()]
    return pd.DataFrame({**cells, **{COLUMNS[key]: frame[key].map(tables.number) for key in known}})


def _long(frame: pd.DataFrame, section: str) -> pd.DataFrame:
    """One number a row: section, source, model, method, column, value."""
    named = frame.assign(method=frame.apply(_method, axis=1))
    long = named.melt(
        ["source", "model", "method"], [key for key in COLUMNS if key in frame], "column", "value"
    ).dropna(subset="value")
    return long.assign(section=section)


def _ours(tests: pd.DataFrame, arms: list[str], which: str) -> pd.DataFrame:
    """One number a row: arm, column, value, low, high (percent), seeds; `mean`, `IQM`, `pass@k`
    and the difference from GRPO last."""
    start, chosen = tests[(tests["step"] == 0) & (tests["arm"] == arms[0])], load.at_checkpoint(tests, which)
    if (
        start.groupby("benchmark")["accuracy"].nunique().eq(1).all()
    ):  # one base model, asked the same: not so many samples of it
        start = start[start["seed"] == start["seed"].min()]
    by_arm = {"base": start} | {arm: chosen[chosen["arm"] == arm] for arm in arms}
    made, means = [], {}
    for arm, mine in by_arm.items():
        scores_SB = mine.pivot(index="seed", columns="benchmark", values="accuracy")[
            list(dict.fromkeys(mine["benchmark"]))
        ]
        means[arm] = scores_SB.mean(axis=1)
        columns = {name: stats.mean_over_seeds(scores_SB[name]) for name in scores_SB} | {
            "mean": stats.mean_over_seeds(means[arm])
        }
        columns["IQM"] = stats.bootstrap_seeds(scores_SB.to_numpy(), stats.interquartile_mean)
        if mine["correct"].notna().all():
            passed = (
                mine.assign(passed=[stats.pass_at_k(k, c, k) for k, c in zip(mine["k"], mine["correct"])])
                .groupby("seed")["passed"]
                .mean()
            )
            columns[f"pass@{load.samples(tests)}"] = stats.mean_over_seeds(passed)
        if arm not in ("base", "grpo"):
            columns["mean less GRPO's"] = stats.mean_over_seeds(stats.paired(means[arm], means["grpo"]))
        for column, triple in columns.items():
            value, low, high = (100 * x for x in triple)
            made.append(
                {
                    "method": OURS[arm],
                    "column": column,
                    "value": value,
                    "low": low,
                    "high": high,
                    "seeds": len(scores_SB),
                }
            )
    return pd.DataFrame(made)


def _cells(made: pd.DataFrame) -> pd.DataFrame:
    """A row an arm; no interval for a single run (the base model); * marks a difference."""
    rows: dict[str, dict[str, str]] = {}
    for row in made.to_dict("records"):
        method, column = row["method"], row["column"]
        cells = rows.setdefault(method, {"method": method, "seeds": str(row["seeds"])})
        low, high = (row["low"], row["high"]) if row["seeds"] > 1 else (None, None)
        difference = column == "mean less GRPO's"
        cells[column] = tables.interval(row["value"], low, high, form="{:+.1f}" if difference else "{:.1f}")
        if difference and stats.side(row["low"], row["high"]) != "undecided":
            cells[column] += " *"
    return pd.DataFrame(rows.values()).fillna("")


def _caption(tests: pd.DataFrame, which: str) -> str:
    first = tests.drop_duplicates("benchmark")
    seeds = sorted(tests.groupby("arm")["seed"].nunique().unique())
    steps = sorted(set(tests["step"]) - {0})
    chosen = {
        "last": f"The checkpoint of step {steps[-1]}, for every arm.",
        "best": (
            f"For every arm and seed the best of the checkpoints of steps {', '.join(map(str, steps))} by the mean of"
            " these same benchmarks: a maximum of noisy numbers, so optimistic, the more the noisier the arm."
        ),
    }[which]
    return (
        "Testbed: other benchmarks and another model than the paper's, so no number here belongs beside one of its."
        f" {chosen} Percent correct, avg@{load.samples(tests)} of {first['n'].sum()} problems in {len(first)}"
        f" benchmarks; mean and 95 % t interval over {' to '.join(map(str, seeds))} seeds. IQM: interquartile mean over"
        " seeds and benchmarks, bootstrap interval over seeds, which is too narrow for so few. Difference from GRPO"
        " paired by seed; * where its interval excludes zero."
    )
