"""A campaign of strange input: configuration, data, answers, completions, token texts and run
folders, made by hypothesis and, where atheris is installed, led by the lines that they reach.

A check passes when bad input is a BadInput (Missing where files alone are read) of one line, what
is accepted keeps its promise, and nothing takes longer than SLOW seconds of this process.
"""

import importlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from .table import Table

SLOW = 5.0  # seconds
SLICE = 500  # inputs of one run of hypothesis
Check = Callable[[Any], None]


def refused(error: Exception) -> None:
    """What a refusal must be: a line with a text, short enough to read."""
    text = str(error)
    assert text.strip() and "\n" not in text.strip() and len(text) < 2000, text[:300]


# ----------------------------------------------------------------------------------- configuration

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from(["", "~", "null", "1e400", "-0", ".inf", ".nan", "0x1F", "1_000", "${seed}", "${", "!!python/x",
                     "*a", "&a", "{", "[", "]", ": ", "- ", "#", "\t", "\x00", "\ud800", "../x", "/", "9" * 400,
                     "[[0,1],[50%,2]]"]),
)  # fmt: skip
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12) | SCALARS, inner, max_size=4),
    max_leaves=8,
)


@cache
def keys() -> list[str]:
    from cegppo.config import Config, flatten

    more = ["loss", "update", "eval.benchmarks", "data.train", "include", "method", "model"]
    return [*flatten(Config().to_dict()), *more]


def damaged(text: str, at: int, cut: bool) -> str:
    place = at % (len(text) + 1)
    return text[:place] + text[place + 1 :] if cut else text[:place] + "x" + text[place:]


KEYS = st.deferred(
    lambda: st.sampled_from(keys()) | st.builds(damaged, st.sampled_from(keys()), st.integers(0, 60), st.booleans())
)
OVERRIDES = st.lists(
    st.builds(lambda key, value: f"{key}={value}", KEYS, TREES.map(str) | TREES.map(json.dumps)), max_size=4
)


def tiny(text: str = "model: {path: nowhere}\nsteps: 2\n") -> Path:
    path = scratch() / "experiment.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    return path


@cache
def scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="inputs"))


def loads(path: Path, overrides: list[str]) -> None:
    """What is accepted can be written down and read again as it was, and explained."""
    from cegppo import config
    from cegppo.types import BadInput

    try:
        made, origin = config.load(path, overrides)
    except BadInput as error:
        return refused(error)
    (scratch() / "config.yaml").write_text(config.as_yaml(made), encoding="utf-8")
    assert repr(config.resolved(scratch() / "config.yaml").to_dict()) == repr(made.to_dict())
    assert config.explain(made, origin)


def check_overrides(words: list[str]) -> None:
    loads(tiny(), words)


def check_experiment(text: str) -> None:
    loads(tiny(text), [])


SECTIONS = st.dictionaries(st.deferred(lambda: st.sampled_from(sorted({key.split(".")[0] for key in keys()}))), TREES)
TEXTS = st.one_of(st.text(max_size=200), SECTIONS.map(lambda tree: json.dumps(tree)), TREES.map(str))

# -------------------------------------------------------------------------------------------- data

ROWS = st.lists(
    st.dictionaries(
        st.sampled_from(["problem", "answer", "question", "solution", "prompt", "reward_model", "x"]), TREES
    )
    | TREES,
    max_size=5,
)
SOURCES = st.builds(
    dict,
    columns=st.sampled_from([{}, {}, {"problem": "x", "answer": "answer"}, {"problem": "prompt.a", "answer": "x"}]),
    answer_form=st.sampled_from([None, "whole", "boxed", "hashes"]),
)


def check_data(pair: tuple[list[Any], dict[str, Any]]) -> None:
    """Each row is a problem with a text and an answer, or all are refused."""
    from cegppo.config import Source
    from cegppo.problems import data
    from cegppo.types import BadInput

    rows, layout = pair
    try:
        made = data.problems_of(rows, Source(name="s", file="f.jsonl", **layout), "f.jsonl")
    except BadInput as error:
        return refused(error)
    assert len(made) == len(rows) and all(answer.strip() for _, answer, _ in made)


def check_data_file(content: bytes) -> None:
    from cegppo.config import Source
    from cegppo.problems import data
    from cegppo.types import BadInput

    for suffix in (".jsonl", ".json"):
        path = scratch() / f"data{suffix}"
        path.write_bytes(content)
        try:
            data.Problems(Source(name="s", file=str(path)), 0)
        except BadInput as error:
            refused(error)


