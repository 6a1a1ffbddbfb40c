"""Problems as one endless, seeded, resumable stream of Prompts: reasoning-gym tasks, local files,
datasets of the Hugging Face hub.

A row of a file or dataset is a problem (text, or chat messages as verl stores them) and its
reference answer.
"""

import json
import math
import signal
import threading
from collections.abc import Iterator, Set
from contextlib import contextmanager
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Data, Eval, Source, is_rule, nearest
from ..shipped import find
from ..types import BadInput, Prompt, listed, present, said
from . import instructions, programs
from .answers import final_answer
from .notation import written

TEMPLATE_SECONDS = 5.0  # that a model's chat template may take for a prompt
TRAINING, BENCHMARK, WARM_UP = range(3)  # what problems are for; their random seeds never meet
BLOCK = 10_000  # a generated task is an endless row of reasoning-gym datasets of this size, each with its own seed
# (problem column, answer column, answer form): the first that fits a source's first row, unless the
# source names its columns.
LAYOUTS = (
    ("prompt", "reward_model.ground_truth", "whole"),  # verl, KlearReasoner-MathSub-30K
    ("question", "answer", "hashes"),  # GSM8K
    ("problem", "answer", "whole"),
    ("question", "answer", "whole"),
    ("problem", "solution", "boxed"),
    ("question", "final_answer", "whole"),  # OlympiadBench
    ("prompt", "test", "whole"),  # HumanEval, for verifier=code
    ("prompt", "instruction_id_list", "whole"),  # IFEval and IFBench, for verifier=instructions
)
UNANSWERED = tuple((problem, "", "none") for problem in dict.fromkeys(layout[0] for layout in LAYOUTS))  # verifier=none
CHECKED = {"code": programs.check, "instructions": instructions.check}  # verifiers that want certain columns
Tokenizer = Any  # transformers' PreTrainedTokenizerBase, whose import takes seconds
Question = str | list[dict[str, str]]  # text, or chat messages with `role` and `content`


def _task_names() -> list[str]:
    import reasoning_gym

    return sorted(reasoning_gym.factory.DATASETS)


class Problems:
    """The problems of one source. `problem(i)` is (question, answer, entry), the same for the same
    `seed` and `i`; the entry is reasoning-gym's, or the row with all its columns.

    Raises BadInput when the source cannot be read, in the making.
    """

    def __init__(self, source: Source, *seed: int):
        self.source, self.seed = source, seed
        self.rows: list[tuple[Question, str, dict[str, Any]]] | None = None
        if source.task is not None:
            self._check_task()
        elif source.file is not None:
            self.rows = problems_of(read_rows(find(source.file)), source, source.file)
        else:
            self.rows = problems_of(load_hub(source), source, str(source.hub))
        if source.verifier in CHECKED:
            CHECKED[source.verifier](present(self.rows), f"data source '{source.name}'")

    def _check_task(self) -> None:
        task = str(self.source.task)
        if task not in _task_names():
            raise BadInput(f"data source '{self.source.name}': unknown task '{task}'{nearest(task, _task_names())}")
        try:
            self.problem(0)
        except Exception as error:  # every task checks its parameters in its own way
            raise BadInput(f"data source '{self.source.name}': task '{task}' cannot be made: {said(error)}") from None

    @lru_cache(maxsize=2)  # noqa: B019 — a source lives as long as its run
    def _dataset(self, block: int) -> Any:
        import reasoning_gym

        seed = int(np.random.default_rng([*self.seed, block]).integers(2**31))
        return reasoning_gym.create_dataset(self.source.task, seed=seed, size=BLOCK, **self.source.params)

    @property
    def size(self) -> int | None:
        """How many there are; None when they are generated without end."""
        return None if self.rows is None else len(self.rows)

    def problem(self, i: int) -> tuple[Question, str, dict[str, Any]]:
        if self.rows is not None:
            return self.rows[i]
        entry = self._dataset(i // BLOCK)[i % BLOCK]
        return entry["question"], str(entry["answer"]), entry


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .json (a list, or one object a line), .jsonl or .parquet file. Raises
    BadInput that names the file and the line."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file (a data source's `file`)")
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(path).to_pylist()
        except Exception as error:  # pyarrow raises many kinds for a broken file
            raise BadInput(f"{path}: not a readable parquet file ({type(error).__name__})") from None
    if path.suffix not in (".json", ".jsonl"):
        raise BadInput(f"{path}: a data source's `file` ends in .json, .jsonl or .parquet")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not UTF-8") from None
    if path.suffix == ".json" and text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path}: line {getattr(error, 'lineno', 1)} is not JSON") from None
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON strings may hold U+2028
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError):
            raise BadInput(f"{path}: line {number} is not JSON") from None
    return rows


