"""A run's folder: what was asked (config.yaml), where and when it ran (meta.json), what happened
(metrics.jsonl, eval.jsonl).

Every line is written whole, a checkpoint appears only when it is complete, and one live process at
a time may write. wandb mirrors the record and never stops it.
"""

import fcntl
import gzip
import json
import math
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import zlib
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import config as config_module
from . import parallel
from .config import Config
from .counts import mean_accuracy
from .entropy import CLASSES, SIDES, ClipRange, clip_side, entropy_change, gradient_contribution, token_class
from .types import BadInput, Rollout, TokenBatch

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "reasoning-gym", "omegaconf")
WANDB_PATIENCE = 30  # seconds to wait for wandb to start, and twice that for it to finish


def write_whole(path: Path, text: str) -> None:
    """Replace `path` by `text`: a reader sees the old file or the new one, never a part."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def append_line(path: Path, row: dict[str, Any]) -> None:
    """One JSON object and its newline in a single write."""
    # NaN is not JSON: a quantity without a value is null.
    row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    with open(path, "ab", buffering=0) as file:
        file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete JSON lines of `path`; none when there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json of a run folder; {} when there is none."""
    try:
        return json.loads((folder / "meta.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def refuse_other_run(folder: Path, config: Config) -> None:
    """Raises BadInput when `folder` holds records of a run of another configuration, or records
    that nothing can continue.

    A folder in which nothing was recorded yet may be taken over.
    """
    steps = [row["step"] for row in read_lines(folder / "metrics.jsonl")]
    continues = (folder / "checkpoints" / "latest" / "state.json").is_file()
    if not steps and not continues:
        return
    before, now = config_module.resolved(folder / "config.yaml").identity(), config.identity()
    changed = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
    if changed:
        was = f"{changed[0]} was {before.get(changed[0])!r}, is now {now.get(changed[0])!r}"
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise BadInput(f"{folder}: holds another run: {was}{more}; choose another run_dir or arm")
    if not continues and read_meta(folder).get("status") in ("finished", "stopped"):
        raise BadInput(
            f"{folder}: holds a record of {max(steps)} steps but no checkpoint to continue from; choose another run_dir"
            " or arm"
        )


class Completions:
    """An open file of completions, JSON lines in gzip, locked for this process until `close`.
    Raises BadInput when it is in use.

    Each `append` is one gzip member written at once, so what a killed process left half written is
    known and cut off.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.rows = path, []
        self._file = open(path, "a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{path}: another live process is writing to it") from None
        self._file.seek(0)
        data = self._file.read()
        whole = 0
        while whole < len(data):
            member = zlib.decompressobj(wbits=31)
            try:
                text = member.decompress(data[whole:])
            except zlib.error:
                break
            if not member.eof:
                break
            self.rows += [json.loads(line) for line in text.decode().split("\n")[:-1]]
            whole = len(data) - len(member.unused_data)
        self._file.truncate(whole)

    def append(self, rows: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._file.write(gzip.compress(text.encode(errors="replace"), mtime=0))
        os.fsync(self._file)
        self.rows += rows

    def close(self) -> None:
        self._file.close()


class TokenRecord:
    """One row a token of a step's updates, for tokens/step<n>.parquet. Columns: docs/metrics.md.

    When a step has more than `max_tokens` response tokens, whole responses are left out, chosen at
    random by (seed, step).
    """

    def __init__(
        self, step: int, rollouts: list[Rollout], rewards: list[float], tokenizer: Any, config: Config, clip: ClipRange
    ):
        self.step, self.rollouts, self.rewards, self.tokenizer = step, rollouts, rewards, tokenizer
        self.diagnostics, self.clip = config.diagnostics, clip
        lengths = np.array([len(r.token_ids) for r in rollouts])
        order = np.random.default_rng([config.seed, step]).permutation(len(rollouts))
        self.chosen = torch.zeros(len(rollouts), dtype=torch.bool)
        self.chosen[order[lengths[order].cumsum() <= self.diagnostics.max_tokens]] = True
        self.update = 0
        self._columns: list[dict[str, np.ndarray]] = []

    def add(self, x: TokenBatch, weight_BT: Tensor, scale_BT: Tensor) -> None:
        """The tokens of a micro-batch of update number `self.update`."""
        b_N, t_N = torch.nonzero(x.mask_BT * self.chosen.to(x.mask_BT.device)[x.row_B][:, None], as_tuple=True)
        pick = lambda value_BT: value_BT[b_N, t_N].detach().double()
        logprob, entropy, advantage, ratio = (
            pick(x.logprob_BT),
            pick(x.entropy_BT),
            pick(x.advantage_BT),
            pick(x.log_ratio_BT).exp(),
        )
        weight, sum_p2 = pick(weight_BT), pick(x.sum_p2_BT)
        row = x.row_B[b_N].tolist()
        position = t_N.tolist()
        code = token_class(logprob, entropy, advantage, self.diagnostics.classes, self.diagnostics.threshold).tolist()
        side = clip_side(ratio, advantage, self.clip).tolist()
        token_ids = [self.rollouts[r].token_ids[t] for r, t in zip(row, position)]
        numbers = {
            "prob": logprob.exp(), "old_prob": pick(x.old_logprob_BT).exp(), "entropy": entropy,
            "advantage": advantage, "ratio": ratio,
            "weight": weight, "scale": pick(scale_BT), "gradient": gradient_contribution(weight, logprob.exp(), sum_p2),
            "dentropy": entropy_change(weight, logprob, entropy, sum_p2, pick(x.sum_p2_logp_BT)),
        }  # fmt: skip
        self._columns.append(
            {
                "step": np.full(len(row), self.step, dtype=np.int32),
                "update": np.full(len(row), self.update, dtype=np.int32),
                "prompt_id": np.array([self.rollouts[r].prompt.id for r in row], dtype=object),
                "rollout": np.array([self.rollouts[r].index for r in row], dtype=np.int32),
                "position": np.array(position, dtype=np.int32),
                "token_id": np.array(token_ids, dtype=np.int32),
                "token": np.array(self.tokenizer.convert_ids_to_tokens(token_ids), dtype=object),
                **{name: value.cpu().numpy().astype(np.float32) for name, value in numbers.items()},
                "class": np.array([CLASSES[c] for c in code], dtype=object),
                "side": np.array([SIDES[c] for c in side], dtype=object),
                "reward": np.array([self.rewards[r] for r in row], dtype=np.float32),
            }
        )

    def write(self, folder: Path) -> None:
        """tokens/step<n>.parquet in run folder `folder`, with every rank's tokens; appears only
        when it is complete."""
        import pandas as pd

        parts = [part for parts in parallel.gathered(self._columns) for part in parts]
        if parallel.rank() > 0 or not parts:
            return
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        frame = pd.DataFrame(columns).sort_values(["update", "prompt_id", "rollout", "position"])
        path = folder / "tokens" / f"step{self.step:06d}.parquet"
        path.parent.mkdir(exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        frame.to_parquet(unfinished, index=False)
        os.replace(unfinished, path)


def checkpoint(folder: Path, which: str = "latest") -> Path:
    """The checkpoint `which` ("latest" or "best") of run folder `folder`. Raises BadInput when
    there is none."""
    path = folder / "checkpoints" / which
    if not (path / "state.json").is_file():
        raise BadInput(f"{folder}: no checkpoint '{which}' there")
    return path


def fingerprint(model: str | Path) -> list[Any]:
    """What tells a model from another of the same place: the name, size and time of its weight
    files; the id of one of a hub."""
    files = sorted(Path(model).glob("*.safetensors")) + sorted(Path(model).glob("*.bin"))
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files] or [str(model)]


class Record:
    """An open run folder, locked for this process until `close`.

    Raises BadInput when another live process writes to it, or when it holds a run of another
    configuration.
    """

    def __init__(self, config: Config):
        self.config, self.folder = config, config.folder
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / ".lock", "w")
        except OSError as error:
            raise BadInput(f"{self.folder}: cannot be written ({error.strerror})") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{self.folder}: another live process is writing to it") from None
        refuse_other_run(self.folder, config)
        write_whole(self.folder / "config.yaml", config_module.as_yaml(config))
        self._meta = read_meta(self.folder) | {"status": "running"}
        self._meta.setdefault("start", _now())
        self._meta["sessions"] = [*self._meta.get("sessions", []), _session()]
        self._write_meta()
        self._wandb = _start_wandb(config, self.folder)

    def _write_meta(self) -> None:
        write_whole(self.folder / "meta.json", json.dumps(self._meta, indent=1, ensure_ascii=False) + "\n")

    def note(self, **facts: Any) -> None:
        """Facts for meta.json."""
        self._meta |= facts
        self._write_meta()

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        append_line(self.folder / "metrics.jsonl", {"step": step, **metrics})
        if self._wandb is not None:
            self._wandb.log({"step": step, **metrics})

    def log_eval(self, step: int, rows: list[dict[str, Any]]) -> None:
        """One line of eval.jsonl a benchmark."""
        for row in rows:
            append_line(self.folder / "eval.jsonl", {"step": step, **row})
            if self._wandb is not None:
                numbers = {f"eval/{row['benchmark']}/{k}": v for k, v in row.items() if isinstance(v, float)}
                self._wandb.log({"step": step, **numbers})
        if self._wandb is not None and rows:  # one number for a wandb sweep to look at
            self._wandb.log({"step": step, "eval/mean": mean_accuracy(rows)})

    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`: a resumed run writes those lines again."""
        for name in ("metrics.jsonl", "eval.jsonl"):
            path = self.folder / name
            if path.is_file():
                kept = [row for row in read_lines(path) if row["step"] <= step]
                write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))

    def save_checkpoint(self, step: int, write: Any, best: bool) -> None:
        """`write(folder)` fills a new checkpoint; only when it is complete does `latest` (and
        `best`) point to it."""
        root = self.folder / "checkpoints"
        root.mkdir(exist_ok=True)
        for leftover in root.glob("*.unfinished"):
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
        unfinished, folder = root / f"step{step:06d}.unfinished", root / f"step{step:06d}"
        unfinished.mkdir()
        write(unfinished)
        _flush(unfinished)
        if folder.exists():  # of an earlier life that died between here and the pointer
            shutil.rmtree(folder)
        unfinished.rename(folder)
        # `best` first: a run killed in between continues from the older `latest` and saves this one
        # again.
        for name in [*(["best"] if best else []), "latest"]:
            link = root / f"{name}.unfinished"
            link.symlink_to(folder.name)
            os.replace(link, root / name)
        _flush(root)
        used = {os.readlink(root / name) for name in ("latest", "best") if (root / name).is_symlink()}
        for old in root.glob("step*"):
            if old.name not in used:
                shutil.rmtree(old)

    def close(self, status: str) -> None:
        """`finished`, `stopped` (resumable) or `failed`."""
        self._meta |= {"status": status, "end": _now()}
        self._meta["sessions"][-1]["end"] = _now()
        self._write_meta()
        if self._wandb is not None:
            self._wandb.finish(1 if status == "failed" else 0)
        self._lock.close()


