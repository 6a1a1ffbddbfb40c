"""Where and from what a run was made: commit, uncommitted changes, versions, machine, command."""

import os
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import ranks
from ..config import digest

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "reasoning-gym", "omegaconf")


def now() -> str:
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
    root = Path(__file__).resolve().parents[2]
    new = [root / name for name in (_git("ls-files", "--others", "--exclude-standard", ":/") or "").split()]
    return [
        _git("diff", "HEAD") or "",
        *(path.read_bytes().hex() for path in new if path.is_file() and path.stat().st_size < 1e6),
    ]


def session() -> dict[str, Any]:
    changes = _uncommitted()
    return {
        "start": now(),
        "command": " ".join(["run.py", *sys.argv[1:]]),
        "host": socket.gethostname(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "pid": os.getpid(),
        "ranks": ranks.world(),
        "commit": (_git("rev-parse", "HEAD") or "unknown").strip(),
        "diff": digest(changes) if any(changes) else None,  # hash of what was not committed
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
