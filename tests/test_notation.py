"""Kinds of answers that graders are known to get wrong, by name: what is wrong and must not be
rewarded, what is right and must not be refused. Sources of the kinds: docs/reports.md."""

import json
from fractions import Fraction

import pytest

from cegppo.config import Limits
from cegppo.problems import comparison, completions, notation, reward, units
from cegppo.problems.answers import final_answer, last_number
from cegppo.problems.data import read_rows
from cegppo.types import BadInput, Prompt, Rollout, Verdict

LIMITS = Limits(timeout=5.0, memory_mb=768, workers=1)

# kind → [(reference, answer)]
WRONG = {
    "small numbers": [
        ("6.626\\times 10^{-34}", "9.109\\times 10^{-31}"),
        ("6.626\\times 10^{-34}", "6.626\\times 10^{-35}"),
        ("6.626e-34", "-6.626e-34"),
        ("0.0000001", "-0.0000001"),
        ("0.0000001", "0.0000002"),
        ("\\frac{1}{2^{99}}", "\\frac{1}{2^{98}}"),
        ("\\frac{1}{2004!}", "\\frac{1}{2006!}"),
        ("\\frac{2^{200}+1}{3 \\cdot 2^{201}}", "\\frac{1}{3\\cdot 2^{201}}"),
        ("(1, 10^{-9})", "(1, 10^{-10})"),
        ("\\pi\\times 10^{-8}", "2\\pi\\times 10^{-8}"),
        ("10^{-9}", "0"),
        ("0", "10^{-9}"),
        ("e^{-40}", "e^{-41}"),
        ("\\sqrt{2}\\times 10^{-9}", "1.5\\times 10^{-9}"),
    ],
    "large numbers": [
        ("12345678", "12345679"),
        ("12345678", "12345678.9"),
        ("333333", "\\frac{1000000}{3}"),
        ("6.02\\times 10^{23}", "6.03\\times 10^{23}"),
        ("2^{100}", "2^{100}+1"),
        ("\\infty", "-\\infty"),
    ],
    "a last letter is a factor": [
        ("\\pi r^2 h", "\\pi r^2"),
        ("\\pi r^2 h", "\\pi r^2 t"),
        ("\\frac{1}{m} t", "\\frac{1}{m}"),
        ("3+5 t", "8"),
        ("2 m", "2"),
        ("\\frac{1}{2} g", "\\frac{1}{2}"),
        ("x^2 s", "x^2"),
        ("5", "5 x"),
        ("5", "5x"),
        ("a c", "a"),
        ("\\pi r^2", "\\pi r^2 h"),
        ("4 \\text{ m} + h", "4"),
        ("3", "3 t"),
    ],
    "letters in an order": [
        ("CAB", "ABC"),
        ("CAB", "BCA"),
        ("LLRR", "LRLR"),
        ("\\text{CAB}", "ABC"),
        ("east", "seat"),
        ("DCBA", "ABCD"),
        ("\\text{no}", "on the"),
        ("CAB", "C, A, B"),
    ],
    "capital and small letters": [
        ("\\frac{G M^2 m}{r}", "\\frac{G M m^2}{r}"),
        ("R^2 - r^2", "r^2 - R^2"),
        ("x", "X"),
        ("V - v", "0"),
    ],
    "words that multiply": [
        ("5\\text{ million}", "5"),
        ("5\\text{ million}", "5\\text{ billion}"),
        ("5", "5 million"),
        ("3\\text{ thousand dollars}", "3\\text{ dollars}"),
        ("2 \\text{ dozen}", "2"),
        ("7", "7\\text{ hundred}"),
    ],
    "quantities": [
        ("5\\text{ hours }30\\text{ minutes}", "5"),
        ("5\\text{ hours }30\\text{ minutes}", "5\\text{ hours }20\\text{ minutes}"),
        ("5\\text{ hours}", "5\\text{ minutes}"),
        ("5\\text{ km}", "5\\text{ m}"),
        ("5 cm", "5 cm^2"),
        ("5\\text{ hours }30\\text{ minutes}", "5\\text{ hours}"),
        ("5\\text{ feet }3\\text{ inches}", "53"),
        ("3 \\text{ dollars}", "3 \\text{ cents}"),
    ],
    "words that say something": [
        ("5", "\\text{at least }5"),
        ("5", "5 \\text{ or } 6"),
        ("5", "5 \\text{ or more}"),
        ("5", "\\text{not }5"),
        ("x", "x \\text{ if } y"),
        ("5", "15 apples and 42 pears"),
    ],
    "bases": [
        ("142_5", "142_6"),
        ("142_5", "142"),
        ("142_{5}", "47"),
        ("4343_6", "4343_{7}"),
        ("1010_2", "10"),
        ("142", "142_6"),
    ],
    "commas": [
        ("32349", "32, 349"),
        ("1234", "1, 234"),
        ("(1, 234)", "(1234)"),
        ("[32, 349]", "32349"),
        ("1, 2", "12"),
    ],
    "digits apart": [("12", "1 2"), ("3", "1 2"), ("0", "1 000"), ("6", "2 3"), ("103", "10 3")],
    "e-notation": [("4.5e33", "4.5e34"), ("3e8", "3e-8"), ("-3e8", "3e8")],
    "marks that are dropped": [
        ("x'", "x"),
        ("f'(x)", "f(x)"),
        ("f''(x)", "f'(x)"),
        ("x^\\prime", "x"),
        ("(fg)'", "fg"),
        ("A^T", "A"),
        ("x^T y", "y^T x"),
        ("4", "4\\sqrt(2)"),
    ],
    "points in an order": [
        ("\\angle ABC", "\\angle ACB"),
        ("\\vec{AB}", "\\vec{BA}"),
        ("\\triangle ABC", "\\triangle BCA"),
        ("\\frac{dy}{dx}", "\\frac{dx}{dy}"),
    ],
    "sets and pairs": [("(0,1)", "\\{0,1\\}"), ("\\{1,2\\}", "(2,1)"), ("(1,2)", "\\{2, 1\\}")],
    "one side of an equation": [
        ("n=2, 3, 4", "n=1, 2, 3"),
        ("D = (0, 1)", "D = (0, 1.5)"),
        ("3x-y+13=0", "3x + 4y + 14=0"),
        ("19, 46, \\text{ and } 82", "21, 36, and 82"),
        ("\\pm 2021", "2021"),
        ("12:00", "1:00"),
    ],
}
RIGHT = {
    "equations": [
        ("2x", "\\frac{dy}{dx} = 2x"),
        ("f'(x)=2x", "2x"),
        ("y' = 2x", "2x"),
        ("30^\\circ", "\\angle ABC = 30^\\circ"),
        ("3x-y+13=0", "y=3x+13"),
        ("n=2, 3, 4", "n=4,3,2"),
    ],
    "marks": [("x'", "x^\\prime"), ("x'+1", "1+x'"), ("a^T", "a^{T}"), ("3", "\\log_2 8"), ("\\{0,1\\}", "0,1")],
    "text within": [("12:00 \\text{ p.m.}", "12:00 p.m."), ("\\pm 2021", "2021, -2021")],
    "e-notation": [
        ("4.5e33", "4.5\\times 10^{33}"),
        ("4.5e33", "4.5e33"),
        ("4.5e+33", "4.5 \\cdot 10^{33}"),
        ("1e-05", "0.00001"),
        ("1e-05", "10^{-5}"),
        ("300000000", "3e8"),
        ("300000000", "3E8"),
        ("300000000", "3\\times 10^8"),
        ("1e+16", "10^{16}"),
        ("(1e3, 2)", "(1000, 2)"),
        ("2.99792458\\times10^8", "299792458"),
        ("5e-1", "\\frac{1}{2}"),
        ("4.5e33", "4.5\\times10^{33}\\text{ erg}"),
        ("4.5e33", "4.5 \\times 10^{33} \\mathrm{~erg/s}"),
        ("6.62607015e-34", "6.62607\\times 10^{-34}"),
    ],
    "order of factors": [
        ("\\pi r^2 h", "\\pi h r^2"),
        ("\\frac{1}{m} t", "\\frac{t}{m}"),
        ("ab", "ba"),
        ("x y", "y x"),
        ("2 m g", "2 g m"),
        ("\\frac{1}{2} g t^2", "\\frac{g t^2}{2}"),
    ],
    "words that multiply": [
        ("5\\text{ million}", "5000000"),
        ("5\\text{ million}", "5 \\times 10^6"),
        ("5\\text{ million}", "5 million"),
        ("2\\text{ billion dollars}", "\\$2{,}000{,}000{,}000"),
        ("1.5 \\text{ thousand}", "1500"),
    ],
    "quantities": [
        ("5\\text{ hours }30\\text{ minutes}", "5.5 \\text{ hours}"),
        ("1\\text{ hour}", "60\\text{ minutes}"),
        ("5\\text{ hours }30\\text{ minutes}", "5\\text{ hours and }30\\text{ minutes}"),
        ("5\\text{ hours }30\\text{ minutes}", "330 minutes"),
        ("2 \\text{ feet}", "24 \\text{ inches}"),
        ("60 \\text{ miles per hour}", "60 mph"),
        ("10\\text{ cm}^2", "10 \\text{ square centimeters}"),
    ],
    "plain units": [
        ("5", "5 m/s"),
        ("5", "5 km/h"),
        ("5", "5 people"),
        ("5", "5 dollars"),
        ("5", "5 cm^2"),
        ("5", "5 kg"),
        ("5", "5 m"),
        ("5", "5cm"),
        ("5", "5\\text{ cm}"),
        ("5", "5\\,\\mathrm{cm}"),
        ("5", "5~\\mathrm{m/s^2}"),
        ("10\\text{ cm}^2", "10"),
        ("10\\mbox{ cm}^2", "10"),
        ("42", "42 apples"),
        ("\\frac{1}{2}", "\\frac{1}{2} \\textbf{meters}"),
        ("2\\sqrt{3}", "2\\sqrt{3} \\text{ units}"),
        ("125", "125\\textnormal{ miles}"),
        ("5 \\text{ cm}", "5 cm"),
        ("90^\\circ", "90 degrees"),
        ("90", "90°"),
        ("18.90", "\\$18.90"),
        ("50\\%", "50 percent"),
        ("50\\%", "50 \\text{ percent}"),
    ],
    "bases": [
        ("142_5", "142_{5}"),
        ("2516_8", "2516_{\\text{eight}}"),
        ("142_5", "142_{\\text{five}}"),
        ("142", "142_{10}"),
    ],
    "empty set": [
        ("\\emptyset", "\\varnothing"),
        ("\\emptyset", "\\{\\}"),
        ("\\emptyset", "∅"),
        ("\\varnothing", "\\{ \\}"),
    ],
    "repeating decimals": [
        ("\\frac{1}{3}", "0.\\overline{3}"),
        ("\\frac{1}{6}", "0.1\\overline{6}"),
        ("\\frac{7}{3}", "2.\\bar{3}"),
        ("x+\\frac{1}{3}", "x + 0.\\overline{3}"),
        ("0.\\overline{3}", "\\frac{1}{3}"),
        ("-\\frac{1}{3}", "-0.\\overline{3}"),
    ],
    "mixed numbers": [
        ("2.5", "2 1/2"),
        ("2.5", "2\\frac{1}{2}"),
        ("2\\frac{1}{2}", "\\frac{5}{2}"),
        ("-2.5", "-2 1/2"),
        ("2 1/2", "2.5"),
        ("2.5", "2\\ 1/2"),
        ("2.5", "2\\dfrac12"),
        ("2\\frac12", "\\frac52"),
    ],
    "markup": [
        ("42", "\\boldsymbol{42}"),
        ("42", "\\underline{42}"),
        ("42", "\\color{red}{42}"),
        ("42", "**42**"),
        ("42", "42\\\\"),
        ("42", "\\mathbf{42}"),
        ("42", "\\textbf{42}"),
        ("42", "\\textcolor{blue}{42}"),
        ("42", "{42}"),
        ("42", "\\text{42}"),
        ("42", "\\displaystyle 42"),
        ("42", "\\bm{42}"),
        ("42", "$42$"),
        ("42", "`42`"),
        ("42", "\\mathrm{42}"),
        ("42", "42."),
        ("\\frac{1}{2}", "\\boldsymbol{\\frac{1}{2}}"),
        ("x+1", "\\mathbf{x} + 1"),
        ("-5", "−5"),
        ("42", "\\fbox{42}"),
    ],
    "truth values": [
        ("\\text{True}", "true"),
        ("true", "\\text{True}"),
        ("\\text{No}", "no"),
        ("Yes", "\\textbf{yes}"),
    ],
    "letters of a choice": [
        ("B", "B)"),
        ("B", "(B)"),
        ("\\text{(B)}", "B."),
        ("B", "\\text{B}"),
        ("\\text{B}", "\\textbf{(B)}"),
        ("B", "b"),
    ],
    "digits in groups": [
        ("1000000", "1 000 000"),
        ("1000000", "1{,}000{,}000"),
        ("1000000", "1\\,000\\,000"),
        ("10000", "10,\\! 000"),
    ],
    "rounded": [
        ("\\frac{1}{3}", "0.333333"),
        ("\\pi", "3.141593"),
        ("\\sqrt{2}", "1.414214"),
        ("1000\\pi", "3141.592654"),
        ("\\{\\frac{1}{3}, 2\\}", "\\{0.333333, 2\\}"),
        ("2.5", "2.5000000001"),
    ],
    "lists": [
        ("32, 349", "349, 32"),
        ("1,2", "\\{2, 1\\}"),
        ("\\text{Alice and Bob}", "Bob, Alice"),
        ("(32, 349)", "(32,349)"),
    ],
}


