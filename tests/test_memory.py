"""The switches of docs/memory.md on a CPU: what they save, and that none of them changes a
gradient."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from cegppo import config
from cegppo.instrument import ledger
from cegppo.model import attention, memory
from cegppo.model.attention import checkpointed
from cegppo.model.optimizer import OffloadedAdamW
from cegppo.model.policy import Policy
from cegppo.record.files import read_lines
from cegppo.state import build
from cegppo.train import run_training
from cegppo.types import BadInput, Prompt, Rollout

from . import steps
from .test_train import Silent, objective

ROOT = Path(__file__).resolve().parent.parent


def loaded(tiny, *overrides):
    return config.load(tiny, ["method=cegppo", *overrides])[0]


def batch(p: Policy, lengths=((3, 5), (7, 2), (1, 1), (4, 11), (2, 8))):
    """A TokenBatch of random tokens with these (prompt, response) lengths."""
    rng = np.random.default_rng(0)
    size = p.model.config.vocab_size
    rollouts = []
    for i, (prompt, answer) in enumerate(lengths):
        draw = lambda n: tuple(rng.integers(0, size, n).tolist())
        rollouts.append(Rollout(Prompt(str(i), "", "", draw(prompt), ""), 0, draw(answer), (0.0,) * answer, "stop", ""))
    advantage = np.linspace(-1, 1.5, len(lengths))
    return p.collate(rollouts, advantage, np.zeros(len(lengths)), np.zeros(len(lengths)))


def gradients(p: Policy, tiny, x) -> list[torch.Tensor]:
    """The unclipped gradient of one update of `x`, entropy term included."""
    chosen = objective(loaded(tiny, "update.grad_clip=0", "update.entropy_coef=0.1"))
    from cegppo.instrument.tally import Tally

    steps.update(p, torch.optim.SGD(p.model.parameters(), lr=0.0), x, chosen, Tally())
    return [v.grad.clone() for v in p.model.parameters()]


def apart(ours, theirs) -> float:
    """‖ours − theirs‖ / ‖theirs‖ over all parameters."""
    flat = [torch.cat([v.flatten() for v in values]) for values in (ours, theirs)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


# bf16 is of the whole noisy network, values at half the bound; that of the head alone is in
# test_head.py.
SWITCHES = {
    "checkpointing": (dict(packing="never", checkpointing=True), 1e-5),
    "bins": (dict(), 1e-5),
    "bins in micro-batches": (dict(checkpointing=True, micro_batch_tokens=20), 1e-5),
    "packing": (dict(packing="always"), 1e-5),
    "micro-batches": (dict(packing="never", micro_batch_tokens=20), 1e-5),
    "packed micro-batches": (dict(packing="always", micro_batch_tokens=20), 1e-5),
    "bfloat16": (dict(dtype="bfloat16"), 8e-2),
    "all": (dict(dtype="bfloat16", packing="always", checkpointing=True, micro_batch_tokens=20), 8e-2),
}


@pytest.mark.parametrize("blocks", [False, True], ids=["whole logits", "blocks"])
@pytest.mark.parametrize("name", SWITCHES)
def test_no_switch_changes_a_gradient(tiny, tiny_model, name, blocks):
    kwargs, bound = SWITCHES[name]
    plain, other = (
        Policy.load(tiny_model, "cpu", temperature=0.9, packing="never"),
        Policy.load(tiny_model, "cpu", temperature=0.9, **kwargs),
    )
    other.head_chunk = 0 if blocks else other.head_chunk  # nothing fits: always in blocks
    x, y = batch(plain), batch(other)
    for field in ("logprob_BT", "entropy_BT", "sum_p2_BT", "sum_p2_logp_BT"):
        assert apart([getattr(y, field)], [getattr(x, field)]) < bound / 2, field
    made = gradients(other, tiny, x)
    assert all(v.dtype == torch.float32 for v in made)
    assert apart(made, gradients(plain, tiny, x)) < bound


def test_packed_sequences_do_not_see_each_other(tiny_model):
    """Another first sequence changes nothing in the second."""
    p = Policy.load(tiny_model, "cpu", packing="always")
    x = batch(p)
    changed = x.sequence_BS.clone()
    changed[0] = (changed[0] + 1) % p.model.config.vocab_size
    before, after = p.statistics(x), p.statistics(x.but(sequence_BS=changed))
    first = int(x.mask_BT[0].sum())
    assert torch.equal(before.logprob_N[first:], after.logprob_N[first:])
    assert not torch.equal(before.logprob_N[:first], after.logprob_N[:first])


def test_micro_batches_keep_the_budget(tiny_model):
    """Rows of 8, 9, 2, 15 and 10 tokens in sorted order; budget 20. Padded: 2+8 as 2 × 8, then
    9+10 as 2 × 10, then 15. Packed: 2+8+9."""
    p = Policy.load(tiny_model, "cpu", packing="never", micro_batch_tokens=20)
    x = batch(p)
    rows = lambda: [index.tolist() for index, _ in p.micro_batches(x)]
    assert rows() == [[2, 0], [1, 4], [3]]
    p.packing = True
    assert rows() == [[2, 0, 1], [4], [3]]


def test_checkpointing_keeps_only_layer_inputs(tiny_model):
    kept = {}
    for checkpointing in (False, True):
        p = Policy.load(tiny_model, "cpu", checkpointing=checkpointing)
        kept[checkpointing] = _saved(p.model.get_decoder(), batch(p).sequence_BS)
    width, tokens, layers = 32, 5 * 15, 2
    assert kept[True] < kept[False] / 3
    assert kept[True] >= 4 * width * tokens * layers
    assert not any(layer.training for layer in p.model.modules()), "the sampler would lose its cache"


def _saved(decoder, ids) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in decoder.parameters()}
    seen = {}

    def pack(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = (
                storage.nbytes(),
                value,
            )  # the value is kept so that its address is not used again
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value), checkpointed(decoder):
        out = decoder(input_ids=ids, use_cache=False).last_hidden_state
    assert out.requires_grad
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize(("width", "inner", "layers"), [(64, 96, 4), (64, 384, 2), (128, 384, 3)])
def test_the_estimate_of_activations_is_about_right(width, inner, layers):
    c = Qwen2Config(
        vocab_size=50,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = Qwen2ForCausalLM(c).eval()
    measured = _saved(model.model, torch.randint(50, (1, 256))) / 256
    assert 0.85 < memory.activation_bytes(c, "float32", False) / measured < 1.15


def test_the_estimate_by_hand(tiny):
    """Qwen2.5-1.5B's shape with a head of its own: 1,777,088,000 parameters, 6.62 GiB in fp32."""
    c = Qwen2Config(
        vocab_size=151_936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = Qwen2ForCausalLM(c)
    count = 1_777_088_000
    wide = loaded(tiny, "update.micro_batch_tokens=16384", "data.max_prompt_tokens=20000")
    made = memory.estimate(wide, model, "cuda")
    assert made["weights"] == made["gradients"] == 4 * count and made["optimizer"] == 8 * count
    assert made["activations"] == 16384 * memory.activation_bytes(c, "float32", False)
    narrow = loaded(
        tiny,
        "model.dtype=bfloat16",
        "model.gradient_checkpointing=true",
        "update.offload_optimizer=true",
        "update.kl_coef=0.1",
    )
    looked_at = loaded(tiny, "model.dtype=bfloat16", "diagnostics.probe=1", "data.max_prompt_tokens=20000")
    tokens = 16384 * memory.activation_bytes(c, "float32", False)
    assert memory.estimate(looked_at, model, "cuda")["activations"] == tokens, "the ledger's passes are in fp32"
    less = memory.estimate(narrow, model, "cuda", shards=2)
    assert (
        less["optimizer"] == 0 and less["bf16 weights"] == count and less["reference"] == less["weights"] == 2 * count
    )
    assert less["activations"] < made["activations"] / 10
    assert memory.estimate(narrow, model, "cpu")["optimizer"] == 8 * count, "on a CPU there is nowhere else"


def test_what_cannot_fit_is_refused_with_numbers(tiny):
    big = loaded(tiny, "update.micro_batch_tokens=100000000000", "data.max_prompt_tokens=1000000000")
    with pytest.raises(BadInput) as raised:
        build(big)
    message = str(raised.value)
    assert "\n" not in message and "activations" in message and "cpu has" in message
    assert "model.gradient_checkpointing=true" in message and "update.micro_batch_tokens" in message
    memory.check(loaded(tiny), loaded(tiny).model.path)


def test_offloaded_moments_make_the_same_steps(tiny, tmp_path):
    """Bit for bit, and through a checkpoint; with weight decay, and a parameter that has no
    gradient."""
    from cegppo.checkpoint import load_optimizer, optimizer_tensors, save_tensors

    torch.manual_seed(0)
    start = [torch.randn(4, 3), torch.randn(5), torch.randn(2)]
    kinds = (torch.optim.AdamW, OffloadedAdamW)
    ours = [[torch.nn.Parameter(v.clone()) for v in start] for _ in kinds]
    made = [kind(values, lr=0.1, weight_decay=0.1) for kind, values in zip(kinds, ours)]
    for step in range(4):
        grads = [torch.randn(4, 3), torch.randn(5)]
        for values, optimizer in zip(ours, made):
            for p, g in zip(values, grads):
                p.grad = g.clone()
            optimizer.step()
        if step == 1:
            save_tensors(optimizer_tensors(made[1]), tmp_path, "optimizer.safetensors")
            made[1] = OffloadedAdamW(ours[1], lr=0.1, weight_decay=0.1)
            load_optimizer(made[1], tmp_path / "optimizer.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(*ours)) and torch.equal(ours[0][2], start[2])
    assert len(made[1].param_groups[0]["params"]) == 3


def test_a_run_with_every_switch(tiny, tmp_path):
    """The same step as the plain run, its books included (the ledger takes several backward
    passes); in bf16 they still close."""
    plain = (
        "update.micro_batch_tokens=64",
        "steps=1",
        "diagnostics.every=1",
        "diagnostics.parts=true",
        "diagnostics.probe=8",
        "update.entropy_coef=0.01",
    )
    switches = (
        "model.packing=always",
        "model.gradient_checkpointing=true",
        "update.offload_optimizer=true",
        "model.head_chunk=1",
    )
    rows = {}
    for name, more in (("plain", ()), ("switches", switches), ("bfloat16", (*switches, "model.dtype=bfloat16"))):
        run_training(loaded(tiny, *plain, *more, f"run_dir={tmp_path / name}"), Silent())
        rows[name] = read_lines(tmp_path / name / "metrics.jsonl")[0]
    for key, value in rows["plain"].items():
        if not key.startswith("time/") and not key.endswith("residual"):
            # The first steps of AdamW divide by gradients of next to nothing; so does the ledger.
            rel = 0.05 if key.startswith("ledger/") else 1e-3
            assert rows["switches"][key] == pytest.approx(value, rel=rel, abs=1e-5), key
    assert rows["bfloat16"]["mismatch/mean"] < 0.02
    for name, row in rows.items():  # each backward pass rounds its own products in bf16
        bound = 3e-2 if name == "bfloat16" else 1e-4
        assert row["ledger/gradient_residual"] < bound and row["ledger/step_residual"] < bound


def test_packing_chooses_by_device(tiny_model):
    assert not Policy.load(tiny_model, "cpu", dtype="bfloat16").packing
    assert not Policy.load(tiny_model, "cpu", packing="never").packing
    assert Policy.load(tiny_model, "cpu", packing="always").packing


def test_variable_length_attention_is_the_usual_one_for_the_sampler(tiny_model):
    """Registered with transformers, and without cumulative lengths the same as sdpa."""
    p = Policy.load(tiny_model, "cpu")
    x = batch(p)
    before = p.statistics(x).logprob_N
    p.model.set_attn_implementation("variable_length")
    assert torch.equal(p.statistics(x).logprob_N, before)


@pytest.mark.parametrize("name", ["variable_length", "repeated"])
def test_a_pass_in_fp32_asks_for_a_kernel_that_keeps_no_scores(tiny_model, monkeypatch, name):
    """On CUDA fp32 has one such kernel, the memory-efficient one: without a mask, and with as many
    heads of keys and values as of queries. The ledger's passes are in fp32 in every run."""
    plain = Policy.load(tiny_model, "cpu", packing="never")
    x, asked = batch(plain), []
    right = plain.statistics(x, entropy_grad=True)
    (right.logprob_N.sum() + right.entropy_N.sum()).backward()
    whole = torch.nn.functional.scaled_dot_product_attention

    def kernel(q, k, v, **how):
        heads = q.shape[1] == k.shape[1] == v.shape[1]
        asked.append((q.dtype, heads and not how.get("enable_gqa"), how["attn_mask"] is None and how["is_causal"]))
        return whole(q, k, v, **how)

    p = Policy.load(tiny_model, "cpu", dtype="bfloat16", packing="never")
    assert p.model.config.num_key_value_heads < p.model.config.num_attention_heads
    p.model.set_attn_implementation(name)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", kernel)
    with p.exactly():
        made = p.statistics(x, entropy_grad=True)
        (made.logprob_N.sum() + made.entropy_N.sum()).backward()
    assert set(asked) == {(torch.float32, True, True)}
    torch.testing.assert_close(made.logprob_N, right.logprob_N)
    grads = [[v.grad for v in each.model.parameters()] for each in (p, plain)]
    assert apart(*grads) < 1e-6
    asked.clear()
    p.statistics(x)
    assert {heads for _, heads, _ in asked} == {False}  # under autocast flash attention shares them itself


@pytest.mark.parametrize("window", [None, 3])
def test_variable_length_attention_hands_over_the_right_layout(monkeypatch, window):
    """PyTorch's kernel runs on a GPU only; here one loop over sequences stands for it, by the
    layout that its documentation states."""
    queries, keys, size, lengths = 4, 2, 8, (5, 1, 7)
    edges = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)

    def kernel(q, k, v, from_q, from_k, most_q, most_k, *, scale, window_size):
        assert q.shape == k.shape == v.shape == (sum(lengths), queries, size) and q.dtype == torch.bfloat16
        assert torch.equal(from_q, edges) and torch.equal(from_k, edges) and most_q == most_k == 7 and scale == 0.3
        made = []
        for a, b in zip(from_q.tolist(), from_q.tolist()[1:]):
            place = torch.arange(b - a)
            ago = place[:, None] - place
            sees = (ago >= 0) & ((ago <= window_size[0]) if window_size[0] >= 0 else True)
            assert window_size[1] == 0
            rows = (t[a:b].transpose(0, 1).float() for t in (q, k, v))
            made.append(
                torch.nn.functional.scaled_dot_product_attention(*rows, attn_mask=sees, scale=scale).transpose(0, 1)
            )
        return torch.cat(made)

    monkeypatch.setattr("cegppo.model.attention.varlen_attn", kernel)
    g = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, sum(lengths), size, generator=g).bfloat16().float() for heads in (queries, keys, keys)
    )
    made, _ = attention.variable_length_attention(
        None,
        q,
        k,
        v,
        None,
        scaling=0.3,
        sliding_window=window,
        cu_seq_lens_q=edges,
        cu_seq_lens_k=edges,
        max_length_q=7,
        max_length_k=7,
    )
    row = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    ago = torch.arange(sum(lengths))[:, None] - torch.arange(sum(lengths))
    sees = (row[:, None] == row) & (ago >= 0) & (ago < (window or 99))
    right = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=sees, scale=0.3, enable_gqa=True)
    assert made.shape == (1, sum(lengths), queries, size)
    assert torch.allclose(made, right.transpose(1, 2), atol=1e-6)


