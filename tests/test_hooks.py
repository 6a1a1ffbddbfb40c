"""prime-rl's and slime's hooks for a loss. Neither can be installed here: what their sources say of
the hook is restated as data, with the commit it was read from, and the functions are called as
those sources call them."""

import inspect
import sys
from dataclasses import make_dataclass
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from cegppo import losses
from cegppo.instrument.tally import Tally
from cegppo.objective import Objective, weigh
from cegppo.plugins import prime_rl, slime
from cegppo.types import BadInput, TokenBatch

# PrimeIntellect-ai/prime-rl 559b44772e47, src/prime_rl/trainer/rl/loss.py: `custom_fn(inputs,
# **kwargs)`.
LOSS_INPUTS = ("trainer_logprobs", "inference_logprobs", "ref_logprobs", "advantages", "loss_mask", "loss_weights")
LOSS_OUTPUTS = ("loss", "metrics")
# THUDM/slime 624b824a898a, slime/backends/megatron_utils/loss.py: `func(args, batch, logits,
# sum_of_sample_mean)`.
SLIME_FUNCTION = ("args", "batch", "logits", "sum_of_sample_mean")
SLIME_LOGPROBS = ("args", "unconcat_tokens", "total_lengths", "response_lengths", "with_entropy")  # by keyword

LENGTHS, PROMPT, VOCABULARY = [3, 5, 2], 2, 6


