"""The converter of llama2.c's files on a made-up tiny one, the beginnings, and the rule that
rewards them."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from cegppo import config
from cegppo.problems import reward, stories
from cegppo.screen import Screen
from cegppo.types import BadInput, Prompt

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HIDDEN, LAYERS, HEADS, POSITIONS = 8, 12, 2, 2, 16
PIECES = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(f"<0x{i:02X}>".encode() for i in range(256)), b" ", b"a", b"b", b"c"]
MERGED = [(b"ab", -1.0), (b"bc", -2.0), (b" a", -3.0), (b" ab", -4.0), (b"abc", -5.0)]


def made_up() -> tuple[bytes, dict[str, np.ndarray]]:
    """A file as the package has it, and its weights by llama2.c's names."""
    rng = np.random.default_rng(0)
    pieces = [(p, 0.0) for p in PIECES] + MERGED
    shapes = dict(
        embedding=(len(pieces), WIDTH), norm1=(LAYERS, WIDTH), wq=(LAYERS, WIDTH, WIDTH), wk=(LAYERS, WIDTH, WIDTH),
        wv=(LAYERS, WIDTH, WIDTH), wo=(LAYERS, WIDTH, WIDTH), norm2=(LAYERS, WIDTH), w1=(LAYERS, HIDDEN, WIDTH),
        w2=(LAYERS, WIDTH, HIDDEN), w3=(LAYERS, HIDDEN, WIDTH), norm=(WIDTH,),
        angles=(2, POSITIONS, WIDTH // HEADS // 2),
    )  # fmt: skip
    weights = {name: rng.normal(size=shape).astype("<f4") for name, shape in shapes.items()}
    header = struct.pack("<7i", WIDTH, HIDDEN, LAYERS, HEADS, HEADS, len(pieces), POSITIONS)
    tokens = b"".join(struct.pack("<fi", score, len(piece)) + piece for piece, score in pieces)
    return header + b"".join(w.tobytes() for w in weights.values()) + struct.pack("<i", 6) + tokens, weights


def logits(weights: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """[T, V] by llama2.c's own forward pass: rotary pairs are neighbours."""
    norm = lambda x, w: w * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    size, count = WIDTH // HEADS, len(tokens)
    angle = np.arange(count)[:, None] / 10000.0 ** (np.arange(0, size, 2) / size)

    def turned(x: np.ndarray) -> np.ndarray:
        x = x.reshape(count, HEADS, size // 2, 2)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        return np.stack([x[..., 0] * cos - x[..., 1] * sin, x[..., 0] * sin + x[..., 1] * cos], -1).reshape(
            count, HEADS, size
        )

    x = weights["embedding"][tokens].astype(float)
    for layer in range(LAYERS):
        w = {name: value[layer] for name, value in weights.items() if value.shape[0] == LAYERS}
        h = norm(x, w["norm1"])
        q, k, v = turned(h @ w["wq"].T), turned(h @ w["wk"].T), (h @ w["wv"].T).reshape(count, HEADS, size)
        score = np.einsum("thd,shd->hts", q, k) / np.sqrt(size)
        score = np.where(np.tril(np.ones((count, count), bool)), score, -np.inf)
        share = np.exp(score - score.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        x = x + np.einsum("hts,shd->thd", share, v).reshape(count, WIDTH) @ w["wo"].T
        h = norm(x, w["norm2"])
        gate = h @ w["w1"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w3"].T)) @ w["w2"].T
    return norm(x, weights["norm"]) @ weights["embedding"].T


def test_the_converted_model_is_the_same_function(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data, weights = made_up()
    (tmp_path / "llama2.data").write_bytes(data)
    assert stories.main([str(tmp_path / "llama2.data"), str(tmp_path / "model")]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64)
    tokens = [1, 259, 262, 264, 5, 260]
    with torch.no_grad():
        found = model(torch.tensor([tokens])).logits[0].numpy()
    np.testing.assert_allclose(found, logits(weights, tokens), rtol=0, atol=2e-5)  # norms and angles are float32 there
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    # " ab" wins over "bc" in what follows the space that a text is given in front.
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("abc bc")) == ["▁ab", "c", "▁", "bc"]
    assert tokenizer.encode("aé", add_special_tokens=False)[1:] == [3 + byte for byte in "é".encode()]
    assert tokenizer.decode(tokenizer.encode("abc bc é")).strip() == "abc bc é"
    text = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=True, return_dict=False)
    assert text == [tokenizer.bos_token_id, *tokenizer.encode("ab")]


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda data: data[:20], "shorter than a header"),
        (lambda data: data[:1000], "bytes where its header says"),
        (lambda data: data[:-3], "its tokenizer ends at token 267 of 268"),
        (lambda data: struct.pack("<i", -1) + data[4:], "not the header of a model"),
    ],
)
def test_a_damaged_file_is_said_in_one_line(tmp_path, capsys, damage, said):
    (tmp_path / "x.data").write_bytes(damage(made_up()[0]))
    assert stories.main([str(tmp_path / "x.data"), str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith(f"error: {tmp_path / 'x.data'}") and error.count("\n") == 1


def test_the_beginnings_are_the_grammars():
    rows = [json.loads(line) for line in (ROOT / "experiments" / "stories.jsonl").read_text().splitlines()]
    assert [row["problem"] for row in rows] == stories.beginnings() and len(set(stories.beginnings())) == len(rows)
    assert all(re.fullmatch(r"[A-Z][A-Za-z ,.]+\.", row["problem"]) for row in rows)


def test_the_rule_of_the_stories(monkeypatch):
    monkeypatch.chdir(ROOT)
    loaded, _ = config.load(ROOT / "experiments" / "stories.yaml")
    happy, prompt = reward.rule(loaded.reward), Prompt("b/0", "b", "One day", (), "")
    texts = ["They were so happy!", "She smiled.", "It was a sad, unhappy day."]
    assert [happy(prompt, text) for text in texts] == [1.0, 1.0, 0.0]
    with pytest.raises(BadInput, match="no function 'happy_wrd'; did you mean 'happy_word'"):
        reward.rule(loaded.reward.replace("word", "wrd"))


def test_a_run_is_rewarded_by_a_rule_and_needs_no_benchmark(tiny, tmp_path):
    from cegppo.record.files import read_lines
    from cegppo.record.read import read_meta
    from cegppo.train import run_training

    from .test_train import Silent

    (tmp_path / "rules.py").write_text("def short(prompt, text):\n    return 1 / (1 + len(text))\n")
    given = [f"reward={tmp_path / 'rules.py'}:short", "eval.benchmarks=[]", "steps=2", f"run_dir={tmp_path / 'run'}"]
    loaded, _ = config.load(tiny, given)
    assert run_training(loaded, Silent()) == "finished"
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert all(0 < row["reward/mean"] < 1 and row["rollout/constant_groups"] < 1 for row in rows)
    first = read_meta(tmp_path / "run")["reward_rule"]
    (tmp_path / "rules.py").write_text("def short(prompt, text):\n    return 1 / (2 + len(text))\n")
    run_training(config.load(tiny, [*given[:3], f"run_dir={tmp_path / 'changed'}"])[0], Silent())
    assert read_meta(tmp_path / "changed")["reward_rule"] != first
    bad, _ = config.load(tiny, [given[0] + "t", *given[1:3], f"run_dir={tmp_path / 'other'}"])
    with pytest.raises(BadInput, match="no function 'shortt'; did you mean 'short'"):
        run_training(bad, Silent())


def test_a_line_shows_the_reward_where_nobody_says_what_is_right(tiny, capsys):
    numbers = {"accuracy/mean": 0.0, "reward/mean": 0.25, "tokens/total": 8, "time/step": 1.0}
    for given, said in ((["data.train=[{file: a.jsonl, verifier: none}]"], "reward 0.250"), ([], "acc 0.000")):
        with Screen() as screen:
            screen.start(config.load(tiny, given)[0], Path("run"), 0)
            screen.step(1, numbers, 1.0)
        assert said in capsys.readouterr().out