def _flush(folder: Path) -> None:
    """Force a folder's files and its list of names to the disk."""
    for path in [*folder.iterdir(), folder]:
        if path.is_symlink() or (path.is_dir() and path != folder):
            continue
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git(*arguments: str) -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _uncommitted() -> list[str]:
    """What git would commit: the diff against HEAD, and every file it does not know yet."""
    root = Path(__file__).resolve().parent.parent
    new = [root / name for name in (_git("ls-files", "--others", "--exclude-standard", ":/") or "").split()]
    return [
        _git("diff", "HEAD") or "",
        *(path.read_bytes().hex() for path in new if path.is_file() and path.stat().st_size < 1e6),
    ]


def _session() -> dict[str, Any]:
    changes = _uncommitted()
    return {
        "start": _now(),
        "command": " ".join(["run.py", *sys.argv[1:]]),
        "host": socket.gethostname(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "pid": os.getpid(),
        "ranks": parallel.world(),
        "commit": (_git("rev-parse", "HEAD") or "unknown").strip(),
        "diff": config_module.digest(changes) if any(changes) else None,  # hash of what was not committed
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


class _Wandb:
    """The mirror. Whatever goes wrong in it is said once and then ignored."""

    def __init__(self, run: Any):
        self._run = run

    def _try(self, call: Any, *arguments: Any, **options: Any) -> None:
        if self._run is None:
            return
        try:
            call(*arguments, **options)
        except Exception as error:  # wandb may fail in any way; the record on disk is complete without it
            print(f"wandb stopped mirroring: {str(error).splitlines()[0][:200]}", file=sys.stderr)
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


def _start_wandb(config: Config, folder: Path) -> _Wandb | None:
    mode = config.wandb.mode or os.environ.get("WANDB_MODE") or "offline"
    if mode == "disabled":
        return None
    try:
        import wandb
    except Exception as error:  # a broken installation of a mirror is no reason not to train
        print(f"wandb cannot be imported: {str(error).splitlines()[0][:200]}", file=sys.stderr)
        return None
    settings = dict(
        project=config.wandb.project, dir=str(folder), config=config.to_dict(),
        group=f"{config.experiment}/{config.arm}",
        name=f"{config.experiment}/{config.arm}/seed{config.seed}", resume="allow",
    )  # fmt: skip
    mine = lambda attempt: config_module.digest([str(folder.resolve()), attempt])
    quiet = wandb.Settings(console="off", silent=True, init_timeout=WANDB_PATIENCE)
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            # The same id for a resumed run; another one a mode, because a failed start keeps its id
            # busy. A sweep's agent names its own.
            run = wandb.init(
                **settings, id=os.environ.get("WANDB_RUN_ID") or mine(attempt), mode=attempt, settings=quiet
            )
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            return _Wandb(run)
        except Exception as error:  # no network, no key, a full disk: the run goes on without the mirror
            print(f"wandb ({attempt}) cannot start: {str(error).splitlines()[0][:200]}", file=sys.stderr)
    return None