SHAPES = {
    "1.5b_text.yaml": dict(hidden_size=1536, intermediate_size=8960, num_attention_heads=12, num_key_value_heads=2),
    "7b_text.yaml": dict(hidden_size=3584, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4),
}


def test_the_memory_a_rank_in_the_docs_is_the_estimate():
    """docs/scale.md, 8 and 16 ranks of the paper's two models (whose heads are not tied)."""
    rows = []
    for line in (ROOT / "docs" / "scale.md").read_text().splitlines():
        if line.startswith("| `") and "_text.yaml" in line:
            name, ranks, *numbers = (cell.strip(" `") for cell in line.strip("|").split("|"))
            rows.append((name, int(ranks), [float(number) for number in numbers]))
    assert [row[:2] for row in rows] == [(n, ranks) for n in ("7b_text.yaml", "1.5b_text.yaml") for ranks in (8, 16)]
    for name, ranks, numbers in rows:
        vocabulary = 152_064 if name.startswith("7b") else 151_936
        shape = Qwen2Config(vocab_size=vocabulary, num_hidden_layers=28, tie_word_embeddings=False, **SHAPES[name])
        with torch.device("meta"):
            model = Qwen2ForCausalLM(shape)
        loaded, _ = config.load(ROOT / "experiments" / "paper" / name, ["method=cegppo"])
        e = memory.estimate(loaded, model, "cuda", ranks)
        states = e["weights"] + e["gradients"] + e["optimizer"]
        made = [states, *(e[key] for key in ("bf16 weights", "ledger", "activations", "logits")), sum(e.values())]
        assert numbers == [round(value / memory.GIB, 1) for value in made]