def load_hub(source: Source) -> list[dict[str, Any]]:
    """The rows of a dataset of the Hugging Face hub, or of a folder of data files; cached by
    `datasets`. Raises BadInput."""
    import datasets  # slow to import, and needed for this only

    try:
        return datasets.load_dataset(source.hub, source.subset, split=source.split).to_list()
    except (
        Exception
    ) as error:  # no network, no such dataset, subset or split, a file that does not parse: each its own kind
        what = "/".join(filter(None, (source.hub, source.subset, source.split)))
        hint = "a local copy serves as well: file: PATH, or NAME=PATH for a benchmark that has a name"
        raise BadInput(
            f"data source '{source.name}': cannot load {what} from the Hugging Face hub: {said(error)}; {hint}"
        ) from None


def _column(row: dict[str, Any], name: str) -> Any:
    """The value under `name`, or inside it for a name like `reward_model.ground_truth`; None
    when there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _plain(value: Any) -> str | None:
    """A text or a number as a text; None for anything else: a truth value, NaN, bytes, a mapping
    and nothing at all are no problem and no answer, whatever `str` makes of them."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        return None
    if isinstance(value, (float, Decimal)) and not math.isfinite(value):
        return None
    try:
        text = value if isinstance(value, str) else written(value)
        text.encode()  # half a surrogate pair is no text
    except ValueError:
        return None
    return text if text.strip() else None


def _reference(value: Any, form: str) -> str | None:
    """The reference answer in an answer column; None when it is not of that form. A list (of
    parts) is joined."""
    parts = [_plain(part) for part in (value if isinstance(value, list) else [value])]
    if not parts or None in parts:
        return None
    text = ", ".join(part for part in parts if part is not None)
    if form == "boxed":
        return final_answer(text)
    if form == "hashes":
        _, mark, answer = text.rpartition("####")
        return answer.strip() or None if mark else None
    return text


def _read_row(row: Any, problem: str, answer: str, form: str) -> tuple[Question, str] | None:
    """(question, answer) of a row in that layout; None when it does not fit."""
    if not isinstance(row, dict) or _column(row, problem) in (None, []):
        return None
    question = _column(row, problem)
    reference = "" if form == "none" else _reference(_column(row, answer), form)
    if isinstance(question, list):
        if not all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in question
        ):
            return None
        if any(_plain(m["content"]) is None for m in question):
            return None
        question = [{"role": m["role"], "content": m["content"]} for m in question]
    else:
        question = _plain(question)
    return None if reference is None or question is None else (question, reference)


def _empty_answer(row: Any) -> str | None:
    """The answer column of a layout whose problem `row` has, where nothing stands in it."""
    nothing: tuple[Any, ...] = (None, "", [])
    for problem, answer, _ in LAYOUTS:
        if isinstance(row, dict) and _column(row, problem) not in nothing and answer in row and row[answer] in nothing:
            return answer
    return None


