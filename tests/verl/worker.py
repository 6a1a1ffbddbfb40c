"""verl's own TrainingWorker with its FSDP engine, on CPU processes: `update(…)` is one call of its
`train_mini_batch`. Run by torchrun it does so on several ranks: arguments are a file of cases and
the folder that gets what each rank saw.

verl has no platform for a CPU, and a registry for platforms: this one is told to it.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import verl  # noqa: F401  (loads the entry point)
from tensordict import TensorDict
from verl.plugin.platform.platform_cuda import PlatformCUDA
from verl.plugin.platform.platform_manager import PlatformRegistry, set_platform


@PlatformRegistry.register("cpu")
class PlatformCPU(PlatformCUDA):
    device_name = vendor_name = "cpu"
    device_module = SimpleNamespace(
        **{name: getattr(torch.cpu, name) for name in ("is_available", "synchronize", "Stream", "stream")},
        **{f"{most}memory_{kind}": lambda: 0 for most in ("", "max_") for kind in ("allocated", "reserved")},
        mem_get_info=lambda: (0, 0),
        get_device_name=lambda: "cpu",
        empty_cache=lambda: None,
        set_device=lambda device: None,
        manual_seed=torch.manual_seed,
    )

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:
        return "cpu"

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "NO_VISIBLE_DEVICES"

    def set_device(self, device_index: int) -> None:
        pass


set_platform(PlatformCPU())
os.environ["VERL_ENGINE_DEVICE"] = "cuda"  # the FSDP engine is registered for it, and for no CPU

from verl.utils import tensordict_utils as tu  # noqa: E402
from verl.workers import engine_workers  # noqa: E402
from verl.workers.config import (  # noqa: E402
    FSDPActorConfig,
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
    TrainingWorkerConfig,
)
from verl.workers.utils.padding import left_right_2_no_padding  # noqa: E402

from cegppo.plugins.verl import PolicyLossConfig  # noqa: E402

TEMPERATURE = 0.9


def actor_config(mode: str, knobs: dict[str, Any] | None = None, **changes: Any) -> FSDPActorConfig:
    """An actor that trains with loss_mode `mode`."""
    own = dict(strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=2, clip_ratio_c=float("inf"))
    return FSDPActorConfig(policy_loss=PolicyLossConfig(loss_mode=mode, knobs=knobs or {}), **own | changes)


def worker(model: str, config: FSDPActorConfig, micro: int, packed: bool, statistics: bool):
    """A TrainingWorker whose optimizer takes the plain gradient, one step of 1."""
    if not torch.distributed.is_initialized():  # verl would ask for two backends, of CPU and device
        torch.distributed.init_process_group("gloo")
    made = engine_workers.TrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=HFModelConfig(
                path=model,
                load_tokenizer=False,
                override_config={"attn_implementation": "sdpa"},
                use_remove_padding=packed,
                enable_gradient_checkpointing=False,
                external_lib="cegppo.plugins.verl_statistics" if statistics else None,
            ),
            engine_config=FSDPEngineConfig(
                strategy="fsdp2",
                mixed_precision={"param_dtype": "fp32"},
                use_dynamic_bsz=False,
                micro_batch_size_per_gpu=micro,
                use_torch_compile=False,
            ),
            optimizer_config=FSDPOptimizerConfig(
                optimizer="SGD", lr=1.0, weight_decay=0.0, clip_grad=1e9, lr_scheduler_type="constant"
            ),
        )
    )
    made.reset()
    made.set_loss_fn(partial(engine_workers.ppo_loss, config=config))
    return made


def update(model: str, batch: dict[str, torch.Tensor], case: dict[str, Any], rank: int = 0, ranks: int = 1):
    """(metrics of the update, weights after it) by verl on this rank's rows of `batch`."""
    config = actor_config(case["mode"], case.get("knobs"), **case.get("actor", {}))
    made = worker(model, config, case["micro"], case.get("packed", True), case.get("statistics", True))
    rows = len(batch["input_ids"]) // ranks
    mine = {key: value[rank * rows : (rank + 1) * rows].clone() for key, value in batch.items()}
    data = left_right_2_no_padding(TensorDict(mine, batch_size=rows))
    tu.assign_non_tensor(
        data,
        temperature=TEMPERATURE,
        global_batch_size=rows * ranks,
        mini_batch_size=rows * ranks,
        calculate_entropy=case.get("calculate_entropy", False),
    )
    metrics = tu.get(made.train_mini_batch(data), "metrics")
    weights = {k: v.full_tensor().detach().clone() for k, v in made.engine.module.state_dict().items()}
    return {k: v[0] if isinstance(v, list) else v for k, v in metrics.items()}, weights


def main() -> None:
    cases, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    batch = torch.load(cases["batch"])
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for name, case in cases["cases"].items():
        metrics, weights = update(cases["model"], batch, case, rank, ranks)
        torch.save((metrics, weights), out / f"{name}.{rank}.pt")


if __name__ == "__main__":
    main()