# ---------------------------------------------------------------------------- memory that runs out

ERRORS = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
        " allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "python": lambda: MemoryError(),
}


@pytest.fixture
def scarce(monkeypatch):
    """scarce(tokens, kind): from here on a pass of more than `tokens` tokens, of the policy or of
    the critic, runs out of memory when its layers are done; by default only where a backward pass
    will come. What it returns has an entry each time."""
    failed = []
    whole = Policy.states

    def make(tokens, kind="cpu", gradient_only=True):
        def states(self, decoder, x):
            made = whole(self, decoder, x)
            if x.sequence_BS.numel() > tokens and (torch.is_grad_enabled() or not gradient_only):
                failed.append(x.sequence_BS.numel())
                raise ERRORS[kind]()
            return made

        monkeypatch.setattr(Policy, "states", states)
        return failed

    return make


def test_the_real_allocator_of_a_cpu_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert memory.ran_out(caught.value) and not memory.ran_out(RuntimeError("mat1 and mat2 shapes"))


@pytest.mark.parametrize("kind", ERRORS)
def test_a_gradient_is_the_same_after_memory_ran_out(tiny, tiny_model, scarce, kind, capsys):
    """Half-way through a mini-batch: what was back-propagated before is not counted twice."""
    p = Policy.load(tiny_model, "cpu", micro_batch_tokens=30)
    x = batch(p)
    whole = gradients(p, tiny, x)
    failed = scarce(20, kind)  # the first micro-batches have fewer tokens: their gradients were there already
    again = gradients(p, tiny, x)
    assert failed and p.room.retries == len(failed) and p.micro_batch_tokens < 30
    assert capsys.readouterr().err.count("memory ran out") == len(failed)
    assert apart(again, whole) <= 1e-5
    fresh = Policy.load(tiny_model, "cpu", micro_batch_tokens=p.micro_batch_tokens)
    assert all(torch.equal(a, b) for a, b in zip(again, gradients(fresh, tiny, x)))


