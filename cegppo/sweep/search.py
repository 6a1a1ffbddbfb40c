"""A search instead of a grid: Optuna proposes the arms, by chance or by TPE, and hopeless ones are
stopped early.

A sweep file with `space` is a search; besides the keys of a grid that do not speak of arms it has

    search: tpe                               # tpe | random
    trials: 20
    space:                                    # of any keys of the configuration
      loss.beta1: {low: 0.0, high: 1.0}       # a number; `log`, `step` as in Optuna
      update.aggregate: [token, sequence]     # one of these
    objective:
      metric: eval/mean                       # eval/mean, eval/<benchmark>, any metric
      direction: maximize                     # maximize | minimize
      window: 5                               # last steps averaged (not for eval/)
      prune: true                             # stop a trial below the median of those before

A number is whole if both ends are. Pruning looks at a trial's first seed.
A trial is an arm with every seed of the sweep; its value is the mean over seeds. The study is
<results>/<sweep>/study.db (SQLite), its summary trials.jsonl. Started again, it finishes what was
under way and goes on to `trials`.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ..config import digest, nearest
from ..problems.counts import mean_accuracy
from ..record.files import as_lines, lock, read_lines, write_whole
from ..record.read import read_evaluations, read_metrics
from ..types import BadInput, said
from .description import Description, Run

SAMPLERS = ("random", "tpe")
OBJECTIVE = {"metric": "eval/mean", "direction": "maximize", "window": 5, "prune": True}


class Search:
    """What run_all() asks for runs."""

    def __init__(self, d: Description):
        try:
            import optuna
        except ImportError:
            raise BadInput("a search needs Optuna: pip install -e '.[search]'") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._d, self._optuna = d, optuna
        self.seeds, self.trials = d.tree["seeds"], d.tree.get("trials", 20)
        self.space, self.objective = _space(d), _objective(d)
        example = _example(d)
        self.folder = Path(example.config.results, d.name)
        self._lock = lock(self.folder / "study.lock", f"{self.folder}: another live process is searching there")
        storage = f"sqlite:///{self.folder / 'study.db'}"
        before = _trials_before(self.folder, d.name, storage)
        # A continued search must not propose its first trials again.
        sampler = (
            optuna.samplers.RandomSampler(seed=before)
            if d.tree.get("search") == "random"
            else optuna.samplers.TPESampler(seed=before)
        )
        self.study = optuna.create_study(
            study_name=d.name, storage=storage, sampler=sampler, direction=self.objective["direction"],
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=example.config.steps // 3),
        )  # fmt: skip
        by_chance = ["random"] if d.tree.get("search") == "random" else []
        self._asked = digest([self.space, self.objective["metric"], self.objective["direction"], *by_chance])
        if self.study.user_attrs.get("asked", self._asked) != self._asked:
            raise BadInput(
                f"{self.folder / 'study.db'}: holds a search of another kind, space or objective; choose another root"
                " with results=DIR"
            )
        self.runs: list[Run] = []
        self._waiting: list[Run] = []
        self._trial: dict[int, Any] = {}  # by id of a run
        self._values: dict[int, dict[int, float]] = {}  # by number of a trial, by seed
        self._reported: dict[int, int] = {}  # by number of a trial: the step it was last judged at
        self._stopped: set[int] = set()  # ids of the runs of pruned trials that were told to stop
        self._closed: set[int] = set()  # numbers of the trials that have their verdict
        for frozen in self.study.get_trials(
            deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)
        ):  # of an earlier life
            self._hand_out(optuna.trial.Trial(self.study, frozen._trial_id))

    def next(self) -> Run | None:
        while not self._waiting and len(self.study.get_trials(deepcopy=False)) < self.trials:
            self._hand_out(self.study.ask())
        return self._waiting.pop(0) if self._waiting else None

    def hopeless(self, run: Run) -> bool:
        """True once for each run of a trial whose first seed does worse than the median of the
        trials before, at the same step."""
        trial = self._trial[id(run)]
        if self.objective["prune"] and trial.number not in self._closed and run.seed == self.seeds[0]:
            found = self._value(run)
            if found is not None and self._reported.get(trial.number, 0) < found[0] < run.config.steps:
                self._reported[trial.number] = found[0]
                trial.report(found[1], found[0])
                if trial.should_prune():
                    self._close(trial, state=self._optuna.trial.TrialState.PRUNED)
        if trial.number not in self._closed or id(run) in self._stopped:
            return False
        self._stopped.add(id(run))
        return True

    def ended(self, run: Run, state: str) -> None:
        trial = self._trial[id(run)]
        if trial.number in self._closed:
            return
        if state == "failed":
            self._close(trial, state=self._optuna.trial.TrialState.FAIL)
        elif state == "finished":
            self._note(run)

    def close(self) -> None:
        """Let another process search here."""
        self._lock.close()

    def best(self) -> str:
        """A line about the best trial so far."""
        done = self._complete()
        if not done:
            return "no trial is complete"
        best, name = self.study.best_trial, self.objective["metric"]
        return f"best of {len(done)} complete trials: trial{best.number:03d}, {name} {best.value:.4f}, {best.params}"

    def leaders(self, most: int) -> list[Path]:
        """The folders of the runs of the `most` best complete trials, the best first."""
        sign = -1 if self.objective["direction"] == "maximize" else 1
        ranked = sorted(self._complete(), key=lambda trial: (sign * trial.value, trial.number))[:most]
        return [self.folder / f"trial{t.number:03d}" / f"seed{seed}" for t in ranked for seed in self.seeds]

    def _complete(self) -> list[Any]:
        return self.study.get_trials(deepcopy=False, states=(self._optuna.trial.TrialState.COMPLETE,))

    def _hand_out(self, trial: Any) -> None:
        """Queue a trial's runs."""
        changes = {key: _suggest(trial, key, choice) for key, choice in self.space.items()}
        try:
            runs = [self._d.run(f"trial{trial.number:03d}", seed, changes) for seed in self.seeds]
        except BadInput as error:  # values that do not go together: a failed trial, and the search goes on
            print(f"trial{trial.number:03d}: {error}", file=sys.stderr)
            self._close(trial, state=self._optuna.trial.TrialState.FAIL)
            return
        for run in runs:
            self._trial[id(run)] = trial
            self.runs.append(run)
            if run.finished():
                self._note(run)
            else:
                self._waiting.append(run)

    def _value(self, run: Run) -> tuple[int, float] | None:
        """(step, objective) of a run as far as it has come; None before there is one."""
        metric, window = self.objective["metric"], self.objective["window"]
        if metric.startswith("eval/"):
            rows = [r for r in read_evaluations(run.folder) if metric in ("eval/mean", f"eval/{r['benchmark']}")]
            # A run that is under way writes a benchmark at a time: a mean is one of all of them.
            asked = len(run.config.eval.benchmarks) if metric == "eval/mean" else 1
            steps = Counter(r["step"] for r in rows)
            whole = max((step for step, there in steps.items() if step > 0 and there >= asked), default=None)
            return None if whole is None else (whole, mean_accuracy([r for r in rows if r["step"] == whole]))
        rows = read_metrics(run.folder)[-window:]
        values = [r[metric] for r in rows if r.get(metric) is not None]
        return (rows[-1]["step"], float(np.mean(values))) if values else None

    def _note(self, run: Run) -> None:
        """Keep the value of a finished run; close its trial when it was the last."""
        trial, found = self._trial[id(run)], self._value(run)
        if found is None:
            known = {"eval/mean", *(f"eval/{r['benchmark']}" for r in read_evaluations(run.folder))}
            known |= {key for r in read_metrics(run.folder) for key in r}
            metric = self.objective["metric"]
            raise BadInput(f"{self._d.path}: objective.metric '{metric}' is not recorded{nearest(metric, known)}")
        values = self._values.setdefault(trial.number, {})
        values[run.seed] = found[1]
        if len(values) == len(self.seeds):
            self._close(trial, values=float(np.mean(list(values.values()))))

    def _close(self, trial: Any, **verdict: Any) -> None:
        self.study.set_user_attr("asked", self._asked)  # from here on the study belongs to this space and objective
        self.study.tell(trial, **verdict)
        self._closed.add(trial.number)
        self._waiting = [run for run in self._waiting if self._trial[id(run)].number != trial.number]
        rows = [
            {"trial": t.number, "state": t.state.name.lower(), "value": t.value, "params": t.params}
            for t in self.study.get_trials(deepcopy=False)
        ]
        write_whole(self.folder / "trials.jsonl", as_lines(rows))


