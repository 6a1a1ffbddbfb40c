"""YAML in which names stay text: numbers remember how they are written, and keys are never numbers.

YAML 1.1 takes 2024_06, 12:30, 1.10 and 010 for numbers. Here they are numbers where the schema
takes a number, and where it takes text they are what was typed.
"""

import re
from typing import Any

import yaml

from ..types import BadInput

try:  # its limits of aliases; the version is pinned below the next release
    from omegaconf._yaml import get_yaml_loader
except ImportError:  # 2.3, which verl asks for
    from omegaconf._utils import get_yaml_loader  # type: ignore[attr-defined, no-redef]

TRUTH = ("y", "yes", "on", "true", "n", "no", "off", "false")  # YAML's words for truth values


class Int(int):
    """A whole number of YAML, and how it is written."""

    text: str


class Float(float):
    """A number of YAML, and how it is written."""

    text: str


class _Loader(get_yaml_loader()):  # type: ignore[misc]
    """OmegaConf's loader, for which 1e-5 is a number."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> Any:
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag.rpartition(":")[2] in ("int", "float", "bool", "null"):
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


def _int(loader: Any, node: yaml.ScalarNode) -> Int:
    made = Int(loader.construct_yaml_int(node))
    made.text = node.value
    return made


def _float(loader: Any, node: yaml.ScalarNode) -> Float:
    made = Float(loader.construct_yaml_float(node))
    made.text = node.value
    return made


_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def of_yaml(text: str) -> Any:
    """What YAML `text` says, with numbers that remember how they are written."""
    return yaml.load(text, Loader=_Loader)


def as_text(value: Any) -> Any:
    """A number of `of_yaml` as it is written; anything else as it is."""
    return value.text if isinstance(value, (Int, Float)) else value


def as_numbers(value: Any, where: str) -> Any:
    """`value` of `of_yaml` with plain numbers. Raises BadInput, which begins with `where`, for the
    octal and the sexagesimal ones: hardly anybody means 8 by 010, or 90 by 1:30."""
    if isinstance(value, dict):
        return {key: as_numbers(part, where) for key, part in value.items()}
    if isinstance(value, list):
        return [as_numbers(part, where) for part in value]
    if not isinstance(value, (Int, Float)):
        return value
    if ":" in value.text:
        raise BadInput(
            f"{where}: {value.text} is {value:g} in YAML, to the base of 60; write the number itself, or quotes"
        )
    if isinstance(value, Int) and re.fullmatch(r"[+-]?0[0-7_]+", value.text) and value.text.strip("+-0_"):
        raise BadInput(
            f"{where}: {value.text} is {value:d} in YAML, octal; write it without the leading 0, or in quotes"
        )
    return int(value) if isinstance(value, Int) else float(value)
