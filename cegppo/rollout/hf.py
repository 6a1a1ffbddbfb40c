"""The default sampler: any Hugging Face causal model, one process, no padding.

Rows whose prompts are of similar length decode together: the shortest prompt is prefilled for all,
and a longer prompt's remaining tokens are fed where a shorter one already samples. So every row
sits at the same position and no layer needs a mask, whatever it keeps between two tokens
(`model.cache`). Finished rows are retired. Every response
draws from its own random stream, made of (run seed, step, prompt id, index), so neither batching
nor retiring changes what is sampled (but for the last bit of a logit, which may depend on the
batch).
"""

import zlib
from collections.abc import Iterator
from itertools import repeat

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..model.head import CACHE_BYTES, distribution_sums
from ..model.policy import Policy
from ..model.traits import positions
from ..types import Job, Rollout
from . import Sampler, Sampling

RETIRE_BELOW = 0.75  # compact the batch once fewer than this share of its rows is alive
MARGIN = 8  # tokens more than a stop string has bytes: for those that say nothing
LENGTH_SLACK = 16  # prompts whose lengths differ by at most this much decode together


def seed_of(seed: int, step: int, prompt_id: str, index: int) -> list[int]:
    """What the random stream of one response is made of, for numpy's SeedSequence."""
    return [seed, step, zlib.crc32(prompt_id.encode()), len(prompt_id), index]


def uniforms(seed: int, step: int, prompt_id: str, index: int, count: int) -> np.ndarray:
    """The random stream of one response: `count` float64 in [0, 1)."""
    return np.random.default_rng(seed_of(seed, step, prompt_id, index)).random(count)


def sample_tokens(
    logits_BV: Tensor, uniform_B: Tensor, temperature: float, top_p: float, top_k: int, statistics: bool = False
) -> tuple[Tensor, ...]:
    """One token a row by inverting the distribution function at `uniform_B`: ([B] tokens, [B]
    log-probabilities); with `statistics` also [B] entropies, Σπ² and Σπ² log π.

    Order as everywhere: temperature, then top-k, then top-p on what top-k left (the smallest set
    whose mass reaches top-p). The log-probability is that of the distribution before top-k and
    top-p, which is what a trainer recomputes. On a CPU a few rows at a time, which stay in its
    caches between the passes over the vocabulary.
    """
    height = len(logits_BV) if logits_BV.is_cuda else max(1, CACHE_BYTES // logits_BV.shape[1])
    parts = [
        _sampled(logits_bV, uniform_b, temperature, top_p, top_k, statistics)
        for logits_bV, uniform_b in zip(logits_BV.split(height), uniform_B.split(height))
    ]
    return parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts))


def _sampled(
    logits_BV: Tensor, uniform_B: Tensor, temperature: float, top_p: float, top_k: int, statistics: bool
) -> tuple[Tensor, ...]:
    logp_BV = torch.log_softmax(logits_BV.float() / temperature, dim=-1)
    p_BV = logp_BV.double().exp()
    token_BV = None
    if 0 < top_k < p_BV.shape[1] or top_p < 1.0:
        p_BV, token_BV = p_BV.sort(dim=-1, descending=True, stable=True)
        if 0 < top_k < p_BV.shape[1]:
            p_BV = p_BV[:, :top_k]
        if top_p < 1.0:
            mass_BV = p_BV.cumsum(-1)
            p_BV = p_BV * (mass_BV - p_BV < top_p * mass_BV[:, -1:])
    cdf_BV = p_BV.cumsum(-1)
    place_B = torch.searchsorted(cdf_BV, (uniform_B * cdf_BV[:, -1])[:, None], right=True)[:, 0]
    # Rounding may put u · total at the total itself: then it is the last place that has any mass.
    # A GPU is not asked: it would be waited for.
    if place_B.is_cuda or (place_B == cdf_BV.shape[1]).any():
        place_B = torch.minimum(place_B, (cdf_BV < cdf_BV[:, -1:]).sum(-1))
    picked_B = place_B if token_BV is None else token_BV.gather(1, place_B[:, None])[:, 0]
    known = distribution_sums(logp_BV) if statistics else ()
    return picked_B, logp_BV.gather(1, picked_B[:, None])[:, 0], *known


