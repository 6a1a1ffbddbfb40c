"""What the paper claims, held against runs: sweeps/claims.yaml and the run folders flow in, a
verdict a claim flows out.

The claims are written before the runs that decide them; the file says what a test, a metric and a
window mean. One number a seed, the 95 % t interval of its mean (analysis/stats.py says why t), and
a verdict only when the whole interval lies on one side of the bound.
"""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import yaml

from . import broke, load, stats
from .evolution import WINDOW, ends

LOST = "_lost"  # the column of what the reference lost
FILE = Path(__file__).resolve().parent.parent / "sweeps" / "claims.yaml"
COMMON: dict[str, Any] = {
    "claim": str, "source": str, "stated": datetime, "experiment": str, "test": str, "metric": str, "window": str,
}  # fmt: skip
OPTIONAL = {"seeds": int, "seen": bool, "family": str, "rest": bool}
NUMBER = (int, float)
TESTS: dict[str, dict[str, tuple[Any, bool]]] = {  # keys that each test takes besides; True: must be there
    "difference": {"arm": (str, True), "than": (str, True), "expect": (str, True)},
    "trend": {"over": (dict, True), "expect": (str, True)},
    "no_worse": {"arm": (str, True), "than": (str, True), "margin": (NUMBER, True)},
    "within": {"arm": (str, True), "than": (str, True), "margin": (NUMBER, False), "margin_share": (NUMBER, False)},
    "share": {"arm": (str, True), "at_most": (NUMBER, False), "at_least": (NUMBER, False)},
    "bound": {"arm": (str, True), "than": (str, False), "at_most": (NUMBER, False), "at_least": (NUMBER, False)},
}
BROKE = "broke"  # the metric of `share` (broke.py)
WINDOWS = {"benchmarks": ("last", "best"), BROKE: ("last",), "metric": ("last", "whole", "rise", "max")}


@dataclass(frozen=True)
class Claim:
    """One entry of the file; sweeps/claims.yaml defines the fields."""

    name: str
    claim: str
    source: str
    stated: datetime
    experiment: str
    test: str
    metric: str
    window: str
    seeds: int
    seen: bool = False
    family: str = "paper"  # the claims that are corrected together
    arm: str = ""
    than: str = ""
    over: dict[str, float] = field(default_factory=dict)
    expect: str = ""
    margin: float = 0.0
    margin_share: float | None = None  # `within` has this or a margin
    rest: bool = False  # of the seeds in which no run of the arms broke
    at_most: float | None = None  # a bound has one of the two
    at_least: float | None = None

    @property
    def arms(self) -> list[str]:
        return list(self.over) or [self.arm, *([self.than] if self.than else [])]

    @property
    def ratio(self) -> bool:
        return self.test == "bound" and bool(self.than)

    @property
    def target(self) -> tuple[str, float]:
        """Side on which the claim puts the mean, and of what."""
        if self.test == "no_worse":
            return "above", -self.margin
        if self.test == "within":
            return "within", self.margin
        if self.test in ("bound", "share"):
            return ("below", self.at_most) if self.at_most is not None else ("above", self.at_least or 0.0)
        return self.expect, 0.0


@dataclass(frozen=True)
class Verdict:
    """`verdict` is held, not held or undecided; mean and interval over `n` seeds, and the least α
    at which the verdict would be given (NaN: no interval)."""

    verdict: str
    mean: float
    low: float
    high: float
    n: int
    p: float = np.nan


@dataclass(frozen=True)
class Record:
    """A verdict with what it rests on."""

    all: Verdict
    runs: int
    before: int  # runs that had ended when the claim was stated, or whose end is not known
    fresh: Verdict | None  # of the seeds all of whose runs ended later; None where those are all, or fewer than two


def read(path: Path = FILE) -> list[Claim]:
    """The claims of a file. Raises Unreadable: an unknown or absent key, a value of another
    kind."""
    if not path.is_file():
        raise load.Missing(f"no {path}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise load.Unreadable(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if (
        not isinstance(tree, dict)
        or not isinstance(tree.get("claims"), dict)
        or not isinstance(tree.get("seeds"), int)
        or len(tree) != 2
    ):
        raise load.Unreadable(f"{path}: needs 'seeds' (a whole number) and 'claims' (name: claim), nothing else")
    return [_claim(f"{path}: claim '{name}'", name, spec, tree["seeds"]) for name, spec in tree["claims"].items()]


