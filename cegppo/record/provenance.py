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

from .. import ranks, shipped
from ..config import digest
from ..masking import without_secrets

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "reasoning-gym", "omegaconf")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


HERE = Path(__file__).resolve().parent
# Code only: what a YAML says stands in config.yaml, and a record does not change what made it.
CODE = ("--", ":/*.py", ":(top,exclude)results")


def _git(*arguments: str, cwd: Path | None = None) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=cwd or HERE, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _uncommitted() -> list[str]:
    """The Python code that git would commit: the diff against HEAD, and name and content of every
    file it does not know yet."""
    root = Path((_git("rev-parse", "--show-toplevel") or "").strip() or HERE)
    # `ls-files` prints names relative to where it is asked, so it is asked at the top.
    new = (_git("ls-files", "-z", "--others", "--exclude-standard", *CODE, cwd=root) or "").split("\0")
    return [
        _git("diff", "HEAD", *CODE, cwd=root) or "",
        *(name + ":" + (root / name).read_bytes().hex() for name in new if name and (root / name).is_file()),
    ]


def session() -> dict[str, Any]:
    # A wheel may lie inside a checkout of something else.
    commit = f"v{version('cegppo')}" if shipped.INSTALLED else (_git("rev-parse", "HEAD") or "unknown").strip()
    changes = [] if shipped.INSTALLED else _uncommitted()
    return {
        "start": now(),
        "command": without_secrets(" ".join(["run.py", *sys.argv[1:]])),
        "host": socket.gethostname(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "pid": os.getpid(),
        "ranks": ranks.world(),
        "commit": commit,
        "diff": digest(changes) if any(changes) else None,  # hash of what was not committed
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What of the code differs between two sessions, in words; "" when nothing does, or nothing
    is known."""
    if "commit" not in before:
        return ""
    words = {None: "none"}
    return ", ".join(
        f"{what} {words.get(old, str(old)[:12])} → {words.get(new, str(new)[:12])}"
        for what, old, new in (
            ("commit", before["commit"], now["commit"]),
            ("uncommitted changes", before.get("diff"), now["diff"]),
        )
        if old != new
    )
