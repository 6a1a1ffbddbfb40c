"""What verl's FSDP engines do not say of a token, from the same logits: Σπ² and Σπ² log π, and the
entropy with them, without which there is no gradient share, no first-order entropy change and no
lever.

    actor_rollout_ref.model.external_lib=cegppo.plugins.verl_statistics

Importing this file, which verl then does in the actor's workers, wraps the engines'
`prepare_model_outputs`. It costs one more pass over the logits, in blocks, without a gradient, and
does nothing with verl's own losses. Where a model shows no logits (`use_fused_kernels`) nothing is
added; Megatron's engine is another class.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from verl.workers.engine.fsdp import FSDPEngineWithLMHead

from ..model.head import token_statistics
from .batch import STATISTICS
from .verl import ours

BLOCK_BYTES = 256 << 20  # of logits in fp32 at a time


def with_statistics(prepare: Callable[..., dict]) -> Callable[..., dict]:
    """verl's `prepare_model_outputs`, whose result also has STATISTICS where a loss of ours is
    going to read it."""

    @functools.wraps(prepare)
    def wrapped(
        engine: Any, output: Any, output_args: dict, micro_batch: Any, logits_processor_func: Any
    ) -> dict[str, Any]:
        made = {}
        if ours(getattr(logits_processor_func, "keywords", {}).get("config")):
            made = _statistics(engine, output, output_args, micro_batch)  # before verl divides the logits in place
        return prepare(engine, output, output_args, micro_batch, logits_processor_func) | made

    return wrapped


@torch.no_grad()
def _statistics(engine: Any, output: Any, output_args: dict, micro_batch: Any) -> dict[str, Tensor]:
    """STATISTICS of every token of the micro-batch, nested as verl nests its log-probabilities; {}
    where the model shows no logits."""
    logits, offsets = getattr(output, "logits", None), micro_batch["input_ids"].offsets()
    if logits is None:
        return {}
    logits = logits.full_tensor() if isinstance(logits, DTensor) else logits
    packed = "temperature_rmpad" in output_args
    if packed:
        logits_NV, temperature_N = logits[0], output_args["temperature_rmpad"]
    else:
        inside_BS = torch.arange(logits.shape[1], device=logits.device) < offsets.diff()[:, None]
        logits_NV, temperature_N = logits[inside_BS], output_args["temperature"].repeat_interleave(offsets.diff())
    made = []
    height = max(1, BLOCK_BYTES // (4 * logits_NV.shape[1]))
    with torch.autocast(logits.device.type, enabled=False):
        for logits_nv, temperature_n in zip(logits_NV.split(height), temperature_N.split(height)):
            first_n = torch.zeros(len(logits_nv), dtype=torch.long, device=logits.device)  # log π is not asked for
            s = token_statistics(logits_nv.float() / temperature_n[:, None], first_n)
            made.append(torch.stack([s.entropy_N, s.sum_p2_N, s.sum_p2_logp_N]))
    values: Sequence[Tensor] = torch.cat(made, dim=1).unbind()
    if packed:
        values = [engine._gather_and_unpad_packed(value_N, output_args["pad_size"]) for value_N in values]
    return {k: torch.nested.nested_tensor_from_jagged(v, offsets) for k, v in zip(STATISTICS, values)}


FSDPEngineWithLMHead.prepare_model_outputs = with_statistics(FSDPEngineWithLMHead.prepare_model_outputs)
