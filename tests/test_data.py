"""Files, hub datasets, chat templates and named benchmarks, as prompts."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import run
from cegppo import config
from cegppo.config import Data, Source
from cegppo.problems import data, reward, testbed
from cegppo.problems.data import Problems, PromptStream, benchmarks
from cegppo.record.read import read_meta
from cegppo.train import run_training
from cegppo.types import BadInput

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
BOXED = " Put your final answer within \\boxed{}."


def verl(question, answer, *before):
    """A row as verl stores it."""
    messages = [*before, {"content": question, "role": "user"}]
    model = {"ground_truth": answer, "style": "rule"}
    return {
        "data_source": "math",
        "prompt": messages,
        "ability": "MATH",
        "reward_model": model,
        "extra_info": {"index": 3},
    }


def chat_tokenizer():
    tokenizer = testbed.make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def folder(tmp_path_factory, monkeypatch):
    """For data files; `datasets` takes the word test in a path for the name of a split. What it
    caches goes there too."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    return tmp_path_factory.mktemp("problems")


def written(folder, rows, suffix):
    path = folder / f"train.{suffix}"
    if suffix == "parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif suffix == "json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, question, answer",
    [
        ({"problem": "p", "answer": "1"}, "p", "1"),
        ({"problem": "p", "answer": 204, "solution": "\\boxed{1}"}, "p", "204"),
        ({"question": "p", "answer": "2+2 is 4.\n#### 1,234 "}, "p", "1,234"),
        ({"question": "p", "answer": "27.0"}, "p", "27.0"),
        ({"problem": "p", "solution": "first \\boxed{1}, so \\boxed{\\frac{1}{2}}"}, "p", "\\frac{1}{2}"),
        ({"question": "p", "solution": ["long"], "final_answer": ["$2$", "$3$"]}, "p", "$2$, $3$"),
        (verl("p", "540"), [{"role": "user", "content": "p"}], "540"),
    ],
)
def test_the_layout_is_found(row, question, answer):
    assert data.problems_of([row, row], Source(name="s", file="f"), "f") == [(question, answer, row)] * 2


def test_columns_may_be_named_and_lie_inside(tmp_path):
    rows = [
        {"problem": "not this", "answer": "0", "extra": {"q": f"q{i}", "gold": f"so \\boxed{{{i}}}"}} for i in range(3)
    ]
    path = str(written(tmp_path, rows, "parquet"))
    source = Source(name="s", file=path, columns={"problem": "extra.q", "answer": "extra.gold"}, answer_form="boxed")
    assert [Problems(source).problem(i)[:2] for i in range(3)] == [(f"q{i}", f"{i}") for i in range(3)]


@pytest.mark.parametrize(
    "rows, source, part",
    [
        (
            [{"problem": "p", "answer": "1"}, {"problem": "p"}],
            {},
            "row 2 lacks 'problem' or a whole answer in 'answer'; it has: problem",
        ),
        (
            [{"problem": "p", "solution": "none"}],
            {},
            "row 1 lacks a problem and an answer that are recognised; it has: problem, solution;",
        ),
        (
            [{"q": "p", "a": "no mark"}],
            {"columns": {"problem": "q", "answer": "a"}, "answer_form": "hashes"},
            "a hashes answer in 'a'",
        ),
        ([{"prompt": [{"text": "p"}], "reward_model": {"ground_truth": "1"}}], {}, "row 1 lacks"),
        (["p"], {}, "row 1 lacks a problem and an answer that are recognised; it has: str"),
        ({"problem": "p"}, {}, "holds no problems"),
    ],
)
def test_rows_that_cannot_be_used(rows, source, part):
    with pytest.raises(BadInput) as error:
        data.problems_of(rows, Source(name="s", file="f", **source), "f.json")
    assert part in str(error.value) and str(error.value).startswith("f.json: ")


def test_where_nobody_says_what_is_right_no_answer_is_needed():
    rows = [{"text": "?", "problem": "p"}, {"problem": "q", "answer": ""}]
    made = data.problems_of(rows, Source(name="s", file="f", verifier="none"), "f.json")
    assert [(question, answer) for question, answer, _ in made] == [("p", ""), ("q", "")]
    named = Source(name="s", file="f", verifier="none", columns={"problem": "text"})
    assert data.problems_of(rows[:1], named, "f.json")[0][:2] == ("?", "")
    with pytest.raises(BadInput, match="f.json: row 1 lacks a problem that is recognised; it has: text; name them"):
        data.problems_of([{"text": "p"}], Source(name="s", file="f", verifier="none"), "f.json")
    with pytest.raises(BadInput, match="f.json: row 2 lacks 'text'; it has: problem, answer"):
        data.problems_of(rows, named, "f.json")


