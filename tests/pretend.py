"""A GPU that is not there. Inside `Pretend`, what is asked for on "cuda" are tensors of the CPU
with a mark on their storage; `.device` and `.is_cuda` say what the mark says, so that code takes
the ways it takes on a GPU, and what a GPU refuses is refused: operations on tensors of both devices
(numbers and, for looking up, indices may be the CPU's), and numpy on what is not in the CPU's
memory.

It also counts what makes the CPU wait for the GPU, by the line of the package that asked.

Left out: kernels, bf16 (autocast finds no GPU), page-locked memory, and what happens inside
functions of PyTorch that are written in Python.
"""

import sys
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

PACKAGE = str(Path(__file__).resolve().parent.parent / "cegppo")
CUDA = torch.device("cuda:0")
VALUES = {"item", "tolist", "__bool__", "__float__", "__int__", "__index__"}  # a number leaves the device
SIZES = {"nonzero", "masked_select", "unique", "unique_consecutive", "argwhere"}  # the result's size does
NUMPY = {"numpy", "__array__"}
BETWEEN = {"to", "cpu", "cuda", "copy_"}  # may read one device and write the other
ASKING = {"_has_compatible_shallow_copy_type", "data"}  # look at tensors without their numbers; `data` is given another


def _is_cuda(device: object) -> bool:
    return device is not None and not isinstance(device, int) and torch.device(device).type == "cuda"


def mark(t: Tensor) -> str | None:
    """ "cuda" or "cpu" where that was asked for, or follows; None where nobody said."""
    return getattr(t.untyped_storage(), "pretended", None)


def _put(t: Tensor, where: str | None) -> Tensor:
    if where is not None:
        t.untyped_storage().pretended = where
    return t


class Pretend(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()  # by "file.py:line name"

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func.__self__.__name__ if func.__name__ in ("__get__", "__set__") else func.__name__
        if func.__name__ == "__get__" and name in ("device", "is_cuda"):
            there = mark(args[0]) == "cuda"
            return {"device": CUDA if there else args[0].device, "is_cuda": there}[name]
        args, where = self._asked(name, list(args), kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        marks = {mark(t) for t in tensors}
        self._refuse(name, args, tensors)
        self._count(name, args, marks, where)
        made = func(*args, **kwargs)
        if func.__name__ == "__set__" and name in ("data", "grad") and args[1] is not None:
            return made
        if where is None:
            first = mark(args[0]) if name.endswith("_") and tensors and args and isinstance(args[0], Tensor) else None
            where = first or ("cuda" if "cuda" in marks else "cpu" if "cpu" in marks or not tensors else None)
        return torch.utils._pytree.tree_map(
            lambda leaf: self._placed(leaf, where, args) if isinstance(leaf, Tensor) else leaf, made
        )

    def _asked(self, name: str, args: list, kwargs: dict) -> tuple[list, str | None]:
        """Arguments without the device that does not exist, and where the result is to be."""
        where = None
        kwargs.pop("pin_memory", None)
        if kwargs.get("device") is not None:
            where = "cuda" if _is_cuda(kwargs["device"]) else "cpu"
            kwargs["device"] = "cpu" if where == "cuda" else kwargs["device"]
        elif name in ("cpu", "cuda"):
            where = name
        elif name == "to":
            for place, value in enumerate(args[1:], 1):
                if isinstance(value, (str, torch.device)):
                    where = "cuda" if _is_cuda(value) else "cpu"
                    args[place] = "cpu" if where == "cuda" else value
                elif isinstance(value, Tensor):
                    where = mark(value)
        return args, where

    def _placed(self, t: Tensor, where: str | None, args: list) -> Tensor:
        """`t` where it is to be: what is moved is another tensor."""
        moved = where is not None and mark(t) not in (None, where)
        return _put(t.clone() if moved else t, where)

    def _refuse(self, name: str, args: list, tensors: list[Tensor]) -> None:
        if name in NUMPY and mark(args[0]) == "cuda":
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if name in BETWEEN or name in ASKING:
            return
        if name in ("__getitem__", "__setitem__", "index_put_", "index_put"):
            if mark(args[0]) == "cuda":  # it may be indexed by the CPU's indices
                tensors = [args[0], *(leaf for leaf in tree_leaves(args[2:]) if isinstance(leaf, Tensor))]
        marks = {mark(t) for t in tensors if t.dim() > 0}
        if {"cuda", "cpu"} <= marks:
            raise RuntimeError(f"Expected all tensors to be on the same device, in {name} at {_line()}")

    def _count(self, name: str, args: list, marks: set, where: str | None) -> None:
        by_mask = name in ("__getitem__", "__setitem__") and any(
            isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1:2])
        )
        crosses = name in BETWEEN and ({"cuda", "cpu"} <= marks or {mark(args[0]), where} == {"cuda", "cpu"})
        if crosses or "cuda" in marks and (name in VALUES or name in SIZES or by_mask):
            self.waits[f"{_line()} {name}"] += 1


def _line() -> str:
    """The innermost line of the package that is being run."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return "outside" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
