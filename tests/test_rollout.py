"""The sampler: random streams of its own, the distribution it claims, and agreement with the
trainer."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cegppo import metrics
from cegppo.model.collate import laid_out
from cegppo.model.policy import Policy
from cegppo.rollout import Sampling, hf
from cegppo.rollout.hf import HFSampler, sample_tokens
from cegppo.types import Prompt, Rollout, requests


@pytest.fixture(scope="module")
def policy(tiny_model):
    return Policy.load(tiny_model, "cpu")


def prompts(policy, texts):
    return [Prompt(f"p/{i}", "p", t, tuple(policy.tokenizer.encode(t)), "") for i, t in enumerate(texts)]


TEXTS = ["1+1=", "a much longer prompt than the others, by far\n", "12345678", "x", "Solve for y: 3*y = 9\n"]


def key(rollouts):
    return [(r.prompt.id, r.index, r.token_ids, r.finish) for r in rollouts]


def test_batching_and_retiring_never_change_what_is_sampled(policy, monkeypatch):
    sampler = HFSampler(policy, Sampling(seed=3, max_tokens=24))
    together = sampler.sample(requests(prompts(policy, TEXTS), 6), step=5)
    assert len({len(r.token_ids) for r in together}) > 3  # of varying length, so rows did retire
    alone = [r for p in prompts(policy, TEXTS) for r in sampler.sample(requests([p], 6), step=5)]
    assert key(together) == key(alone)
    monkeypatch.setattr(hf, "RETIRE_BELOW", 0.0)  # never retire
    assert key(sampler.sample(requests(prompts(policy, TEXTS), 6), step=5)) == key(together)
    monkeypatch.setattr(hf, "LENGTH_SLACK", 0)  # equal lengths only
    assert key(sampler.sample(requests(prompts(policy, TEXTS), 6), step=5)) == key(together)
    sampler.max_rows = 4
    backwards = sampler.sample(requests(prompts(policy, TEXTS)[::-1], 6), step=5)
    assert sorted(key(backwards)) == sorted(key(together))
    assert key(sampler.sample(requests(prompts(policy, TEXTS), 3), step=5)) == [
        k for k in key(together) if k[1] < 3
    ]  # more samples: the same first ones


def test_streams_differ_by_seed_step_prompt_and_index():
    base = dict(seed=1, step=2, prompt_id="a/1", index=3, count=8)
    first = hf.uniforms(**base)
    assert (hf.uniforms(**base) == first).all()
    for change in (dict(seed=2), dict(step=3), dict(prompt_id="a/2"), dict(index=4)):
        assert (hf.uniforms(**{**base, **change}) != first).all()


def test_sampled_logprobs_agree_with_the_trainer(policy):
    for temperature in (1.0, 0.6):
        sampler = HFSampler(policy, Sampling(seed=0, max_tokens=24, temperature=temperature, top_p=0.9))
        rollouts = sampler.sample(requests(prompts(policy, TEXTS), 8), step=0)
        trainer = Policy(policy.model, policy.tokenizer, temperature=temperature, micro_batch_tokens=300)
        zeros = np.zeros(len(rollouts))
        x = trainer.collate(rollouts, zeros, zeros, zeros)
        assert ((x.sampler_logprob_BT - x.old_logprob_BT) * x.mask_BT).abs().max() < 1e-5


def _both_ways(policy, change=lambda rollouts: rollouts, **rules):
    """Collated from what the sampler knows, after a `change`, and computed again."""
    sampler = HFSampler(policy, Sampling(seed=0, max_tokens=24, **rules))
    known = change(sampler.but(statistics=True).sample(requests(prompts(policy, TEXTS), 16), step=0))
    plain = sampler.sample(requests(prompts(policy, TEXTS), 16), step=0)
    zeros = np.zeros(len(plain))
    return known, plain, policy.collate(known, zeros, zeros, zeros), policy.collate(plain, zeros, zeros, zeros)


def test_the_sampler_is_taken_at_its_word_where_a_check_agrees(policy):
    known, plain, x, y = _both_ways(policy)
    assert [r.token_ids for r in known] == [r.token_ids for r in plain]
    for name in ("old_logprob_BT", "logprob_BT", "old_entropy_BT", "entropy_BT", "sum_p2_BT", "sum_p2_logp_BT"):
        torch.testing.assert_close(getattr(x, name), getattr(y, name), atol=2e-5, rtol=1e-5)
    assert y.checked_B.min() == 1 and x.checked_B.sum() == -(-len(known) // 16)
    checked = x.checked_B.bool()
    assert not torch.equal(x.old_logprob_BT, x.sampler_logprob_BT)
    assert torch.equal(x.old_logprob_BT[~checked], x.sampler_logprob_BT[~checked])
    assert metrics.mismatch(x)[0] > 0 and metrics.mismatch(x)[1] < 1e-5


def test_a_sampler_whose_check_fails_is_not_believed(policy):
    off = lambda by: lambda rs: [replace(r, logprobs=tuple(p + by for p in r.logprobs)) for r in rs]
    for by in (1e-3, float("nan")):
        _, _, x, y = _both_ways(policy, off(by))
        assert x.checked_B.min() == 1 and torch.equal(x.old_logprob_BT, y.old_logprob_BT)


def test_one_token_far_off_is_enough(policy):
    """The mean is bounded at 1e-5 and any one token at 1e-3: an error of one token in thousands
    does not hide in the mean."""
    off = lambda r: replace(r, logprobs=(r.logprobs[0] + 2e-3, *r.logprobs[1:]))
    sampler = HFSampler(policy, Sampling(seed=0, max_tokens=24, statistics=True))
    rollouts = sampler.sample(requests(prompts(policy, TEXTS[:1]), 8), step=0)  # of which one row is checked
    rollouts[3] = off(rollouts[3])
    zeros = np.zeros(len(rollouts))
    found = set()
    for order in range(40):  # another batch, another draw
        shuffled = [rollouts[i] for i in np.random.default_rng(order).permutation(len(rollouts))]
        x = policy.collate(shuffled, zeros, zeros, zeros)
        found.add(None if x.checked_B.min() == 1 else int(x.checked_B.argmax()))
    assert None in found and len(found) > 4  # drawn over all places, and the broken row is found when it is drawn


def test_the_check_does_not_use_the_layout_that_it_checks(policy, monkeypatch):
    """A packing that mixes answers up cannot agree with itself."""
    packed = Policy(policy.model, policy.tokenizer, packing=True)
    monkeypatch.setattr("cegppo.model.policy.packed_states", lambda *_: 1 / 0)
    sampler = HFSampler(policy, Sampling(seed=0, max_tokens=8, statistics=True))
    known = sampler.sample(requests(prompts(policy, TEXTS), 4), step=0)
    zeros = np.zeros(len(known))
    assert packed.collate(known, zeros, zeros, zeros).checked_B.min() == 0


def test_a_failed_check_is_logged(tiny, monkeypatch):
    from cegppo import config
    from cegppo.state import build

    from . import steps

    loaded, _ = config.load(tiny, ["diagnostics.every=0"])
    state = build(loaded)
    state.draw_probe()
    assert "old_logprobs/recomputed" not in steps.step(state)
    monkeypatch.setattr("cegppo.model.policy.AT_MOST", -1.0)
    row = steps.step(state)
    assert row["old_logprobs/recomputed"] == 1.0 and row["mismatch/checked"] == 1.0


def test_who_computes_otherwise_says_nothing(policy):
    rules = dict(seed=0, max_tokens=4, statistics=True)
    asked = requests(prompts(policy, TEXTS), 1)
    said = lambda p, **more: HFSampler(p, Sampling(**rules, **more)).sample(asked, 0)[0].statistics
    assert said(policy) is not None and said(policy, top_p=0.5) is not None
    assert said(policy, temperature=0.5) is None
    assert said(Policy(policy.model, policy.tokenizer, bfloat16=True)) is None


def test_one_response_without_statistics_and_all_are_computed(policy):
    _, _, x, _ = _both_ways(policy, lambda rs: [replace(rs[0], statistics=None), *rs[1:]])
    assert x.checked_B.min() == 1


def test_trainer_statistics_against_a_plain_forward_in_float64(policy):
    """Log-probabilities, entropies and power sums of every response token, from the whole
    model's logits."""
    import copy

    rollouts = HFSampler(policy, Sampling(seed=0, max_tokens=16)).sample(requests(prompts(policy, TEXTS), 2), step=0)
    zeros = np.zeros(len(rollouts))
    x = policy.collate(rollouts, zeros, zeros, zeros)
    model = copy.deepcopy(policy.model).double()
    for b, r in enumerate(rollouts):
        ids = torch.tensor([[*r.prompt.token_ids, *r.token_ids]])
        logp = torch.log_softmax(model(ids).logits[0, len(r.prompt.token_ids) - 1 : -1], -1).detach()
        p, n = logp.exp(), len(r.token_ids)
        wanted = {
            "old_logprob_BT": logp.gather(1, torch.tensor(r.token_ids)[:, None])[:, 0],
            "old_entropy_BT": -(p * logp).sum(-1),
            "sum_p2_BT": (p**2).sum(-1),
            "sum_p2_logp_BT": (p**2 * logp).sum(-1),
        }
        for name, value in wanted.items():
            torch.testing.assert_close(getattr(x, name)[b, :n].double(), value, atol=2e-5, rtol=1e-5)
            assert (getattr(x, name)[b, n:] == 0).all()