def stand_in(monkeypatch, name: str, **contents) -> None:
    """A module `name`, and the packages above it."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        module = ModuleType(".".join(parts[:end]))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for key, value in contents.items():
        setattr(sys.modules[name], key, value)


@pytest.fixture
def sequences():
    """Rows of tokens: (logits [T, V], tokens, old log-probabilities, advantages, mask), some tokens
    far outside the clip and one masked."""
    made = torch.Generator().manual_seed(0)
    rows = []
    for n, length in enumerate(LENGTHS):
        logits_TV = torch.randn(length, VOCABULARY, generator=made, dtype=torch.float32)
        token_T = torch.randint(VOCABULARY, (length,), generator=made)
        old_T = logits_TV.log_softmax(-1).gather(1, token_T[:, None])[:, 0] + torch.randn(length, generator=made)
        mask_T = torch.ones(length)
        mask_T[0] = float(n != 1)
        rows.append((logits_TV.requires_grad_(), token_T, old_T, torch.randn(length, generator=made), mask_T))
    return rows


def logprobs(logits_TV, token_T):
    return logits_TV.log_softmax(-1).gather(1, token_T[:, None])[:, 0]


def ours(rows, name, **knobs):
    """(token losses [B, T], TokenBatch, Tally) by our own objective."""
    pad = lambda values: pad_sequence(list(values), batch_first=True)
    logits, tokens, old, advantages, masks = zip(*rows)
    logp = [logits_TV.log_softmax(-1) for logits_TV in logits]
    x = TokenBatch(
        pad(logprobs(*pair) for pair in zip(logits, tokens)), pad(old), pad(advantages), pad(masks),
        pad(-(row.exp() * row).sum(-1).detach() for row in logp),
    )  # fmt: skip
    module = losses.load(name)
    objective = Objective(module, module.Params(**knobs))
    token_loss_BT, _ = module.token_loss(x, objective.params)
    w, _ = weigh(objective, x, {"policy": x.mask_BT})
    tally = Tally()
    full = x.but(logprob_BT=x.logprob_BT.detach(), sum_p2_BT=x.entropy_BT, sum_p2_logp_BT=x.entropy_BT)
    tally.add_tokens(full, w, x.mask_BT)
    return token_loss_BT, x, tally


def gradients(rows):
    made = [row[0].grad.clone() for row in rows]
    for row in rows:
        row[0].grad = None
    return made


@pytest.fixture
def prime(monkeypatch):
    outputs = make_dataclass("LossOutputs", LOSS_OUTPUTS)
    stand_in(monkeypatch, "prime_rl.trainer.rl.loss", LossOutputs=outputs)
    inputs = make_dataclass("LossInputs", LOSS_INPUTS)
    return lambda row, weights=None: inputs(logprobs(*row[:2]), row[2], None, row[3], row[4].bool(), weights)


@pytest.mark.parametrize("name, knobs", [("cegppo", {"beta1": 0.3, "beta2": 0.7}), ("gspo", {}), ("reinforce", {})])
def test_prime_rl_gets_our_sum_and_gradient(prime, sequences, name, knobs):
    made = [prime_rl.policy_loss(prime(row), loss=name, **knobs) for row in sequences]
    total = sum(output.loss for output in made)
    total.backward()
    theirs = gradients(sequences)
    token_loss_BT, x, tally = ours(sequences, name, **knobs)
    expected = (token_loss_BT * x.mask_BT).sum()
    expected.backward()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(theirs, gradients(sequences))
    # prime-rl joins a metric's tensors over sequences and ranks, and takes the mean.
    means = {key: float(torch.cat([output.metrics[key] for output in made]).mean()) for key in made[0].metrics}
    assert means == pytest.approx({key: tally.metrics(1)[key] for key in means}, abs=1e-6)
    assert {"clip/low", "clip/high", "clip/pa_lp", "tokens/na_lp", "kl/old_k3"} <= means.keys()


def test_prime_rl_weights_tokens(prime, sequences):
    row = sequences[0]
    weights = torch.tensor([0.5, 2.0, 0.0])
    token_loss_BT, *_ = ours([row], "cegppo")
    assert float(prime_rl.policy_loss(prime(row, weights)).loss.detach()) == pytest.approx(
        float((token_loss_BT[0] * weights).sum().detach())
    )


@pytest.mark.parametrize(
    "knobs, says",
    [
        ({"loss": "m2po"}, "prime-rl: loss 'm2po' is a rule over the whole mini-batch"),
        ({"loss": "erc"}, "prime-rl: loss 'erc' needs entropy, which prime-rl does not give it"),
        ({"bta1": 1.0}, "prime-rl: loss 'cegppo' has no knob 'bta1'; did you mean 'beta1'?"),
    ],
)
def test_prime_rl_is_told_what_it_cannot_have(prime, sequences, knobs, says):
    with pytest.raises(BadInput, match=says.replace("?", r"\?")):
        prime_rl.policy_loss(prime(sequences[0]), **knobs)


# ------------------------------------------------------------------------------------------- slime


def statistics(logits, *, args, unconcat_tokens, total_lengths, response_lengths, with_entropy):
    """Log-probabilities and entropies of the responses in packed logits [1, N, V]: as slime's
    `get_log_probs_and_entropy` gives them to its own policy loss, without context parallelism."""
    logp, entropy, end = [], [], 0
    for tokens, total, length in zip(unconcat_tokens, total_lengths, response_lengths):
        end += total
        part_TV = logits[0, end - length - 1 : end - 1].log_softmax(-1)
        logp.append(part_TV.gather(1, tokens[-length:, None])[:, 0])
        entropy.append(-(part_TV.exp() * part_TV).sum(-1))
    return torch.empty(0), {"log_probs": logp, "entropy": entropy}


@pytest.fixture
def packed(monkeypatch, sequences):
    """(args, batch, logits, sum_of_sample_mean) as slime makes them of the sequences, each after a
    prompt of PROMPT tokens."""
    assert tuple(p for p in inspect.signature(statistics).parameters if p != "logits") == SLIME_LOGPROBS
    stand_in(
        monkeypatch, "slime.backends.megatron_utils.loss",
        get_log_probs_and_entropy=statistics, get_rollout_top_p_logprob_kwargs=lambda args, batch: {},
    )  # fmt: skip
    stand_in(monkeypatch, "slime.utils.misc", load_function=lambda path: OWN[path])
    logits, tokens, old, advantages, masks = zip(*sequences)
    blank = torch.zeros(PROMPT - 1, VOCABULARY)
    last = torch.zeros(1, VOCABULARY)  # predicts what comes after the last token: nothing
    rows = [torch.cat([blank, logits_TV, last]) for logits_TV in logits]
    batch = {
        "unconcat_tokens": [torch.cat([torch.zeros(PROMPT, dtype=torch.long), token_T]) for token_T in tokens],
        "total_lengths": [PROMPT + n for n in LENGTHS], "response_lengths": LENGTHS,
        "log_probs": list(old), "advantages": list(advantages), "loss_masks": list(masks),
    }  # fmt: skip
    args = SimpleNamespace(
        cegppo={"beta1": 0.3, "beta2": 0.7}, eps_clip=0.2, eps_clip_high=0.2, eps_clip_c=None, entropy_coef=0.0,
        use_kl_loss=False, use_rollout_logprobs=False, calculate_per_token_loss=False, use_tis=False, use_opsm=False,
    )  # fmt: skip
    split = lambda x: zip(x.split(LENGTHS), masks)
    sum_of_sample_mean = lambda x: sum((x_i * m).sum() / m.sum().clamp(min=1) for x_i, m in split(x))
    return args, batch, torch.cat(rows)[None], sum_of_sample_mean


OWN = {"mine.reducer": lambda totals, lengths, masks, per_token: lambda x: x.square().sum() * 0 + x.sum() / 7}


def test_slime_gets_our_loss_and_gradient_by_its_own_reduction(packed, sequences):
    assert tuple(inspect.signature(slime.policy_loss).parameters) == SLIME_FUNCTION
    loss, log = slime.policy_loss(*packed)
    loss.backward()
    theirs = gradients(sequences)
    token_loss_BT, x, tally = ours(sequences, "cegppo", beta1=0.3, beta2=0.7)
    expected = (token_loss_BT * x.mask_BT / x.length_B[:, None]).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(theirs, gradients(sequences))
    assert float(log["loss"]) == float(log["pg_loss"]) == float(loss.detach()) and not log["pg_loss"].requires_grad
    low_BT = (x.advantage_BT < 0) & (x.ratio_BT < 0.8) & x.mask_BT.bool()
    assert float(log["clip/low"]) == pytest.approx(float((low_BT / x.length_B[:, None]).sum()))
    assert all(value.dim() == 0 for value in log.values())


def test_slime_terms_beside_the_policy_loss(packed, sequences, monkeypatch):
    """Its entropy bonus, KL penalty, dual clip, ε and reducer are there, and do what they are
    for."""
    args, batch, logits, reduce = packed
    plain, _ = slime.policy_loss(*packed)
    args.entropy_coef = 0.1
    with_bonus, log = slime.policy_loss(*packed)
    torch.testing.assert_close(with_bonus, plain - 0.1 * log["entropy_loss"])
    args.entropy_coef, args.use_kl_loss, args.kl_loss_coef, args.kl_loss_type = 0.0, True, 0.5, "k1"
    batch["ref_log_probs"] = [old - 0.25 for old in batch["log_probs"]]
    stand_in(monkeypatch, "slime.utils.ppo_utils", compute_approx_kl=lambda now, ref, kl_loss_type: now - ref)
    with_kl, log = slime.policy_loss(*packed)
    torch.testing.assert_close(with_kl, plain + 0.5 * log["kl_loss"])
    args.use_kl_loss, args.custom_pg_loss_reducer_function_path = False, "mine.reducer"
    token_loss_BT, x, _ = ours(sequences, "cegppo", beta1=0.3, beta2=0.7)
    torch.testing.assert_close(slime.policy_loss(*packed)[0], (token_loss_BT * x.mask_BT).sum() / 7)
    args.custom_pg_loss_reducer_function_path, args.eps_clip = None, 0.5
    wide, _ = slime.policy_loss(*packed)
    token_loss_BT, x, _ = ours(sequences, "cegppo", beta1=0.3, beta2=0.7, eps_low=0.5)
    torch.testing.assert_close(wide, (token_loss_BT * x.mask_BT / x.length_B[:, None]).sum())
    args.eps_clip, args.eps_clip_c = 0.2, 1.5
    assert float(slime.policy_loss(*packed)[0]) < float(plain)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"use_tis": True}, "slime: --use-tis is not served"),
        ({"cegppo": {"loss": "bapo"}}, "slime: loss 'bapo' is a rule over the whole mini-batch"),
        ({"cegppo": {"loss": "sapo", "beta1": 1.0}}, "slime: loss 'sapo' has no knob 'beta1'"),
    ],
)
def test_slime_is_told_what_it_cannot_have(packed, change, says):
    vars(packed[0]).update(change)
    with pytest.raises(BadInput, match=says):
        slime.policy_loss(*packed)


def test_slime_under_context_parallelism_is_refused(packed):
    args, batch, logits, reduce = packed
    batch["loss_masks"] = [torch.cat([mask, mask]) for mask in batch["loss_masks"]]
    with pytest.raises(BadInput, match="slime: context parallelism"):
        slime.policy_loss(args, batch, logits, reduce)
