"""Will it fit? An estimate of what training holds on its device; and what is done when it did not.

In: the configuration and the model's shape (read without its weights). Out: nothing, or one line
that says what is too large. The estimate is of the largest micro-batch that may come and leaves out
what is uncertain (docs/memory.md): a configuration that passes may still run out.
"""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from .. import ranks
from ..config import Config
from ..explore import improper
from ..types import BadInput, said
from . import lora
from .head import BLOCK_BYTES
from .policy import Policy, choose_device
from .traits import text_config

GIB = 2**30
A = TypeVar("A")
# What RuntimeErrors say that have no class of their own: PyTorch's allocator on a CPU, and cuBLAS.
ALLOCATORS = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")


def estimate(config: Config, model: PreTrainedModel, device: str, shards: int = 1) -> dict[str, float]:
    """Bytes on `device` ("cpu" or "cuda") by what takes them. `model` may be on the meta device.
    `shards`: processes that share weights."""
    c, m, update = text_config(model), config.model, config.update
    parameters = sum(p.numel() for p in model.parameters())
    trained = lora.size(model, m.lora) if m.lora.rank else parameters
    decoder = sum(p.numel() for p in model.get_decoder().parameters())
    moments = 0 if update.offload_optimizer and device != "cpu" else 8
    made: dict[str, float] = {"weights": 4 * parameters, "gradients": 4 * trained, "optimizer": moments * trained}
    if m.lora.rank:  # with its adapters; and, while it samples, with what they are merged into
        made |= {"adapters": 4 * trained, "merged": 4 * parameters}
    if m.dtype == "bfloat16":
        made["bf16 weights"] = 2 * parameters
    if update.kl_coef and not m.lora.rank:
        made["reference"] = 4 * parameters
    if config.advantage.kind == "gae":
        made["critic"] = (8 + moments) * decoder
    if config.diagnostics.every:  # parameters before and after an update, and a direction
        # Its parts: nine cells' gradients, the same scaled; the step in three, and the
        # parameters twice.
        made["ledger"] = (12 + 4 * 23 * config.diagnostics.parts) * trained
    if config.rollout.staleness and device == "cpu":  # copies lie in host memory, which is the device's here
        made["older weights"] = 4 * trained * (config.rollout.staleness + 1)
    made = {name: value / shards for name, value in made.items()}
    if config.explore["name"] == "improper":  # checkpoints that sample, whole on every rank
        frozen = sum(bool(b.checkpoint) for b in improper.base_samplers(config.explore["samplers"]))
        made["samplers"] = 4 * frozen * parameters
    rows = -(-config.prompts_per_step * config.group_size // config.updates_per_step // shards)
    tokens = max(1, min(update.micro_batch_tokens, rows * (config.data.max_prompt_tokens + config.rollout.max_tokens)))
    made["activations"] = tokens * activation_bytes(c, m.dtype, m.gradient_checkpointing)
    if config.diagnostics.every:  # its passes are in fp32, and the probe's has a backward pass
        longest = config.data.max_prompt_tokens + config.rollout.max_tokens
        most = max(1, min(update.micro_batch_tokens, -(-config.diagnostics.probe // shards) * longest))
        exact = most * activation_bytes(c, "float32", m.gradient_checkpointing)
        made["activations"] = max(made["activations"], exact)
    whole, most = 4 * tokens * model.get_output_embeddings().weight.shape[0], m.head_chunk << 20
    # The plain way holds about five tensors of the size of the logits, a block three.
    made["logits"] = 5 * whole if whole <= most else 3 * min(most, BLOCK_BYTES["cpu" if device == "cpu" else "cuda"])
    return made


def activation_bytes(c: PretrainedConfig, dtype: str, checkpointing: bool) -> float:
    """Bytes a token that the layers of a Llama- or Qwen-like decoder keep for the backward pass."""
    width, layers = c.hidden_size, c.num_hidden_layers
    inner = getattr(c, "intermediate_size", None) or 4 * width  # what models that do not say it have
    heads = getattr(c, "num_attention_heads", None) or 1  # of a state-space model: its width counts once
    head = getattr(c, "head_dim", None) or width // heads
    attention = head * (heads + 2 * (getattr(c, "num_key_value_heads", None) or heads))
    narrow = 2 if dtype == "bfloat16" else 4
    one = 4 * 4 * width + narrow * (2 * attention + 2 * width + 4 * inner)
    return 4 * width * layers + one if checkpointing else one * layers


def available(device: torch.device) -> float:
    """Bytes that `device` can still give; infinite where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")


def check(config: Config, path: str | Path, shards: int = 1) -> None:
    """Raises BadInput, in one line with numbers, when training `config` from `path` cannot fit
    on its device."""
    device = choose_device(config.model.device)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path, trust_remote_code=False))
    except Exception:  # not a model: Policy.load says why
        return
    needs, has = estimate(config, model, device.type, shards), available(device)
    if sum(needs.values()) <= has:
        return
    parts = ", ".join(f"{name} {value / GIB:.1f}" for name, value in needs.items() if value >= 0.05 * GIB)
    raise BadInput(
        f"model.path={path}: training needs at least {sum(needs.values()) / GIB:.1f} GiB ({parts}), "
        f"{device} has {has / GIB:.1f} GiB free; try "
        + ", ".join([*ways(config, device), f"update.micro_batch_tokens below {config.update.micro_batch_tokens}"])
    )


def ways(config: Config, device: torch.device) -> list[str]:
    """Settings that need less memory than those of `config`, micro-batches aside."""
    made = {
        "model.gradient_checkpointing=true": not config.model.gradient_checkpointing,
        "update.offload_optimizer=true": not config.update.offload_optimizer and device.type != "cpu",
    }
    return [name for name, helps in made.items() if helps]


class OutOfMemory(Exception):
    """Memory ran out, and a smaller micro-batch does not help, or not in this process. No
    checkpoint holds what was half done. Printed as one line; exit code 1."""

    tokens = 0  # of a pass, with which it may be tried again; 0: there is no such number


def ran_out(error: BaseException) -> bool:
    """Whether an allocator said it: CUDA's, PyTorch's on a CPU, Python's or numpy's."""
    by_name = isinstance(error, RuntimeError) and any(name in str(error) for name in ALLOCATORS)
    return by_name or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def within(policy: Policy, function: Callable[[], A]) -> A:
    """`function()`, which makes forward passes of `policy`; again with half the tokens a pass each
    time that memory runs out. A call that fails must leave nothing behind but gradients, which it
    clears when it begins.

    Raises OutOfMemory where the pass that failed was of a single row, or where there was none; and
    with several ranks, of which the others wait inside the pass for the one that has left it.
    """
    room = policy.room
    room.under_way = None
    while True:
        try:
            return function()
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            why = said(error, 120)
        # Not in the handler: until it ends, the error holds the frames that hold the tensors.
        gc.collect()
        if policy.device.type == "cuda":
            torch.cuda.empty_cache()
        if room.under_way is None:
            raise OutOfMemory(f"memory ran out ({why}), in no pass that could be made smaller")
        rows, tokens = room.under_way
        if rows == 1:
            raise OutOfMemory(f"memory ran out ({why}) in a pass of a single answer, of {tokens} tokens")
        where = f"memory ran out ({why}) in a pass of {rows} answers, {tokens} tokens"
        if ranks.world() > 1:
            stop = OutOfMemory(f"rank {ranks.rank()}: {where}")
            stop.tokens = tokens // 2
            raise stop
        room.tokens, room.retries, room.under_way = tokens // 2, room.retries + 1, None
        print(f"{where}: again, and from here on, with at most {room.tokens} tokens a pass", file=sys.stderr)


def metrics(policy: Policy, asked: int) -> dict[str, float]:
    """Once passes had to become smaller than the `asked` number of tokens: what they have now, and
    how often that was in this step, whose end this is."""
    retries, policy.room.retries = policy.room.retries, 0
    if policy.micro_batch_tokens >= asked:
        return {}
    return {"memory/micro_batch_tokens": float(policy.micro_batch_tokens), "memory/retries": float(retries)}


@contextmanager
def in_a_line(config: Config, device: torch.device) -> Iterator[None]:
    """Memory that runs out inside, anywhere, is an OutOfMemory that says what may help."""
    try:
        yield
    except (RuntimeError, MemoryError, OutOfMemory) as error:
        if not isinstance(error, OutOfMemory) and not ran_out(error):
            raise
        words = str(error) if isinstance(error, OutOfMemory) else f"memory ran out ({said(error, 120)})"
        helps = ", ".join([*ways(config, device), "a smaller rollout.max_tokens, group_size or model"])
        again = "the same command continues from the last checkpoint"
        if tokens := getattr(error, "tokens", 0):
            again += f", with at most {tokens} tokens a pass"
        made = OutOfMemory(f"{words}; {again}; what takes less: {helps}")
        made.tokens = tokens
        raise made from None
