"""A run's folder: what was asked (config.yaml), where and when it ran (meta.json), what happened
(metrics.jsonl, eval.jsonl).

Every line is written whole, a checkpoint appears only when it is complete, and one live process at
a time may write. wandb and TensorBoard mirror the record and never stop it.
"""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config, as_yaml
from ..types import BadInput
from .files import (
    append_line,
    as_lines,
    as_page,
    flush,
    lock,
    point,
    put_folder,
    read_lines,
    remove_unfinished,
    remove_unused,
    subfolder,
    sync,
    whole,
    write_parquet,
    write_whole,
)
from .keep import unpack
from .mirror import Mirror, Shown
from .provenance import changed, now, session
from .read import packed, read_config, read_meta, read_metrics
from .seen import log_seen, rewind_seen
from .shown import of_completions, of_evaluation, of_tokens
from .to_tensorboard import ToTensorBoard
from .to_wandb import ToWandb, mode_of

STEP = re.compile(r"step\d{6,}")  # the name of a checkpoint
LOGS = ("metrics.jsonl", "eval.jsonl")
SUBFOLDERS = ("checkpoints", "tokens", "completions", "broken", "wandb", "tensorboard")
TOKEN_ORDER = ["update", "prompt_id", "rollout", "position"]  # rows of a token record


def refuse_links(folder: Path) -> None:
    """Raises BadInput when a folder that the run in `folder` writes to is a link."""
    linked = [folder / name for name in SUBFOLDERS if (folder / name).is_symlink()]
    if linked:
        raise BadInput(f"{linked[0]}: is a link, and nothing is written through one; put the folder itself there")


FIRST = ("model.path", "method", "seed", "loss.", "update.", "reward", "data.train")


def weight(key: str) -> tuple[int, str]:
    """For sorting: what tells two runs apart first, then the alphabet."""
    return next((n for n, name in enumerate(FIRST) if key.startswith(name)), len(FIRST)), key


def refuse_other_run(folder: Path, config: Config) -> None:
    """Raises BadInput when `folder` holds records of a run of another configuration, or records
    that nothing can continue.

    A folder in which nothing was recorded yet may be taken over.
    """
    steps = [row["step"] for row in read_metrics(folder)]
    continues = newest(folder) is not None
    if not steps and not continues:
        return
    recorded = read_config(folder)
    before, now = recorded.identity(), config.identity()
    changed = [k for k in sorted(before.keys() | now.keys(), key=weight) if before.get(k) != now.get(k)]
    if changed:
        was = f"{changed[0]} was {before.get(changed[0])!r}, is now {now.get(changed[0])!r}"
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise BadInput(f"{folder}: holds another run: {was}{more}; choose another run_dir or arm")
    # A run that died before its first checkpoint begins again; one that had any has lost it.
    had = (
        read_meta(folder).get("status") in ("finished", "stopped") or max(steps, default=0) > recorded.checkpoint_every
    )
    if not continues and had:
        raise BadInput(
            f"{folder}: holds a record of {max(steps)} steps but no checkpoint to continue from; choose another run_dir"
            " or arm"
        )


def complete(path: Path) -> bool:
    """Whether `path` is a checkpoint: a folder appears under its name only when it is whole."""
    return (path / "state.json").is_file()


def newest(folder: Path) -> Path | None:
    """The checkpoint that the run in `folder` goes on from: `latest`, or where that pointer is gone
    (a copy without links) the last one there is. None when there is none."""
    root = folder / "checkpoints"
    if complete(root / "latest"):
        return root / "latest"
    made = sorted(path for path in root.glob("step*") if STEP.fullmatch(path.name) and complete(path))
    return made[-1] if made else root / "best" if complete(root / "best") else None


