"""wandb as a mirror: numbers, histograms, tables of tokens and completions, token records as
artifacts. docs/wandb.md."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..config import Config, is_rule
from ..masking import masked
from ..types import said
from . import mirror, shown
from .files import subfolder, write_whole

LONGEST_TAG = 64  # characters that wandb takes


def mode_of(config: Config) -> str:
    """online, offline or disabled: the configuration's, else WANDB_MODE's, else offline."""
    return config.wandb.mode or os.environ.get("WANDB_MODE") or "offline"


def run_id(folder: Path) -> str:
    """wandb's id of the run in `folder`, which keeps it: a run that is continued is one run of
    wandb's, one that is begun anew is another. A sweep's agent names its own."""
    path = folder / "wandb" / "id"
    known = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    wanted = os.environ.get("WANDB_RUN_ID") or known or uuid4().hex[:12]
    if wanted != known:
        subfolder(path.parent)
        write_whole(path, wanted)
    return wanted


def tags(config: Config) -> list[str]:
    """What a run is found by: method, loss, reward, and the user's own."""
    reward = "rule" if is_rule(config.reward) else config.reward
    made = [config.method, f"loss {config.loss['name']}", f"reward {reward}", *config.wandb.tags]
    return [tag[:LONGEST_TAG] for tag in dict.fromkeys(made) if tag]


def logged_steps(parts: Iterable[Path]) -> set[int]:
    """The steps in wandb's files `parts`, by wandb's own reader, which also reads files that a
    kill cut short. Raises OSError: the reader fails or takes too long."""
    steps: set[int] = set()
    for path in parts:
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=mirror.PATIENCE)
        except subprocess.TimeoutExpired:
            raise OSError(f"wandb's reader takes more than {mirror.PATIENCE} s for {path}") from None
        if done.returncode:
            why = next(iter(done.stderr.decode(errors="replace").splitlines()), "without a message")
            raise OSError(f"wandb's reader fails on {path}: {why}")
        records = [json.loads(line) for line in done.stdout.splitlines()]
        steps |= {record["history"]["item"]["_step"] for record in records if record["type"] == "history"}
    return steps


def _ranges(steps: set[int]) -> str:
    """`1, 4 to 7` for {1, 4, 5, 6, 7}."""
    begins = [step for step in sorted(steps) if step - 1 not in steps]
    ends = [step for step in sorted(steps) if step + 1 not in steps]
    return ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in zip(begins, ends))


class ToWandb:
    """One run of wandb's. Its steps are the run's own, so that what a resumed run repeats has the
    step that it had. Steps up to `step`, where the run goes on, that wandb's files lack are logged
    first: a kill costs those that wandb had not yet written."""

    name = "wandb"

    def __init__(self, config: Config, folder: Path, step: int):
        self._config, self._folder, self._step = config, folder, step
        self.later = f"`wandb sync {folder}/wandb/*run-*` can do it later"
        self._wandb: Any = None
        self._run: Any = None

    def open(self) -> bool:
        # Reports on wandb's own health: an offline run sends nothing, and does not wait at its end
        # for a network that is not there.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb
        except Exception as error:  # a broken installation of a mirror is no reason not to train
            print(f"wandb cannot be imported: {said(error)}", file=sys.stderr)
            return False
        c = self._config
        told = masked(dict(
            project=c.wandb.project, config=c.to_dict(), group=f"{c.experiment}/{c.arm}",
            name=f"{c.experiment}/{c.arm}/seed{c.seed}", tags=tags(c),
        ))  # fmt: skip
        settings: dict[str, Any] = told | dict(
            dir=str(self._folder), job_type="train", id=run_id(self._folder), resume="allow"
        )
        quiet = wandb.Settings(
            console="off", silent=True, init_timeout=mirror.PATIENCE, finish_timeout=2 * mirror.PATIENCE
        )
        for attempt in dict.fromkeys((mode_of(c), "offline")):
            try:
                if attempt == "online" and not wandb.login(prompt=False):  # asked for here, nobody would see it
                    raise PermissionError("no key; `wandb login` asks for it")
                self._run = wandb.init(**settings | {"mode": attempt}, settings=quiet)
                self._run.define_metric("step")
                self._run.define_metric("*", step_metric="step")
                self._wandb = wandb
                self._complete(attempt)
                return True
            except Exception as error:  # no network, no key, a full disk: the run goes on without it
                print(f"wandb ({attempt}) cannot start: {said(error)}", file=sys.stderr)
                wandb.teardown()  # which still holds the id
        return False

    def _complete(self, mode: str) -> None:
        """Log the steps that earlier parts of the run lack. A server says itself from which step
        on it takes lines."""
        steps = shown.recorded(self._folder, self._step) if self._step else set()
        if not steps:
            return
        if mode == "online":
            lacking = {step for step in steps if step >= self._run.starting_step}
        else:
            own = Path(self._run.dir).parent
            parts = [p for p in (self._folder / "wandb").glob(f"*run-*-{self._run.id}/*.wandb") if p.parent != own]
            try:
                lacking = steps - logged_steps(sorted(parts))
            except OSError as error:
                print(f"wandb: steps up to {self._step} may be missing: {error}", file=sys.stderr)
                return
        for step, one in shown.again(self._config, self._folder, lacking):
            self.show(step, one)
        if lacking:
            print(f"wandb: steps that its files lacked are added: {_ranges(lacking)}", file=sys.stderr)

    def show(self, step: int, one: mirror.Shown) -> None:
        made: dict[str, Any] = {"step": step, **one.numbers}
        made |= {name: self._wandb.Histogram(np_histogram=pair) for name, pair in one.histograms.items()}
        for name, rows in one.tables.items():
            made[name] = self._wandb.Table(
                columns=list(rows[0]), data=[list(row.values()) for row in rows], allow_mixed_types=True
            )
        self._run.log(made, step=step)
        for path in one.files:
            artifact = self._wandb.Artifact(f"tokens-{self._run.id}", type="tokens", metadata={"step": step})
            artifact.add_file(str(path), name=path.name, policy="immutable")  # no second copy of it
            self._run.log_artifact(artifact, aliases=[f"step{step}"])

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
