"""`sample`: what a model writes, token by token."""

import json

import pytest
import torch

from cegppo import respond
from cegppo.cli import main
from cegppo.verbs import sample


def lines(capsys, *words):
    assert main(["sample", *map(str, words)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_responses_of_a_model_and_their_statistics(tiny_model, capsys):
    made = lines(capsys, tiny_model, "n=3", "3 + 4 =", "rollout.max_tokens=12", "--json", "model.device=cpu")
    assert [row["index"] for row in made] == [0, 1, 2] and {row["prompt"] for row in made} == {"3 + 4 =\n"}
    assert {row["verdict"] for row in made} == {None} and {row["finish"] for row in made} <= {"stop", "length"}
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    prompt = tokenizer.encode("3 + 4 =\n")
    for row in made:
        ids = [token["id"] for token in row["tokens"]]
        with torch.no_grad():
            logp_TV = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        right = [-(logp_V.exp() * logp_V).sum().item() for logp_V in logp_TV]
        assert [token["entropy"] for token in row["tokens"]] == pytest.approx(right, abs=1e-4)
        said = [logp_V[i].item() for logp_V, i in zip(logp_TV, ids)]
        assert [token["logprob"] for token in row["tokens"]] == pytest.approx(said, abs=1e-4)
        assert "".join(token["text"] for token in row["tokens"]) == tokenizer.decode(ids)


def test_a_benchmarks_problem_has_an_answer_and_a_verdict(tiny, capsys):
    (row,) = lines(capsys, tiny, "n=1", "problem=2", "--json")
    assert row["id"] == "sums/2" and row["answer"] and row["verdict"] in ("correct", "wrong", "no_answer", "truncated")
    assert main(["sample", str(tiny), "n=1", "problem=2"]) == 0
    out = capsys.readouterr().out
    assert f"answer: {row['answer']}" in out and f"[0], {row['verdict']}, {len(row['tokens'])} tokens" in out


@pytest.mark.parametrize(
    "words, part",
    [
        (["n=0"], "n=0: takes a whole number"),
        (["problem=9"], "sums has 3 problems; problem=9"),
        (["rollout.max_token=3"], "did you mean 'rollout.max_tokens'"),
    ],
)
def test_bad_input_is_one_line(tiny, capsys, words, part):
    assert main(["sample", str(tiny), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and part in err and err.count("\n") == 1


def test_what_is_not_there_is_not_asked_of_the_hub(tmp_path, capsys):
    for target, part in ((tmp_path, "holds neither a run"), ("results/no/such/seed0", "no such run")):
        assert main(["sample", str(target), "x"]) == 2
        assert part in capsys.readouterr().err


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


def test_a_character_of_several_tokens_is_shown_once():
    ids = list("aé€b".encode())
    assert list(respond.pieces(Bytes(), ids)) == ["a", "", "é", "", "", "€", "b"]
    assert list(respond.pieces(Bytes(), ids[:2])) == ["a", "�"]  # cut inside a character


def test_shades_by_hand():
    token = respond.Token("x", 0, logprob=-0.7, entropy=0.05)
    assert sample._shade(token, "entropy") == "" and sample._shade(token, "surprisal") == "yellow"