def test_inverse_sampling_hits_every_token_in_proportion():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    token, logprob = sample_tokens(logits.expand(4000, 4), grid, temperature=0.7, top_p=1.0, top_k=0)
    p = torch.softmax(logits / 0.7, -1)
    assert (torch.bincount(token, minlength=4) / 4000 - p).abs().max() < 1e-3
    torch.testing.assert_close(logprob, p.log()[token])


@pytest.mark.parametrize(
    "top_p, top_k, kept",
    [(1.0, 2, [1, 3]), (0.5, 0, [3]), (0.8, 0, [1, 3]), (0.95, 3, [1, 2, 3]), (0.6, 2, [3]), (1.0, 9, [0, 1, 2, 3])],
)
def test_top_k_and_top_p_keep_the_smallest_sufficient_set(top_p, top_k, kept):
    p = torch.tensor([0.05, 0.25, 0.1, 0.6])
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    token, logprob = sample_tokens(p.log().expand(1000, 4), grid, 1.0, top_p, top_k)
    share = torch.bincount(token, minlength=4) / 1000
    wanted = torch.zeros(4).index_put((torch.tensor(kept),), p[kept]) / p[kept].sum()
    torch.testing.assert_close(share, wanted, atol=2e-3, rtol=0)
    torch.testing.assert_close(logprob, p.log()[token])  # before truncation


