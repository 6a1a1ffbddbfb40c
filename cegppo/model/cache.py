"""What a model keeps between two tokens while it samples: slices of keys and values that are
allocated once, what the model itself makes, or nothing.

Slices serve every model that only attends. Linear attention, convolutions and state spaces keep
other things, which the model's own code makes and reads; of some no rows can be taken out. Which
one gives the hidden states of a whole pass is tried on a few tokens (`cache_of`).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from ..types import present
from .traits import some_tokens, text_config

# By what name a decoder takes what it keeps, and gives it back.
NAMES = ("past_key_values", "cache_params")
PROMPT, STEPS = 4, 6  # tokens of the trial: of the prompt, and one by one after it
CLOSE = 1e-3  # of the largest hidden state: sums in another order; a wrong cache is off by its own size


class SliceLayer(CacheLayerMixin):
    """Keys and values of one layer, allocated once; attention sees the filled part as a view."""

    is_sliding = False

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.length = capacity, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, _, dim = key_states.shape
        self.keys = key_states.new_empty(rows, heads, self.capacity, dim)
        self.values = value_states.new_empty(rows, heads, self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, rows: Tensor) -> None:
        self.keys, self.values = self._kept(self.keys, rows), self._kept(self.values, rows)

    def _kept(self, value: Tensor, rows: Tensor) -> Tensor:
        """`rows` of a buffer, of which only what is filled has to move."""
        made = value.new_empty(len(rows), *value.shape[1:])
        torch.index_select(value[:, :, : self.length], 0, rows, out=made[:, :, : self.length])
        return made

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity


class Slices:
    """The cache of a model whose layers only attend."""

    sheds = True  # rows can leave

    def __init__(self, model: PreTrainedModel, capacity: int):
        self.cache = Cache(layers=[SliceLayer(capacity) for _ in range(text_config(model).num_hidden_layers)])

    def feed(self, decoder: nn.Module, token_BS: Tensor) -> Tensor:
        """[B, S, H] hidden states of the next tokens."""
        return decoder(input_ids=token_BS, past_key_values=self.cache, use_cache=True).last_hidden_state

    def keep(self, rows: Tensor) -> None:
        """Go on with `rows` alone."""
        for layer in self.cache.layers:
            layer.keep(rows)


class Own:
    """The cache that the model makes itself."""

    sheds = True

    def __init__(self, model: PreTrainedModel, capacity: int):
        self.given: dict[str, Any] = {}

    def feed(self, decoder: nn.Module, token_BS: Tensor) -> Tensor:
        output = decoder(input_ids=token_BS, use_cache=True, **self.given)
        self.given = {name: output[name] for name in NAMES if output.get(name) is not None}
        return output.last_hidden_state

    def keep(self, rows: Tensor) -> None:
        for kept in self.given.values():
            kept.reorder_cache(rows)


class Whole:
    """No cache: every token costs a pass over all that came before it."""

    sheds = True

    def __init__(self, model: PreTrainedModel, capacity: int):
        self.token_BS: Tensor | None = None

    def feed(self, decoder: nn.Module, token_BS: Tensor) -> Tensor:
        self.token_BS = token_BS if self.token_BS is None else torch.cat([self.token_BS, token_BS], dim=1)
        return decoder(input_ids=self.token_BS, use_cache=False).last_hidden_state[:, -token_BS.shape[1] :]

    def keep(self, rows: Tensor) -> None:
        self.token_BS = present(self.token_BS)[rows]


class Fixed(Own):
    """The model's own cache, of which no rows can be taken out: finished ones stay in the batch."""

    sheds = False


Kind = type[Slices] | type[Own] | type[Whole]
KINDS: tuple[Kind, ...] = (Slices, Own, Fixed, Whole)  # the cheapest first


@torch.no_grad()
def cache_of(model: PreTrainedModel) -> Kind:
    """The first of KINDS that `model` samples right with, token by token and when rows leave."""
    return next((kind for kind in KINDS if _right(model, kind)), Whole)


def _right(model: PreTrainedModel, kind: Kind) -> bool:
    decoder, token_BS = model.get_decoder(), some_tokens(model, 3, PROMPT + STEPS)
    try:
        right_BSH = decoder(input_ids=token_BS, use_cache=False).last_hidden_state
        cache = kind(model, PROMPT + STEPS)
        alike = _alike(cache.feed(decoder, token_BS[:, :PROMPT])[:, -1], right_BSH[:, PROMPT - 1])
        for place in range(PROMPT, PROMPT + STEPS):
            if cache.sheds and place == PROMPT + STEPS // 2:
                left = torch.tensor([2, 0], device=token_BS.device)
                cache.keep(left)
                token_BS, right_BSH = token_BS[left], right_BSH[left]
            alike &= _alike(cache.feed(decoder, token_BS[:, place : place + 1])[:, -1], right_BSH[:, place])
    except Exception:  # what does not take this cache fails in its own way
        return False
    return alike


def _alike(found_BH: Tensor, right_BH: Tensor) -> bool:
    return bool((found_BH - right_BH).abs().max() <= CLOSE * right_BH.abs().max())
