"""What kind of causal model this is, found by trying it on a few tokens.

A model of transformers says in its own code how it scales its logits, whether it goes by
`position_ids`, and what it keeps between two tokens; only calls of it tell. So nothing here goes by
an architecture's name, but for WRONG. What cannot be reproduced is a BadInput of one line: sampler
and trainer would agree with each other and both be wrong.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..types import BadInput, said
from .head import Scaling

# Keys of configurations that scale the logits (some multiply, some divide) and that bound them.
SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions")
TOKENS, PREFIX = 12, 7  # of the sequences that a model is tried on
SIZES = (1.0, 10.0, 100.0)  # largest logit of the head's product that the head is tried on
# What a trial of a few tokens lets pass and tests/test_architectures.py does not: off the model's
# own logits by so many nats, and not understood.
WRONG = {"axk2": 1.9, "hrm_text": 1e-3, "hy_v4": 4.9, "nemotron_h": 1e-2}
CLOSE = 2e-4  # of the largest logit: far above rounding in fp32, far below what a forgotten factor does


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the part of `model` that reads and writes text."""
    return model.config.get_text_config(decoder=True)


def positions(model: PreTrainedModel) -> int | None:
    """The most tokens that `model` was made for; None where it does not say."""
    config = text_config(model)
    found = [getattr(config, name, None) for name in POSITIONS]
    return next((int(value) for value in found if isinstance(value, int) and value > 0), None)


def text_alone(model: PreTrainedModel) -> None:
    """Freeze what takes no part where `model` reads and writes text: a multimodal one's images."""
    parts = model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()
    text = {id(p) for part in parts if part is not None for p in part.parameters()}
    for p in model.parameters():
        if id(p) not in text:
            p.requires_grad_(False)


def kind(model: PreTrainedModel) -> str:
    """How `model` is called in a message."""
    return f"model.path={model.name_or_path}: {type(model).__name__}"


def some_tokens(model: PreTrainedModel, rows: int, length: int) -> Tensor:
    """[rows, length] tokens of its vocabulary, the same for every model, no row like another."""
    size = model.get_input_embeddings().weight.shape[0]
    index = torch.arange(rows * length).view(rows, length)
    return ((index * 37 + 11 + index // 5) % min(size, 10007)).to(model.device)


def candidates(config: PreTrainedConfig) -> Iterator[Scaling]:
    """What `config` may mean for the logits: every combination of the keys that it has."""
    value = lambda name: float(found) if isinstance(found := getattr(config, name, None), (int, float)) else 0.0
    scales = [scale for name in SCALES if (s := value(name)) not in (0.0, 1.0) for scale in (s, 1 / s)]
    caps = [cap for name in CAPS if (cap := value(name))]
    for cap, scale in product([*caps, 0.0], [*scales, 1.0]):
        yield Scaling(scale, cap)


@torch.no_grad()
def scaling_of(model: PreTrainedModel) -> Scaling:
    """What `model` does to its head's product, found from its own logits on hidden states that make
    them small and large. Raises BadInput where no key of its configuration explains them, where it
    looks at later tokens, and where it cannot be called as a causal model is."""
    head = model.get_output_embeddings()
    if not isinstance(getattr(head, "weight", None), Tensor) or head.weight.dim() != 2:
        raise BadInput(f"{kind(model)} has no language-model head of one matrix")
    if (name := text_config(model).model_type) in WRONG:
        why = f"in a test its answers were {WRONG[name]:g} nats off its own logits, and why is not known"
        raise BadInput(f"{kind(model)} cannot be trained: {why}")
    try:
        decoder = model.get_decoder()
        token_BS = some_tokens(model, 2, TOKENS)
        hidden_BSH = decoder(input_ids=token_BS, use_cache=False).last_hidden_state
        logits_BSV = model(input_ids=token_BS[:, :PREFIX], use_cache=False).logits
        made_NH = _hidden_states(hidden_BSH[:, :PREFIX].flatten(0, 1), head)
        with _instead(decoder, made_NH.view(2, -1, made_NH.shape[-1])):
            shown_NV = model(input_ids=token_BS[:, :PREFIX], use_cache=False).logits.flatten(0, 1)
        product_NV, own_BSV = _product(made_NH, head), _product(hidden_BSH[:, :PREFIX], head)
    except Exception as error:  # other architectures want other inputs, and fail in as many ways
        why = f"it is not called as a causal model is ({said(error)})"
        raise BadInput(f"{kind(model)} cannot be trained: {why}") from None
    alike = lambda found, right: found.shape == right.shape and _alike(found, right)
    for scaling in candidates(text_config(model)):
        if alike(scaling(product_NV), shown_NV):
            if not alike(scaling(own_BSV), logits_BSV):
                raise BadInput(
                    f"{kind(model)} cannot be trained: its logits depend on later tokens, or its decoder computes"
                    " otherwise than inside it"
                )
            return scaling
    raise BadInput(
        f"{kind(model)} cannot be trained: its logits are not its head's product, scaled or bounded by a key of its"
        f" configuration that is known ({', '.join((*SCALES, *CAPS))})"
    )


def _product(hidden: Tensor, head: Any) -> Tensor:
    return nn.functional.linear(hidden.to(head.weight.dtype), head.weight, getattr(head, "bias", None))


def _hidden_states(hidden_NH: Tensor, head: Any) -> Tensor:
    """`hidden_NH` in other sizes: row by row the largest logit is each of SIZES in turn."""
    largest_N = (hidden_NH @ head.weight.to(hidden_NH.dtype).T).abs().amax(-1).clamp(min=1e-30)
    size_N = largest_N.new_tensor(SIZES).repeat(len(hidden_NH))[: len(hidden_NH)]
    return hidden_NH * (size_N / largest_N)[:, None]


@contextmanager
def _instead(decoder: nn.Module, hidden_BSH: Tensor) -> Iterator[None]:
    """Inside, `decoder` says `hidden_BSH` whatever it has computed."""

    def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return hidden_BSH, *output[1:]
        output.last_hidden_state = hidden_BSH
        return output

    handle = decoder.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _alike(found: Tensor, right: Tensor) -> bool:
    """Row by row, to CLOSE of the row's largest value."""
    apart = (found - right).abs().amax(-1) <= CLOSE * right.abs().amax(-1)
    return bool(apart.all())
