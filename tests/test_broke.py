"""Runs that broke: which they are, their share's interval, the mean of the rest, and claims of it;
a margin that is a share of what the reference lost; a reward of nothing at the token limit."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import run as front_door
from analysis import broke, claims, load, stats
from cegppo.problems import reward
from cegppo.types import Prompt, Rollout, Verdict

from .test_claims import HEAD, record

STEPS = 12


def claim(text, tmp_path):
    path = tmp_path / "claims.yaml"
    head = HEAD.replace("    metric: entropy/mean\n", "")
    path.write_text(head + "".join(f"    {line}\n" for line in text.split("; ")))
    return claims.read(path)[0]


def arm(results, name, accuracy=(), truncated=(), entropy=()):
    """A run per seed: its accuracy, share of truncated responses and entropy from start to end."""
    count = max(map(len, (accuracy, truncated, entropy)))
    for seed in range(count):
        pick = lambda ends, usual, seed=seed: np.linspace(*(ends[seed] if ends else usual), STEPS).tolist()
        record(results / "e" / name / f"seed{seed}", {
            "accuracy/mean": pick(accuracy, (0.3, 0.6)), "verdict/truncated": pick(truncated, (0.0, 0.1)),
            "entropy/mean": pick(entropy, (1.0, 0.5)), "reward/mean": [0.5] * STEPS,
        })  # fmt: skip


def test_which_runs_broke(tmp_path):
    """By accuracy below half of the start's, or by half of the responses at the limit."""
    flat = lambda value: (value, value)
    arm(tmp_path, "x", accuracy=[flat(0.4), (0.4, 0.0), (0.4, 0.3), flat(0.0), flat(0.4)],
        truncated=[flat(0.0), flat(0.0), flat(0.0), flat(0.4), (0.0, 1.0)])  # fmt: skip
    runs = load.metrics(tmp_path, "e", ["x"])
    assert broke.broke(runs).to_dict() == {0: False, 1: True, 2: False, 3: False, 4: True}
    assert broke.broke(runs.drop(columns="verdict/truncated")).to_dict()[4] is False
    assert broke.broke(runs[["arm", "seed", "step", "entropy/mean"]]).empty