def test_a_pass_of_one_answer_is_the_end(tiny, tiny_model, scarce):
    p = Policy.load(tiny_model, "cpu")
    x = batch(p)
    before = [v.clone() for v in p.model.parameters()]
    failed = scarce(1)
    with pytest.raises(memory.OutOfMemory, match=r"in a pass of a single answer, of \d tokens"):
        gradients(p, tiny, x)
    assert len(failed) <= 8  # halved each time
    assert all(torch.equal(a, b) for a, b in zip(before, p.model.parameters()))


def test_what_is_no_lack_of_memory_is_not_tried_again(tiny, tiny_model, monkeypatch):
    p = Policy.load(tiny_model, "cpu")
    x, calls = batch(p), []

    def broken(self, x, entropy_grad=False):
        calls.append(x)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Policy, "statistics", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        gradients(p, tiny, x)
    assert len(calls) == 1


METHODS = {"cegppo": [], "ppo": ["update.kl_coef=0.1"], "steer": []}  # steer is a rule over the mini-batch


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_ran_out_of_memory_goes_on(tiny, tmp_path, scarce, method):
    """Its metrics are those of a run with room for everything but for rounding; a run that is
    continued has the same micro-batches, bit for bit; looked-at steps count every update once."""
    words = [f"method={method}", *METHODS[method], "steps=4", "diagnostics.every=1", "checkpoint_every=2"]
    words += ["diagnostics.parts=true", "eval_every=0", "wandb.mode=disabled"]
    # A pass has the tokens that `scarce` counts, and the first is of the whole batch.
    words += ["model.packing=never", "rollout.old_logprobs=recompute"]
    asked = lambda name, *more: config.load(tiny, [*words, f"run_dir={tmp_path / name}", *more])[0]
    run = lambda name, *more: run_training(asked(name, *more), Silent())
    # The ledger sorts tokens into classes by a pass of its own: one at the bound may go to either.
    either = lambda k: k.startswith("ledger/") and k.endswith(("_hp", "_lp"))
    lines = lambda name: [
        {k: v for k, v in row.items() if not k.startswith("time/") and not either(k)}
        for row in read_lines(tmp_path / name / "metrics.jsonl")
    ]
    run("roomy")
    failed = scarce(60, gradient_only=method == "cegppo")  # else the pass before any update is the first
    run("scarce")
    assert failed
    roomy, made = lines("roomy"), lines("scarce")
    assert made[0]["memory/retries"] >= 1 and made[0]["memory/micro_batch_tokens"] <= 60
    assert made[-1]["memory/retries"] == 0
    for a, b in zip(roomy, made):
        assert set(b) - set(a) == {"memory/retries", "memory/micro_batch_tokens"}
        for key in set(a) - {"critic/clip"}:  # the first values are at the bound exactly
            # A token at the bound of a class goes to the other one by rounding; counts are exact.
            near = (
                dict(rel=0.2, abs=2e-3) if key.startswith(("ledger/pred", "ledger/carr")) else dict(rel=2e-3, abs=2e-4)
            )
            if a[key] is not None and not key.endswith(("_residual", "remainder")):
                assert b[key] == pytest.approx(a[key], **near), key
    run("continued", "steps=2")
    run("continued")
    assert lines("continued") == made


