"""Where the runs of a sweep run: processes of this machine, a Ray cluster, or Slurm. A command and
a folder in, a Job out.

Ray and Slurm need what they always need: the same paths and the same Python environment on every
node.
"""

import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Protocol

from ..record.files import open_file
from ..types import BadInput, said

NAMES = ("local", "ray", "slurm")
STOP = ".stop"  # a file of this name in a run's folder asks the run to stop where it can resume, wherever it runs


class Job(Protocol):
    """One run under way."""

    def poll(self) -> int | None:
        """The exit code; None while it runs or waits."""

    def interrupt(self) -> None:
        """Ask it to stop at a point from which it resumes; its exit code is then 130."""

    def kill(self) -> None:
        """End it now."""


class Launcher(Protocol):
    def start(self, command: list[str], folder: Path, slot: int) -> Job:
        """Run `command`, its output appended to <folder>/output.txt. No two running jobs have
        the same `slot` (0, 1, …)."""


def launcher(name: str, gpus: int | None, slurm: dict[str, Any]) -> Launcher:
    """`local`, `ray` (the cluster at RAY_ADDRESS, else a local one), `ray://host:port` or `slurm`.

    `gpus` a run: on this machine slots take them in turn, so that more slots than there are GPUs
    share them; the cluster engines are asked for as many. None: one each where this machine shows
    any. `slurm` are the keyword arguments of submitit's `update_parameters`, and `cluster` its
    executor. Raises BadInput when the engine is not installed or cannot be reached.
    """
    gpus = min(1, len(visible_gpus())) if gpus is None else gpus
    if name == "local":
        return Local(gpus)
    if name == "slurm":
        return Slurm(gpus, slurm)
    return Ray(None if name == "ray" else name, gpus)


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def environment() -> dict[str, str]:
    """Runs side by side on the same cores: a thread each, unless the user says otherwise."""
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


class Local:
    """Processes of this machine. They die with this one."""

    def __init__(self, gpus: int):
        self.gpus, self.devices = gpus, visible_gpus() if gpus else []
        if gpus > len(self.devices):
            raise BadInput(f"sweep.gpus={gpus}: this machine shows {len(self.devices)}")

    def start(self, command: list[str], folder: Path, slot: int) -> "LocalJob":
        mine = environment()
        if self.gpus:
            mine["CUDA_VISIBLE_DEVICES"] = ",".join(
                self.devices[(slot * self.gpus + i) % len(self.devices)] for i in range(self.gpus)
            )
        with open_file(folder / "output.txt") as output:
            # A session of its own: Ctrl-C reaches this process, which passes it on once.
            return LocalJob(
                subprocess.Popen(
                    command, stdout=output, stderr=output, env=mine, start_new_session=True, preexec_fn=in_the_child
                )
            )


class LocalJob:
    def __init__(self, process: subprocess.Popen):
        self._process = process

    def poll(self) -> int | None:
        return self._process.poll()

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self._process.kill()


def in_the_child() -> None:
    """A sweep that is killed takes its runs along, so that the same command can continue them at
    once; and Ctrl-C reaches a run even if the process that starts it ignores it, as Ray's workers
    do."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def execute(command: list[str], folder: str, working_folder: str) -> int:
    """On a cluster's node: run `command` and pass a request to stop on to it; its exit code."""
    stop = Path(folder, STOP)
    if stop.exists():  # asked to stop while it waited in a queue
        return 130
    with open_file(Path(folder, "output.txt")) as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=working_folder, env=environment(), preexec_fn=in_the_child
        )
    asked = False
    while process.poll() is None:
        if stop.exists() and not asked:
            process.send_signal(signal.SIGINT)
            asked = True
        time.sleep(0.2)
    return process.returncode