class HFSampler(Sampler):
    """Samples responses of the policy it was given; shares its weights, so there is nothing to hand
    over."""

    def __init__(self, policy: Policy, rules: Sampling, max_rows: int = 4096):
        super().__init__(policy, rules)
        self.max_rows = max_rows
        self.identity = ["hf", policy.bfloat16, *([list(rules.stop)] if rules.stop else [])]

    def draw(self, jobs: list[Job], step: int) -> list[Rollout]:
        self.check_lengths(jobs, positions(self.policy.model))
        done: dict[int, Rollout] = {}
        with self.policy.whole() as model:
            for group in self._groups(jobs):
                for place, rollout in zip(group, self._decode(model, [jobs[place] for place in group], step)):
                    done[place] = rollout
        return [done[place] for place in range(len(jobs))]

    def _groups(self, jobs: list[Job]) -> Iterator[list[int]]:
        order = sorted(range(len(jobs)), key=lambda j: len(jobs[j][0].token_ids))
        start = 0
        while start < len(order):
            shortest = len(jobs[order[start]][0].token_ids)
            stop = start
            while (
                stop < len(order)
                and stop - start < self.max_rows
                and len(jobs[order[stop]][0].token_ids) <= shortest + LENGTH_SLACK
            ):
                stop += 1
            yield order[start:stop]
            start = stop

    @torch.inference_mode()
    def _decode(self, model: PreTrainedModel, jobs: list[Job], step: int) -> list[Rollout]:
        device = self.policy.device
        decoder = model.get_decoder()
        ends_E = torch.tensor(sorted(self.policy.ends), device=device)
        prompt_len = np.array([len(p.token_ids) for p, _ in jobs])
        shortest, longest = int(prompt_len.min()), int(prompt_len.max())
        total = longest + self.rules.max_tokens
        given = np.full((len(jobs), total), min(self.policy.ends, default=0), dtype=np.int64)
        for row, (prompt, _) in enumerate(jobs):
            given[row, : prompt_len[row]] = prompt.token_ids
        token_BS = torch.from_numpy(given).to(device)
        logprob_BS = torch.zeros(token_BS.shape, device=device)
        statistics_BSF = torch.zeros(*token_BS.shape, 3, device=device) if self._computes_as_the_trainer() else None
        draws = np.zeros(token_BS.shape)
        for row, (prompt, index) in enumerate(jobs):
            begin = prompt_len[row]
            draws[row, begin : begin + self.rules.max_tokens] = uniforms(
                self.rules.seed, step, prompt.id, index, self.rules.max_tokens
            )
        uniform_BS = torch.from_numpy(draws).to(device)
        prompt_len_B = torch.from_numpy(prompt_len).to(device)
        end_B = prompt_len_B + self.rules.max_tokens
        stopped_B = torch.zeros(len(jobs), dtype=torch.int64, device=device)  # its tokens, where one ended it

        cache = self.policy.cache(model, total)
        alive_B = torch.arange(len(jobs), device=device)  # which job each row of the batch is
        running_B = torch.ones(len(jobs), dtype=torch.bool, device=device)
        input_BS = token_BS[:, :shortest]
        for place in range(shortest, total):
            with self.policy.autocast():
                hidden_BSH = cache.feed(decoder, input_BS)
            logits_BV = self.policy.logits(model, hidden_BSH[:, -1])
            picked_B, logprob_B, *known = sample_tokens(
                logits_BV, uniform_BS[alive_B, place], self.rules.temperature, self.rules.top_p, self.rules.top_k,
                statistics=statistics_BSF is not None,
            )  # fmt: skip
            samples_B = running_B & (prompt_len_B[alive_B] <= place)
            token_B = torch.where(samples_B, picked_B, token_BS[alive_B, place])
            token_BS[alive_B, place] = token_B
            logprob_BS[alive_B, place] = torch.where(samples_B, logprob_B, 0.0)
            if statistics_BSF is not None:
                statistics_BSF[alive_B, place] = torch.stack(known, dim=1)
            ends_B = samples_B & (token_B[:, None] == ends_E).any(-1)
            if self.rules.stop:
                ends_B |= samples_B & self._completes_a_stop(token_BS[alive_B, : place + 1], prompt_len_B[alive_B])
            stopped_B[alive_B] = torch.where(ends_B, place + 1 - prompt_len_B[alive_B], stopped_B[alive_B])
            running_B &= ~ends_B & (place + 1 < end_B[alive_B])
            count = int(running_B.sum())
            if count == 0:
                break
            if count < RETIRE_BELOW * len(running_B) and cache.sheds:
                keep = running_B.nonzero()[:, 0]
                cache.keep(keep)
                alive_B, running_B, token_B = alive_B[keep], running_B[keep], token_B[keep]
            input_BS = token_B[:, None]
        statistics = repeat(None) if statistics_BSF is None else statistics_BSF.cpu().numpy()
        rows = zip(token_BS.tolist(), logprob_BS.tolist(), statistics, prompt_len, stopped_B.tolist())
        return [self._rollout(job, *row) for job, row in zip(jobs, rows)]

    def _computes_as_the_trainer(self) -> bool:
        """Whether what it knows of a token's distribution is asked for, and is the trainer's."""
        return self.rules.statistics and not self.policy.bfloat16 and self.rules.temperature == self.policy.temperature

    def _completes_a_stop(self, token_BT: Tensor, begin_B: Tensor) -> Tensor:
        """[B] whether the last token of a row completes one of the stop strings in what the row
        says from place `begin_B` on. A token says one byte at least, so a few of the last tokens
        hold any string that ends there."""
        most = MARGIN + max(len(text.encode()) for text in self.rules.stop)
        tails = [row[begin:][-most:] for row, begin in zip(token_BT.tolist(), begin_B.tolist())]
        found = [any(text in said for text in self.rules.stop) for said in map(self.policy.text, tails)]
        return torch.tensor(found, device=token_BT.device)

    def _rollout(
        self,
        job: Job,
        tokens: list[int],
        logprobs: list[float],
        statistics: np.ndarray | None,
        begin: int,
        stopped: int,
    ) -> Rollout:
        """`stopped`: how many tokens the response has, the one that ended it included; 0 where none
        did."""
        prompt, index = job
        inside = slice(begin, begin + (stopped or self.rules.max_tokens))
        response = tuple(tokens[inside])
        known = None if statistics is None else tuple(map(tuple, statistics[inside].tolist()))
        finish, text = "stop" if stopped else "length", self.policy.text(response)
        return Rollout(prompt, index, response, tuple(logprobs[inside]), finish, text, statistics=known)
