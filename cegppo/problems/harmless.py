"""Which answers reasoning-gym's scorers may see. Some of them run the answer as Python, by `eval`
or by sympy's parser, which does the same: an answer that could do more than say a value is wrong
before they see it. They run in processes of their own with limits (judges.py); this is the first
of two doors.
"""

import ast
from math import prod
from typing import Any

NUMBERS = (ast.BinOp, ast.UnaryOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.UAdd, ast.USub, ast.Constant)
VALUES = (ast.List, ast.Tuple, ast.Set, ast.Dict, ast.Constant, ast.Name, ast.Load, ast.UnaryOp, ast.UAdd, ast.USub)
FORMULA = (*NUMBERS, ast.Name, ast.Load, ast.Pow, ast.Call)
FUNCTIONS = frozenset(  # of sympy
    ("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh",
     "atanh", "exp", "log", "ln", "sqrt", "Abs", "erf", "Integral", "Integer", "Rational")
)  # fmt: skip
# What a task's answers are made of. A text that is no Python is safe with the first kind, whose
# scorers read it in another way, and not with the others.
EVALUATED = {
    **dict.fromkeys(("string_insertion", "spiral_matrix", "binary_matrix", "n_queens"), VALUES),
    **dict.fromkeys(("countdown", "puzzle24"), NUMBERS),
    **dict.fromkeys(("simple_integration", "intermediate_integration", "polynomial_multiplication"), FORMULA),
}
LONGEST = 1000  # characters
LARGEST = 100  # exponent


def harmless(task: str, answer: str) -> bool:
    """Whether the scorer of `task` may see `answer`."""
    if (allowed := EVALUATED.get(task)) is None:
        return True
    if len(answer) > LONGEST:
        return False
    try:
        tree = ast.parse(answer.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return allowed is VALUES
    if allowed is not VALUES and any(type(value) not in (int, float) for value in _constants(tree)):
        return False  # sympy reads a text within a formula as another formula
    return all(isinstance(node, allowed) and _small(node) for node in ast.walk(tree))


def _constants(tree: ast.AST) -> list[Any]:
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]


def _small(node: ast.AST) -> bool:
    """Neither a call of something unknown nor a power that takes for ever."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS and not node.keywords
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        tower = any(isinstance(part, ast.Pow) for side in (node.left, node.right) for part in ast.walk(side))
        size = prod(1 + abs(value) for value in _constants(node.right))  # no sum or product of them is larger
        return not tower and size <= LARGEST + 1
    return True