def test_a_rule_may_judge_without_answers():
    rows = [{"question": "p", "answer": "so #### 1"}, {"question": "q"}]
    of = lambda **given: data.problems_of(rows, Source(name="s", file="f", verifier="r.py:f", **given), "f.json")
    assert [made[:2] for made in of()] == [("p", "1"), ("q", "")]
    assert [made[:2] for made in of(columns={"problem": "question"})] == [("p", ""), ("q", "")]


@pytest.mark.parametrize("answer", ["", None, []])
def test_an_answer_that_is_not_there_is_said(answer):
    with pytest.raises(BadInput, match="f.json: row 1 lacks an answer: 'answer' holds nothing; .* verifier: none"):
        data.problems_of([{"problem": "p", "answer": answer}], Source(name="s", file="f"), "f.json")


def test_what_comes_along_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert data.Problems(Source(name="s", file="experiments/stories.jsonl", verifier="none"), 0).size
    assert reward.rule("experiments/rewards.py:happy_word")(None, "glad") == 1.0


def test_a_reward_that_asks_what_is_right_needs_somebody_to_say_it(tiny):
    given = ["data.train=[{file: a.jsonl, verifier: none}]", "reward=task"]
    with pytest.raises(BadInput, match="reward must be path.py:function or random where .* verifier: none, not 'task'"):
        config.load(tiny, given)
    config.load(tiny, [*given, "reward=random"])