FILES = st.one_of(
    st.binary(max_size=200), TREES.map(lambda tree: json.dumps(tree).encode()),
    ROWS.map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
)  # fmt: skip

# ----------------------------------------------------------------------------------------- answers

PIECES = st.sampled_from(
    ["\\boxed{", "}", "{", "\\frac{1}{2}", "1,000", "$", " ", "\n", "\\text{", "\\left(", "x^2", "0.5", "-", "1/3",
     "\\", "²", "١", "½", "\\boxed", "{,}", ".", "9" * 50, "e5", "\\dfrac", "%", "\x00", "\ud800", "\\!"]
)  # fmt: skip
ANSWERS = st.tuples(st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join), st.text(max_size=8) | PIECES)


def check_answer(pair: tuple[str, str]) -> None:
    """An answer stands in the text, with balanced braces; comparing is symmetric, and anything
    equals itself."""
    from cegppo.problems import answers, comparison, notation

    text, reference = pair
    answer = answers.final_answer(text)
    if answer is not None:
        assert "\\boxed{" + answer in text.replace(" ", "") or answer in text
        assert answer.count("{") == answer.count("}")
    for one in (answer or "", text):
        assert notation.matches(one, one)
        assert notation.matches(one, reference) == notation.matches(reference, one)
        assert comparison.quick(one, reference) in (True, False, None)
        again = notation.normalised(one)
        assert isinstance(again, str)


# ------------------------------------------------------------------------ what is kept of a run

MUTATIONS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 3), st.binary(max_size=6)), min_size=1, max_size=4)


def mutated(data: bytes, mutations: list[tuple[int, int, bytes]]) -> bytes:
    """Bytes put in, taken out, replaced, or everything behind a place gone."""
    for where, kind, new in mutations:
        at = where % (len(data) + 1)
        data = data[:at] if kind == 0 else data[:at] + new + data[at + (0, 0, len(new), 3)[kind] :]
    return data


@cache
def kept() -> bytes:
    from cegppo.record.files import Completions

    opened = Completions(scratch() / "kept.jsonl.gz")
    for n in range(4):
        opened.append([{"id": f"p{n}", "completions": [f"text {n} " * 20]}])
    opened.close()
    return opened.path.read_bytes()


def check_completions(mutations: list[tuple[int, int, bytes]]) -> None:
    """Whole pieces from the beginning, as they were; or refused, and the file is untouched."""
    from cegppo.record.files import Completions
    from cegppo.types import BadInput

    data, path = mutated(kept(), mutations), scratch() / "damaged.jsonl.gz"
    path.write_bytes(data)
    try:
        opened = Completions(path)
    except BadInput as error:
        refused(error)
        assert path.read_bytes() == data
        return
    opened.close()
    assert data.startswith(path.read_bytes())  # nothing but its end was cut


@cache
def tokenizer() -> Any:
    from cegppo.problems.testbed import make_tokenizer

    return make_tokenizer()


def check_pieces(ids: list[int]) -> None:
    """The texts of a response's tokens make up the response."""
    from cegppo.instrument.tokens import pieces

    size = len(tokenizer())
    token_ids = tuple(n % size for n in ids)
    made, whole = pieces(tokenizer().decode, token_ids), tokenizer().decode(token_ids)
    assert len(made) == len(token_ids) and whole.startswith("".join(made))


@cache
def folder() -> Path:
    """A finished run, written without a model."""
    from cegppo import config
    from cegppo.record.files import as_lines, as_page

    made = scratch() / "run"
    (made / "checkpoints" / "step000004").mkdir(parents=True)
    (made / "checkpoints" / "step000004" / "state.json").write_text('{"step": 4, "elapsed": 1.0, "best": null}')
    (made / "checkpoints" / "latest").symlink_to("step000004")
    asked, _ = config.load(tiny(), [f"run_dir={made}", "steps=4"])
    (made / "config.yaml").write_text(config.as_yaml(asked))
    rows = [{"step": n, "entropy/mean": 0.5, "reward/mean": 0.1, "accuracy/mean": 0.1, "length/mean": 9.0,
             "time/step": 0.1, "clip/low": 0.0, "clip/high": None} for n in range(1, 5)]  # fmt: skip
    (made / "metrics.jsonl").write_text(as_lines(rows))
    row = {"benchmark": "sums", "n": 1, "k": 2, "correct": [1], "avg@2": 0.5, "verdicts": {"correct": 1, "wrong": 1}}
    (made / "eval.jsonl").write_text(as_lines([{"step": n, **row} for n in (0, 4)]))
    session = {"start": "2026-01-01T00:00:00+00:00", "commit": "0" * 40, "diff": None, "versions": {"torch": "2"},
               "machine": "m", "host": "h", "command": "run.py", "pid": 1, "ranks": 1, "python": "3"}  # fmt: skip
    meta = {"status": "finished", "steps": 4, "start": session["start"], "end": session["start"], "sessions": [session]}
    (made / "meta.json").write_text(as_page(meta))
    return made