def _trials_before(folder: Path, name: str, storage: str) -> int:
    """How many trials the study in `folder` has. One that a kill left half made is removed, since
    no trial can be in it. Raises BadInput for a file that cannot be read."""
    import optuna

    path = folder / "study.db"
    if not path.is_file():
        return 0
    try:
        return len(optuna.load_study(study_name=name, storage=storage).trials)
    except Exception as error:  # of optuna, SQLAlchemy or SQLite: whatever a half-made file makes them say
        if any(folder.glob("trial[0-9]*")):
            raise BadInput(f"{path}: cannot be read: {said(error)}") from None
    for leftover in folder.glob("study.db*"):
        leftover.unlink()
    return 0


def plan(d: Description) -> str:
    """What a search would do, and the trials there are; nothing is written."""
    example, objective = _example(d), _objective(d)
    space = "\n".join(f"  {key}: {choice}" for key, choice in _space(d).items())
    rows = read_lines(Path(example.config.results, d.name, "trials.jsonl"))
    done = "\n".join(f"  trial{r['trial']:03d} {r['state']:<9} {r['value']} {r['params']}" for r in rows)
    return (
        f"{d.tree.get('search', 'tpe')} search, {d.tree.get('trials', 20)} trials × seeds {d.tree['seeds']}, "
        f"{objective['direction']} {objective['metric']}\n{space}\n{len(rows)} trials so far\n{done}"
    ).rstrip()


