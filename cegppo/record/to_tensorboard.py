"""TensorBoard as a mirror: numbers and histograms, in `tensorboard/` of the run's folder."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..types import BadInput
from .mirror import Shown


class ToTensorBoard:
    """Event files. What an earlier life of the run wrote after `step`, where it goes on, is hidden:
    it is written again."""

    name = "TensorBoard"
    later = "metrics.jsonl has what it lacks"

    def __init__(self, folder: Path, step: int):
        self._folder, self._first = folder / "tensorboard", step + 1 if step else 0
        self._writer: Any = None

    @staticmethod
    def require() -> None:
        """Raises BadInput where the package is not installed."""
        if find_spec("tensorboard") is None:
            raise BadInput("tensorboard=true: TensorBoard is not installed: pip install -e '.[tensorboard]'")

    def open(self) -> bool:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=self._first)
        return True

    def show(self, step: int, shown: Shown) -> None:
        for name, value in shown.numbers.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
        for name, (counts, edges) in shown.histograms.items():
            middle = (edges[1:] + edges[:-1]) / 2  # sums are of these: the values themselves are not here
            self._writer.add_histogram_raw(
                name, min=float(edges[0]), max=float(edges[-1]), num=int(counts.sum()),
                sum=float(counts @ middle), sum_squares=float(counts @ np.square(middle)),
                bucket_limits=edges[1:].tolist(), bucket_counts=counts.tolist(), global_step=step,
            )  # fmt: skip

    def close(self, failed: bool) -> None:
        self._writer.close()
