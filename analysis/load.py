"""Runs as data frames. The one window between the runs and the figures: files under results/,
nothing else.

A run is live (a folder with its meta.json), or kept in its sweep's pack (pack.py), or stands for
another run, which its meta.json names in `taken_from`; every function here reads all three alike.

A folder with a `foreign.yaml` is the run of another framework: that file says which log to read and
which of its columns are which of our metrics (docs/figures.md). It then stands in every figure like
any other run.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from cegppo.record import files, names, pack, tables
from cegppo.record.files import BadInput

from . import stats

META = 2**26  # bytes of a meta.json or config.yaml
LARGEST = 2**63  # of any whole number that is recorded
MOST_SAMPLES = 100_000  # of a problem


class Missing(Exception):
    """A figure names a run that is not there."""


class Unreadable(Missing):
    """A file is there and does not say what it should; the message names file and key."""


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean …?' or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


@contextmanager
def _readable() -> Iterator[None]:
    """What the package calls BadInput is Unreadable here."""
    try:
        yield
    except BadInput as error:
        raise Unreadable(str(error)) from None


@contextmanager
def undamaged(folder: Path) -> Iterator[None]:
    """What a damaged record breaks inside (a key that is gone, a value of another kind) is
    Unreadable, and names the run."""
    try:
        yield
    except Missing:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
        yaml.YAMLError,
    ) as error:
        what = " ".join(str(error).split())[:200]
        raise Unreadable(f"{folder}: its record is damaged ({type(error).__name__}: {what})") from None


def rows(path: Path) -> list[dict]:
    """The complete lines of a JSONL file (a running process may be writing the next one)."""
    with _readable():
        return files.read_lines(path)


def _packed(folder: Path) -> dict | None:
    """The pack's line of the run in `folder`; None for a live run, or where there is none."""
    if (folder / "meta.json").is_file():
        return None
    return _runs(folder.parent.parent).get(pack.name_of(folder))


def _runs(sweep: Path) -> dict[str, dict]:
    """The lines of a sweep's pack by arm/seed<k>; {} when there is no pack."""
    with _readable():
        return pack.runs(sweep)


def _kept(path: Path) -> dict[str, list[dict]]:
    """The lines of a pack's parquet file by arm/seed<k>."""
    with _readable():
        return pack.lines(path)


def run_folders(sweep: Path) -> list[Path]:
    """The folders of a sweep's runs, live or in its pack (then there need not be a folder)."""
    live = [folder for folder in sweep.glob("*/seed*") if names.seed_of(folder.name) is not None]
    return sorted({*live, *(sweep / name for name in _runs(sweep))})


def sweeps(results: Path) -> list[Path]:
    """The folders under `results` that hold runs, or a pack that cannot be read: a sweep's, or a
    sweep's in one of several experiments (map/coin)."""
    folders = (path for depth in ("*", "*/*") for path in results.glob(depth) if path.is_dir())
    return sorted(path for path in folders if _holds_runs(path))


def _holds_runs(sweep: Path) -> bool:
    try:
        return bool(run_folders(sweep))
    except Missing:
        return True


def regimes(root: Path) -> list[Path]:
    """The sweeps right under `root`, where a sweep a regime lies (results/map, results/family)."""
    return [path for path in sweeps(root) if path.parent == root]


def arms_of(root: Path, arms: list[str]) -> dict[str, list[str]]:
    """{regime under `root`: those of `arms` that have run there, in order}. Raises Missing."""
    made = {}
    for folder in regimes(root):
        there = {run.parent.name for run in run_folders(folder)}
        made[folder.name] = [arm for arm in arms if arm in there]
    if not any(made.values()):
        raise Missing(f"no runs in {root} (sweeps/{root.name}/)")
    return made


def runs_at(path: Path) -> list[Path]:
    """The folders of the runs that `path` is: a run, an arm, or a sweep; [] for none."""
    if _packed(path) or any((path / name).is_file() for name in ("meta.json", "foreign.yaml", "metrics.jsonl")):
        return [path]
    return [folder for folder in run_folders(path.parent) if folder.parent == path] or run_folders(path)


def meta(folder: Path) -> dict:
    """meta.json of the run in `folder`; {} when there is none."""
    if line := _packed(folder):
        return line["meta"]
    path = folder / "meta.json"
    if not path.is_file():
        return {}
    try:
        with _readable():
            made = json.loads(files.read_bytes(path, META))
    except (ValueError, RecursionError):
        made = None
    if not isinstance(made, dict):
        raise Unreadable(f"{path}: damaged (no JSON object)")
    return made


def config(folder: Path) -> str:
    """config.yaml of the run in `folder`; "" when there is none."""
    if line := _packed(folder):
        return yaml.safe_dump(line["config"], sort_keys=False, allow_unicode=True)
    path = folder / "config.yaml"
    with _readable():
        return files.read_bytes(path, META).decode() if path.is_file() else ""


