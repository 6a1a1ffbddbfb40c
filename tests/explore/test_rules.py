"""The rules by hand: which responses train, with what advantage, and what is learnt of them."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cegppo import advantage, config
from cegppo.explore import Solution, aepo, improper, oger, uec_rl
from cegppo.problems import testbed
from cegppo.problems.teachers import FromFile, Worked
from cegppo.state import build
from cegppo.types import ORIGINS, BadInput, Group, Prompt, Rollout, Score, Verdict

from .. import steps
from ..test_train import gradient, load

SOLVED = {1.2: [1, 0, 0, 0], 0.8: [1, 1, 1, 0]}  # by temperature


class Run:
    """A run whose responses are right as told: by temperature, one digit a response."""

    seed, group_size, rows, values = 0, 4, 8, (0.0, 1.0)
    advantage = staticmethod(advantage.group)

    def __init__(self, solutions=()):
        self.asked, self.given = [], list(solutions)

    @property
    def sampler(self):
        return self

    @property
    def teacher(self):
        return self

    def sample(self, requests, step):
        self.asked.append((requests, step))
        made = [Rollout(r.prompt, r.index, (r.index, 7), (-0.5, -0.5), "stop", "") for r in requests]
        tempered = dict(origin="tempered", old_logprobs=(-0.25, -0.25))
        return [m if r.temperature is None else dataclasses.replace(m, **tempered) for r, m in zip(requests, made)]

    def score(self, rollouts, step):
        digits = SOLVED.get(self.asked[-1][0][0].temperature, [1]) if self.asked else [1]
        return [scored(digits[i % len(digits)]) for i in range(len(rollouts))]

    def solutions(self, prompt):
        return self.given


def scored(right):
    return Score(float(right), Verdict.CORRECT if right else Verdict.WRONG, float(right))


def group(name, rights, finish="stop"):
    prompt = Prompt(name, "s", "", (1,), "")
    rollouts = tuple(Rollout(prompt, i, (i, 7), (-0.5, -0.5), finish, "") for i in range(len(rights)))
    return Group(prompt, rollouts, tuple(map(scored, rights)))


def batch(groups, advantage_B, **fields):
    """What `learn` and `rewards` read of a batch, two tokens a row."""
    origins = [ORIGINS.index(r.origin) for g in groups for r in g.rollouts]
    rows = len(origins)
    return SimpleNamespace(
        advantage_BT=torch.tensor(advantage_B)[:, None].expand(rows, 2),
        old_logprob_BT=torch.full((rows, 2), -0.125),
        origin_B=torch.tensor(origins),
        length_B=torch.full((rows,), 2.0),
        **fields,
    )


# ------------------------------------------------------------------------------------------ UEC-RL


def test_uec_rl_by_hand():
    """One mixed group, one that nobody solved and one that everybody did. The mean of 1, 0, 0, 0
    is 0.25 and its deviation 0.5, so A = 1.5 and −0.5; of 1, 1, 0, 0 it is ±0.866."""
    run = Run()
    rule = uec_rl.Rule(uec_rl.Params(retries=4, keep_retried=1.0, replay_every=0), run)
    groups = [group("mixed", [1, 1, 0, 0]), group("hard", [0, 0, 0, 0]), group("easy", [1, 1, 1, 1])]
    again, mixed = rule.chosen(groups, 3)
    ((asked, step),) = run.asked
    assert [(r.prompt.id, r.index) for r in asked] == [("hard", i) for i in (5, 6, 7, 8)]  # after the probe's index
    assert step == 3 and {r.temperature for r in asked} == {1.2}
    assert (again.prompt.id, again.rollouts[0].index, again.rollouts[0].origin) == ("hard", 5, "tempered")
    assert again.advantages == pytest.approx((1.5,), abs=1e-5) and again.rollouts[0].old_logprobs == (-0.25, -0.25)
    assert mixed.prompt.id == "mixed" and mixed.advantages == pytest.approx((0.866, 0.866, -0.866, -0.866), abs=1e-3)
    facts = rule.facts()
    assert (facts["hard"], facts["retried"], facts["retried_trained"], facts["solved"]) == (1 / 3, 4, 1, 1)
    assert (facts["kept"], facts["tokens"]) == (4 / 12, 8)


def test_uec_rl_against_the_policy_and_without_truncated_right_answers():
    rule = uec_rl.Rule(uec_rl.Params(retries=4, ratio="policy", replay_every=0), Run())
    again, *rest = rule.chosen([group("hard", [0, 0]), group("cut", [1, 0], finish="length")], 0)
    assert again.rollouts[0].origin == "tempered" and again.rollouts[0].old_logprobs is None
    assert [[r.index for r in g.rollouts] for g in rest] == [[1]]  # what was cut stays where it was wrong


def test_uec_rl_replays_whole_steps_of_the_newest_with_what_they_had():
    rule = uec_rl.Rule(uec_rl.Params(retries=0, keep=0.0, replay_every=2, replay_least=1.0, replay_size=1.5), Run())
    for step in range(5):
        groups = rule.chosen([group(f"{step}/{n}", [1, 0, 0, 0]) for n in range(5)], step)
        own = [g for g in groups if g.rollouts[0].origin == "policy"]
        replays = [g for g in groups if g.rollouts[0].origin == "replay"]
        # Five a step are added at its end; of twelve places eight are a step's worth.
        assert len(replays) == {0: 0, 1: 0, 2: 0, 3: 8, 4: 0}[step] and len(own) == 5
        if replays:
            assert groups[-8:] == replays  # after the step's own
            assert {g.prompt.id[0] for g in replays} <= {"0", "1", "2"} and len({g.prompt.id for g in replays}) == 8
            assert all(
                g.advantages == pytest.approx((1.5,), abs=1e-5) and g.rollouts[0].old_logprobs == (-0.125, -0.125)
                for g in replays
            )
        rule.learn(groups, batch(groups, [a for g in groups for a in (g.advantages if len(g) > 1 else [1.5])]))
        assert len(rule.buffer.kept) == min(12, 5 * (step + 1)) == rule.facts()["buffer"]
    other = uec_rl.Buffer(12)
    other.load_state_dict(rule.buffer.state_dict())
    assert other.kept == rule.buffer.kept
    other.load_state_dict(uec_rl.Buffer(12).state_dict())
    assert other.kept == []


def test_uec_rl_that_only_drops_what_teaches_nothing_is_dropping_constant_groups(tiny):
    pairs = ["prompts_per_step=8", "group_size=2", "method=grpo"]
    off = [f"explore.{k}" for k in ("name=uec_rl", "retries=0", "drop_truncated=false", "replay_every=0")]
    ours = build(load(tiny, *pairs, *off, "explore.keep=1e-9"))
    theirs = build(load(tiny, *pairs, "rollout.drop_constant_groups=drop"))
    for _ in range(2):
        left, right = steps.step(ours), steps.step(theirs)
        assert left["rollout/trained"] < 1
        assert all(left[key] == value for key, value in right.items() if not key.startswith("time/"))


# -------------------------------------------------------------------------------------------- AEPO


@pytest.mark.parametrize(
    "entropy, temperature, most, first",
    [
        (0.0, 1.2, 4, [("a", 5), ("b", 5)]),  # the one right answer of 1, 0, 0, 0 of each
        (0.5, 1.2, 4, [("a", 5), ("b", 5)]),
        (0.6, 0.8, 2, [("a", 5), ("a", 6)]),  # three are right of 1, 1, 1, 0, and the half of four is two
    ],
)
def test_aepo_by_hand(entropy, temperature, most, first):
    run = Run()
    rule = aepo.Rule(aepo.Params(target=0.5, prompts=0.5, replace=0.25), run)
    rule.observe({"entropy/policy": entropy})
    groups = [group(name, [1, 0, 0, 0]) for name in "abcd"]
    made = rule.chosen(groups, 0)
    ((asked, _),) = run.asked
    assert {(r.temperature, r.prompt.id) for r in asked} == {(temperature, "a"), (temperature, "b")}
    tempered = [(g, r, a) for g in made for r, a in zip(g.rollouts, g.advantages or ()) if r.origin == "tempered"]
    assert [(g.prompt.id, r.index) for g, r, _ in tempered] == first
    assert all(a == 1.0 and r.old_logprobs is None for _, r, a in tempered)
    # In the place of the first responses, whose group keeps the advantages that it had.
    own = [(g.prompt.id, r.index) for g in made for r in g.rollouts if r.origin == "policy"]
    assert own == [(name, i) for name in "abcd" for i in range(4)][len(first) :]
    (left,) = [g for g in made if g.prompt.id == "a" and g.rollouts[0].origin == "policy"]
    assert left.advantages == pytest.approx((-0.5, -0.5), abs=1e-5)
    assert rule.facts()["tempered"] == len(first) <= most


def test_aepo_is_grpo_and_reinforce_on_what_is_right_at_that_temperature(tiny):
    """Value and gradient of the first update, against both written out."""
    state = build(load(tiny, "method=aepo", "update.dual_clip=0", "explore.prompts=1", "explore.replace=0.4"))
    x = steps.batch(state)
    hot_B = x.origin_B == ORIGINS.index("tempered")
    assert 0 < hot_B.sum() < len(x) and (x.advantage_BT[hot_B][x.mask_BT[hot_B] > 0] == 1).all()
    ours, tally, _ = gradient(state, x, 10**9)
    s = state.policy.statistics(x)
    inside = x.mask_BT.bool()
    hot_N = hot_B[:, None].expand_as(inside)[inside]
    grpo = -(x.advantage_BT[inside] * s.logprob_N)[~hot_N].sum()
    reinforce = -s.logprob_N[hot_N].sum()
    model = state.policy.model
    model.zero_grad()
    ((grpo + reinforce) / inside.sum()).backward()
    by_hand = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (ours - by_hand).norm() <= 1e-5 * by_hand.norm()
    ratio_is_1 = -(x.advantage_BT * x.mask_BT).sum() / x.mask_BT.sum()
    assert tally.sums["loss/policy"] == pytest.approx(float(ratio_is_1), abs=1e-6)


# -------------------------------------------------------------------------------------------- OGER


def test_oger_by_hand():
    """Responses (0, 7), (1, 7), (2, 7), (3, 7); one solution, (3, 7, 7). Cosines: 2/(√2 √5) = 0.632
    for the first three and 3/(√2 √5) = 0.949 for the last, whose place is taken."""
    solution = Solution((3, 7, 7), "", (-0.1, -0.2, 0.0))
    assert oger.cosine((0, 7), (3, 7, 7)) == pytest.approx(2 / math.sqrt(10))
    rule = oger.Rule(oger.Params(bonus=2.0), Run([solution]))
    (made,) = rule.chosen([group("a", [1, 0, 0, 0])], 0)
    assert [r.origin for r in made.rollouts] == ["policy"] * 3 + ["teacher"]
    assert made.rollouts[3].token_ids == (3, 7, 7) and made.rollouts[3].old_logprobs == (-0.1, -0.2, 0.0)
    assert made.rollouts[3].index == 3 and made.scores[3].reward == 1.0
    entropy_BT = torch.tensor([[9.0, 0.5], [9.0, 0.5], [9.0, 0.5], [9.0, 0.5]])
    (reward_G,) = rule.rewards([made], batch([made], [0.0] * 4, old_entropy_BT=entropy_BT))
    bonus = 2.0 * (1 - 2 / math.sqrt(10)) * math.exp(-0.5)
    assert reward_G.tolist() == pytest.approx([1 + bonus, 0, 0, 1])  # the teacher and what failed earn no bonus
    facts = rule.facts()
    assert facts["taught"] == 1 and facts["bonus"] == pytest.approx(bonus)
    assert facts["divergence"] == pytest.approx(1 - (3 * 2 + 3) / math.sqrt(10) / 4)


def test_oger_separates_right_answers_where_all_are_right_and_leaves_what_has_no_teacher():
    rule = oger.Rule(oger.Params(swap=0), Run([Solution((0, 7), "", None)]))
    groups = rule.chosen([group("a", [1, 1, 1, 1])], 0)
    x = batch(groups, [0.0] * 4, old_entropy_BT=torch.zeros(4, 2))
    (reward_G,) = rule.rewards(groups, x)
    assert reward_G.tolist() == pytest.approx([1.0, 1.5, 1.5, 1.5])  # (0, 7) is the teacher's own
    silent = oger.Rule(oger.Params(), Run())
    assert silent.chosen([group("a", [1, 0])], 0) == [group("a", [1, 0])] and silent.facts()["taught"] == 0


def test_oger_on_the_policys_terms_has_no_ratio_of_its_own():
    rule = oger.Rule(oger.Params(ratio="policy"), Run([Solution((3, 7, 7), "", (-0.1, -0.2, 0.0))]))
    (made,) = rule.chosen([group("a", [1, 0, 0, 0])], 0)
    assert made.rollouts[3].origin == "teacher" and made.rollouts[3].old_logprobs is None


@pytest.fixture(scope="module")
def prompts(tiny_text, tmp_path_factory):
    from cegppo.problems.data import PromptStream

    path = tmp_path_factory.mktemp("p") / "tiny.yaml"
    path.write_text(tiny_text)
    loaded, _ = config.load(path)
    return PromptStream(loaded.data, 0, testbed.make_tokenizer()).take(40), loaded


def test_worked_solutions_are_right_and_know_their_probability(prompts):
    """Read piece by piece they are the tokens of the whole text, and all that is drawn is the
    connectives."""
    from cegppo.problems.reward import verdicts

    prompts, loaded = prompts
    tokenizer = testbed.make_tokenizer()
    teacher = Worked(tokenizer, 60, loaded.testbed, 0, 3)
    ((_, words, law),) = testbed.styles(loaded.testbed)
    rollouts = []
    for prompt in prompts:
        found = teacher.solutions(prompt)
        assert len(found) == 3 and found == teacher.solutions(prompt)
        for s in found:
            assert tokenizer.encode(s.text) == list(s.token_ids[:-1]) and s.token_ids[-1] == tokenizer.eos_token_id
            drawn = [words.index(t) for t in tokenizer.convert_ids_to_tokens(list(s.token_ids)) if t in words]
            assert sum(s.logprobs) == pytest.approx(sum(np.log(law[drawn]))) and len(s.logprobs) == len(s.token_ids)
            rollouts.append(Rollout(prompt, 0, s.token_ids, (), "stop", s.text, "teacher", s.logprobs))
    assert set(verdicts(rollouts)) == {Verdict.CORRECT}
    assert Worked(tokenizer, 5, loaded.testbed, 0, 3).solutions(prompts[0]) == []  # over the limit


def test_a_file_of_solutions(prompts, tmp_path):
    prompts, loaded = prompts
    tokenizer, path = testbed.make_tokenizer(), tmp_path / "teacher.jsonl"
    rows = [{"problem": p.text.removesuffix("\n"), "response": f"\\boxed{{{p.answer}}}"} for p in prompts[:3]]
    lengths = [len(tokenizer.encode(row["response"])) + 1 for row in rows]
    write = lambda made: path.write_text("".join(json.dumps(row) + "\n" for row in made))
    write([{**row, "logprobs": [-0.5] * n} for row, n in zip(rows, lengths)])
    teacher = FromFile(tokenizer, 60, path, loaded.data, True)
    (found,) = teacher.solutions(prompts[1])
    assert found.text == rows[1]["response"] and found.logprobs == (-0.5,) * lengths[1]
    assert teacher.solutions(prompts[5]) == []
    for made, needs, said in [
        (rows, True, "row 1 has no 'logprobs', without which explore.ratio must be policy"),
        ([{**rows[0], "logprobs": [0.5]}], True, f"'logprobs' are {lengths[0]} numbers of at most 0"),
        ([{"problem": "x"}], False, "row 1 lacks 'problem' or 'response'"),
        ([], False, "holds no solutions"),
    ]:
        write(made)
        with pytest.raises(BadInput, match=said):
            FromFile(tokenizer, 60, path, loaded.data, needs)
    write(rows)
    assert FromFile(tokenizer, 60, path, loaded.data, False).solutions(prompts[0])[0].logprobs is None


def test_a_run_with_a_file_and_one_without_such_a_file(tiny, tmp_path):
    path = tmp_path / "teacher.jsonl"
    stream = build(load(tiny)).stream.take(2)
    rows = [{"problem": p.text.removesuffix("\n"), "response": f"\\boxed{{{p.answer}}}"} for p in stream]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = steps.step(build(load(tiny, "method=oger", f"explore.teacher={path}", "explore.ratio=policy")))
    assert made["explore/taught"] == 0.5 and made["origin/teacher"] > 0
    with pytest.raises(BadInput, match="no such file"):
        build(load(tiny, "method=oger", "explore.teacher=gone.jsonl"))


# ---------------------------------------------------------------------------------------- improper


def test_improper_by_hand():
    """Three responses of sampler 0 with A = 1, −1, 2 and one of sampler 1 with A = −2, w = (½, ½):
    θ moves by lr · mean of A (1[m] − ½) = (½ − ½ + 1 + 1)/4 = ½ and its opposite."""
    rule = improper.Rule(improper.Params(samplers="1.2,0.8", mixture_lr=2.0), Run())
    groups = [group("a", [1, 0, 1, 0])]
    rule.by = {("a", 0): 0, ("a", 1): 0, ("a", 2): 0, ("a", 3): 1}
    rule.learn(groups, batch(groups, [1.0, -1.0, 2.0, -2.0]))
    assert rule.theta.tolist() == pytest.approx([1.0, -1.0])
    assert rule.shares().tolist() == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))])
    assert rule.facts() == {"share_0": 0.5, "share_1": 0.5}  # of the step that has ended


def test_improper_draws_by_its_shares_and_asks_each_sampler_for_its_own():
    run = Run()
    rule = improper.Rule(improper.Params(samplers="1.2,0.8", mixture_lr=0.0), run)
    rule.theta = np.array([math.log(3.0), 0.0])
    made = rule.sample([Prompt(str(n), "s", "", (1,), "") for n in range(500)], 4, 0)
    assert [(r.prompt.id, r.index) for r in made] == [(str(n), i) for n in range(500) for i in range(4)]
    ((asked, _),) = run.asked
    temperatures = [r.temperature for r in asked]
    assert set(temperatures) == {1.2, 0.8} and len(asked) == 2000
    assert temperatures.count(1.2) / 2000 == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 2000))
    groups = [Group(r.prompt, (r,), (scored(1),)) for r in made]
    rule.learn(groups, batch(groups, np.linspace(-1, 1, 2000).tolist()))
    assert rule.theta.tolist() == [math.log(3.0), 0.0]  # lr 0: a mixture that does not learn


def test_improper_finds_the_better_sampler():
    """A bandit: sampler 1 is right four times of five, sampler 0 one time of five."""
    rng, rule = np.random.default_rng(0), improper.Rule(improper.Params(samplers="1.2,0.8"), Run())
    for step in range(40):
        prompts = [Prompt(f"{step}/{n}", "s", "", (1,), "") for n in range(16)]
        rule.sample(prompts, 4, step)
        rights = [[int(rng.random() < (0.8 if rule.by[p.id, i] else 0.2)) for i in range(4)] for p in prompts]
        groups = [group(p.id, right) for p, right in zip(prompts, rights)]
        rule.learn(
            groups, batch(groups, np.concatenate([advantage.group(np.array(r, float)) for r in rights]).tolist())
        )
        rule.observe({})
    assert rule.by == {} and rule.shares()[1] > 0.9
    other = improper.Rule(improper.Params(samplers="1.2,0.8"), Run())
    other.restore(json.loads(json.dumps(rule.state())))
    assert other.theta.tolist() == rule.theta.tolist()