def _claim(where: str, name: str, spec: dict, seeds: int) -> Claim:
    def refuse(what: str) -> NoReturn:
        raise load.Unreadable(f"{where}: {what}")

    if not isinstance(spec, dict):
        refuse(f"takes keys like {{test: difference}}, not {spec!r}")
    if spec.get("test") not in TESTS:
        refuse(
            f"'test' must be one of {', '.join(TESTS)}, not"
            f" {spec.get('test')!r}{load.nearest(str(spec.get('test')), TESTS)}"
        )
    own = TESTS[spec["test"]]
    kinds: dict[str, Any] = COMMON | OPTIONAL | {key: kind for key, (kind, _) in own.items()}
    for key, value in spec.items():
        if key not in kinds:
            refuse(f"unknown key '{key}' of test '{spec['test']}'{load.nearest(str(key), kinds)}")
        if not isinstance(value, kinds[key]) or (isinstance(value, bool) and kinds[key] is not bool):
            refuse(f"'{key}' cannot be {value!r}")
    for key in (*COMMON, *(key for key, (_, must) in own.items() if must)):
        if key not in spec:
            refuse(f"'{key}' is missing")
    if (spec["test"] == "share") != (spec["metric"] == BROKE):
        refuse(f"'metric' must be {BROKE} with test share, and with no other")
    windows = WINDOWS[spec["metric"] if spec["metric"] in WINDOWS and spec["metric"] != "metric" else "metric"]
    if spec["window"] not in windows:
        refuse(f"'window' of {spec['metric']} must be one of {', '.join(windows)}, not '{spec['window']}'")
    if spec.get("expect", "above") not in ("above", "below"):
        refuse(f"'expect' must be above or below, not '{spec['expect']}'")
    if spec["test"] in ("bound", "share") and ("at_most" in spec) == ("at_least" in spec):
        refuse("takes at_most or at_least, one of them")
    if spec["test"] == "within" and ("margin" in spec) == ("margin_share" in spec):
        refuse("takes margin or margin_share, one of them")
    if "margin_share" in spec and (spec["margin_share"] <= 0 or spec["metric"] == "benchmarks"):
        refuse("'margin_share' must be above 0, of a metric that is logged every step")
    if spec["test"] == "share" and spec.get("rest"):
        refuse("'rest' leaves out the runs that 'share' counts")
    if spec.get("seeds", seeds) < 2 or spec.get("margin", 0) < 0:
        refuse("needs at least 2 seeds and a margin of at least 0")
    if spec["test"] == "trend" and (
        len(set(spec["over"].values())) < 2
        or not all(isinstance(x, NUMBER) and isinstance(arm, str) for arm, x in spec["over"].items())
    ):
        refuse("'over' takes arm: number, at least two different numbers")
    return Claim(**{"name": str(name), "seeds": seeds, **spec})


def by_seed(results: Path, claim: Claim) -> pd.DataFrame:
    """Seeds × arms: the statistic of each run, for the seeds that every arm has. Raises Missing:
    too few runs, or unfinished ones."""
    where, benchmarks = f"claim '{claim.name}'", claim.metric == "benchmarks"
    frame = (load.evaluations if benchmarks else load.metrics)(results, claim.experiment, claim.arms)
    if not benchmarks and claim.metric != BROKE and claim.metric not in frame:
        nearest = load.nearest(claim.metric, frame.columns)
        raise load.Unreadable(f"{where}: no metric '{claim.metric}' in {results / claim.experiment}{nearest}")
    load.refuse_unfinished(frame, results / claim.experiment)
    of = {arm: frame[frame["arm"] == arm] for arm in claim.arms}
    table = pd.DataFrame({arm: statistic(mine, claim) for arm, mine in of.items()})
    if claim.margin_share is not None:  # what the reference lost, the same way
        first, last = ends(of[claim.than], claim.metric)
        table[LOST] = first - last
    if claim.rest:
        steps = frame if not benchmarks else load.metrics(results, claim.experiment, claim.arms)
        broken = [broke.broke(steps[steps["arm"] == arm]) for arm in claim.arms]
        table = table[[seed not in {s for one in broken for s in one.index[one]} for seed in table.index]]
    table = table.loc[
        table.index.isin(set.intersection(*(set(frame[frame["arm"] == arm]["seed"]) for arm in claim.arms)))
    ]
    if len(table) < claim.seeds:
        raise load.Missing(
            f"{where}: {len(table)} of {claim.seeds} seeds of {', '.join(claim.arms)} in {results / claim.experiment}"
        )
    return table