def test_a_run_that_cannot_go_on_says_why_in_a_line(tiny, tmp_path, scarce, capsys):
    import run as front

    folder = tmp_path / "run"
    command = ["train", str(tiny), f"run_dir={folder}", "steps=3", "wandb.mode=disabled"]
    assert front.main([*command, "steps=1"]) == 0
    capsys.readouterr()
    scarce(1)
    assert front.main(command) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith(f"error: {folder}: memory ran out") and "model.gradient_checkpointing=true" in err[-1]
    assert "the same command continues from the last checkpoint" in err[-1]
    assert len(read_lines(folder / "metrics.jsonl")) == 1


def test_the_ledgers_own_passes_are_made_smaller(tiny, tmp_path, monkeypatch):
    """Those before a step, after it, and at its end, each of which fails once when its work is
    done; the books are the same but for rounding."""
    words = ["steps=1", "diagnostics.every=1", "diagnostics.probe=8", "diagnostics.stride=1e-3", "model.packing=never"]
    words += ["updates_per_step=2", "prompts_per_step=4"]
    run = lambda name: run_training(loaded(tiny, *words, "eval_every=0", f"run_dir={tmp_path / name}"), Silent())
    books = lambda name: read_lines(tmp_path / name / "metrics.jsonl")[0]
    failed = []

    def once(owner, name):
        whole = getattr(owner, name)

        def call(*given, **more):
            made = whole(*given, **more)
            if name not in failed:
                failed.append(name)
                room = (given[0] if name == "probe_entropy" else given[0].model).room
                room.under_way = 2, room.tokens  # the last pass may have been of a single answer
                raise ERRORS["cuda"]()
            return made

        monkeypatch.setattr(owner, name, call)

    run("roomy")
    once(ledger.Ledger, "_probe_gradient")
    once(ledger.Differentiator, "along")
    once(ledger, "probe_entropy")
    run("scarce")
    assert failed == ["_probe_gradient", "along", "probe_entropy"]
    roomy, scarce = books("roomy"), books("scarce")
    assert scarce["memory/retries"] == 3
    for name in (name for name in roomy if name.startswith(("ledger/predicted", "ledger/carried", "dentropy/"))):
        assert scarce[name] == pytest.approx(roomy[name], rel=0.02, abs=1e-4), name