SHIPPED = sorted(path for folder in ("experiments", "experiments/regimes") for path in (ROOT / folder).glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_files_that_come_along_can_be_read(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    loaded, _ = config.load(path)
    for source in [source for source in (*loaded.data.train, *loaded.eval.benchmarks) if source.file is not None]:
        assert data.Problems(source, 0).size


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet", "hub"])
def test_the_same_rows_from_anywhere_are_the_same_prompts(tiny, folder, suffix):
    rows = [verl(f"What is {i}+1?", str(i + 1)) for i in range(5)]
    path = written(folder, rows, "parquet" if suffix == "hub" else suffix)
    source = f"{{name: v, hub: {folder}}}" if suffix == "hub" else f"{{name: v, file: {path}}}"
    loaded, _ = config.load(tiny, [f"data.train=[{source}]", f"eval.benchmarks=[{source}]"])
    (made,) = benchmarks(loaded.eval, loaded.data, testbed.make_tokenizer()).values()
    assert [(p.id, p.text, p.answer) for p in made] == [(f"v/{i}", f"What is {i}+1?\n", str(i + 1)) for i in range(5)]
    taken = PromptStream(loaded.data, loaded.seed, testbed.make_tokenizer()).take(5)
    assert [p.id for p in taken] == [f"v/{i}@0" for i in np.random.default_rng([0, 0, 0]).permutation(5)] and {
        p.text for p in taken
    } == {p.text for p in made}


def test_a_dataset_that_cannot_be_loaded_is_one_line(folder):
    written(folder, [{"problem": "p", "answer": "1"}], "jsonl")
    for source, part in [
        (Source(name="s", hub=str(folder), split="test"), 'Unknown split "test"'),
        (Source(name="s", hub=str(folder / "nowhere")), "Couldn't find any data file"),
    ]:
        with pytest.raises(BadInput, match=part) as error:
            Problems(source)
        assert "\n" not in str(error.value) and "a local copy serves as well" in str(error.value)


def test_without_a_hub_a_named_benchmark_says_what_to_do(tiny, tmp_path, monkeypatch, capsys, folder):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert run.main(["eval", str(tiny), "eval.benchmarks=[math500]", f"run_dir={tmp_path}"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        "error: data source 'math500': cannot load HuggingFaceH4/MATH-500/test from the Hugging Face hub: "
    )
    assert "Couldn't reach" in line and "NAME=PATH" in line


# --------------------------------------------------------------------------------------------------


def test_a_plain_prompt_is_the_problem_and_a_line_break(tiny):
    """Byte for byte what it was before there were templates."""
    loaded, _ = config.load(tiny)
    tokenizer = testbed.make_tokenizer()
    stream = PromptStream(loaded.data, loaded.seed, tokenizer)
    for prompt in stream.take(5):
        source = next(s for s in loaded.data.train if s.name == prompt.source)
        problems = Problems(source, data.TRAINING, 0, loaded.data.train.index(source))
        question = problems.problem(int(prompt.id.split("/")[1]))[0]
        assert prompt.text == question + "\n" and prompt.token_ids == tuple(tokenizer.encode(question + "\n"))
    assert data.encode("2+2?", tokenizer, Data(suffix=BOXED))[0] == "2+2?" + BOXED + "\n"
    assert data.encode("2+2?" + BOXED, tokenizer, Data(suffix=BOXED))[0] == "2+2?" + BOXED + "\n"  # said once is enough


def test_the_chat_template():
    tokenizer = chat_tokenizer()
    rules = Data(chat_template=True, suffix="\n" + BOXED)
    text, ids = data.encode("2+2?", tokenizer, rules)
    assert text == f"<user>2+2?\n{BOXED}</user>\n<assistant>" and ids == tuple(
        tokenizer.encode(text, add_special_tokens=False)
    )
    system = {"role": "system", "content": "Be brief."}
    chat = [system, {"role": "user", "content": "2+2?"}]
    text, _ = data.encode(chat, tokenizer, rules)
    assert (
        text == f"<system>Be brief.</system>\n<user>2+2?\n{BOXED}</user>\n<assistant>" and chat[1]["content"] == "2+2?"
    )
    assert data.encode([chat[1]], tokenizer, Data(chat_template=True)) == data.encode(
        "2+2?", tokenizer, Data(chat_template=True)
    )
    source = Source(name="s")
    for question, made_by, rules, part in [
        (chat, tokenizer, Data(), "data source 's': a prompt of 2 chat messages needs data.chat_template=true"),
        ("2+2?", testbed.make_tokenizer(), Data(chat_template=True), "the model's tokenizer has no chat template"),
    ]:
        with pytest.raises(BadInput, match=part):
            data.make_prompt(question, "4", {}, source, "0", made_by, rules)
    tokenizer.chat_template = "{{ raise_exception('users only') }}"
    with pytest.raises(BadInput, match="the model's template refuses a prompt: users only"):
        data.encode("2+2?", tokenizer, Data(chat_template=True))


def test_prompts_over_the_limit_are_counted_with_their_template_and_a_resume_goes_on(tiny, tmp_path):
    tokenizer = chat_tokenizer()
    rows = [{"problem": "x" * n, "answer": "1"} for n in range(1, 11)]
    around = len(data.encode("", tokenizer, Data(chat_template=True))[1])
    overrides = [f"data.train=[{{file: {written(tmp_path, rows, 'jsonl')}}}]", "data.chat_template=true"]
    loaded, _ = config.load(tiny, [*overrides, f"data.max_prompt_tokens={around + 7}"])
    stream = PromptStream(loaded.data, loaded.seed, tokenizer)
    epoch = stream.take(7)
    assert {len(p.token_ids) - around for p in epoch} == set(range(1, 8)) and 0 < stream.too_long_count <= 3
    state = json.loads(json.dumps(stream.state()))
    ahead = stream.take(20)
    again = PromptStream(loaded.data, loaded.seed, tokenizer)
    again.restore(state)
    assert again.take(20) == ahead and again.passed_over == stream.passed_over == {
        "held_out": 0,
        "too_long": stream.too_long_count,
    }


def test_what_is_passed_over_is_said_and_recorded(tiny, tmp_path):
    said = []

    class Listening:
        def start(self, *_): ...
        def step(self, *_): ...
        def evaluated(self, *_): ...
        def say(self, text):
            said.append(text)

    rows = [verl("x" * i, str(i)) for i in range(1, 10)]
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"problem": rows[2]["prompt"][0]["content"], "answer": "3"}) + "\n")
    path = written(tmp_path, rows, "parquet")
    overrides = [
        f"data.train=[{{file: {path}}}]",
        f"eval.benchmarks=[{{file: {asked}}}]",
        "data.max_prompt_tokens=6",
        "steps=2",
    ]
    loaded, _ = config.load(tiny, [*overrides, f"run_dir={tmp_path / 'run'}", "diagnostics.every=0"])
    run_training(loaded, Listening())
    passed_over = read_meta(tmp_path / "run")["passed_over"]
    assert passed_over["held_out"] > 0 and passed_over["too_long"] > 0
    assert said == [
        f"prompts passed over: {passed_over['held_out']} asked by a benchmark, {passed_over['too_long']} longer than 6"
        " tokens"
    ]


# --------------------------------------------------------------------------------------------------

PAPER = {
    "aime24": (32, 32768),
    "aime25": (32, 32768),
    "hmmt25": (32, 16384),
    "math500": (4, 16384),
    "amc23": (32, 16384),
}


def listed(tiny, *overrides):
    return config.load(tiny, list(overrides))[0].eval.benchmarks


def test_named_benchmarks(tiny, tmp_path):
    assert {s.name: (s.k, s.max_tokens) for s in listed(tiny, "eval.benchmarks=[math]")} == PAPER
    for name in config.benchmarks():
        for source in listed(tiny, f"eval.benchmarks=[{name}]"):
            assert source.hub and source.columns and (source.temperature, source.top_p) == (0.6, 0.95)
    (tmp_path / "more.yaml").write_text(f"include: [tiny.yaml, {ROOT / 'experiments/benchmarks/math.yaml'}]\n")
    assert [s.name for s in listed(tmp_path / "more.yaml")] == list(PAPER)
    (local,) = listed(tiny, "eval.benchmarks=[gsm8k=/data/g.jsonl]")
    assert (local.name, local.file, local.hub, local.columns, local.answer_form, local.k) == (
        "gsm8k",
        "/data/g.jsonl",
        None,
        {},
        None,
        4,
    )


