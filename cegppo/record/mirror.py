"""wandb mirrors a run's record and never stops it."""

import os
import sys
import threading
from pathlib import Path
from typing import Any

from ..config import Config, digest
from ..types import said

WANDB_PATIENCE = 30  # seconds to wait for wandb to start, and twice that for it to finish


class Mirror:
    """The mirror. Whatever goes wrong in it is said once and then ignored."""

    def __init__(self, run: Any):
        self._run = run

    def _try(self, call: Any, *arguments: Any, **options: Any) -> None:
        if self._run is None:
            return
        try:
            call(*arguments, **options)
        except Exception as error:  # wandb may fail in any way; the record on disk is complete without it
            print(f"wandb stopped mirroring: {said(error)}", file=sys.stderr)
            self._run = None

    def log(self, metrics: dict[str, Any]) -> None:
        self._try(lambda: self._run.log(metrics))

    def finish(self, code: int) -> None:
        """Close the mirror, waiting a minute at most: without a network an upload would never
        end."""
        closing = threading.Thread(target=lambda: self._try(lambda: self._run.finish(exit_code=code)), daemon=True)
        closing.start()
        closing.join(timeout=2 * WANDB_PATIENCE)
        if closing.is_alive():
            print("wandb is still uploading; `wandb sync` can do it later", file=sys.stderr)


def start_mirror(config: Config, folder: Path) -> Mirror | None:
    mode = config.wandb.mode or os.environ.get("WANDB_MODE") or "offline"
    if mode == "disabled":
        return None
    try:
        import wandb
    except Exception as error:  # a broken installation of a mirror is no reason not to train
        print(f"wandb cannot be imported: {said(error)}", file=sys.stderr)
        return None
    settings: dict[str, Any] = dict(
        project=config.wandb.project, dir=str(folder), config=config.to_dict(),
        group=f"{config.experiment}/{config.arm}",
        name=f"{config.experiment}/{config.arm}/seed{config.seed}", resume="allow",
    )  # fmt: skip
    mine = lambda attempt: digest([str(folder.resolve()), attempt])
    quiet = wandb.Settings(console="off", silent=True, init_timeout=WANDB_PATIENCE)
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            # The same id for a resumed run; another one a mode, because a failed start keeps its id
            # busy. A sweep's agent names its own.
            settings |= {"id": os.environ.get("WANDB_RUN_ID") or mine(attempt), "mode": attempt}
            run = wandb.init(**settings, settings=quiet)
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            return Mirror(run)
        except Exception as error:  # no network, no key, a full disk: the run goes on without the mirror
            print(f"wandb ({attempt}) cannot start: {said(error)}", file=sys.stderr)
    return None
