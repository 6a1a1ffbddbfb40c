"""Answers in bins: the same numbers as row by row, from fewer tokens, each answer by itself."""

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from cegppo.model import bins
from cegppo.model.policy import Policy
from cegppo.types import Prompt, Rollout

from .test_memory import apart, batch, gradients

UNLIKE = ((3, 5), (7, 2), (1, 1), (4, 11), (2, 8), (6, 30), (5, 3), (5, 4))


def groups(p: Policy, prompts=(4, 9), answers=(3, 17, 1, 6)):
    """Several answers to each of two prompts."""
    draw = lambda n, seed: tuple(torch.randint(p.model.config.vocab_size, (n,), generator=_seed(seed)).tolist())
    rollouts = [
        Rollout(Prompt(str(g), "", "", draw(n, g), ""), i, draw(a, 100 * g + i), (0.0,) * a, "stop", "")
        for g, n in enumerate(prompts)
        for i, a in enumerate(answers)
    ]
    zero = torch.zeros(len(rollouts)).numpy()
    return p.collate(rollouts, torch.linspace(-1, 1.5, len(rollouts)).numpy(), zero, zero)


def _seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def both(tiny_model, **kwargs):
    return Policy.load(tiny_model, "cpu", packing="never"), Policy.load(tiny_model, "cpu", **kwargs)


def passes(p: Policy, x) -> list[int]:
    """Tokens that each pass feeds, padding counted."""
    made = []
    handle = p.model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: made.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    p.evaluate(x)
    handle.remove()
    return made


@pytest.mark.parametrize("most", [16384, 60, 25])
def test_bins_change_no_number_and_no_gradient(tiny, tiny_model, most):
    padded, binned = both(tiny_model, micro_batch_tokens=most)
    for make in (lambda p: batch(p, UNLIKE), groups):
        x, y = make(padded), make(binned)
        for name in ("logprob_BT", "entropy_BT", "sum_p2_BT", "sum_p2_logp_BT"):
            assert apart([getattr(y, name)], [getattr(x, name)]) < 1e-5, name
        assert apart(gradients(binned, tiny, y), gradients(padded, tiny, x)) < 1e-5


def test_tokens_are_saved_and_the_budget_kept(tiny_model):
    padded, binned = both(tiny_model)
    x = groups(padded)
    own = 4 + 9 + 2 * (2 + 16 + 0 + 5)  # each prompt once, each answer without its last token
    assert passes(padded, x) == [8 * (9 + 17 - 1)]
    assert own <= sum(passes(binned, x)) <= 1.2 * own
    binned.micro_batch_tokens = 40
    assert max(passes(binned, x)) <= 40
    seen = torch.cat([index for index, _ in binned.micro_batches(x)])
    assert sorted(seen.tolist()) == list(range(8))


def test_rows_of_like_length_are_padded_as_ever(tiny_model):
    """Where nothing is saved no mask is made."""
    _, binned = both(tiny_model)
    x = batch(binned, [(4, 9 + i % 2) for i in range(8)])
    assert [micro.bin_B for _, micro in binned.micro_batches(x)] == [None]


def test_a_row_beyond_the_budget_is_alone(tiny_model):
    _, binned = both(tiny_model, micro_batch_tokens=20)
    x = batch(binned, UNLIKE)
    alone = [index.tolist() for index, _ in binned.micro_batches(x) if 5 in index.tolist()]
    assert alone == [[5]]


def test_memory_that_runs_out_is_asked_for_less_each_time(tiny_model):
    """Many answers to one long prompt: a pass has the tokens of its bins, not of its rows."""
    _, binned = both(tiny_model)
    x = groups(binned, prompts=(60,), answers=(2, 3, 30, 4, 5, 6, 2, 3))
    while True:
        list(binned.micro_batches(x))[0]
        rows, tokens = max((len(i), binned.room.under_way[1]) for i, _ in binned.micro_batches(x))
        if rows == 1:
            break
        assert tokens <= binned.micro_batch_tokens
        binned.micro_batch_tokens = min(binned.micro_batch_tokens, tokens) // 2


def test_answers_in_a_bin_do_not_see_each_other(tiny_model):
    _, binned = both(tiny_model)
    x = groups(binned)
    changed = x.sequence_BS.clone()
    changed[1, 4:] = (changed[1, 4:] + 1) % binned.model.config.vocab_size  # an answer, not its prompt
    before, after = binned.evaluate(x)["logprob_BT"], binned.evaluate(x.but(sequence_BS=changed))["logprob_BT"]
    others = [0, 2, 3, 4, 5, 6, 7]
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[1], after[1])


def test_models_that_would_not_compute_the_same_are_padded(tiny_model, tmp_path):
    assert bins.taken(AutoModelForCausalLM.from_pretrained(tiny_model))
    assert not bins.taken(AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager"))
    shape = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    windowed = MistralForCausalLM(MistralConfig(**shape, num_key_value_heads=2, sliding_window=16))
    assert not bins.taken(windowed)
    assert bins.taken(MistralForCausalLM(MistralConfig(**shape, num_key_value_heads=2, sliding_window=None)))


def test_a_decoder_that_ignores_the_mask_is_found_out(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    decoder = model.get_decoder()
    plain = decoder.forward
    decoder.forward = lambda attention_mask=None, **kwargs: plain(**kwargs)
    assert not bins.taken(model)
