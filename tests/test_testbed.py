"""The embedded model: its recipe, what it learns from, its cache."""

import dataclasses
import hashlib
import json
import re
from collections import Counter

import numpy as np
import pytest

from cegppo import config
from cegppo.config.recipe import Recipe, Worker
from cegppo.problems import answers, testbed
from cegppo.types import BadInput

POOL = 1500
SMALL = Recipe(pool=40, clean_steps=2, careless_steps=2, rows=4, hidden=16, intermediate=16, layers=1, heads=1)


@pytest.mark.parametrize("which", range(3))
def test_worked_solutions_are_right(which):
    """Without slips every step is a true equation and the answer is the library's."""
    task = testbed.WARMUP_SOURCES[which].task
    pool = testbed.warmup_pool(which, POOL)
    assert len(pool) > 0.95 * POOL
    for question, answer, _ in pool[:400]:
        steps, found = testbed.work_out(task, question)
        assert found == answer, question
        for step in steps:
            left, right = step.split("=")
            assert eval(left.replace("/", "//")) == int(right), (question, step)


def test_careless_work_goes_on_from_its_slips():
    steps, answer = testbed.work_out(
        "chain_sum", "State the final answer to the following arithmetic problem: 4 - 9 + 3 =", lambda r: r + 1
    )
    assert steps == ["4-9=-4", "-4+3=0"] and answer == "0"
    rng = np.random.default_rng(0)
    question, right, _ = testbed.warmup_pool(0, POOL)[0]
    texts = [testbed.worked_solution("chain_sum", question, 0.2, (" so ",), np.ones(1), rng) for _ in range(600)]
    steps = len(testbed.work_out("chain_sum", question)[0])
    clean = np.mean([answers.final_answer(t) == right for t in texts])
    assert abs(clean - 0.8**steps) < 0.08  # slips may cancel, rarely


def test_warmup_texts_repeat():
    texts = lambda *seed: testbed.warmup_texts(Recipe(), 50, True, list(seed))
    assert texts(1, 2) == texts(1, 2) != texts(1, 3)


def test_what_the_default_recipe_makes_is_held():
    """Whoever changes the texts, the vocabulary or the order of draws raises testbed.VERSION, and
    then these: the cache is named by the recipe's values and knows nothing of the code."""
    made = [testbed.warmup_texts(Recipe(), 300, phase == 1, [0, phase]) for phase in (0, 1)]
    made.append(sorted(testbed.make_tokenizer().get_vocab().items()))
    found = hashlib.sha256(json.dumps(made).encode()).hexdigest()[:12]
    assert (testbed.VERSION, found) == (1, "7a0c47ad0339")


def test_wordings_and_strategies_follow_the_recipe():
    recipe = Recipe(wordings=4, wordings_exponent=-2.0, direct_share=0.25, tasks={"chain_sum": 1.0})
    texts = testbed.warmup_texts(recipe, 3000, True, [0])
    assert {question.partition(":")[0] for question, _ in texts} == {
        "State the final answer to the following arithmetic problem"
    }
    at_once = [answer for _, answer in texts if answer.startswith("\\boxed")]
    assert len(at_once) / 3000 == pytest.approx(0.25, abs=0.03)
    words = Counter(word for _, answer in texts for word in re.findall(r"\d( [a-z ]+ )", answer))
    assert set(words) == set(testbed.CONNECTIVES[:4])
    law = np.array([1, 1 / 4, 1 / 9, 1 / 16])
    shares = np.array([words[word] for word in testbed.CONNECTIVES[:4]]) / words.total()
    np.testing.assert_allclose(shares, law / law.sum(), atol=0.02)