def problems_of(rows: list[dict[str, Any]], source: Source, where: str) -> list[tuple[Question, str, dict[str, Any]]]:
    """(question, answer, the row itself) of every row, by the source's columns or the first layout
    that fits its first row. Raises BadInput."""
    if not isinstance(rows, list) or not rows:
        raise BadInput(f"{where}: holds no problems")
    layouts = [layout for layout in LAYOUTS if source.answer_form in (None, layout[2])]
    answered = source.verifier != "none" and not is_rule(source.verifier)  # a rule may ask for none
    bare = [(source.columns["problem"], "", "none")] if source.columns else list(UNANSWERED)
    if source.verifier == "none":
        layouts = bare
    elif "answer" in source.columns:
        layouts = [(source.columns["problem"], source.columns["answer"], source.answer_form or "whole")]
    elif source.columns:
        layouts = []
    layouts = layouts if answered else [*layouts, *bare]
    layout = next((layout for layout in layouts if _read_row(rows[0], *layout)), layouts[0] if source.columns else None)
    made = []
    for number, row in enumerate(rows, 1):
        found = layout and _read_row(row, *layout)
        if layout and not found and not answered:
            found = _read_row(row, layout[0], "", "none")
        if not found:
            if layout is None and answered and (empty := _empty_answer(row)):
                wanted = f"an answer: '{empty}' holds nothing; where none is needed, verifier: none says so"
                raise BadInput(f"{where}: row {number} lacks {wanted}")
            if layout:
                wanted = f"'{layout[0]}'" + (f" or a {layout[2]} answer in '{layout[1]}'" if answered else "")
            else:
                wanted = "a problem and an answer that are recognised" if answered else "a problem that is recognised"
            there = listed(row) if isinstance(row, dict) else type(row).__name__
            names = "{problem: …, answer: …}" if answered else "{problem: …}"
            hint = "" if layout else f"; name them: columns: {names}"
            raise BadInput(f"{where}: row {number} lacks {wanted}; it has: {there}{hint}")
        made.append((*found, row))
    return made


def encode(question: Question, tokenizer: Tokenizer, data: Data) -> tuple[str, tuple[int, ...]]:
    """(text, token ids) of a prompt, after which the response begins.

    Without the chat template the text is the question, the suffix and a line break. With it, the
    question is a user's message, chat messages stay what they are, and the suffix goes to the last
    of them. What comes before it `data.bos` says. Raises BadInput.
    """
    messages = question if isinstance(question, list) else [{"role": "user", "content": question}]
    last = messages[-1]["content"]
    if not last.endswith(data.suffix.strip()) or not data.suffix.strip():
        last += data.suffix
    if not data.chat_template:
        if len(messages) > 1:
            raise BadInput(f"a prompt of {len(messages)} chat messages needs data.chat_template=true")
        plain = last + "\n"
        return plain, beginning(tuple(tokenizer.encode(plain, add_special_tokens=False)), plain, tokenizer, data.bos)
    if not tokenizer.chat_template:
        raise BadInput("data.chat_template=true: the model's tokenizer has no chat template")
    messages = [*messages[:-1], {**messages[-1], "content": last}]
    try:
        with _ends_within(TEMPLATE_SECONDS):
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    except Exception as error:  # a template is a program of its own and may refuse a role, say
        raise BadInput(f"data.chat_template: the model's template refuses a prompt: {said(error)}") from None
    return text, beginning(tuple(ids), None, tokenizer, data.bos)


def beginning(ids: tuple[int, ...], plain: str | None, tokenizer: Tokenizer, bos: str) -> tuple[int, ...]:
    """`ids` with the beginning that `data.bos` asks for: what the tokenizer itself puts before the
    text `plain` (auto; a chat template, without one, brings its own), one BOS token, or none.
    Raises BadInput."""
    first = tokenizer.bos_token_id
    if bos == "auto":
        whole = tuple(tokenizer.encode(plain, add_special_tokens=True)) if plain is not None else ids
        begin = next((i for i in range(len(whole) - len(ids) + 1) if whole[i : i + len(ids)] == ids), 0)
        return whole[:begin] + ids
    if bos == "always" and first is None:
        raise BadInput("data.bos=always: the model's tokenizer has no beginning-of-sequence token")
    bare = ids[1:] if ids[:1] == (first,) else ids
    return (first, *bare) if bos == "always" else bare