@pytest.mark.parametrize("count, n", [(0, 5), (1, 5), (5, 5), (3, 10), (11, 40)])
def test_the_interval_is_clopper_and_pearsons(count, n):
    theirs = scipy.stats.binomtest(count, n).proportion_ci(0.95, method="exact")
    assert stats.clopper_pearson(count, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    for bound in (0.1, 0.5, theirs.low, theirs.high):  # p falls to 0.05 where the interval ends
        if 0 < bound < 1:
            decided = bound < theirs.low - 1e-9 or bound > theirs.high + 1e-9
            assert decided == (stats.share_p(count, n, bound) < 0.05 - 1e-7)
    assert broke.share(pd.Series([True] * count + [False] * (n - count)))[0] == count / n


def test_a_t_interval_over_runs_that_break_is_too_narrow():
    """What a share of the runs that broke is for: five runs, of which one in five breaks."""
    rng = np.random.default_rng(0)
    values = np.where(rng.random((4000, 5)) < 0.2, -0.5, 0.0) + rng.normal(0, 0.02, (4000, 5))
    triples = np.array([stats.mean_over_seeds(row) for row in values])
    covered = np.mean((triples[:, 1] <= -0.1) & (triples[:, 2] >= -0.1))
    assert covered < 0.85 and stats.clopper_pearson(1, 5)[1] > 0.7


def test_compare_says_how_many_broke_and_what_the_rest_did(tmp_path, capsys):
    arm(tmp_path, "a", accuracy=[(0.3, 0.6)] * 4, entropy=[(1.0, 0.5)] * 4)
    arm(tmp_path, "b", accuracy=[(0.3, 0.0), *[(0.3, 0.6)] * 3], entropy=[(1.0, 0.0), *[(1.0, 0.7)] * 3])
    assert front_door.main(["compare", "e", "--results", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "Runs that broke, and the rest" in said and broke.DEFINITION in said
    line = next(line for line in said.splitlines() if "1 of 4" in line)
    assert "0.25 [0.01, 0.81]" in line
    rest = np.linspace(1.0, 0.7, STEPS)[-5:].mean()
    assert f"{rest:.3f} [{rest:.3f}, {rest:.3f}] (3)" in line
    numbers = pd.read_csv(tmp_path / "figures" / "compare_e.csv").set_index(["arm", "quantity"])
    assert numbers.loc[("b", "broke"), "value"].item() == 0.25 and numbers.loc[("a", "broke"), "high"].item() < 0.61
    for seed in range(4):  # where none broke nothing is said
        (tmp_path / "e" / "b" / f"seed{seed}" / "metrics.jsonl").write_bytes(
            (tmp_path / "e" / "a" / f"seed{seed}" / "metrics.jsonl").read_bytes()
        )
    assert front_door.main(["compare", "e", "--results", str(tmp_path)]) == 0
    assert "Runs that broke" not in capsys.readouterr().out


def share(text, tmp_path):
    stated = claim(f"test: share; arm: b; {text}", tmp_path)
    return stated, claims.decide(tmp_path, stated)


def test_a_claim_of_a_share(tmp_path):
    arm(tmp_path, "b", accuracy=[(0.3, 0.0)] * 5 + [(0.3, 0.6)])
    stated, found = share("metric: broke; at_least: 0.3", tmp_path)
    assert (found.verdict, found.n) == ("held", 6) and found.mean == pytest.approx(5 / 6)
    assert (found.low, found.high) == pytest.approx(stats.clopper_pearson(5, 6))
    assert claims.describe(stated) == "e: share of b's runs that broke; > 0.3"
    assert share("metric: broke; at_most: 0.3", tmp_path)[1].verdict == "not held"
    undecided = share("metric: broke; at_most: 0.8", tmp_path)[1]
    assert undecided.verdict == "undecided" and undecided.p > 0.05 > found.p


def test_the_rest_of_the_seeds(tmp_path):
    """`rest`: a seed in which either run broke is left out; what is left must be enough."""
    arm(tmp_path, "a", accuracy=[(0.3, 0.6)] * 7, entropy=[(1.0, 0.5 + 0.01 * s) for s in range(7)])
    broken = [(0.3, 0.0), *[(0.3, 0.6)] * 6]
    arm(tmp_path, "b", accuracy=broken, entropy=[(1.0, -5.0), *[(1.0, 0.6 + 0.02 * s) for s in range(1, 7)]])
    words = "test: difference; arm: b; than: a; expect: above; metric: entropy/mean"
    whole, rest = (claims.decide(tmp_path, claim(words + more, tmp_path)) for more in ("", "; rest: true"))
    assert (whole.verdict, whole.n) == ("undecided", 7) and (rest.verdict, rest.n) == ("held", 6)
    with pytest.raises(load.Missing, match="6 of 7 seeds"):
        claims.decide(tmp_path, claim(f"{words}; rest: true; seeds: 7", tmp_path))


def test_a_margin_that_is_a_share_of_what_the_reference_lost(tmp_path):
    """By hand: with s = 1/4 and what the reference lost by seed, d ± s · lost."""
    noise = np.array([0.0, 0.02, -0.01, 0.01, -0.02])
    lost, off = 0.5 + noise, 0.05 + 2 * noise[::-1]
    arm(tmp_path, "a", entropy=[(1.0, 1.0 - value) for value in lost])
    arm(tmp_path, "b", entropy=[(1.0, 1.0 - value + shift) for value, shift in zip(lost, off)])
    words = "test: within; arm: b; than: a; metric: entropy/mean"
    stated = claim(f"{words}; margin_share: 0.25", tmp_path)
    found = claims.decide(tmp_path, stated)
    frame = load.metrics(tmp_path, "e", ["a", "b"])
    ends = {name: claims.ends(frame[frame["arm"] == name], "entropy/mean") for name in "ab"}
    d, lost = ends["b"][1] - ends["a"][1], ends["a"][0] - ends["a"][1]
    bounds = [scipy.stats.ttest_1samp(v, 0).confidence_interval(0.95) for v in (d + lost / 4, lost / 4 - d)]
    assert found.verdict == "held" and min(b.low for b in bounds) > 0
    assert (found.mean, found.low, found.high) == pytest.approx(stats.mean_over_seeds(d))
    p = max(scipy.stats.ttest_1samp(v, 0).pvalue for v in (d + lost / 4, lost / 4 - d))
    assert found.p == pytest.approx(p, rel=1e-6)
    assert claims.describe(stated).endswith("within ± 25% of what a lost")
    assert claims.decide(tmp_path, claim(f"{words}; margin_share: 0.02", tmp_path)).verdict == "not held"
    assert claims.decide(tmp_path, claim(f"{words}; margin_share: 0.12", tmp_path)).verdict == "undecided"
    assert claims.decide(tmp_path, claim(f"{words}; margin: 0.2", tmp_path)).verdict == "held"


@pytest.mark.parametrize(
    "words, message",
    [
        ("test: share; arm: a; at_most: 0.1; metric: entropy/mean", "'metric' must be broke with test share"),
        ("test: bound; arm: a; at_most: 0.1; metric: broke", "'metric' must be broke with test share"),
        ("test: share; arm: a; metric: broke", "takes at_most or at_least"),
        ("test: share; arm: a; at_most: 0.1; metric: broke; rest: true", "'rest' leaves out the runs"),
        ("test: within; arm: a; than: b; metric: entropy/mean", "takes margin or margin_share"),
        ("test: within; arm: a; than: b; margin: 1; margin_share: 1; metric: entropy/mean", "one of them"),
        ("test: within; arm: a; than: b; margin_share: 0; metric: entropy/mean", "must be above 0"),
        ("test: within; arm: a; than: b; margin_share: 1; metric: benchmarks", "logged every step"),
    ],
)
def test_bad_claims(tmp_path, words, message):
    with pytest.raises(load.Unreadable, match=message):
        claim(words, tmp_path)


def test_nothing_at_the_token_limit():
    """`truncated_fails` with a random reward: a response that is cut earns the failed reward,
    however the coin falls; the others are rewarded as without it."""
    prompt = Prompt("s/1", "s", "q", (1,), "5")
    many = [Rollout(prompt, i, (2,) * 4, (0.0,) * 4, "length" if i % 2 else "stop", "\\boxed{5}") for i in range(400)]
    rules = dict(source="random", seed=0, step=1, values=(-1.0, 1.0), max_tokens=4, overlong_buffer=0)
    plain, cut = reward.grade(many, **rules), reward.grade(many, **rules, truncated_fails=True)
    assert [s.reward for s in cut[::2]] == [s.reward for s in plain[::2]]
    assert {s.reward for s in cut[1::2]} == {-1.0} and {s.reward for s in plain[1::2]} == {-1.0, 1.0}
    assert {s.verdict for s in cut} == {Verdict.CORRECT} and cut[1].graded == -1.0
    right = reward.grade(many, **{**rules, "source": "task"}, truncated_fails=True)
    assert [s.reward for s in right[:2]] == [1.0, -1.0]