def test_kinds_of_workers_have_wordings_and_slips_of_their_own():
    """The wording of a step says who wrote it, and so how careful it is."""
    kinds = [Worker(share=3, wordings=2, slip_rate=0.5), Worker(share=1, wordings=1, slip_rate=0.0)]
    recipe = Recipe(workers=kinds, direct_share=0.0, tasks={"chain_sum": 1.0})
    right = {0: [], 1: []}
    for _, answer in testbed.warmup_texts(recipe, 2000, True, [0]):
        words = set(re.findall(r"\d( [a-z ]+ )", answer))
        rare = words == {testbed.CONNECTIVES[2]}
        assert rare or words <= set(testbed.CONNECTIVES[:2])
        true = [eval(step) for step in (s.replace("=", "==") for s in re.findall(r"[-+\d]+=-?\d+", answer))]
        right[rare] += true
    assert np.mean(right[1]) == 1 and np.mean(right[0]) == pytest.approx(0.5, abs=0.05)
    clean = testbed.warmup_texts(recipe, 200, False, [0])
    assert all(eval(s.replace("=", "==")) for _, answer in clean for s in re.findall(r"[-+\d]+=-?\d+", answer))


def test_a_configuration_without_the_section_has_the_default_recipe(tiny, tmp_path):
    """A run recorded before there was the section stays the run it was, and another recipe is
    another run."""
    loaded, _ = config.load(tiny)
    assert loaded.testbed == Recipe() and testbed.cached(loaded.testbed) == testbed.cached(Recipe())
    lines = config.as_yaml(loaded)
    path = tmp_path / "config.yaml"
    path.write_text(re.sub(r"(?ms)^testbed:\n( .*?\n)+", "", lines))
    assert "testbed:" in lines and "testbed:" not in path.read_text()
    assert config.resolved(path).identity() == loaded.identity()
    other, _ = config.load(tiny, ["testbed.wordings=4", "testbed.workers=[{share: 2, wordings: 3}]"])
    assert other.testbed.workers == [Worker(share=2.0, wordings=3)]
    assert other.identity() != loaded.identity() and testbed.cached(other.testbed) != testbed.cached(loaded.testbed)


@pytest.mark.parametrize(
    "override, said",
    [
        ("testbed.wordings=17", "command line: testbed.wordings must be in [1, 16]"),
        ("testbed.wordngs=4", "command line: unknown key 'testbed.wordngs'; did you mean 'testbed.wordings'?"),
        ("testbed.tasks={lcm: 1}", "palindrome_generation, countdown, and not 'lcm'"),
        ("testbed.tasks={chain_sum: 0, gcd: 0, simple_equations: 0}", "testbed.tasks takes shares"),
        ("testbed.slip_rate=2", "testbed.slip_rate must be in [0, 1]"),
        ("testbed.lr=0", "testbed.lr must be above 0"),
        ("testbed.clean_steps=-1", "testbed.clean_steps must be at least 0"),
        ("testbed.workers=[{share: 0}]", "testbed.workers: share must be above 0"),
        ("testbed.workers=[{wordings: 9},{wordings: 9}]", "testbed.workers have more than 16 wordings"),
    ],
)
def test_bad_recipes(tiny, override, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        config.load(tiny, [override])


def test_the_cache_knows_a_damaged_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CEGPPO_CACHE", str(tmp_path))
    folder = testbed.base_model(SMALL)
    weights, noted = testbed.weights_digest(folder), json.loads((folder / "testbed.json").read_text())
    assert noted["recipe"] == SMALL.values() and noted["weights"] == weights
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert testbed.base_model(dataclasses.replace(SMALL)) == folder  # equal values, and nothing is made
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    capsys.readouterr()
    (folder / "model.safetensors").write_bytes(b"of someone else")
    assert testbed.base_model(SMALL) == folder and testbed.weights_digest(folder) == weights
    assert capsys.readouterr().out.count("made anew") == 1
    (folder / "testbed.json").unlink()  # of an earlier version, or cut short
    testbed.base_model(SMALL)
    assert capsys.readouterr().out.count("made anew") == 1
    assert testbed.base_model(dataclasses.replace(SMALL, seed=1)) != folder
