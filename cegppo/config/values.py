"""From the plain values of YAML to those of the schema, and to its dataclasses.

OmegaConf reads the scalars and looks interpolations up. Its own merge of dataclasses does the same
and takes a hundred times as long, which a sweep pays for every arm.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterator
from typing import Any, cast

from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, OmegaConf, StringNode
from omegaconf.errors import OmegaConfBaseException

from ..types import BadInput, said
from .checks import Origin, word_of
from .reading import Float, Int, as_numbers, as_text
from .schema import Config, kinds, types_of

READERS = {
    int: IntegerNode(0, is_optional=False),
    float: FloatNode(0.0, is_optional=False),
    str: StringNode("", is_optional=False),
    bool: BooleanNode(False, is_optional=False),
}


def typed(value: Any, annotation: Any, where: Callable[[str], str], key: str) -> Any:
    """`value` of `key` as `annotation` of the schema has it. Lists and mappings are new ones; what
    refers to other values stays the text it is. Raises BadInput that says `where`."""
    if isinstance(value, str) and "${" in value:
        return value
    allowed = kinds(annotation)
    if isinstance(value, (Int, Float)) or annotation is Any:
        value = as_text(value) if allowed[0] is str else as_numbers(value, f"{where(key)}: {key}")
    if typing.get_origin(allowed[0]) is typing.Literal:
        return word_of(value, typing.get_args(allowed[0]))
    if isinstance(value, bool) and allowed[0] is str:  # any of YAML's words for it may have been meant
        raise BadInput(f"{where(key)}: {key}: takes a text, and this is a truth value in YAML; put it in quotes")
    if annotation is Any or value is None and type(None) in allowed:
        return value
    lists = [kind for kind in allowed if typing.get_origin(kind) is list]
    kind = lists[0] if lists and isinstance(value, list) else allowed[0]  # a number, or its schedule
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return {name: typed(v, types_of(kind)[name], where, f"{key}.{name}") for name, v in value.items()}
    if typing.get_origin(kind) is list:
        if not isinstance(value, list):
            raise BadInput(f"{where(key)}: '{key}' takes a list, not {value!r}")
        return [typed(v, typing.get_args(kind)[0], where, f"{key}[{i}]") for i, v in enumerate(value)]
    if typing.get_origin(kind) is dict:
        for name in value:
            if not isinstance(name, str):
                raise BadInput(f"{where(key)}: {key}: its keys are text, not {name!r}")
        return {name: typed(v, typing.get_args(kind)[1], where, f"{key}.{name}") for name, v in value.items()}
    try:
        return READERS[kind].validate_and_convert(value)
    except (OmegaConfBaseException, OverflowError) as error:  # the first's text has places for the value
        text = said(error).replace("$VALUE_TYPE", type(value).__name__).replace("$VALUE", str(value))
        raise BadInput(f"{where(key)}: {key}: {text}") from None


def typed_tree(tree: dict[str, Any], where: Callable[[str], str]) -> dict[str, Any]:
    """A configuration or a part of it whose keys are known, with values as the schema has them.
    Raises BadInput."""
    return {key: typed(value, types_of(Config)[key], where, key) for key, value in tree.items()}


def plain(tree: DictConfig, resolve: bool = False) -> dict[str, Any]:
    """`tree` as dicts, lists and scalars; `resolve` looks references up."""
    return cast(dict[str, Any], OmegaConf.to_container(tree, resolve=resolve))


def over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`below` with `above` on top, section by section; a list replaces a list."""
    sections = {
        k: over(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)
    }
    return {**below, **above, **sections}


def built(tree: dict[str, Any], origin: Origin) -> Config:
    """The configuration of typed values `tree`, defaults elsewhere; references to other values,
    `${key}`, are looked up. Raises BadInput."""
    if any("${" in text for text in _texts(tree)):
        tree = _looked_up(over(dataclasses.asdict(Config()), tree), origin)
    made: Config = _built(tree, Config)
    return made


def _built(value: Any, annotation: Any) -> Any:
    kind = kinds(annotation)[0]
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return kind(**{name: _built(v, types_of(kind)[name]) for name, v in value.items()})
    inner = typing.get_args(kind)
    return [_built(v, inner[0]) for v in value] if typing.get_origin(kind) is list else value


def _texts(value: Any) -> Iterator[str]:
    """Every text in a tree."""
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(part)


# A reference to another key is of use; one to the environment would write its secrets into every
# config.yaml.
OmegaConf.clear_resolver("oc.env")


def _looked_up(tree: dict[str, Any], origin: Origin) -> dict[str, Any]:
    """The complete `tree` with what its references stand for."""
    try:
        made = plain(OmegaConf.create(tree), resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise BadInput(f"{origin.get(key, 'configuration')}: {key}: {said(error)}") from None
    return typed_tree(made, lambda key: origin.get(key.partition("[")[0], "configuration"))
