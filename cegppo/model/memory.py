"""Will it fit? An estimate of what training holds on its device, and an AdamW whose moments wait in
the CPU's memory.

In: the configuration and the model's shape (read without its weights). Out: nothing, or one line
that says what is too large. The estimate is of the largest micro-batch that may come and leaves out
what is uncertain (docs/memory.md): a configuration that passes may still run out.
"""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..config import Config
from ..types import BadInput
from . import lora
from .head import BLOCK_BYTES
from .policy import choose_device

GIB = 2**30


def estimate(config: Config, model: PreTrainedModel, device: str, shards: int = 1) -> dict[str, float]:
    """Bytes on `device` ("cpu" or "cuda") by what takes them. `model` may be on the meta device.
    `shards`: processes that share weights."""
    c, m, update = model.config, config.model, config.update
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
    made = {name: value / shards for name, value in made.items()}
    rows = -(-config.prompts_per_step * config.group_size // config.updates_per_step // shards)
    tokens = max(1, min(update.micro_batch_tokens, rows * (config.data.max_prompt_tokens + config.rollout.max_tokens)))
    made["activations"] = tokens * activation_bytes(c, m.dtype, m.gradient_checkpointing)
    whole, most = 4 * tokens * model.get_output_embeddings().weight.shape[0], m.head_chunk << 20
    # The plain way holds about five tensors of the size of the logits, a block three.
    made["logits"] = 5 * whole if whole <= most else 3 * min(most, BLOCK_BYTES["cpu" if device == "cpu" else "cuda"])
    return made


def activation_bytes(c: PretrainedConfig, dtype: str, checkpointing: bool) -> float:
    """Bytes a token that the layers of a Llama- or Qwen-like decoder keep for the backward pass."""
    width, layers = c.hidden_size, c.num_hidden_layers
    inner = getattr(c, "intermediate_size", None) or 4 * width  # what models that do not say it have
    head = getattr(c, "head_dim", None) or width // c.num_attention_heads
    attention = head * (c.num_attention_heads + 2 * (getattr(c, "num_key_value_heads", None) or c.num_attention_heads))
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
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    except Exception:  # not a model: Policy.load says why
        return
    needs, has = estimate(config, model, device.type, shards), available(device)
    if sum(needs.values()) <= has:
        return
    parts = ", ".join(f"{name} {value / GIB:.1f}" for name, value in needs.items() if value >= 0.05 * GIB)
    ways = [
        "model.gradient_checkpointing=true" if not config.model.gradient_checkpointing else "",
        "update.offload_optimizer=true" if not config.update.offload_optimizer and device.type != "cpu" else "",
        f"update.micro_batch_tokens below {config.update.micro_batch_tokens}",
    ]
    raise BadInput(
        f"model.path={path}: training needs at least {sum(needs.values()) / GIB:.1f} GiB ({parts}), "
        f"{device} has {has / GIB:.1f} GiB free; try {', '.join(filter(None, ways))}"
    )