def _example(d: Description) -> Run:
    """A run of the search, made only to refuse what could not run."""
    if d.tree.get("search", "tpe") not in SAMPLERS:
        raise BadInput(f"{d.path}: unknown search '{d.tree['search']}'{nearest(d.tree['search'], SAMPLERS)}")
    space = _space(d)
    example = d.run("trial000", d.tree["seeds"][0], {key: _values(choice)[0] for key, choice in space.items()})
    for key, choice in space.items():  # each value by itself; what does not go together shows in a trial
        for value in _values(choice)[1:]:
            d.run("trial000", d.tree["seeds"][0], {k: value if k == key else _values(v)[0] for k, v in space.items()})
    return example


def _objective(d: Description) -> dict[str, Any]:
    given = d.tree.get("objective", {})
    for key, value in given.items():
        if key not in OBJECTIVE:
            raise BadInput(f"{d.path}: unknown key 'objective.{key}'{nearest(str(key), OBJECTIVE, 'objective.')}")
        if type(value) is not type(OBJECTIVE[key]):
            raise BadInput(f"{d.path}: objective.{key} takes a {type(OBJECTIVE[key]).__name__}, not {value!r}")
    made = OBJECTIVE | given
    if made["direction"] not in ("maximize", "minimize") or made["window"] < 1:
        raise BadInput(f"{d.path}: objective.direction is maximize or minimize, objective.window at least 1")
    return made


def _space(d: Description) -> dict[str, Any]:
    import optuna

    for key, choice in (space := d.tree.get("space", {})).items():
        if isinstance(choice, list) and choice:
            continue
        ends = choice if isinstance(choice, dict) else {}
        number = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
        try:
            if not all(number(ends.get(k)) for k in ("low", "high")) or not ends["low"] < ends["high"]:
                raise ValueError("low below high")
            kind = optuna.distributions.IntDistribution if _whole(ends) else optuna.distributions.FloatDistribution
            kind(**ends)
        except (TypeError, ValueError) as error:
            raise BadInput(
                f"{d.path}: space: '{key}' takes a list of values or {{low: …, high: …}} with log or step, not"
                f" {choice!r} ({error})"
            ) from None
    if not space:
        raise BadInput(f"{d.path}: 'space' is missing or empty")
    return space


def _whole(ends: dict[str, Any]) -> bool:
    return all(isinstance(ends.get(k, 1), int) for k in ("low", "high", "step"))


def _values(choice: Any) -> list[Any]:
    """The values of a list, or both ends of a range."""
    return choice if isinstance(choice, list) else [choice["low"], choice["high"]]


def _suggest(trial: Any, key: str, choice: Any) -> Any:
    if isinstance(choice, list):
        return trial.suggest_categorical(key, choice)
    return (trial.suggest_int if _whole(choice) else trial.suggest_float)(key, **choice)