class Ray:
    """Tasks of a Ray cluster, one a run. A sweep that is killed takes its tasks along, as Ray
    ends a driver's tasks with it."""

    def __init__(self, address: str | None, gpus: int):
        if address is None and not os.environ.get("RAY_ADDRESS"):
            # A cluster of its own is for this machine. Ray replaces 127.0.0.1 by the machine's own
            # address and then listens on every interface, unless it is told that there are no
            # clusters here, as it is by default on Windows; it reads this when it is imported.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        try:
            import ray
        except ImportError:
            raise BadInput("sweep.launcher=ray: Ray is not installed: pip install -e '.[ray]'") from None
        self.ray = ray
        try:
            # The driver must outlive a Ctrl-C, which is a request to stop; Ray's own output would
            # tear the table.
            ray.init(
                address=address,
                ignore_reinit_error=True,
                log_to_driver=False,
                include_dashboard=False if address is None else None,
            )
        except Exception as error:  # an unreachable cluster surfaces as one of many exceptions
            raise BadInput(f"sweep.launcher: Ray cannot start ({said(error)})") from None
        self._execute = ray.remote(num_cpus=max(1, gpus), num_gpus=gpus, max_retries=0)(execute)

    def start(self, command: list[str], folder: Path, slot: int) -> "RayJob":
        folder = folder.resolve()
        (folder / STOP).unlink(missing_ok=True)
        return RayJob(self.ray, self._execute.remote(command, str(folder), os.getcwd()), folder)


class RayJob:
    def __init__(self, ray: Any, reference: Any, folder: Path):
        self._ray, self._reference, self._folder = ray, reference, folder

    def poll(self) -> int | None:
        if not self._ray.wait([self._reference], timeout=0)[0]:
            return None
        try:
            return self._ray.get(self._reference)
        except self._ray.exceptions.RayError as error:  # the node died, the task was cancelled
            return _lost(self._folder, error)

    def interrupt(self) -> None:
        (self._folder / STOP).touch()

    def kill(self) -> None:
        self._ray.cancel(self._reference, force=True)


class Slurm:
    """Jobs of Slurm through submitit. A killed sweep leaves its jobs running: the run's lock
    refuses a second process meanwhile."""

    def __init__(self, gpus: int, parameters: dict[str, Any]):
        try:
            import submitit
        except ImportError:
            raise BadInput("sweep.launcher=slurm: submitit is not installed: pip install -e '.[slurm]'") from None
        self._submitit = submitit
        self._parameters = {
            "cpus_per_task": max(1, gpus),
            "timeout_min": 24 * 60,
            **({"gpus_per_node": gpus} if gpus else {}),
            **parameters,
        }
        self._cluster = self._parameters.pop("cluster", "slurm")

    def start(self, command: list[str], folder: Path, slot: int) -> "SlurmJob":
        folder = folder.resolve()
        (folder / STOP).unlink(missing_ok=True)
        try:
            executor = self._submitit.AutoExecutor(folder=folder / "slurm", cluster=self._cluster)
            executor.update_parameters(**self._parameters)
            return SlurmJob(executor.submit(execute, command, str(folder), os.getcwd()), folder)
        except Exception as error:  # no Slurm here, or parameters that submitit does not know
            raise BadInput(f"sweep.launcher=slurm: {said(error)}") from None


class SlurmJob:
    def __init__(self, job: Any, folder: Path):
        self._job, self._folder = job, folder

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        try:
            return self._job.result()
        except Exception as error:  # cancelled, timed out, lost
            return _lost(self._folder, error)

    def interrupt(self) -> None:
        (self._folder / STOP).touch()
        if self._job.state == "PENDING":
            self._job.cancel(check=False)

    def kill(self) -> None:
        self._job.cancel(check=False)


def _lost(folder: Path, error: Exception) -> int:
    """The exit code of a job that ended without one; why is added to its output, where a sweep
    looks for its error."""
    if (folder / STOP).exists():
        return 130
    with open_file(folder / "output.txt") as output:
        output.write(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}\n".encode(errors="replace"))
    return 1