def checkpoint(folder: Path, which: str = "latest") -> Path:
    """The checkpoint `which` ("latest" or "best") of run folder `folder`. Raises BadInput when
    there is none."""
    path = newest(folder) if which == "latest" else folder / "checkpoints" / which
    if path is None or not complete(path):
        why = "; its record is kept in a pack, and checkpoints are not" if packed(folder) else ""
        raise BadInput(f"{folder}: no checkpoint '{which}' there{why}")
    return path


def fingerprint(model: str | Path) -> list[Any]:
    """What tells a model from another of the same place: the name, size and time of its weight
    files; the id of one of a hub."""
    files = sorted(Path(model).glob("*.safetensors")) + sorted(Path(model).glob("*.bin"))
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files] or [str(model)]


def write_tokens(folder: Path, step: int, parts: list[dict[str, Any]]) -> tuple[Path, dict[str, np.ndarray]] | None:
    """Write `folder`/tokens/step<n>.parquet, from columns in parts; its path and the whole columns.
    None, and nothing is written, where there is no part."""
    if not parts:
        return None
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    path = folder / "tokens" / f"step{step:06d}.parquet"
    write_parquet(path, columns, TOKEN_ORDER)
    return path, columns


class Record:
    """An open run folder, locked for this process until `close`.

    Raises BadInput when another live process writes to it, or when it holds a run of another
    configuration.
    """

    def __init__(self, config: Config):
        self.config, self.folder = config, config.folder
        self._lock = lock(self.folder / ".lock", f"{self.folder}: another live process is writing to it")
        self._meta: dict[str, Any] = {}
        self._mirrors: list[Mirror] = []
        try:
            if config.tensorboard:
                ToTensorBoard.require()
            refuse_links(self.folder)
            refuse_other_run(self.folder, config)
            unpack(self.folder)  # a run that was kept in a pack goes on in its folder
        except BaseException:
            self._lock.close()
            raise

    def begin(self, step: int, best: bool = False) -> None:
        """From here on it is recorded that this runs, from `step` on, whose evaluation was the
        `best` so far: a start that fails before leaves what was there as it was. Raises BadInput:
        lines before `step` are missing."""
        self._rewind(step)
        self._tidy(step, best)
        write_whole(self.folder / "config.yaml", as_yaml(self.config))
        self._meta = read_meta(self.folder) | {"status": "running"}
        self._meta.setdefault("start", now())
        sessions = [*self._meta.get("sessions", []), session()]
        self._meta["sessions"] = sessions
        if len(sessions) > 1 and (what := changed(*sessions[-2:])):
            print(f"{self.folder}: the code changed since this run was last started: {what}", file=sys.stderr)
        self._write_meta()
        if mode_of(self.config) != "disabled":
            self._mirrors.append(Mirror(ToWandb(self.config, self.folder, step)))
        if self.config.tensorboard:
            self._mirrors.append(Mirror(ToTensorBoard(self.folder, step)))

    def _show(self, step: int, shown: Shown) -> None:
        for mirror in self._mirrors:
            mirror.show(step, shown)

    def _write_meta(self) -> None:
        write_whole(self.folder / "meta.json", as_page(self._meta))

    def note(self, **facts: Any) -> None:
        """Facts for meta.json."""
        self._meta |= facts
        self._write_meta()

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        append_line(self.folder / "metrics.jsonl", {"step": step, **metrics})
        self._show(step, Shown(metrics))

    def log_eval(self, step: int, rows: list[dict[str, Any]], mean: float) -> None:
        """One line of eval.jsonl a benchmark; `mean` is their mean accuracy."""
        for row in rows:
            append_line(self.folder / "eval.jsonl", {"step": step, **row})
        if rows:
            self._show(step, of_evaluation(rows, mean))

    def log_tokens(self, step: int, parts: list[dict[str, Any]]) -> None:
        """tokens/step<n>.parquet, from columns in parts."""
        written = write_tokens(self.folder, step, parts)
        if written is None:
            return
        path, columns = written
        if self._mirrors and len(columns["step"]):
            self._show(step, of_tokens(path, columns, self.config.wandb))

    def log_broken(self, step: int, number: int, batch: dict[str, Any]) -> None:
        """broken/step<n>-update<u>.safetensors: the tensors of a mini-batch whose gradient was not
        finite, to be looked at."""
        from safetensors.torch import save_file

        path = self.folder / "broken" / f"step{step:06d}-update{number}.safetensors"
        subfolder(path.parent)
        with whole(path) as unfinished:
            save_file({name: value.detach().cpu().contiguous() for name, value in batch.items()}, unfinished)

    def log_seen(self, rows: list[dict[str, Any]]) -> None:
        """A few completions of an evaluation, of the rows of one benchmark."""
        written = log_seen(self.folder, rows)
        if written:
            self._show(written[0]["step"], of_completions(written))

    def _rewind(self, step: int) -> None:
        """Forget what was logged after `step`, since those lines are written again; of a run that
        never saved a checkpoint (`step` 0), everything."""
        kept = {name: read_lines(self.folder / name) for name in LOGS}
        for name, rows in kept.items():
            kept[name] = [row for row in rows if 0 < step >= row["step"]]
        there = {row["step"] for row in kept["metrics.jsonl"]}
        if gaps := [n for n in range(1, step + 1) if n not in there]:
            raise BadInput(
                f"{self.folder / 'metrics.jsonl'}: lacks step {gaps[0]}"
                f"{f' and {len(gaps) - 1} more' if len(gaps) > 1 else ''} of the {step} before the checkpoint;"
                " bring the lines back, or choose another run_dir"
            )
        rewind_seen(self.folder, step or -1)
        for name, rows in kept.items():
            if (self.folder / name).is_file():
                write_whole(self.folder / name, as_lines(rows))

    def _tidy(self, step: int, best: bool) -> None:
        """What saving checkpoint `step` would have done last, where the disk failed or the process
        died before: the first checkpoint may be there and nothing point to it, and older ones may
        be left."""
        root = self.folder / "checkpoints"
        remove_unfinished(root)  # a pointer that could not be renamed, say
        made = root / f"step{step:06d}"
        if not complete(root / "latest") and complete(made):
            for name in [*(["best"] if best and not complete(root / "best") else []), "latest"]:
                point(root / name, made.name)
        if (root / "latest").is_symlink():
            remove_unused(root, STEP, ("latest", "best"), self.config.checkpoint_keep)

    def save_checkpoint(self, step: int, write: Any, best: bool) -> None:
        """`write(folder)` fills a new checkpoint; once the lines up to it are on the disk it
        appears, complete, and `latest` (and `best`) point to it."""
        root = self.folder / "checkpoints"
        subfolder(root)
        remove_unfinished(root)
        made = root / f"step{step:06d}"
        for name in LOGS:
            sync(self.folder / name)
        put_folder(made, write)
        # `best` first: a run killed in between continues from the older `latest` and saves this one
        # again.
        for name in [*(["best"] if best else []), "latest"]:
            point(root / name, made.name)
        flush(root)
        remove_unfinished(root)
        remove_unused(root, STEP, ("latest", "best"), self.config.checkpoint_keep)

    def close(self, status: str) -> None:
        """`finished`, `stopped` (resumable) or `failed`."""
        try:
            if self._meta:  # it had begun
                self._meta |= {"status": status, "end": now()}
                self._meta["sessions"][-1]["end"] = now()
                self._write_meta()
            else:
                self._leave_nothing()
            for mirror in self._mirrors:
                mirror.finish(status == "failed")
        finally:
            self._lock.close()

    def _leave_nothing(self) -> None:
        """Of a start that failed: folders in which there is nothing but the lock go again."""
        if [path.name for path in self.folder.iterdir()] != [".lock"]:
            return
        (self.folder / ".lock").unlink()
        for folder in (self.folder, *self.folder.parents[:2]):  # its arm's, its experiment's
            if any(folder.iterdir()):
                return
            folder.rmdir()