def verdicts(pairs):
    made = [Rollout(Prompt("s/1", "s", "q", (), r), 0, (), (), "stop", f"so \\boxed{{{a}}}") for r, a in pairs]
    return list(zip(pairs, reward.verdicts(made, LIMITS)))


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_not_rewarded(kind):
    assert [(pair, found) for pair, found in verdicts(WRONG[kind]) if found is Verdict.CORRECT] == []


@pytest.mark.parametrize("kind", RIGHT)
def test_what_is_right_is_rewarded(kind):
    assert [(pair, found) for pair, found in verdicts(RIGHT[kind]) if found is not Verdict.CORRECT] == []


@pytest.mark.parametrize(
    "text, taken, value",
    [
        ("The answer is \u22125", "-5", -5),
        ("It is \u20135", "-5", -5),
        ("It is .5", ".5", Fraction(1, 2)),
        ("so -.5", "-.5", Fraction(-1, 2)),
        ("1.5e-3", "1.5e-3", Fraction(3, 2000)),
        ("about 1.5E3", "1.5E3", 1500),
        ("1 / 2", "1 / 2", Fraction(1, 2)),
        ("\\frac{1}{2}", "\\frac{1}{2}", Fraction(1, 2)),
        ("1 000 000", "1 000 000", 10**6),
        ("it is -\\frac34.", "-\\frac34", Fraction(-3, 4)),
        ("x = 1{,}234", "1{,}234", 1234),
        ("12\u202f345", "12\u202f345", 12345),
        ("pages 3\u20135", "5", 5),
        ("3 \u2212 4 = \u22121", "-1", -1),
        ("in 2024 100 people", "100", 100),
        ("so 5.", "5", 5),
        ("3-4", "4", 4),
        ("x\u00b2 = 1,234.5", "1,234.5", Fraction(2469, 2)),
        ("24/7", "24/7", Fraction(24, 7)),
    ],
)
def test_the_last_number_as_people_write_it(text, taken, value):
    assert last_number(text) == taken and notation.normalised(taken) == str(Fraction(value))


