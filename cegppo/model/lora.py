"""LoRA (arXiv 2106.09685) through peft: low-rank adapters train beside frozen weights.

A target layer computes W x + (alpha / rank) B A x. The adapters are put into the model where its
layers are, so whoever takes the head, the decoder or a layer from it finds them in their places.
Samplers get merged weights, and a checkpoint holds the adapters alone, in peft's own format.

Left out: dropout. Every pass of the harness computes the same function, and the ratio of the first
update, the size of a micro-batch and the ledger's differences rely on it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..config import Lora, nearest
from ..types import BadInput
from . import parallel

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OURS, PREFIX = ".default.", "base_model.model."  # peft's name of an only adapter; what its files put before a name


def targets(model: Any, settings: Lora) -> dict[str, nn.Linear]:
    """The linear layers that get an adapter, by name: all but the head, or those whose last name
    `settings.targets` has. Raises BadInput when one of these is nowhere."""
    head = model.get_output_embeddings()
    text = set(model.get_decoder().modules())  # not of what reads images or sounds
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head and m in text}
    if not linear:
        raise BadInput(f"model.lora.rank: {type(model).__name__} has no linear layer besides its head")
    last = {name.rpartition(".")[2] for name in linear}
    for wanted in settings.targets:
        if wanted not in last:
            raise BadInput(f"model.lora.targets: no linear layer '{wanted}'{nearest(wanted, last)}")
    return {
        name: m for name, m in linear.items() if not settings.targets or name.rpartition(".")[2] in settings.targets
    }


def size(model: Any, settings: Lora) -> int:
    """The number of adapter parameters that `model`, which has none yet, would get."""
    return sum(settings.rank * (m.in_features + m.out_features) for m in targets(model, settings).values())


def adapt(model: Any, settings: Lora, seed: int) -> None:
    """Put adapters into `model`, in place, and freeze the rest. Their start depends on `seed`
    alone and changes nothing that the model computes. Raises BadInput."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise BadInput("model.lora.rank: peft is not installed: pip install -e '.[lora]'") from None
    chosen = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=list(targets(model, settings)), lora_dropout=0.0
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(chosen, model)


def layers(model: nn.Module) -> dict[str, Any]:
    """peft's layers in `model`, by name."""
    return {name: m for name, m in model.named_modules() if hasattr(m, "lora_A")}


def merged(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor) of each parameter that the model had without adapters, in its order,
    with theirs added. Every rank takes part."""
    adapted = layers(model)
    for name, p in model.named_parameters():
        layer, _, last = name.rpartition(".base_layer.")
        if layer not in adapted:
            if not p.requires_grad:
                yield name, parallel.whole(p.detach())
            continue
        value = parallel.whole(p.detach())
        if last == "weight":
            a, b = (
                parallel.whole(part["default"].weight.detach())
                for part in (adapted[layer].lora_A, adapted[layer].lora_B)
            )
            value = _added(value, a, b, adapted[layer].scaling["default"])
        yield f"{layer}.{last}", value


def _added(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return weight + scale * (b @ a)


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes what it did without adapters."""
    every = layers(model).values()
    for layer in every:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in every:
            layer.enable_adapters(True)


def save(model: Any, settings: Lora, folder: Path | None) -> None:
    """Adapters as peft reads them, and the model's own configuration. Ranks without a folder give
    their shards."""
    made = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            value = parallel.whole(p.detach())
            made[PREFIX + name.replace(OURS, ".")] = value.cpu().contiguous()
    if folder is not None:
        save_file(made, folder / WEIGHTS, metadata={"format": "pt"})
        said = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": model.name_or_path,
            "r": settings.rank, "lora_alpha": settings.alpha, "lora_dropout": 0.0, "bias": "none",
            "target_modules": list(layers(model)),
        }  # fmt: skip
        (folder / SETTINGS).write_text(json.dumps(said, indent=1))
        model.config.save_pretrained(folder)


def stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name in the adapted model, tensor) of the adapters that `save` wrote."""
    for name, value in load_file(folder / WEIGHTS).items():
        inside, _, last = name.removeprefix(PREFIX).rpartition(".")
        yield f"{inside}{OURS}{last}", value


def chain(path: str | Path) -> list[str]:
    """`path`, and where it holds adapters the model that they are of, and so on to a whole one."""
    made = [str(path)]
    while (said := Path(made[-1]) / SETTINGS).is_file():
        made.append(str(json.loads(said.read_text())["base_model_name_or_path"]))
    return made


@torch.no_grad()
def merge_into(model: Any, folder: str) -> None:
    """Add the adapters in `folder` to the weights of a model that has none, which is then called
    by that folder."""
    said, found = json.loads(Path(folder, SETTINGS).read_text()), load_file(Path(folder, WEIGHTS))
    for name in said["target_modules"]:
        weight = model.get_parameter(f"{name}.weight")
        a, b = (found[f"{PREFIX}{name}.lora_{which}.weight"] for which in "AB")
        weight.copy_(_added(weight, a, b, said["lora_alpha"] / said["r"]))
    model.name_or_path = folder
