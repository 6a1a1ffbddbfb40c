"""Which hidden states predict which tokens, of padded and of packed rows.

Rows are right-padded and causal attention never looks right, so no attention mask is needed. Packed
rows lie one after the other without padding and attention keeps them apart: by cumulative lengths
where the device has variable-length attention, by a mask elsewhere. docs/memory.md has the
switches.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from ..types import TokenBatch, present
from .traits import some_tokens


def response_positions(x: TokenBatch) -> tuple[Tensor, Tensor]:
    """([N] rows, [N] places in the sequence) of the N response tokens of `x`, row by row."""
    row_N, t_N = torch.nonzero(x.mask_BT, as_tuple=True)
    return row_N, x.prompt_len_B[row_N] + t_N


def predicting_states(decoder: nn.Module, x: TokenBatch) -> tuple[Tensor, Tensor]:
    """([N, H] hidden states that predict the response tokens, [N] those tokens)."""
    sequence_BS = x.sequence_BS
    hidden_BSH = decoder(input_ids=sequence_BS[:, :-1], use_cache=False).last_hidden_state
    row_N, place_N = response_positions(x)
    flat_N = row_N * hidden_BSH.shape[1] + place_N - 1
    return hidden_BSH.flatten(0, 1).index_select(0, flat_N), sequence_BS[row_N, place_N]


def packed_states(decoder: nn.Module, x: TokenBatch) -> tuple[Tensor, Tensor]:
    """As `predicting_states`, from one row of tokens without padding; positions start again at 0
    with each sequence.

    Where attention is `variable_length` it goes by the cumulative lengths; elsewhere transformers
    makes a block-diagonal mask from the positions.
    """
    sequence_BS = x.sequence_BS
    length_B = x.prompt_len_B + x.length_B.long() - 1  # the last token predicts nothing
    position_BS = torch.arange(sequence_BS.shape[1] - 1, device=length_B.device).expand(len(x), -1)
    inside_BS = position_BS < length_B[:, None]
    edge_B = torch.nn.functional.pad(length_B.cumsum(0), (1, 0))
    edges, longest = edge_B.int(), int(length_B.max())
    hidden_NH = decoder(
        input_ids=sequence_BS[:, :-1][inside_BS][None],
        position_ids=position_BS[inside_BS][None],
        use_cache=False,
        cu_seq_lens_q=edges, cu_seq_lens_k=edges, max_length_q=longest, max_length_k=longest,
    ).last_hidden_state[0]  # fmt: skip
    row_N, place_N = response_positions(x)
    return hidden_NH.index_select(0, edge_B[row_N] + place_N - 1), sequence_BS[row_N, place_N]


def some_batch(model: PreTrainedModel) -> TokenBatch:
    """Three short answers of unlike length, two of them to one prompt: what a way to lay out a pass
    is tried on."""
    token_BS = some_tokens(model, 3, 8)
    token_BS[1, :3] = token_BS[0, :3]
    mask_BT = (torch.arange(5) < torch.tensor([[5], [3], [4]])).float().to(token_BS.device)
    return TokenBatch(
        mask_BT, mask_BT, mask_BT, mask_BT, mask_BT, sequence_BS=token_BS,
        prompt_len_B=torch.full((3,), 3, device=token_BS.device),
    )  # fmt: skip


def alike(found_NH: Tensor, right_NH: Tensor, close: float) -> bool:
    """Whether hidden states agree to `close`, relative and of the largest."""
    return bool(torch.allclose(found_NH, right_NH, rtol=close, atol=close * float(right_NH.abs().max())))


def outgrows_positions(model: PreTrainedModel) -> None:
    """Put a row through `model` that is longer than the causal mask that it keeps as a buffer, if
    it does; raises as the model does where that mask bounds a row (GPT-Neo). Rows of several
    answers are longer than any one of them."""
    square = [b for b in model.get_decoder().buffers() if b.dim() >= 2 and b.shape[-1] == b.shape[-2]]
    if square:
        most = max(b.shape[-1] for b in square)
        position_1S = (torch.arange(most + 1) % most)[None].to(model.device)
        model.get_decoder()(input_ids=some_tokens(model, 1, most + 1), position_ids=position_1S, use_cache=False)


def packs(model: PreTrainedModel, bfloat16: bool) -> bool:
    """Whether `model` computes the same when answers lie one after the other: found by trying it.
    A model that does not go by `position_ids`, or whose states run on from one answer into the
    next, does not."""
    x, decoder = some_batch(model), model.get_decoder()
    try:
        with torch.no_grad(), torch.autocast(x.mask_BT.device.type, torch.bfloat16, enabled=bfloat16):
            alone, together = (states(decoder, x)[0].float() for states in (predicting_states, packed_states))
            outgrows_positions(model)
    except Exception:  # a decoder that takes no positions, or no lengths
        return False
    return alike(together, alone, 5e-2 if bfloat16 else 1e-3)


def repeated_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' own, [B, heads, S, d] in, [B, S, heads, d] out; in fp32 with grouped keys and
    values repeated.

    Of CUDA's kernels only flash attention shares them among heads, which knows no fp32: the plain
    one would be taken, whose scores are heads × tokens². With as many of them as queries the
    memory-efficient kernel is.
    """
    shared = query.shape[1] // key.shape[1]
    narrow = query.dtype != torch.float32 or torch.is_autocast_enabled(query.device.type)  # which casts its inputs
    if not narrow and shared > 1 and attention_mask is None:  # under a mask transformers repeats them itself
        kwargs["is_causal"] = kwargs.get("is_causal", getattr(module, "is_causal", True))
        return sdpa_attention_forward(None, query, repeat_kv(key, shared), repeat_kv(value, shared), None, **kwargs)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def variable_length_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of packed sequences, [1, heads, S, d] in, [1, S, heads, d] out, by PyTorch's own
    flash attention: bf16, CUDA.

    Without cumulative lengths (the sampler's calls, and passes in fp32) it is `repeated_attention`.
    """
    if cu_seq_lens_q is None:
        return repeated_attention(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **kwargs
        )
    query, key, value = (v[0].transpose(0, 1).bfloat16() for v in (query, key, value))
    shared = query.shape[1] // key.shape[1]  # repeated here, as every version of the kernel takes it
    key, value = (v.repeat_interleave(shared, dim=1) for v in (key, value))
    window = (sliding_window - 1 if sliding_window else -1, 0)  # (-1, 0) is causal
    longest = present(max_length_q)
    made = varlen_attn(
        query.contiguous(), key.contiguous(), value.contiguous(), cu_seq_lens_q, cu_seq_lens_q, longest, longest,
        scale=scaling, window_size=window,
    )  # fmt: skip
    return cast(Tensor, made)[None], None  # a tuple only when it is asked for more than the output


AttentionInterface.register("variable_length", variable_length_attention)
AttentionInterface.register("repeated", repeated_attention)
AttentionMaskInterface.register("repeated", sdpa_mask)


@contextmanager
def checkpointed(decoder: nn.Module) -> Iterator[None]:
    """Its layers checkpoint inside, if that was enabled and gradients are on.

    transformers ties checkpointing to `training`; set on the layers alone it switches no dropout
    on, and the sampler, which needs the cache that checkpointing drops, never sees it.
    """
    layers = [m for m in decoder.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
    layers = layers if torch.is_grad_enabled() else []
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