@contextmanager
def _ends_within(seconds: float) -> Iterator[None]:
    """Raises TimeoutError inside when the block takes longer: a model's template is a program, and
    may never end. In another thread than the main one, which gets no signals, nothing ends it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def make_prompt(
    question: Question, answer: str, entry: dict, source: Source, number: str, tokenizer: Tokenizer, data: Data
) -> Prompt:
    """The Prompt of a problem."""
    try:
        text, ids = encode(question, tokenizer, data)
    except BadInput as error:
        raise BadInput(f"data source '{source.name}': {error}") from None
    name, final = f"{source.name}/{number}", data.final_answer
    return Prompt(name, source.name, text, ids, answer, source.task, entry, source.verifier, final)


def benchmarks(e: Eval, data: Data, tokenizer: Tokenizer) -> dict[str, list[Prompt]]:
    """Each benchmark's prompts: the first `eval.size` of a generated task (seeded by
    `eval.seed`), or a whole file or dataset."""
    made = {}
    for source in e.benchmarks:
        problems = Problems(source, BENCHMARK, e.seed)
        # A generated task may repeat itself; a benchmark has every question once.
        chosen: dict[Any, Prompt] = {}  # by question, or by row
        for i in range(problems.size if problems.size is not None else 50 * e.size):
            if problems.size is None and len(chosen) == e.size:
                break
            question, answer, entry = problems.problem(i)
            if problems.size is not None or question not in chosen:
                key = question if problems.size is None else str(i)
                chosen[key] = make_prompt(question, answer, entry, source, str(i), tokenizer, data)
        made[source.name] = list(chosen.values())
    return made


class PromptStream:
    """Endless training prompts: the same sequence for the same seed, and from the same state.

    Questions that a benchmark asks, and prompts over the length limit, are passed over and counted.
    """

    def __init__(self, data: Data, seed: int, tokenizer: Tokenizer, held_out: Set[str] = frozenset()):
        self.seed, self.tokenizer, self.held_out = seed, tokenizer, held_out
        self.data, self.max_tokens = data, data.max_prompt_tokens
        if not data.train:
            raise BadInput("data.train: no training data; name at least one source")
        self.sources = data.train
        self.problems = [Problems(s, TRAINING, seed, n) for n, s in enumerate(self.sources)]
        weights = np.array([s.weight for s in self.sources])
        self.weights = weights / weights.sum()
        self.position, self.held_out_count, self.too_long_count = 0, 0, 0
        self.drawn = [0] * len(self.sources)  # from each source so far

    def _next(self) -> Prompt:
        which = int(np.random.default_rng([self.seed, self.position]).choice(len(self.sources), p=self.weights))
        problems, index = self.problems[which], self.drawn[which]
        self.position += 1
        self.drawn[which] += 1
        number = str(index)
        if problems.size is not None:  # a file: every row once an epoch, in a new order each
            epoch, place = divmod(index, problems.size)
            index = int(np.random.default_rng([self.seed, which, epoch]).permutation(problems.size)[place])
            number = f"{index}@{epoch}"
        return make_prompt(*problems.problem(index), self.sources[which], number, self.tokenizer, self.data)

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts. Raises BadInput when hardly any prompt passes."""
        taken: list[Prompt] = []
        tried = 0
        while len(taken) < count:
            prompt = self._next()
            tried += 1
            if prompt.text in self.held_out:
                self.held_out_count += 1
            elif len(prompt.token_ids) > self.max_tokens:
                self.too_long_count += 1
            else:
                taken.append(prompt)
            if tried > (1000 * count if taken else 1000):
                raise BadInput(
                    f"data.train: of {tried} prompts {self.held_out_count} are benchmark questions and"
                    f" {self.too_long_count} are longer than data.max_prompt_tokens={self.max_tokens}"
                )
        return taken

    @property
    def passed_over(self) -> dict[str, int]:
        """How many prompts were drawn and not taken, by reason."""
        return {"held_out": self.held_out_count, "too_long": self.too_long_count}

    def state(self) -> dict[str, Any]:
        return {"position": self.position, "drawn": self.drawn, **self.passed_over}

    def restore(self, state: dict[str, Any]) -> None:
        self.position, self.drawn = state["position"], list(state["drawn"])
        self.held_out_count, self.too_long_count = state["held_out"], state["too_long"]