def test_a_draw_of_one_never_leaves_the_support():
    logits = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]])
    token, _ = sample_tokens(logits, torch.tensor([1 - 2**-53], dtype=torch.float64), 1.0, 1.0, 0)
    assert token.item() == 2


def test_end_of_sequence_and_length_limit(policy):
    rollouts = HFSampler(policy, Sampling(seed=1, max_tokens=6)).sample(requests(prompts(policy, TEXTS), 20), step=0)
    eos = policy.tokenizer.eos_token_id
    assert {r.finish for r in rollouts} == {"stop", "length"}
    for r in rollouts:
        assert len(r.logprobs) == len(r.token_ids) <= 6
        assert (r.token_ids[-1] == eos) == (r.finish == "stop") and eos not in r.token_ids[:-1]


def test_greedy_limit_equals_generate(policy):
    """At a very low temperature the sampler and the library's own greedy search say the same."""
    (prompt,) = prompts(policy, TEXTS[:1])
    (ours,) = HFSampler(policy, Sampling(seed=0, temperature=1e-4, max_tokens=12)).sample(requests([prompt], 1), 0)
    theirs = policy.model.generate(torch.tensor([prompt.token_ids]), do_sample=False, max_new_tokens=12, pad_token_id=0)
    assert list(ours.token_ids) == theirs[0, len(prompt.token_ids) :].tolist()[: len(ours.token_ids)]


def test_rows_are_laid_out_at_their_places():
    made = [
        Rollout(Prompt(str(i), "", "", prompt, ""), i, answer, tuple(-0.5 * t for t in answer), "stop", "")
        for i, (prompt, answer) in enumerate([((7, 8, 9), (3,)), ((6,), (4, 5, 1))])
    ]
    x = laid_out(made, np.array([1.0, -2.0]), np.zeros(2), np.zeros(2), None, torch.device("cpu"))
    assert x.sequence_BS.tolist() == [[7, 8, 9, 3], [6, 4, 5, 1]] and x.sequence_BS.dtype == torch.int64
    assert x.mask_BT.tolist() == [[1, 0, 0], [1, 1, 1]] and x.prompt_len_B.tolist() == [3, 1]
    assert x.sampler_logprob_BT.tolist() == [[-1.5, 0, 0], [-2.0, -2.5, -0.5]]
    assert x.advantage_BT.tolist() == [[1, 0, 0], [-2, -2, -2]] and x.group_B.tolist() == [0, 1]