def statistic(mine: pd.DataFrame, claim: Claim) -> pd.Series:
    """One number a run of an arm, by seed; a value that is not a number makes `max` infinite and
    the others NaN."""
    if claim.metric == BROKE:
        return broke.broke(mine)
    if claim.metric == "benchmarks":
        return load.at_checkpoint(mine, claim.window).groupby("seed")["accuracy"].mean()
    known = mine.assign(**{claim.metric: pd.to_numeric(mine[claim.metric], errors="coerce")})
    groups = known.groupby("seed")[claim.metric]
    if claim.window == "max":
        return groups.apply(lambda values: values.max() if np.isfinite(values).all() else np.inf)
    first, last = ends(known, claim.metric)
    number = {"last": last, "rise": last - first, "whole": groups.mean()}[claim.window]
    return number.where(groups.apply(lambda values: np.isfinite(values).all()))


def decide(results: Path, claim: Claim) -> Verdict:
    """Hold one claim against the runs. Raises Missing."""
    return _verdict(claim, by_seed(results, claim))


def decide_on_record(results: Path, claim: Claim) -> Record:
    """The same, and of the seeds that were run after the claim was stated alone. Raises Missing."""
    table = by_seed(results, claim)
    ends: dict[int, list[datetime | None]] = {seed: [] for seed in table.index}
    for folder in load.run_folders(results / claim.experiment):
        seed = int(folder.name.removeprefix("seed"))
        if folder.parent.name in claim.arms and seed in ends:
            ends[seed].append(_first_end(load.meta(folder)))
    late = {seed: [end is not None and end > claim.stated for end in of] for seed, of in ends.items()}
    fresh = [seed for seed, after in late.items() if all(after)]
    alone = _verdict(claim, table.loc[fresh]) if 2 <= len(fresh) < len(table) else None
    flags = [flag for after in late.values() for flag in after]
    return Record(_verdict(claim, table), len(flags), flags.count(False), alone)


def _first_end(meta: dict[str, Any]) -> datetime | None:
    """When the first session of a run ended: from then on something of it could be seen. A finished
    run that was started over has later ones, of a second, that trained nothing."""
    end = next((session["end"] for session in meta.get("sessions", ()) if "end" in session), meta.get("end"))
    return datetime.fromisoformat(end) if end else None


def _share(claim: Claim, broken: pd.Series) -> Verdict:
    """The share of runs that broke, by its Clopper–Pearson interval."""
    wanted, bound = claim.target
    value, low, high = broke.share(broken)
    side = stats.side(low, high, bound)
    verdict = "undecided" if side == "undecided" else "held" if side == wanted else "not held"
    return Verdict(verdict, value, low, high, len(broken), stats.share_p(int(broken.sum()), len(broken), bound))


def _within_share(claim: Claim, table: pd.DataFrame) -> Verdict:
    """Whether the difference lies within ± a share of what the reference lost, both taken by seed,
    so that the margin's own uncertainty counts: d + s·lost lies above 0 and d − s·lost below it.
    Mean and interval are those of d."""
    d, margin = table[claim.arm] - table[claim.than], (claim.margin_share or 0.0) * table[LOST]
    if not np.isfinite(pd.concat([d, margin])).all():
        return Verdict("undecided", np.nan, np.nan, np.nan, len(d))
    above, below = d + margin, margin - d  # both positive: inside
    intervals = [stats.mean_over_seeds(one) for one in (above, below)]
    sides = [stats.side(*triple[1:]) for triple in intervals]
    p = [stats.p_value(one) for one in (above, below)]
    if sides == ["above", "above"]:
        verdict, least = "held", max(p)
    elif "below" in sides:
        verdict, least = "not held", min(value for value, side in zip(p, sides) if side == "below")
    else:
        verdict, least = "undecided", max(p)
    return Verdict(verdict, *stats.mean_over_seeds(d), len(d), least)


