"""The policy: load a model, forward to token statistics, micro-batches, collate, save, shard.

Only the hidden states that predict response tokens meet the vocabulary.
"""

import copy
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from .. import ranks
from ..config import Lora, Model
from ..types import ORIGINS, BadInput, Rollout, TokenBatch, said
from . import bins, hub, lora, parallel, traits
from .attention import checkpointed, packed_states, predicting_states
from .attention import packs as keeps_apart
from .bins import Pass
from .cache import cache_of
from .collate import laid_out, padded
from .head import TokenStatistics, head_statistics, proxy_logprob, token_statistics

STATISTICS = ("logprob_BT", "entropy_BT", "sum_p2_BT", "sum_p2_logp_BT")
CHECKED = 16  # one response in so many is computed again where the sampler computes as the trainer does
NVIDIA = "/"  # below which a driver shows its device and its version
DRIVERS = {"12": "525 or newer", "13": "580 or newer"}  # by CUDA's major version, as NVIDIA's release notes have it
AGREES, AT_MOST = 1e-5, 1e-3  # nats: a token on average, and any one token


def _usable_driver(name: str) -> None:
    """Raises BadInput where the machine has a GPU that PyTorch cannot use, which a CPU would stand
    in for without a word. One that CUDA_VISIBLE_DEVICES hides is not meant."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    if torch.version.cuda is None or torch.cuda.is_available() or hidden or not Path(NVIDIA, "dev/nvidia0").exists():
        return
    try:
        said_by_driver = Path(NVIDIA, "proc/driver/nvidia/version").read_text()
    except OSError:
        said_by_driver = ""
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", said_by_driver)
    driver = f"driver {found[0]}" if found else "a driver of unknown version"
    raise BadInput(
        f"model.device={name}: torch {torch.__version__} cannot use this machine's GPU; it has {driver}, and CUDA"
        f" {torch.version.cuda} needs {DRIVERS.get(torch.version.cuda.split('.')[0], 'a newer one')}; a newer driver,"
        " another build of torch, or model.device=cpu"
    )


def choose_device(name: str) -> torch.device:
    """The device that `name` means; with several ranks a GPU of its own for each."""
    if name == "auto" or name.startswith("cuda"):
        _usable_driver(name)
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    if ranks.world() > 1 and name != "cpu":
        if name != "cuda":
            raise BadInput(f"model.device={name}: with several ranks it is auto, cuda or cpu")
        if ranks.local_rank() >= torch.cuda.device_count():
            raise BadInput(f"model.device={name}: more ranks on this machine than its {torch.cuda.device_count()} GPUs")
        name = f"cuda:{ranks.local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"model.device={name}: {said(error)}") from None
    if device.type == "meta":
        raise BadInput(f"model.device={name}: holds no numbers, so nothing can be computed there")
    return device


def _readable_model(path: str) -> None:
    """A folder that exists must hold a model; anything else is left to the hub."""
    folder = Path(path)
    if (folder.is_absolute() or path.startswith(".")) and not folder.exists():
        raise BadInput(f"model.path={path}: no such folder")
    if folder.exists() and not (folder / "config.json").is_file():
        raise BadInput(f"model.path={path}: holds no config.json; not a Hugging Face model")
    pickled = sorted(folder.glob("*.bin")) if folder.exists() and not any(folder.glob("*.safetensors")) else []
    if pickled:
        raise BadInput(
            f"model.path={path}: its weights are pickled ({pickled[0].name}), which runs code when it is read; convert"
            " them to safetensors"
        )


@dataclass
class Room:
    """What a forward pass may take, and what the one under way took. A policy and its copies share
    one."""

    tokens: int  # at most, unless a single row is longer
    under_way: tuple[int, int] | None = None  # (rows, tokens) of the last pass that began
    retries: int = 0  # how often it was made smaller because memory ran out (memory.py)


class Policy:
    """A causal language model and its tokenizer.

    `temperature` is the sampling temperature: every log-probability and entropy is of the
    distribution sampled from (top-p and top-k aside, which no trainer applies).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        temperature: float = 1.0,
        micro_batch_tokens: int = 16384,
        head_chunk: int = 256,
        bfloat16: bool = False,
        packing: bool = False,
        in_bins: bool = False,
    ):
        """Raises BadInput where the model's logits cannot be reproduced."""
        self.model, self.tokenizer = model, tokenizer
        self.temperature, self.head_chunk = temperature, head_chunk
        self.room = Room(micro_batch_tokens)
        self.bfloat16, self.packing, self.in_bins = bfloat16, packing, in_bins
        self.device = next(model.parameters()).device
        self.scaling = traits.scaling_of(model)  # what the model does to its head's product
        self.cache = cache_of(model)  # what it keeps between two tokens that it samples
        self._replica: parallel.Replica | None = None  # of a model whose weights are sharded, or adapted
        self.lora: Lora | None = None  # of its adapters
        self.adapters_off = False  # a KL reference that shares the weights which adapters stand beside

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "auto",
        *,
        dtype: str = "float32",
        packing: str = "auto",
        checkpointing: bool = False,
        **kwargs: Any,
    ) -> "Policy":
        """From a `save_pretrained` folder or a hub id; the weights in fp32. Raises BadInput when it
        cannot be read.

        `dtype`: of the computation; `packing`: auto | always | never; `checkpointing`: keep only
        each layer's input for the backward pass.
        """
        _readable_model(str(path))
        hub.ask(str(path))
        chosen = choose_device(device)
        variable_length = chosen.type == "cuda" and dtype == "bfloat16"  # what its kernels take
        packs = packing == "always" or packing == "auto" and variable_length
        attention = "variable_length" if packs and variable_length else None  # None: sdpa where the model has it
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            *adapters, whole = lora.chain(path)  # a checkpoint may hold adapters of another model
            model = AutoModelForCausalLM.from_pretrained(
                whole, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False, use_safetensors=True
            )
            for folder in reversed(adapters):
                lora.merge_into(model, folder)
        except Exception as error:  # a broken file surfaces as one of many exceptions of several libraries
            raise BadInput(f"model.path={path}: cannot be loaded ({said(error)})") from None
        broken = next((name for name, p in model.named_parameters() if not p.isfinite().all()), None)
        if broken is not None:
            raise BadInput(f"model.path={path}: holds weights that are no numbers ({broken})")
        if tokenizer.eos_token_id is None:
            raise BadInput(f"model.path={path}: its tokenizer has no end-of-sequence token")
        traits.text_alone(model)
        if checkpointing:
            if not any(isinstance(layer, GradientCheckpointingLayer) for layer in model.modules()):
                raise BadInput(
                    f"model.gradient_checkpointing: {type(model).__name__} has no layers that can be checkpointed"
                )
            model.gradient_checkpointing_enable({"use_reentrant": False})  # the ledger needs several backward passes
        if chosen.type == "cuda" and model.config._attn_implementation == "sdpa":
            model.set_attn_implementation("repeated")
        model = model.to(chosen).eval()
        if packs and not keeps_apart(model, bfloat16=dtype == "bfloat16"):
            if packing == "always":
                what = f"{type(model).__name__} does not keep packed answers apart"
                raise BadInput(f"model.packing=always: {what}; choose auto or never")
            packs = False
        in_bins = packing == "auto" and chosen.type == "cpu" and bins.taken(model)
        return cls(model, tokenizer, bfloat16=dtype == "bfloat16", packing=packs, in_bins=in_bins, **kwargs)

    @property
    def micro_batch_tokens(self) -> int:
        return self.room.tokens

    @micro_batch_tokens.setter
    def micro_batch_tokens(self, tokens: int) -> None:
        self.room.tokens = tokens

    @cached_property
    def ends(self) -> frozenset[int]:
        """The tokens that end a response: the tokenizer's end of sequence, and all that the model's
        `generation_config` names (a chat model's end of turn is often there alone)."""
        named = getattr(self.model.generation_config, "eos_token_id", None)
        ids = [self.tokenizer.eos_token_id, *(named if isinstance(named, (list, tuple)) else [named])]
        size = self.head()[0].shape[0]
        return frozenset(int(i) for i in ids if i is not None and 0 <= i < size)

    def text(self, token_ids: Sequence[int]) -> str:
        """What a response says, without the token of `ends` that ended it."""
        words = token_ids[:-1] if token_ids and token_ids[-1] in self.ends else token_ids
        return self.tokenizer.decode(words, skip_special_tokens=True)

    def autocast(self) -> torch.autocast:
        """bf16 where it is asked for: matrix products in bf16 from fp32 weights, which therefore
        stay the optimizer's own. Nothing is kept of the casts: a layer's weight is cast once a
        pass, and the copies would stay beside weights that FSDP2 has long given back."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16, cache_enabled=False)

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """Compute in the weights' own fp32 inside, padded, whatever the run computes in: what takes
        differences of log-probabilities needs it."""
        kept = self.bfloat16, self.packing
        self.bfloat16, self.packing = False, self.packing and not self.bfloat16
        try:
            yield
        finally:
            self.bfloat16, self.packing = kept

    @contextmanager
    def row_by_row(self) -> Iterator[None]:
        """Padded inside, whatever the run does: what checks a layout must not use it."""
        kept = self.packing, self.in_bins
        self.packing = self.in_bins = False
        try:
            yield
        finally:
            self.packing, self.in_bins = kept

    def save(self, folder: Path | None) -> None:
        """Weights, config and tokenizer, readable by `from_pretrained`; of a model with adapters
        these alone, readable by peft's. Ranks without a folder give their shards."""
        if self.lora is not None:
            lora.save(self.model, self.lora, folder)
        else:
            with self.whole() as model:
                if folder is not None:
                    model.save_pretrained(folder)
        if folder is not None:
            self.tokenizer.save_pretrained(folder)

    def restore(self, folder: Path) -> None:
        """Take the weights that `save` wrote. Raises BadInput when they are another model's."""
        stored = lora.stored(folder) if self.lora is not None else parallel.stored(folder / "model.safetensors")
        left = parallel.load(self.model, stored, strict=False)
        trained = {name for name, p in self.model.named_parameters() if p.requires_grad}
        if left.unexpected_keys or trained & set(left.missing_keys) - set(self.model.all_tied_weights_keys):
            raise BadInput(f"{folder}: holds another model than the one that this run trains")

    def adapt(self, settings: Lora, seed: int) -> "Policy":
        """Train low-rank adapters instead of the weights. Before it is sharded."""
        if settings.rank:
            self._replica = parallel.Replica(self.model)
            self.lora = settings
            lora.adapt(self.model, settings, seed)
        return self

    def trained(self) -> list[nn.Parameter]:
        """The parameters that an optimizer is for."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def shard(self) -> "Policy":
        """Divide the weights among the ranks. Optimizers are made after it, copies before it."""
        if ranks.world() > 1 and not self.adapters_off:
            self._replica = self._replica or parallel.Replica(self.model)
            parallel.shard(self.model, list(self.model.get_decoder().layers))
        return self

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, whole tensor) of each parameter, tied ones once; adapters are added to the weights
        they stand beside. Every rank takes part."""
        if self.lora is not None:
            return lora.merged(self.model)
        return ((name, parallel.whole(p.detach())) for name, p in self.model.named_parameters())

    @contextmanager
    def whole(self) -> Iterator[PreTrainedModel]:
        """The model with whole weights, for as long as it is needed: what samples and what is
        saved. Every rank takes part."""
        if self._replica is None:
            yield self.model
        else:
            with self._replica.filled(self.weights()) as model:
                yield model

    def frozen_copy(self) -> "Policy":
        """The policy as it is now, without gradients: a KL reference. With adapters it is what they
        stand beside, in the same memory."""
        frozen = copy.copy(self)
        if self.lora is not None:
            frozen.adapters_off = True
            return frozen
        frozen.model = copy.deepcopy(self.model).requires_grad_(False)
        return frozen

    def head(self) -> tuple[Tensor, Tensor | None]:
        """(weight [V, H], bias [V] if any) of the LM head, whole: the one place where they are
        taken from the model."""
        head = self.model.get_output_embeddings()
        return head.weight, getattr(head, "bias", None)

    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """The logits [..., V] that `model`, this policy's with whole weights, has at `hidden` [...,
        H]; not divided by the temperature."""
        head = model.get_output_embeddings()
        return self.scaling(head(hidden.to(head.weight.dtype)))

    def statistics(self, x: TokenBatch, entropy_grad: bool = False) -> TokenStatistics:
        """One forward pass over the rows of `x`; the head in blocks where its fp32 logits would
        take more than `head_chunk` MiB."""
        return TokenStatistics(*parallel.inside(self.model, lambda: self._statistics(x, entropy_grad)))

    def _statistics(self, x: TokenBatch, entropy_grad: bool) -> tuple[Tensor, ...]:
        hidden_NH, token_N = self.states(self.model.get_decoder(), x)
        weight_VH, bias_V = self.head()
        rows = max(1, (self.head_chunk << 20) // (4 * len(weight_VH)))  # whose fp32 logits may be held
        if len(token_N) <= rows:
            s = self._plain_statistics(hidden_NH, token_N, entropy_grad)
        elif unpack_dual(hidden_NH).tangent is not None:  # forward mode knows the plain way alone
            parts = zip(hidden_NH.split(rows), token_N.split(rows))
            made = [self._plain_statistics(*part, entropy_grad) for part in parts]
            s = TokenStatistics(*(torch.cat(values) for values in zip(*(vars(each).values() for each in made))))
        else:
            narrow_NH = hidden_NH.bfloat16() if self.bfloat16 else hidden_NH
            s = head_statistics(
                narrow_NH, weight_VH, token_N, bias_V, self.temperature, entropy_grad, self.head_chunk << 20,
                self.scaling,
            )  # fmt: skip
        return s.logprob_N, s.entropy_N, s.sum_p2_N, s.sum_p2_logp_N

    def _plain_statistics(self, hidden_NH: Tensor, token_N: Tensor, entropy_grad: bool) -> TokenStatistics:
        """With whole logits."""
        logits_NV = self.logits(self.model, hidden_NH)
        return token_statistics(
            logits_NV / self.temperature if self.temperature != 1.0 else logits_NV, token_N, entropy_grad
        )

    def score_bytes(self, x: TokenBatch) -> int:
        """What plain attention holds of scores in a pass over `x`, in one layer: heads × tokens² of
        each row (of all rows together, packed; of a bin)."""
        total_B = x.prompt_len_B + x.length_B.long()
        if x.bin_B is not None:
            total_B = torch.bincount(x.bin_B, weights=total_B.float())
        longest, count = (int(total_B.sum()), 1) if self.packing else (int(total_B.max()), len(total_B))
        heads = getattr(traits.text_config(self.model), "num_attention_heads", None) or 1
        return 4 * heads * count * longest**2

    def states(self, decoder: nn.Module, x: TokenBatch) -> tuple[Tensor, Tensor]:
        """([N, H] hidden states of `decoder` that predict the response tokens, [N] those
        tokens)."""
        with self.autocast(), checkpointed(decoder):
            if x.bin_B is not None:
                return bins.binned_states(decoder, x)
            return (packed_states if self.packing else predicting_states)(decoder, x)

    @torch.no_grad()
    def evaluate(self, x: TokenBatch) -> dict[str, Tensor]:
        """Statistics of all rows without gradient, micro-batched: TokenBatch fields
        `logprob_BT`, `entropy_BT`, … ([B, T])."""
        made = {name: torch.zeros_like(x.mask_BT) for name in STATISTICS}
        for index, micro in self.micro_batches(x):
            with lora.switched_off(self.model) if self.adapters_off else nullcontext():
                s = self.statistics(micro)
            for name, value_N in zip(made, (s.logprob_N, s.entropy_N, s.sum_p2_N, s.sum_p2_logp_N)):
                made[name][index, : micro.mask_BT.shape[1]] += scatter(value_N, micro.mask_BT)
        return {name: ranks.total(value_BT) for name, value_BT in made.items()}

    @torch.no_grad()
    def proxy(self, x: TokenBatch, least: float) -> Tensor:
        """`head.proxy_logprob` of all rows, micro-batched, [B, T]; 0 outside the mask. A forward
        pass of its own."""
        made_BT = torch.zeros_like(x.mask_BT)
        for index, micro in self.micro_batches(x):
            (value_N,) = parallel.inside(self.model, partial(self._proxy, micro, least))
            made_BT[index, : micro.mask_BT.shape[1]] += scatter(value_N, micro.mask_BT)
        return ranks.total(made_BT)

    def _proxy(self, x: TokenBatch, least: float) -> tuple[Tensor]:
        hidden_NH, token_N = self.states(self.model.get_decoder(), x)
        narrow_NH = hidden_NH.bfloat16() if self.bfloat16 else hidden_NH
        weight_VH, bias_V = self.head()
        most_bytes = self.head_chunk << 20
        value_N = proxy_logprob(
            narrow_NH, weight_VH, token_N, least, bias_V, self.temperature, most_bytes, self.scaling
        )
        return (value_N,)

    def micro_batches(self, x: TokenBatch) -> Iterator[tuple[Tensor, TokenBatch]]:
        """(row indices, rows) of at most `micro_batch_tokens` tokens each (a longer row is alone),
        rows of like length together.

        Padded, padding counts. Packed, it does not exist. In bins there is little, and rows of any
        length are together.

        With several ranks those of this rank's share of the rows, and as many on every rank, as
        sharded weights demand: where another rank has more, the last ones are row 0 without
        response tokens.
        """
        total_B = (x.prompt_len_B + x.length_B.long()).tolist()
        plans = [self._plan(rows, x, total_B) for rows in ranks.shares(total_B, ranks.world())]
        mine = plans[ranks.rank()]
        for each in mine:
            index = torch.tensor(each.rows)
            self.room.under_way = len(each.rows), each.tokens
            bin_B = None if each.bin_of is None else torch.tensor(each.bin_of, device=x.mask_BT.device)
            yield index, x.rows(index).but(bin_B=bin_B)
        for _ in range(max(map(len, plans)) - len(mine)):
            yield torch.tensor([0]), without_tokens(x)

    def _plan(self, rows: list[int], x: TokenBatch, total_B: list[int]) -> list[Pass]:
        """The passes over `rows` of `x`."""
        padded = list(self._by_length(rows, total_B))
        if not self.in_bins or not rows:
            return padded
        return bins.plan(rows, x, padded, traits.text_config(self.model).hidden_size, self.micro_batch_tokens)

    def _by_length(self, rows: list[int], total_B: list[int]) -> Iterator[Pass]:
        """Rows of like length together, padded or packed."""
        order = sorted(rows, key=lambda b: (total_B[b], b))
        start = 0
        while start < len(order):
            stop, sum_of_lengths = start + 1, total_B[order[start]]
            tokens = sum_of_lengths
            while stop < len(order):
                longest = total_B[order[stop]]
                sum_of_lengths += longest
                more = sum_of_lengths if self.packing else longest * (stop + 1 - start)
                if more > self.micro_batch_tokens:
                    break
                stop, tokens = stop + 1, more
            yield Pass(order[start:stop], tokens)
            start = stop

    def collate(
        self,
        rollouts: Sequence[Rollout],
        advantage_B: np.ndarray,
        reward_B: np.ndarray,
        correct_B: np.ndarray,
        group_B: Sequence[int] | None = None,
    ) -> TokenBatch:
        """A TokenBatch of `rollouts`, in order; `group_B` says which group each belongs to
        (default: each its own).

        Old log-probabilities and entropies are those of the policy as it is now; a rollout that
        brings old log-probabilities keeps them. Of responses that are not the policy's own, what
        their sampler said counts as what the ratio is against: there is nothing to correct.
        """
        x = laid_out(rollouts, advantage_B, reward_B, correct_B, group_B, self.device)
        own_B = x.origin_B == ORIGINS.index("policy")
        now = self._said(rollouts, x) or self.evaluate(x)
        old_logprob_BT = now["logprob_BT"]
        brought_B = torch.tensor([r.old_logprobs is not None for r in rollouts], device=self.device)
        if brought_B.any():
            brought = [[r.old_logprobs or ()] for r in rollouts]
            own_BT = padded(brought, x.mask_BT.shape[1], np.float32).to(self.device)
            old_logprob_BT = torch.where(brought_B[:, None], own_BT, old_logprob_BT)
        sampler_BT = torch.where(own_B[:, None], x.sampler_logprob_BT, old_logprob_BT)
        return x.but(
            **now, old_logprob_BT=old_logprob_BT, old_entropy_BT=now["entropy_BT"], sampler_logprob_BT=sampler_BT
        )

    def _said(self, rollouts: Sequence[Rollout], x: TokenBatch) -> dict[str, Tensor]:
        """What `evaluate` would make, as the sampler said it. Of one response in CHECKED, drawn at
        random, it is computed, padded; nothing is returned where the two differ, or where the
        sampler did not say it."""
        if any(r.statistics is None for r in rollouts):
            return {}
        said_BTF = np.zeros((*x.mask_BT.shape, len(STATISTICS)), dtype=np.float32)
        for b, r in enumerate(rollouts):
            said_BTF[b, : len(r.token_ids), 0] = r.logprobs
            said_BTF[b, : len(r.token_ids), 1:] = r.statistics
        said = {name: torch.from_numpy(said_BTF[..., f].copy()).to(self.device) for f, name in enumerate(STATISTICS)}
        # Drawn by what was sampled: the same on every rank and after a resume, another every step.
        draw = np.random.default_rng(zlib.crc32(repr([(r.prompt.id, r.token_ids) for r in rollouts]).encode()))
        chosen = np.sort(draw.choice(len(x), -(-len(x) // CHECKED), replace=False))
        index = torch.from_numpy(chosen).to(self.device)
        rows = x.rows(index)
        width = rows.mask_BT.shape[1]
        with self.row_by_row():
            computed = self.evaluate(rows)
        apart_BT = (said["logprob_BT"][index, :width] - computed["logprob_BT"]).abs() * rows.mask_BT
        if not (apart_BT.sum() <= AGREES * rows.mask_BT.sum() and apart_BT.max() <= AT_MOST):
            return {}
        for name, value_BT in computed.items():
            said[name][index, :width] = value_BT
        checked_B = torch.zeros(len(x), device=self.device)
        checked_B[index] = 1.0
        return said | {"checked_B": checked_B}


def without_tokens(x: TokenBatch) -> TokenBatch:
    """Row 0 of `x` cut to two tokens of which none is a response's: a forward pass that costs
    next to nothing and adds nothing."""
    row = x.rows(torch.tensor([0]))
    two_B = torch.full_like(row.prompt_len_B, 2)
    row = row.but(mask_BT=torch.zeros_like(row.mask_BT), prompt_len_B=two_B)
    row = row.rows(torch.tensor([0]))  # the fields [B, T] to one place
    return row.but(sequence_BS=x.sequence_BS[:1, :2])


def scatter(value_N: Tensor, mask_BT: Tensor) -> Tensor:
    """[N] values back to their places in [B, T]; 0 elsewhere. Differentiable."""
    return torch.zeros_like(mask_BT, dtype=value_N.dtype).masked_scatter(mask_BT.bool(), value_N)


def load_policy(path: str, m: Model, temperature: float, micro_batch_tokens: int) -> Policy:
    """The policy of weights `path`, computing as `model.*` says, at the sampling temperature."""
    return Policy.load(
        path, m.device, dtype=m.dtype, packing=m.packing, checkpointing=m.gradient_checkpointing,
        head_chunk=m.head_chunk, temperature=temperature, micro_batch_tokens=micro_batch_tokens,
    )  # fmt: skip
