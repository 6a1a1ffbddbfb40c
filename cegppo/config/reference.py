"""What every key means, from the schema: docs/config.md, and the meanings beside `--print`.

`python -m cegppo.config` writes docs/config.md anew; a test fails where the two differ.
"""

import dataclasses
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import controllers, explore, losses
from .recipe import Worker
from .schema import Config, Source, kinds, types_of

NAMED = ("loss", "controller", "explore")  # sections whose keys hang on their name
DOC = Path(__file__).resolve().parents[2] / "docs" / "config.md"
HEAD = """# Every key of the configuration

*Written by `python -m cegppo.config` from `cegppo/config/schema.py`; a test fails where the two differ.*

A key is set in an experiment's YAML or on the command line (`update.lr=3e-5`). Later wins: defaults,
`include:` files, the method's preset, the experiment file, a sweep's layers, the command line. `python
run.py train EXPERIMENT.yaml --print` shows every value, where it came from and what it means.
"""
LOSS = """Knobs of the loss that `loss.name` chooses, a file of `cegppo/losses/`. Each may be a schedule by step:
`loss.beta1=[[0, 0.0], [58%, 0.5]]`. An entry says from which step (or share of the run) on which value
holds; a third word, `linear` or `cosine`, goes there from the entry before. `update.lr` and `critic.lr`
take the same.
"""


CONTROLLER = """What sets knobs while the run goes on: `controller.name` is a file of `cegppo/controllers/`, or `none`.
Its target may be a schedule: `controller.target=[[0, 0.5], [100%, 0.3, linear]]`.
"""

EXPLORE = """What a step samples besides the policy's own responses, and which responses train: `explore.name` is a file
of `cegppo/explore/`, or `none`.
"""


def leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """(dotted key, field) of everything in dataclass `schema`, but for the knobs of sections whose
    keys hang on their name."""
    for field in dataclasses.fields(schema):
        kind = kinds(types_of(schema)[field.name])[0]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from leaves(kind, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


def knobs(loss: str) -> dict[str, dataclasses.Field]:
    """The knobs of a loss."""
    return {field.name: field for field in dataclasses.fields(losses.load(loss).Params)}


def knobs_of(registry: Any, name: str) -> dict[str, dataclasses.Field]:
    """The knobs of controller or rule of exploration `name`; of none, none."""
    if name == registry.NONE:
        return {}
    return {field.name: field for field in dataclasses.fields(registry.load(name).Params)}


def meanings(loss: str, controller: str = controllers.NONE, explorer: str = explore.NONE) -> dict[str, str]:
    """What each key means, in a configuration with that loss, that controller and that rule of
    exploration."""
    said = lambda field: str(field.metadata.get("doc", ""))
    made = {key: said(field) for key, field in leaves(Config) if key not in NAMED}
    made["loss.name"] = f"the loss: {', '.join(losses.names())}"
    made["controller.name"] = f"what sets knobs while training: {', '.join([controllers.NONE, *controllers.names()])}"
    made["explore.name"] = f"what else trains: {', '.join([explore.NONE, *explore.names()])}"
    made |= {f"loss.{name}": said(field) for name, field in knobs(loss).items()}
    made |= {f"explore.{name}": said(field) for name, field in knobs_of(explore, explorer).items()}
    return made | {f"controller.{name}": said(field) for name, field in knobs_of(controllers, controller).items()}


def places(name: str) -> list[str]:
    """The dotted keys whose last part is `name`: knobs of a loss, of a controller, of a rule of
    exploration first, then in the schema's order but for the testbed's own."""
    of_losses = [f"loss.{name}"] if any(name in knobs(loss) for loss in losses.names()) else []
    of_losses += [f"controller.{name}"] if any(name in knobs_of(controllers, c) for c in controllers.names()) else []
    of_losses += [f"explore.{name}"] if any(name in knobs_of(explore, e) for e in explore.names()) else []
    found = [key for key, _ in leaves(Config) if key.rpartition(".")[2] == name and "." in key]
    return [*of_losses, *sorted(found, key=lambda key: key.startswith("testbed."))]


def _limits(field: dataclasses.Field) -> str:
    words = {"least": "≥ ", "above": "> ", "most": "≤ ", "below": "< "}
    return ", ".join(f"{sign}{field.metadata[name]:g}" for name, sign in words.items() if name in field.metadata)


def _kind(annotation: Any) -> str:
    made = []
    for kind in kinds(annotation):
        if typing.get_origin(kind) is typing.Literal:
            made += list(map(str, typing.get_args(kind)))
        elif typing.get_origin(kind) is list and dataclasses.is_dataclass(typing.get_args(kind)[0]):
            made.append("list of keys")
        elif kind == list[Any]:
            made.append("schedule")
        elif kind is not type(None):
            made.append("dict" if typing.get_origin(kind) is dict else str(getattr(kind, "__name__", kind)))
    return " or ".join(made)


def _table(rows: list[tuple[str, dataclasses.Field, Any]]) -> list[str]:
    """Markdown: key, type, default, limits, meaning."""
    made = ["| key | takes | default | meaning |", "|---|---|---|---|"]
    for key, field, annotation in rows:
        takes = " ".join(filter(None, (_kind(annotation), _limits(field)))).replace("|", "\\|")
        default = field.default_factory() if callable(field.default_factory) else field.default
        doc = str(field.metadata.get("doc", "")).replace("|", "\\|").replace("<", "\\<")
        value = json.dumps(default, ensure_ascii=False)
        made.append(f"| `{key}` | {takes} | `{value}` | {doc} |")
    return [*made, ""]


def _section(schema: type, prefix: str = "") -> list[str]:
    """The tables of a dataclass and of those in it."""
    own, nested = [], []
    for field in dataclasses.fields(schema):
        annotation = types_of(schema)[field.name]
        kind = kinds(annotation)[0]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            nested.append((f"{prefix}{field.name}.", kind))
        elif f"{prefix}{field.name}" not in NAMED:
            own.append((f"{prefix}{field.name}", field, annotation))
    lines = _table(own)
    for below, kind in nested:
        doc = (kind.__doc__ or "").partition("\n\n")[0]
        said = [] if doc.startswith(f"{kind.__name__}(") else [" ".join(doc.split()), ""]
        lines += [f"## `{below[:-1]}`", "", *said, *_section(kind, below)]
    return lines


def text() -> str:
    """docs/config.md."""
    lines = [HEAD, *_section(Config), "## `loss`", "", LOSS]
    for name in losses.names():
        module = losses.load(name)
        types = typing.get_type_hints(module.Params)
        lines += [f"### `loss.name={name}`", ""]
        own = [(f"loss.{key}", field, types[key]) for key, field in knobs(name).items()]
        lines += _table(own) if own else ["It has no knobs.", ""]
    for section, head, registry in (("controller", CONTROLLER, controllers), ("explore", EXPLORE, explore)):
        lines += [f"## `{section}`", "", head]
        for name in registry.names():
            types = typing.get_type_hints(registry.load(name).Params)
            own = [(f"{section}.{key}", field, types[key]) for key, field in knobs_of(registry, name).items()]
            lines += [f"### `{section}.name={name}`", "", *_table(own)]
    lines += ["## An item of `data.train` or `eval.benchmarks`", "", *_section(Source)]
    lines += ["## An item of `testbed.workers`", "", *_section(Worker)]
    return "\n".join(lines).rstrip() + "\n"