def _verdict(claim: Claim, table: pd.DataFrame) -> Verdict:
    if claim.test == "share":
        return _share(claim, table[claim.arm].astype(bool))
    if claim.margin_share is not None:
        return _within_share(claim, table)
    if claim.test == "trend":
        values = stats.slope(table[list(claim.over)].to_numpy(), np.array(list(claim.over.values())))
    elif claim.ratio:
        if (table <= 0).any(axis=None):
            raise load.Unreadable(
                f"claim '{claim.name}': a ratio needs positive numbers, and {claim.metric} has others"
            )
        with np.errstate(divide="ignore"):  # of a reference that is infinite
            values = np.log((table[claim.arm] / table[claim.than]).to_numpy())  # a ratio and its inverse weigh the same
    else:
        values = (table[claim.arm] - table[claim.than] if claim.than else table[claim.arm]).to_numpy()
    wanted, bound = claim.target
    if not np.isfinite(values).all():  # an arm that diverged decides a bound, a reference that did decides nothing
        whole = not claim.than or bool(np.isfinite(table[claim.than]).all())
        decided = "not held" if claim.test == "bound" and whole else "undecided"
        return Verdict(decided, np.nan, np.nan, np.nan, len(values))
    mean, low, high = (float(np.exp(x)) if claim.ratio else x for x in stats.mean_over_seeds(values))
    side = stats.band(low, high, bound) if wanted == "within" else stats.side(low, high, bound)
    p = stats.p_value(values, float(np.log(bound)) if claim.ratio else bound, inside=wanted == "within")
    verdict = "undecided" if side == "undecided" else "held" if side == wanted else "not held"
    return Verdict(verdict, mean, low, high, len(values), p)


def corrected(stated: list[Claim], found: list[Verdict | None]) -> list[str]:
    """Each claim's verdict when Holm's correction takes its family together: undecided unless the
    adjusted p is below 1 − stats.LEVEL; "" where there is none."""
    made = ["" if verdict is None else verdict.verdict for verdict in found]
    for family in {claim.family for claim in stated}:
        of = [i for i, claim in enumerate(stated) if claim.family == family]
        adjusted = stats.holm([np.nan if (v := found[i]) is None else v.p for i in of])
        for i, p in zip(of, adjusted):
            if np.isfinite(p) and p >= 1 - stats.LEVEL:
                made[i] = "undecided"
    return made


def describe(claim: Claim) -> str:
    """The test in a line: what is compared, of which metric and window, and where it is claimed
    to lie."""
    wanted, bound = claim.target
    if claim.test == "share":
        sign = "<" if wanted == "below" else ">"
        return f"{claim.experiment}: share of {claim.arm}'s runs that broke; {sign} {bound:g}"
    what = {
        "last": f"{claim.metric}, last {WINDOW} steps" if claim.metric != "benchmarks" else "mean of benchmarks, last",
        "best": "mean of benchmarks, best",
        "whole": f"{claim.metric}, all steps",
        "rise": f"{claim.metric}, last {WINDOW} less first {WINDOW} steps",
        "max": f"{claim.metric}, largest",
    }[claim.window]
    pair = "slope over " + ", ".join(claim.over) if claim.over else f" {'/' if claim.ratio else '−'} ".join(claim.arms)
    sign = {"above": ">", "below": "<", "within": "within ±"}[wanted]
    reach = f"{bound:g}" if claim.margin_share is None else f"{claim.margin_share:.0%} of what {claim.than} lost"
    rest = "; seeds in which no run broke" if claim.rest else ""
    return f"{claim.experiment}: {pair}; {what}; {sign} {reach}{rest}"