@pytest.mark.parametrize(
    "text, answer",
    [
        ("It is $\\boxed 2$.", "2"),
        ("$\\boxed {5}$", "5"),
        ("\\boxed 12 and that is it.", "12"),
        ("$\\boxed\\frac{1}{2}$", "\\frac{1}{2}"),
        ("\\boxed{1}, not \\boxed 2", "1"),
        ("put it in \\boxed to end", None),
        ("so $\\boxed x$", "x"),
        ("\\[\\boxed -7\\]", "-7"),
        ("\\fbox{3}", "3"),
        ("\\boxed", None),
        ("\\boxed 3.5.", "3.5"),
    ],
)
def test_a_box_without_braces(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    "value, text",
    [
        (0.00001, "0.000010"),
        (1e16, "10000000000000000"),
        (5, "5"),
        (2.5, "2.5"),
        (6.62607015e-34, "6.62607015\\times 10^{-34}"),
        (-1e300, "-1\\times 10^{300}"),
    ],
)
def test_a_number_of_a_data_file_keeps_its_digits(value, text):
    assert notation.number(notation.written(value)) == notation.number(text)
    assert "e" not in notation.written(value).replace("\\times", "")  # which would be Euler's


def test_numbers_in_json_and_in_parquet_are_references(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cegppo.config import Source
    from cegppo.problems.data import problems_of

    rows = [{"problem": "q", "answer": 1e-05}, {"problem": "q", "answer": 1e16}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        made = problems_of(read_rows(tmp_path / name), Source(file=name), name)
        assert [notation.normalised(answer) for _, answer, _ in made] == ["1/100000", "10000000000000000"]


def test_a_solution_with_a_box_without_braces_has_an_answer(tmp_path):
    from cegppo.config import Source
    from cegppo.problems.data import problems_of

    row = {"problem": "What is the largest x with 2x = 4?", "solution": "It is $\\boxed 2$."}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    ((_, answer, _),) = problems_of(read_rows(tmp_path / "a.jsonl"), Source(file="a.jsonl"), "a.jsonl")
    assert answer == "2"


def test_a_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "bom.jsonl").write_bytes(b'\xef\xbb\xbf{"problem": "1+1", "answer": "2"}\n')
    assert read_rows(tmp_path / "bom.jsonl") == [{"problem": "1+1", "answer": "2"}]
    (tmp_path / "saved.jsonl").write_bytes(b'\xef\xbb\xbf{"id": 1, "answer": "2", "completions": ["x"]}\n')
    assert completions.read(tmp_path / "saved.jsonl")[0].answer == "2"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", '""', '" "', "true", "null"])
def test_saved_texts_need_an_answer(tmp_path, value):
    file = tmp_path / "saved.jsonl"
    file.write_text('{"id": 1, "answer": ' + value + ', "completions": ["x"]}\n')
    with pytest.raises(BadInput, match="line 1: 'answer' takes a string or a number, not"):
        completions.read(file)


@pytest.mark.parametrize(
    "text, size",
    [
        ("cm^2", "1/10000"),
        ("m/s", "1"),
        ("km/h", "5/18"),
        ("miles per hour", "0.44704"),
        ("square feet", "0.09290304"),
        ("cubic centimeters", "1/1000000"),
        ("hours", "3600"),
        ("m s^{-2}", "1"),
        ("bananas", None),
        ("m/", None),
        ("square", None),
        ("", None),
        ("kg\\cdot m^2", "1000"),
    ],
)
def test_units(text, size):
    found = units.unit(text)
    assert found is None if size is None else found is not None and found[1] == Fraction(size)


def test_nothing_that_an_answer_holds_takes_long():
    import time

    start = time.monotonic()
    for part in (
        "\\bf",
        "{",
        "\\text{a}",
        "a",
        "1 ",
        "5 cm ",
        "[(",
        "\\boldsymbol{",
        "\\\\",
        "0.",
        "1,234",
        "*",
        "$",
        "\\boxed 5 ",
    ):
        text = part * (notation.LONGEST // len(part))
        comparison.compare(text, "5"), comparison.compare("5", text), final_answer(text), last_number(text)
    assert time.monotonic() - start < 20  # half a second where nothing else runs
