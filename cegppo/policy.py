"""The only file that knows a model: load, forward to token statistics, micro-batches, save, shard.
Also the critic of PPO.

Rows are right-padded and causal attention never looks right, so no attention mask is needed; only
the hidden states that predict response tokens meet the vocabulary. Packed rows lie one after the
other without padding and attention keeps them apart: by cumulative lengths where the device has
variable-length attention, by a mask elsewhere. docs/memory.md has the switches.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_layers import GradientCheckpointingLayer

from . import parallel
from .head import TokenStatistics, head_statistics, token_statistics
from .types import BadInput, Rollout, TokenBatch


def choose_device(name: str) -> torch.device:
    """The device that `name` means; with several ranks a GPU of its own for each."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    if parallel.world() > 1 and name != "cpu":
        if name != "cuda":
            raise BadInput(f"model.device={name}: with several ranks it is auto, cuda or cpu")
        if parallel.local_rank() >= torch.cuda.device_count():
            raise BadInput(f"model.device={name}: more ranks on this machine than its {torch.cuda.device_count()} GPUs")
        name = f"cuda:{parallel.local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"model.device={name}: {str(error).splitlines()[0]}") from None
    return device


def _readable_model(path: str) -> None:
    """A folder that exists must hold a model; anything else is left to the hub."""
    folder = Path(path)
    if (folder.is_absolute() or path.startswith(".")) and not folder.exists():
        raise BadInput(f"model.path={path}: no such folder")
    if folder.exists() and not (folder / "config.json").is_file():
        raise BadInput(f"model.path={path}: holds no config.json; not a Hugging Face model")