def test_later_wins_also_over_what_a_benchmark_says_of_itself(tiny, tmp_path):
    k = lambda *overrides, path=tiny: [s.k for s in listed(path, *overrides)]
    inline = "eval.benchmarks=[{name: a, file: a.jsonl, k: 16}, {name: b, file: b.jsonl}]"
    assert k("eval.benchmarks=[aime24,math500]") == [32, 4]  # tiny.yaml's own eval.k is an earlier word
    assert k("eval.benchmarks=[aime24,math500]", "eval.k=2") == [None, None]  # None: eval.k
    assert k(inline) == k(inline, "eval.k=2") == [16, None]  # said together, the more particular wins
    (tmp_path / "more.yaml").write_text(
        "include: tiny.yaml\neval: {benchmarks: [aime24, {name: a, file: a.jsonl, k: 16}]}\n"
    )
    assert k(path=tmp_path / "more.yaml") == [32, 16] and k("eval.k=2", path=tmp_path / "more.yaml") == [None, None]
    source, _ = listed(tmp_path / "more.yaml", "eval.k=2")
    assert source.max_tokens == 32768


@pytest.mark.parametrize(
    "override, line",
    [
        (
            "eval.benchmarks=[aime2024]",
            "command line: eval.benchmarks: unknown benchmark 'aime2024'; did you mean 'aime24'?",
        ),
        (
            "eval.benchmarks=[math=a.jsonl]",
            "command line: eval.benchmarks: 'math' stands for 5 benchmarks and takes no file",
        ),
        ("eval.benchmarks=[aime24,aime24]", "two sources are named 'aime24'"),
        ("eval.benchmarks=[{file: a.jsonl, k: 0}]", "eval.benchmarks: k of 'a' must be above 0, not 0"),
        ("eval.benchmarks=[{file: a.jsonl, top_p: 2}]", "eval.benchmarks: top_p of 'a' must be in (0, 1], not 2.0"),
        ("data.train=[{file: a.jsonl, k: 4}]", "data.train: 'k' is for benchmarks"),
        ("data.train=[{file: a.jsonl, hub: a/b}]", "each source names either a task or a file or a dataset of the hub"),
        (
            "data.train=[{hub: a/b, columns: {problm: q}}]",
            "data.train: unknown column 'problm'; did you mean 'problem'?",
        ),
        ("data.train=[{hub: a/b, columns: {problem: q}}]", "data.train: columns names both 'problem' and 'answer'"),
        ("eval.benchmarks=[{file: a.jsonl, verifier: none}]", "a benchmark counts right answers"),
        (
            "data.train=[{hub: a/b, answer_form: box}]",
            "data.train.answer_form: unknown value 'box'; did you mean 'boxed'?",
        ),
    ],
)
def test_bad_sources(tiny, override, line):
    with pytest.raises(BadInput) as error:
        config.load(tiny, [override])
    assert line in str(error.value) and "\n" not in str(error.value)


def _with_bos(auto: bool):
    """The miniature tokenizer, which puts <bos> before every text where `auto`."""
    from tokenizers.processors import TemplateProcessing

    from .architectures import tokenizer

    made = tokenizer()
    if auto:
        special = [("<bos>", 1), ("<eos>", 2)]
        made._tokenizer.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=special)
    made.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    return made


@pytest.mark.parametrize(
    "bos, auto, template, begins",
    [
        ("auto", True, False, True),  # the tokenizer puts it before plain text
        ("auto", False, False, False),
        ("always", False, False, True),
        ("always", True, False, True),
        ("never", True, False, False),
        ("auto", True, True, True),  # once: the template brings its own
        ("always", False, True, True),
        ("never", False, True, False),
    ],
)
def test_the_beginning_of_sequence(bos, auto, template, begins):
    tokenizer = _with_bos(auto)
    text, ids = data.encode("2+2=", tokenizer, config.Data(bos=bos, chat_template=template))
    own = tokenizer.encode(text.removeprefix("<bos>"), add_special_tokens=False)
    assert ids == (*([1] if begins else []), *own)  # and no <eos> after it, whatever the tokenizer does


def test_a_tokenizer_without_a_beginning_cannot_always_have_one():
    tokenizer = _with_bos(False)
    tokenizer.bos_token = None
    with pytest.raises(BadInput, match="data.bos=always: the model's tokenizer has no beginning-of-sequence token"):
        data.encode("2+2=", tokenizer, config.Data(bos="always"))