def _lines(folder: Path, live: str, kept: str, seen: tuple[Path, ...] = ()) -> list[dict]:
    """The lines of the run in `folder`, or of the run that it was taken from. Raises Missing when
    that is gone."""
    if _packed(folder):
        sweep, name = folder.parent.parent, pack.name_of(folder)
        own = _kept(sweep / kept).get(name, []) if name in _kept(sweep / pack.METRICS) else None
    else:
        own = rows(folder / live) if (folder / "metrics.jsonl").is_file() else None
    taken = meta(folder).get("taken_from") if own is None else None
    if not taken:
        return own or []
    with _readable():
        there = names.run_beside(folder, taken)
    if there in seen or not meta(there):
        raise Missing(f"{folder} was taken from {there}, which is not there any more")
    steps = meta(folder).get("steps", 0)  # that run may have gone on since
    return [row for row in _lines(there, live, kept, (*seen, folder)) if row["step"] <= steps]


def _load(results: Path, experiment: str, arms: list[str], read: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
    """What `read` makes of every run of `arms`. Raises Missing when an arm has none."""
    frames = {}
    for folder in run_folders(results / experiment):
        frame = read(folder) if folder.parent.name in arms else pd.DataFrame()
        if not frame.empty:
            frame.insert(0, "arm", folder.parent.name)
            frame.insert(1, "seed", int(folder.name.removeprefix("seed")))
            frames[folder] = frame
    absent = [arm for arm in arms if arm not in {folder.parent.name for folder in frames}]
    if absent:
        raise Missing(f"no run of {', '.join(absent)} in {results / experiment}")
    return (
        pd.concat(list(frames.values()), ignore_index=True) if frames else pd.DataFrame(columns=["arm", "seed", "step"])
    )


def run(folder: Path) -> pd.DataFrame:
    """One row a step of the run in `folder`. Raises Missing."""
    foreign = foreign_run(folder)
    if foreign is not None:
        return foreign[0]
    lines = _lines(folder, "metrics.jsonl", pack.METRICS)
    for row in lines:
        for key, value in row.items():
            fits = value is None or isinstance(value, float) or isinstance(value, int) and abs(value) < LARGEST
            if not fits:
                raise Unreadable(f"{folder}: '{key}' at step {row.get('step')!r:.40} is {value!r:.40}, no number")
        if not isinstance(row.get("step"), int):
            raise Unreadable(f"{folder}: a line has no whole number as its step")
    return pd.DataFrame(lines)


def tests(folder: Path) -> pd.DataFrame:
    """One row an evaluated step and benchmark of the run in `folder`, as eval.jsonl has it."""
    return pd.DataFrame(_lines(folder, "eval.jsonl", pack.EVALUATIONS))


def evaluated(folder: Path) -> pd.DataFrame:
    """`evaluations` of the run in `folder`, without arm and seed."""
    foreign = foreign_run(folder)
    if foreign is not None:
        return foreign[1]
    lines = _lines(folder, "eval.jsonl", pack.EVALUATIONS)
    for row in lines:
        k, correct = row["k"], row["correct"]
        right = isinstance(correct, list) and all(isinstance(c, int) and 0 <= c <= k for c in correct)
        if not isinstance(row["step"], int) or not isinstance(k, int) or not 0 < k <= MOST_SAMPLES or not right:
            raise Unreadable(f"{folder}: an evaluation has k = {k!r:.40} and not as many samples right at most")
    return pd.DataFrame([{**row, "accuracy": stats.avg_at_k(row["k"], row["correct"])} for row in lines])


def metrics(results: Path, experiment: str, arms: list[str]) -> pd.DataFrame:
    """One row a step of each run of `arms`; columns arm, seed and the metrics. Raises Missing
    when an arm has no run."""
    return _load(results, experiment, arms, run)


def evaluations(results: Path, experiment: str, arms: list[str]) -> pd.DataFrame:
    """One row for each run, evaluated step and benchmark; columns arm, seed, step, benchmark, n, k,
    correct, accuracy.

    `correct` is None for another framework's run, of which only the accuracy is known.
    """
    return _load(results, experiment, arms, evaluated)


def at_checkpoint(tests: pd.DataFrame, which: str) -> pd.DataFrame:
    """The rows of each run's `last` evaluation, or of its `best`: highest mean over benchmarks
    after step 0, the earlier of equals."""
    chosen = []
    for _, mine in tests[tests["step"] > 0].groupby(["arm", "seed"], sort=False):
        means = mine.groupby("step")["accuracy"].mean()
        chosen.append(mine[mine["step"] == (means.idxmax() if which == "best" else means.index.max())])
    return pd.concat(chosen, ignore_index=True) if chosen else tests.iloc[:0]


def foreign_run(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """(metrics, evaluations) of another framework's run, under our names; None when there is no
    foreign.yaml. Raises Unreadable."""
    path = folder / "foreign.yaml"
    if not path.is_file():
        return None
    spec = _column_map(path)
    logs = spec["file"] if isinstance(spec["file"], list) else [spec["file"]]
    log = pd.concat([_read(path, spec["format"], _inside(path, name)) for name in logs])
    # A resumed run logs a step again, and training and validation of a step may be two rows: the
    # last value of each column counts.
    log = log.groupby("step", as_index=False).last()
    columns, tests = spec["columns"], spec.get("evaluations", {})
    made = {name: made if isinstance(made, dict) else {"of": made} for name, made in columns.items()}
    for theirs in (*(made[name][key] for name in made for key in ("of", "over") if key in made[name]), *tests.values()):
        if theirs not in log:
            raise Unreadable(f"{path}: {', '.join(logs)} has no '{theirs}'{nearest(str(theirs), log.columns)}")
    metrics = pd.DataFrame({"step": log["step"], **{name: _column(log, **made[name]) for name in made}})
    of = lambda key, name: spec[key][name] if isinstance(spec[key], dict) else spec[key]
    accuracy = [
        {"step": step, "benchmark": name, "n": of("n", name), "k": of("k", name), "correct": None, "accuracy": value}
        for name, theirs in tests.items()
        for step, value in zip(log["step"], log[theirs])
        if pd.notna(value)
    ]
    return metrics.dropna(how="all", subset=list(columns)), pd.DataFrame(
        accuracy, columns=["step", "benchmark", "n", "k", "correct", "accuracy"]
    )


def _column(log: pd.DataFrame, of: str, over: str | None = None, times: float = 1) -> pd.Series:
    """A column of a log, or its quotient by another (NaN where that is 0), times a number."""
    if over is None:
        return log[of] * times if times != 1 else log[of]
    below = pd.to_numeric(log[over])
    return pd.to_numeric(log[of]) * times / below.where(below != 0)


def _column_map(path: Path) -> dict:
    kinds: dict[str, type | tuple[type, ...]] = {
        "format": str,
        "file": (str, list),
        "columns": dict,
        "evaluations": dict,
        "k": (int, dict),
        "n": (int, dict),
    }
    try:
        with _readable():
            text = files.read_bytes(path, META).decode()
            files.refuse_aliases(text, path)
        spec = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Unreadable(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(spec, dict):
        raise Unreadable(f"{path}: needs keys {', '.join(kinds)}")
    for key, value in spec.items():
        if key not in kinds:
            raise Unreadable(f"{path}: unknown key '{key}'{nearest(str(key), kinds)}")
        if not isinstance(value, kinds[key]):
            raise Unreadable(f"{path}: '{key}' cannot be {value!r}")
    for key in ("format", "file", "columns", *(("k", "n") if "evaluations" in spec else ())):
        if key not in spec:
            raise Unreadable(f"{path}: '{key}' is missing")
    for name, made in spec["columns"].items():
        if isinstance(made, dict) and not ("of" in made and made.keys() <= {"of", "over", "times"}):
            raise Unreadable(f"{path}: columns: {name}: takes a column, or {{of: …, over: …, times: …}}, not {made!r}")
    for key in ("k", "n"):
        if isinstance(spec.get(key), dict) and spec[key].keys() != spec.get("evaluations", {}).keys():
            raise Unreadable(f"{path}: '{key}' names other benchmarks than 'evaluations'")
    if spec["format"] not in READERS:
        raise Unreadable(f"{path}: unknown format '{spec['format']}'{nearest(spec['format'], READERS)}")
    return spec


def _inside(path: Path, name: Any) -> Path:
    """The log `name` of foreign.yaml `path`, which lies in its folder. Raises Unreadable."""
    file = path.parent / str(name)
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise Unreadable(f"{path}: 'file' names a log in this folder, not {str(name)!r:.80}")
    return file


def _read(path: Path, kind: str, file: Path) -> pd.DataFrame:
    if not file.is_file():
        raise Unreadable(f"{path}: no such file {file}")
    try:
        log = READERS[kind](file)
    except (ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"{path}: {file} is not {kind}: {error!r}") from None
    if "step" not in log:
        raise Unreadable(f"{path}: {file} holds no step in the layout of {kind}")
    return log


def _verl_jsonl(file: Path) -> pd.DataFrame:
    """verl's `file` logger: {"step": 1, "data": {"actor/entropy": …}} a line."""
    return pd.DataFrame([{**row["data"], "step": row["step"]} for row in rows(file)])


def _verl_console(file: Path) -> pd.DataFrame:
    """verl's `console` logger: `step:1 - actor/entropy:0.5 - …` on a line of its own, Ray's
    prefix before it."""
    made = []
    for line in re.findall(r"(?:^|\s)step:(\d+ - .+)", file.read_text(encoding="utf-8", errors="replace")):
        step, *pairs = line.split(" - ")
        try:
            values = {
                name: float(re.sub(r"np\.\w+\((.*)\)", r"\1", value))
                for name, value in (pair.rsplit(":", 1) for pair in pairs)
            }
        except ValueError:  # a response that was printed, and looks like a line of the log
            continue
        made.append({"step": int(step), **values})
    return pd.DataFrame(made)


def _trl(file: Path) -> pd.DataFrame:
    """TRL's (transformers') trainer_state.json, saved with every checkpoint."""
    return pd.DataFrame(json.loads(file.read_text(encoding="utf-8"))["log_history"])


def _wandb_csv(file: Path) -> pd.DataFrame:
    """A chart exported from wandb (`Step`, `<run> - <metric>`) or `run.history().to_csv()`
    (`_step`, `<metric>`)."""
    return pd.read_csv(file).rename(columns={"Step": "step", "_step": "step"})


READERS = {"verl-jsonl": _verl_jsonl, "verl-console": _verl_console, "trl": _trl, "wandb-csv": _wandb_csv}


def refuse_unfinished(frame: pd.DataFrame, folder: Path) -> None:
    """Raises Missing when a run ends before the others: what is said of the last step would
    compare different ages."""
    steps = frame.groupby(["arm", "seed"])["step"].max()
    if steps.nunique() > 1:
        arm, seed = steps.index[int(steps.argmin())]
        raise Missing(f"{folder / arm}/seed{seed} ends at step {steps.min()} of {steps.max()}")


def samples(tests: pd.DataFrame) -> str:
    """The k of avg@k: a number, or the smallest and the largest where benchmarks have different
    ones."""
    least, most = int(tests["k"].min()), int(tests["k"].max())
    return str(least) if least == most else f"{least} to {most}"


def settings(folder: Path) -> dict[str, Any]:
    """The configuration of the run in `folder`; {} when there is none."""
    if line := _packed(folder):
        return line["config"]
    text = config(folder)
    with _readable():
        files.refuse_aliases(text, folder / "config.yaml")
    try:
        value = yaml.safe_load(text or "{}")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        why = getattr(error, "problem", None) or type(error).__name__
        raise Unreadable(f"{folder / 'config.yaml'}: not valid YAML ({' '.join(str(why).split())[:200]})") from None
    return value if isinstance(value, dict) else {}


def setting(folder: Path, key: str) -> Any:
    """The value of `key` ("loss.eps_low") in the run's config.yaml."""
    value: Any = settings(folder)
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise Missing(f"no '{key}' in {folder / 'config.yaml'}")
        value = value[part]
    return value


def token_records(folder: Path) -> dict[int, Path]:
    """The token records of the run in `folder` by step; {} where none are kept."""
    files = (folder / "tokens").glob("step*.parquet")
    return {int(path.stem[4:]): path for path in sorted(files) if path.stem[4:].isdecimal()}


def tokens(folder: Path, step: int | None = None) -> pd.DataFrame:
    """The token record of `step`, or the earliest, of the run in `folder`: a row a token
    (docs/metrics.md has the columns)."""
    records = sorted((folder / "tokens").glob("step*.parquet" if step is None else f"step{step:06}.parquet"))
    if not records:
        raise Missing(f"no token record{'' if step is None else f' of step {step}'} in {folder / 'tokens'}")
    return read_tokens(records[0])


def read_tokens(path: Path) -> pd.DataFrame:
    """A token record. Raises Unreadable."""
    with _readable():
        frame = pd.DataFrame(tables.read(path))
    for name, column in frame.items():
        if column.dtype == object and not any(isinstance(value, (str, bytes)) for value in column):
            frame[name] = column.astype(float)  # numbers beside nulls
    return frame


def token_rows(path: Path) -> int | None:
    """How many tokens a record holds; None for one that cannot be read."""
    try:
        return tables.rows(path)
    except BadInput:
        return None


def has_seen(folder: Path) -> bool:
    """Whether completions of evaluations are kept of the run in `folder`."""
    return (folder / "completions" / "seen.jsonl").is_file()


def seen(folder: Path) -> pd.DataFrame:
    """What the model wrote at the evaluations of the run in `folder`, a row a step and prompt
    (docs/record.md has the columns); empty where nothing is kept."""
    return pd.DataFrame(rows(folder / "completions" / "seen.jsonl"))


def paper(results: Path, name: str) -> pd.DataFrame:
    """A table of the paper's numbers, <results>/paper/<name>."""
    path = results / "paper" / name
    if not path.is_file():
        raise Missing(f"no {path}")
    return pd.read_csv(path)