class Policy:
    """A causal language model and its tokenizer.

    `temperature` is the sampling temperature: every log-probability and entropy is of the
    distribution sampled from (top-p and top-k aside, which no trainer applies).
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        temperature: float = 1.0,
        micro_batch_tokens: int = 16384,
        head_chunk: int = 256,
        bfloat16: bool = False,
        packing: bool = False,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.temperature, self.micro_batch_tokens, self.head_chunk = temperature, micro_batch_tokens, head_chunk
        self.bfloat16, self.packing = bfloat16, packing
        self.device = next(model.parameters()).device
        self._replica: parallel.Replica | None = None  # of a sharded model

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "auto",
        *,
        dtype: str = "float32",
        packing: str = "auto",
        checkpointing: bool = False,
        **kwargs,
    ) -> "Policy":
        """From a `save_pretrained` folder or a hub id; the weights in fp32. Raises BadInput when it
        cannot be read.

        `dtype`: of the computation; `packing`: auto | always | never; `checkpointing`: keep only
        each layer's input for the backward pass.
        """
        _readable_model(str(path))
        chosen = choose_device(device)
        variable_length = chosen.type == "cuda" and dtype == "bfloat16"  # what its kernels take
        packs = packing == "always" or packing == "auto" and variable_length
        attention = "variable_length" if packs and variable_length else "sdpa"
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=attention)
        except Exception as error:  # a broken file surfaces as one of many exceptions of several libraries
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise BadInput(f"model.path={path}: cannot be loaded ({reason[0][:200]})") from None
        if tokenizer.eos_token_id is None:
            raise BadInput(f"model.path={path}: its tokenizer has no end-of-sequence token")
        if checkpointing:
            if not any(isinstance(layer, GradientCheckpointingLayer) for layer in model.modules()):
                raise BadInput(
                    f"model.gradient_checkpointing: {type(model).__name__} has no layers that can be checkpointed"
                )
            model.gradient_checkpointing_enable({"use_reentrant": False})  # the ledger needs several backward passes
        return cls(model.to(chosen).eval(), tokenizer, bfloat16=dtype == "bfloat16", packing=packs, **kwargs)

    def autocast(self) -> torch.autocast:
        """bf16 where it is asked for: matrix products in bf16 from fp32 weights, which therefore
        stay the optimizer's own."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def save(self, folder: Path | None) -> None:
        """Weights as safetensors, config and tokenizer, readable by `from_pretrained`. Ranks
        without a folder give their shards."""
        with self.whole() as model:
            if folder is not None:
                model.save_pretrained(folder)
                self.tokenizer.save_pretrained(folder)

    def shard(self) -> "Policy":
        """Divide the weights among the ranks. Optimizers are made after it, copies before it."""
        if parallel.world() > 1:
            self._replica = parallel.Replica(self.model)
            parallel.shard(self.model, list(self.model.get_decoder().layers))
        return self

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, whole tensor) of each parameter, tied ones once. Every rank takes part."""
        return ((name, parallel.whole(p.detach())) for name, p in self.model.named_parameters())

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """The model with whole weights, for as long as it is needed: what samples and what is
        saved. Every rank takes part."""
        if self._replica is None:
            yield self.model
        else:
            with self._replica.filled(self.weights()) as model:
                yield model

    def frozen_copy(self) -> "Policy":
        """The policy as it is now, without gradients: a KL reference."""
        frozen = copy.copy(self)
        frozen.model = copy.deepcopy(self.model).requires_grad_(False)
        return frozen

    def head(self) -> tuple[Tensor, Tensor | None]:
        """(weight [V, H], bias [V] if any) of the LM head, whole: the one place where they are
        taken from the model."""
        head = self.model.get_output_embeddings()
        return head.weight, getattr(head, "bias", None)

    def statistics(self, x: TokenBatch, entropy_grad: bool = False) -> TokenStatistics:
        """One forward pass over the rows of `x`; the head in blocks where its fp32 logits would
        take more than `head_chunk` MiB."""
        return TokenStatistics(*parallel.inside(self.model, lambda: self._statistics(x, entropy_grad)))

    def _statistics(self, x: TokenBatch, entropy_grad: bool) -> tuple[Tensor, ...]:
        hidden_NH, token_N = self.states(self.model.get_decoder(), x)
        weight_VH, bias_V = self.head()
        if 4 * len(token_N) * len(weight_VH) > self.head_chunk << 20:
            narrow_NH = hidden_NH.bfloat16() if self.bfloat16 else hidden_NH
            s = head_statistics(
                narrow_NH, weight_VH, token_N, bias_V, self.temperature, entropy_grad, self.head_chunk << 20
            )
        else:
            logits_NV = self.model.get_output_embeddings()(hidden_NH.to(weight_VH.dtype))
            s = token_statistics(
                logits_NV / self.temperature if self.temperature != 1.0 else logits_NV, token_N, entropy_grad
            )
        return s.logprob_N, s.entropy_N, s.sum_p2_N, s.sum_p2_logp_N

    def states(self, decoder: nn.Module, x: TokenBatch) -> tuple[Tensor, Tensor]:
        """([N, H] hidden states of `decoder` that predict the response tokens, [N] those
        tokens)."""
        with self.autocast(), checkpointed(decoder):
            return (packed_states if self.packing else predicting_states)(decoder, x)

    @torch.no_grad()
    def evaluate(self, x: TokenBatch) -> dict[str, Tensor]:
        """Statistics of all rows without gradient, micro-batched: TokenBatch fields
        `logprob_BT`, `entropy_BT`, … ([B, T])."""
        made = {
            name: torch.zeros_like(x.mask_BT) for name in ("logprob_BT", "entropy_BT", "sum_p2_BT", "sum_p2_logp_BT")
        }
        for index, micro in self.micro_batches(x):
            s = self.statistics(micro)
            for name, value_N in zip(made, (s.logprob_N, s.entropy_N, s.sum_p2_N, s.sum_p2_logp_N)):
                made[name][index, : micro.mask_BT.shape[1]] += scatter(value_N, micro.mask_BT)
        return {name: parallel.total(value_BT) for name, value_BT in made.items()}

    def micro_batches(self, x: TokenBatch) -> Iterator[tuple[Tensor, TokenBatch]]:
        """(row indices, rows) of at most `micro_batch_tokens` tokens each (a longer row is alone),
        rows of like length together.

        Padded, padding counts. Packed, it does not exist.

        With several ranks those of this rank's share of the rows, and as many on every rank, as
        sharded weights demand: where another rank has more, the last ones are row 0 without
        response tokens.
        """
        total_B = (x.prompt_len_B + x.length_B.long()).tolist()
        plans = [list(self._packed(rows, total_B)) for rows in parallel.shares(total_B, parallel.world())]
        mine = plans[parallel.rank()]
        for rows in mine:
            index = torch.tensor(rows)
            yield index, x.rows(index)
        for _ in range(max(map(len, plans)) - len(mine)):
            yield torch.tensor([0]), without_tokens(x)

    def _packed(self, rows: list[int], total_B: list[int]) -> Iterator[list[int]]:
        order = sorted(rows, key=lambda b: (total_B[b], b))
        start = 0
        while start < len(order):
            stop, sum_of_lengths = start + 1, total_B[order[start]]
            while stop < len(order):
                longest = total_B[order[stop]]
                sum_of_lengths += longest
                if (sum_of_lengths if self.packing else longest * (stop + 1 - start)) > self.micro_batch_tokens:
                    break
                stop += 1
            yield order[start:stop]
            start = stop

    def collate(
        self, rollouts: list[Rollout], advantage_B: np.ndarray, reward_B: np.ndarray, correct_B: np.ndarray
    ) -> TokenBatch:
        """A TokenBatch of `rollouts`, in order, with the old log-probabilities and entropies of
        the policy as it is now."""
        prompts = [r.prompt.token_ids for r in rollouts]
        answers = [r.token_ids for r in rollouts]
        longest = max(map(len, answers))
        tensor = lambda values, dtype=torch.float32: torch.tensor(np.asarray(values), dtype=dtype, device=self.device)
        pad = lambda rows, width, fill: [[*row, *[fill] * (width - len(row))] for row in rows]
        both = [(*p, *a) for p, a in zip(prompts, answers)]
        mask_BT = tensor(pad([[1.0] * len(a) for a in answers], longest, 0.0))
        blank_BT = torch.zeros_like(mask_BT)
        group_of = {prompt_id: n for n, prompt_id in enumerate(dict.fromkeys(r.prompt.id for r in rollouts))}
        x = TokenBatch(
            logprob_BT=blank_BT,
            old_logprob_BT=blank_BT,
            advantage_BT=tensor(advantage_B)[:, None] * mask_BT,
            mask_BT=mask_BT,
            entropy_BT=blank_BT,
            sampler_logprob_BT=tensor(pad([r.logprobs for r in rollouts], longest, 0.0)),
            row_B=torch.arange(len(rollouts), device=self.device),
            group_B=tensor([group_of[r.prompt.id] for r in rollouts], torch.int64),
            reward_B=tensor(reward_B),
            correct_B=tensor(correct_B),
            sequence_BS=tensor(pad(both, max(map(len, both)), 0), torch.int64),
            prompt_len_B=tensor([len(p) for p in prompts], torch.int64),
        )
        old = self.evaluate(x)
        return x.but(**old, old_logprob_BT=old["logprob_BT"], old_entropy_BT=old["entropy_BT"])


def without_tokens(x: TokenBatch) -> TokenBatch:
    """Row 0 of `x` cut to two tokens of which none is a response's: a forward pass that costs
    next to nothing and adds nothing."""
    row = x.rows(torch.tensor([0]))
    row = row.but(mask_BT=torch.zeros_like(row.mask_BT), prompt_len_B=torch.full_like(row.prompt_len_B, 2))
    row = row.rows(torch.tensor([0]))  # the fields [B, T] to one place
    return row.but(sequence_BS=x.sequence_BS[:1, :2])


def response_positions(x: TokenBatch) -> tuple[Tensor, Tensor]:
    """([N] rows, [N] places in the sequence) of the N response tokens of `x`, row by row."""
    row_N, t_N = torch.nonzero(x.mask_BT, as_tuple=True)
    return row_N, x.prompt_len_B[row_N] + t_N


def predicting_states(decoder: nn.Module, x: TokenBatch) -> tuple[Tensor, Tensor]:
    """([N, H] hidden states that predict the response tokens, [N] those tokens)."""
    hidden_BSH = decoder(input_ids=x.sequence_BS[:, :-1], use_cache=False).last_hidden_state
    row_N, place_N = response_positions(x)
    flat_N = row_N * hidden_BSH.shape[1] + place_N - 1
    return hidden_BSH.flatten(0, 1).index_select(0, flat_N), x.sequence_BS[row_N, place_N]


def packed_states(decoder: nn.Module, x: TokenBatch) -> tuple[Tensor, Tensor]:
    """As `predicting_states`, from one row of tokens without padding; positions start again at 0
    with each sequence.

    Where attention is `variable_length` it goes by the cumulative lengths; elsewhere transformers
    makes a block-diagonal mask from the positions.
    """
    length_B = x.prompt_len_B + x.length_B.long() - 1  # the last token predicts nothing
    position_BS = torch.arange(x.sequence_BS.shape[1] - 1, device=length_B.device).expand(len(x), -1)
    inside_BS = position_BS < length_B[:, None]
    edge_B = torch.nn.functional.pad(length_B.cumsum(0), (1, 0))
    edges, longest = edge_B.int(), int(length_B.max())
    hidden_NH = decoder(
        input_ids=x.sequence_BS[:, :-1][inside_BS][None],
        position_ids=position_BS[inside_BS][None],
        use_cache=False,
        cu_seq_lens_q=edges, cu_seq_lens_k=edges, max_length_q=longest, max_length_k=longest,
    ).last_hidden_state[0]  # fmt: skip
    row_N, place_N = response_positions(x)
    return hidden_NH.index_select(0, edge_B[row_N] + place_N - 1), x.sequence_BS[row_N, place_N]


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
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention of packed sequences, [1, heads, S, d] in, [1, S, heads, d] out, by PyTorch's own
    flash attention: bf16, CUDA.

    Without cumulative lengths (the sampler's calls) it is the usual one.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **kwargs
        )
    query, key, value = (v[0].transpose(0, 1).bfloat16() for v in (query, key, value))
    shared = query.shape[1] // key.shape[1]  # repeated here, as every version of the kernel takes it
    key, value = (v.repeat_interleave(shared, dim=1) for v in (key, value))
    window = (sliding_window - 1 if sliding_window else -1, 0)  # (-1, 0) is causal
    made = varlen_attn(
        query.contiguous(), key.contiguous(), value.contiguous(), cu_seq_lens_q, cu_seq_lens_q, max_length_q,
        max_length_q,
        scale=scaling, window_size=window,
    )  # fmt: skip
    return made[None], None


AttentionInterface.register("variable_length", variable_length_attention)


@contextmanager
def checkpointed(decoder: nn.Module):
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


def scatter(value_N: Tensor, mask_BT: Tensor) -> Tensor:
    """[N] values back to their places in [B, T]; 0 elsewhere. Differentiable."""
    return torch.zeros_like(mask_BT, dtype=value_N.dtype).masked_scatter(mask_BT.bool(), value_N)


class Critic(nn.Module):
    """V(s_t) for PPO: a copy of the policy's decoder with a linear head, trained by its own
    optimizer."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy = policy
        self.decoder = copy.deepcopy(policy.model.get_decoder())
        self.head = nn.Linear(policy.model.config.hidden_size, 1, device=policy.device)
        nn.init.zeros_(self.head.weight)  # starts at V = 0 everywhere, without drawing random numbers
        nn.init.zeros_(self.head.bias)
        self.requires_grad_(True)

    def shard(self) -> "Critic":
        """Divide the weights among the ranks."""
        parallel.shard(self, list(self.decoder.layers))
        return self

    def forward(self, x: TokenBatch) -> Tensor:
        """[B, T] value of the state before each response token; 0 elsewhere."""
        hidden_NH, _ = self.policy.states(self.decoder, x)
        return scatter(self.head(hidden_NH.to(self.head.weight.dtype))[:, 0], x.mask_BT)