RUN_FILES = ("meta.json", "config.yaml", "metrics.jsonl", "eval.jsonl", "checkpoints/step000004/state.json")


def check_folder(damage: tuple[str, list[tuple[int, int, bytes]]]) -> None:
    """Whatever reads or continues a run with a damaged file does it, or says why not in a line, and
    changes nothing."""
    from analysis import listing, report
    from analysis.load import Missing
    from cegppo.record import again
    from cegppo.record.read import read_config
    from cegppo.record.run import Record
    from cegppo.types import BadInput

    name, mutations = damage
    root = scratch() / "r" / "arm" / "seed0"
    shutil.rmtree(root.parent.parent, ignore_errors=True)
    shutil.copytree(folder(), root, symlinks=True)
    (root / name).write_bytes(mutated((root / name).read_bytes(), mutations))
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def begin() -> None:
        Record(read_config(root, [f"run_dir={root}"]))._lock.close()

    readers: list[Callable[[], Any]] = [
        lambda: listing.text(root.parent.parent), lambda: listing.settings(root), begin,
        lambda: again.config_again(root, []), lambda: report.write(root),
    ]  # fmt: skip
    for read in readers:
        try:
            read()
        except (BadInput, Missing) as error:
            refused(error)
    assert all(path.read_bytes() == data for path, data in before.items() if path.name != ".lock")


CHECKS: dict[str, tuple[st.SearchStrategy, Check, float]] = {  # strategy, check, share of the examples
    "overrides": (OVERRIDES, check_overrides, 1.0),
    "experiment files": (TEXTS, check_experiment, 0.5),
    "data rows": (st.tuples(ROWS, SOURCES), check_data, 0.5),
    "data files": (FILES, check_data_file, 0.5),
    "answers": (ANSWERS, check_answer, 2.0),
    "completions": (MUTATIONS, check_completions, 0.5),
    "token texts": (st.lists(st.integers(0, 10**4), max_size=30), check_pieces, 0.25),
    "run folders": (st.tuples(st.sampled_from(RUN_FILES), MUTATIONS), check_folder, 0.02),
}


@cache
def warm() -> None:
    """Import what checks import, so that no input is charged for it."""
    for name in ("analysis.listing", "analysis.report", "cegppo.config", "cegppo.instrument.tokens"):
        importlib.import_module(name)
    for name in ("cegppo.problems.data", "cegppo.problems.reward", "cegppo.record.again", "cegppo.record.run"):
        importlib.import_module(name)
    tokenizer()


def test_of(name: str, examples: int, counted: list[int] | None = None) -> Callable[[], None]:
    """A hypothesis test of the check `name`; `counted` gets an entry for each input."""
    strategy, check, _ = CHECKS[name]
    warm()

    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(strategy)
    def test(value: Any) -> None:
        if counted is not None:
            counted[0] += 1
        begun = time.process_time()
        check(value)
        assert time.process_time() - begun < SLOW, f"takes {time.process_time() - begun:.1f} s"

    return test


class Campaign:
    def __init__(self, table: Table):
        self.table = table

    def run(self, seconds: float, only: list[str], seed: int, examples: int) -> None:
        """`examples` times its share of each check, while there is time."""
        until = time.monotonic() + seconds
        for name in only or CHECKS:
            counted, wrong = [0], ""
            asked = round(examples * CHECKS[name][2])
            for part in range(0, asked, SLICE):
                if time.monotonic() > until or wrong:
                    break
                test = hypothesis.seed(f"{seed} {part}")(test_of(name, min(SLICE, asked - part), counted))
                try:
                    test()
                except Exception as error:  # its notes hold the smallest input that fails
                    wrong = f"{type(error).__name__}: {str(error)[:300]} {getattr(error, '__notes__', '')}"
            self.table.add(name, counted[0], wrong, trials=counted[0])


def led_by_coverage(name: str, seconds: int) -> None:
    """Inputs that reach new lines are kept and changed: libFuzzer over hypothesis's choices."""
    import atheris

    warm()
    arguments = ["fuzz", f"-max_total_time={seconds}", "-timeout=30", "-print_final_stats=1"]
    atheris.instrument_all()
    atheris.Setup(arguments, test_of(name, 1).hypothesis.fuzz_one_input)
    atheris.Fuzz()
