"""wandb as a mirror: numbers, histograms, tables of tokens and completions, token records as
artifacts. docs/wandb.md."""

import os
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..config import Config, is_rule
from ..masking import masked
from ..types import said
from . import mirror
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


class ToWandb:
    """One run of wandb's. Its steps are the run's own, so that what a resumed run repeats has the
    step that it had."""

    name = "wandb"

    def __init__(self, config: Config, folder: Path):
        self._config, self._folder = config, folder
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
                return True
            except Exception as error:  # no network, no key, a full disk: the run goes on without it
                print(f"wandb ({attempt}) cannot start: {said(error)}", file=sys.stderr)
                wandb.teardown()  # which still holds the id
        return False

    def show(self, step: int, shown: mirror.Shown) -> None:
        made: dict[str, Any] = {"step": step, **shown.numbers}
        made |= {name: self._wandb.Histogram(np_histogram=pair) for name, pair in shown.histograms.items()}
        for name, rows in shown.tables.items():
            made[name] = self._wandb.Table(
                columns=list(rows[0]), data=[list(row.values()) for row in rows], allow_mixed_types=True
            )
        self._run.log(made, step=step)
        for path in shown.files:
            artifact = self._wandb.Artifact(f"tokens-{self._run.id}", type="tokens", metadata={"step": step})
            artifact.add_file(str(path), name=path.name, policy="immutable")  # no second copy of it
            self._run.log_artifact(artifact, aliases=[f"step{step}"])

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
