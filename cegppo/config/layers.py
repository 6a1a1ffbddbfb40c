"""From files and the command line to a configuration.

Later wins: defaults < `include:` files < the method's preset < the experiment file < the layers
that a sweep adds < the command line. Every value knows where it came from. Whatever cannot be used
is a BadInput that names file, key and the nearest valid name.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .. import controllers, explore, losses
from ..shipped import EXPERIMENTS, find
from ..types import BadInput, said
from .checks import MOST_BYTES, check_controller, check_explore, check_keys, check_loss, check_values, nearest
from .reading import TRUTH, as_numbers, as_text, of_yaml
from .reference import NAMED, meanings
from .schema import RENAMED_KNOBS, SAMPLING, Config, annotation_of, flatten, kinds
from .values import built, over, typed_tree

Layer = tuple[str, dict[str, Any]]  # where it comes from, as messages and origins name it; a part of the tree


def methods() -> list[str]:
    return sorted(p.stem for p in (EXPERIMENTS / "method").glob("*.yaml"))


def benchmarks() -> list[str]:
    return sorted(p.stem for p in (EXPERIMENTS / "benchmarks").glob("*.yaml"))


def load(
    path: str | Path, overrides: Sequence[str] = (), between: Sequence[Layer] = ()
) -> tuple[Config, dict[str, str]]:
    """The configuration of experiment file `path` with the layers `between` (of a sweep, later ones
    win) and `key=value` overrides on top, and the origin of each of its values.

    Raises BadInput for anything that cannot be used.
    """
    path = find(path)
    named = [item for item in overrides if re.fullmatch(r"model=[^{\[].*", item)]  # beside model.KEY=…, in any order
    cli = parse_overrides([item for item in overrides if item not in named])
    layers = _file_layers(path)
    given = [*layers, *between, ("command line", cli)]
    where, method = next(((w, tree["method"]) for w, tree in reversed(given) if "method" in tree), ("", Config.method))
    if method not in methods():
        raise BadInput(f"{where}: unknown method '{method}'{nearest(str(method), methods())}")
    preset = _file_layers(EXPERIMENTS / "method" / f"{method}.yaml")
    includes, own = layers[:-1], layers[-1:]
    files = [*includes, *preset, *own]
    models = [(w, tree["model"]) for w, tree in between if isinstance(tree.get("model"), str)]  # not its keys
    models += [("command line", item.removeprefix("model=")) for item in named]
    for where, name in models:
        files += _named_model(name, where)
    named_model = lambda key, value: key == "model" and isinstance(value, str)
    between = [(w, {k: v for k, v in tree.items() if not named_model(k, v)}) for w, tree in between]
    config, origin = _resolve([*files, *between, ("command line", cli)])
    config.experiment = config.experiment or path.stem
    if not config.arm:
        plain, _ = _resolve([*files, ("command line", {"method": method})])
        before = plain.identity()
        changed = {k: v for k, v in config.identity().items() if before.get(k) != v and k not in ("seed", "experiment")}
        # What is only measured names no folder, and a dry run has one of its own.
        trains = {k: v for k, v in changed.items() if k != "eval_every" and not k.startswith("eval.")}
        name = ",".join([method, *named, *(f"{k}={_short(v)}" for k, v in trains.items())])
        if len(name.encode()) > MOST_BYTES:  # as folders are named: the rest is told by a digest
            name = name.encode()[: MOST_BYTES - 13].decode(errors="ignore") + f",{digest(name)}"
        config.arm = name
    return config, origin


def _named_model(name: str, where: str) -> list[Layer]:
    """model=NAME: a small model in the place of the experiment's, for a dry run."""
    known = sorted(p.stem for p in (EXPERIMENTS / "model").glob("*.yaml"))
    if name not in known:
        hint = f"no experiments/model/{name}.yaml{nearest(name, known)} (a path is model.path=…)"
        raise BadInput(f"{where}: model={name}: {hint}")
    return _file_layers(EXPERIMENTS / "model" / f"{name}.yaml")


def _short(value: Any) -> str:
    """A value as part of a folder's name, which a shell takes as it stands: a schedule as its
    values and when they hold (1.0-0.5@29lin), another list as its digest."""
    if isinstance(value, list):
        if not all(isinstance(entry, list) and len(entry) in (2, 3) for entry in value) or not value:
            return digest(value)
        shape = lambda rest: "".join(str(word)[:3] for word in rest)
        first, *later = value
        text = "-".join([f"{first[1]}", *(f"{to}@{when}{shape(rest)}" for when, to, *rest in later)])
    else:
        text = re.sub(r"[^\w.,@%+=:~-]+", "_", str(value)).strip("_")
    return text if len(text) <= 40 else digest(value)


def resolved(path: str | Path, overrides: Sequence[str] = (), tree: dict | None = None) -> Config:
    """The configuration that a run's `config.yaml` recorded (no includes, no preset: it is
    complete), with overrides. `tree`: what the file said, when it is no longer there."""
    tree = read_yaml(Path(path)) if tree is None else deepcopy(tree)
    return _resolve([(str(path), tree), ("command line", parse_overrides(overrides))])[0]


def fork_config(parent: Config, where: str, overrides: Sequence[str]) -> Config:
    """The configuration of a run, from `where`, with `key=value` overrides. A `method=NAME` among
    them changes what the presets of the two methods say differently, and of that only what the run
    has as its own method's preset says it. Raises BadInput."""
    cli, layers = parse_overrides(overrides), [(where, parent.to_dict())]
    if "method" in cli:
        if cli["method"] not in methods():
            raise BadInput(f"command line: unknown method '{cli['method']}'{nearest(str(cli['method']), methods())}")
        layers.append(_change_of_method(parent, cli["method"]))
    return _resolve([*layers, ("command line", cli)])[0]


def _change_of_method(parent: Config, method: str) -> Layer:
    preset = lambda name: _resolve(_file_layers(EXPERIMENTS / "method" / f"{name}.yaml"))[0].to_dict()
    before, after, own = preset(parent.method), preset(method), parent.to_dict()
    changed: dict[str, Any] = {}
    for section in NAMED:
        trees = [tree.pop(section) for tree in (before, after, own)]
        if trees[0]["name"] == trees[2]["name"] != trees[1]["name"]:
            changed[section] = trees[1]
        elif trees[0]["name"] == trees[1]["name"] == trees[2]["name"]:
            before, after, own = ({**tree, section: part} for tree, part in zip((before, after, own), trees))
    was, now, has = flatten(before), flatten(after), flatten(own)
    changed |= {key: value for key, value in now.items() if was.get(key) != value and has.get(key) == was.get(key)}
    return nested(changed, f"method {method}")


def as_yaml(config: Config) -> str:
    """The whole configuration, as a run's config.yaml records it and `resolved` reads it."""
    return dump(config.to_dict())


def dump(tree: dict[str, Any]) -> str:
    """A configuration's values as YAML that `read_yaml` reads back."""
    numbers = as_numbers(tree, "a configuration")  # of one that was read as it stands
    return OmegaConf.to_yaml(OmegaConf.create(numbers))  # quotes a text that its reader takes for a number


def of_overrides(overrides: Sequence[str]) -> Config:
    """The defaults with `key=value` overrides, where there is no experiment. Raises BadInput."""
    return _resolve([("command line", parse_overrides(overrides))])[0]


def explain(config: Config, origin: dict[str, str]) -> str:
    """The resolved configuration, one `key: value   # origin: meaning` a line."""
    rows = [(k, json.dumps(v, ensure_ascii=False)) for k, v in flatten(config.to_dict()).items()]
    derived = {"experiment": "file name", "arm": "derived"}
    said = {k: origin.get(k) or derived.get(k, "default") for k, _ in rows}
    meaning = meanings(config.loss["name"], config.controller["name"], config.explore["name"])
    said |= {k: f"{where}: {meaning[k]}" for k, where in said.items() if meaning.get(k)}
    width = max(len(f"{k}: {v}") for k, v in rows if len(v) < 60)
    return "\n".join(f"{f'{k}: {v}':<{width}}   # {said[k]}" for k, v in rows)


def digest(value: Any) -> str:
    """A short stable hash of a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file, {} for an empty one. Raises BadInput."""
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise BadInput(f"{path}: no such file" + (nearest(path.name, siblings) if siblings else ""))
    try:  # OmegaConf's loader, so that 1e-5 is a number here as on the command line
        text = path.read_text(encoding="utf-8-sig")
        tree = deepcopy(_of_yaml(text))
    except (yaml.YAMLError, ValueError, RecursionError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise BadInput(
            f"{path}:{where} not valid YAML ({getattr(error, 'problem', None) or type(error).__name__})"
        ) from None
    if not isinstance(tree, dict) or list(tree.values()) == [None] and ":" not in text:
        raise BadInput(f"{path}: expected `key: value` lines")
    return tree


@lru_cache(maxsize=256)  # a sweep reads the same few files for every arm
def _of_yaml(text: str) -> Any:
    return {} if (found := of_yaml(text)) is None else found


def _file_layers(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, dict]]:
    """(origin, tree) of `path` and what it includes, included first."""
    if path.resolve() in seen:
        raise BadInput(f"{path}: includes itself")
    tree = read_yaml(path)
    includes = tree.pop("include", None) or []
    layers = []
    includes = [includes] if isinstance(includes, str) else includes
    if not isinstance(includes, list) or not all(isinstance(name, str) and "\0" not in name for name in includes):
        raise BadInput(f"{path}: 'include' takes a file name or a list of them, not {includes!r}")
    for name in includes:
        layers += _file_layers(path.parent / name, (*seen, path.resolve()))
    return [*layers, (str(path), tree)]


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`key=value` items as a nested mapping; values are read as YAML. Raises BadInput."""
    for item in overrides:
        if "=" not in item or item.startswith("="):
            raise BadInput(f"command line: '{item}' is not key=value")
    tree: dict[str, Any] = {}
    for item in overrides:
        key, _, text = item.partition("=")
        try:
            _put(tree, key, _value(key, text))
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise BadInput(f"command line: '{item[:60]}': {said(error)}") from None
        except BadInput as error:
            raise BadInput(f"command line: {error}") from None
    return tree


def _value(key: str, text: str) -> Any:
    """What `key=text` of a command line says. A key that takes text takes it as it stands there,
    without the quotes where it has them; any other takes YAML."""
    annotation = annotation_of(key)
    if annotation is None or kinds(annotation)[0] is not str:
        return of_yaml(text)
    if type(None) in kinds(annotation) and text in ("", "~", "null"):
        return None
    try:
        read = of_yaml(text) if text[:1] in ("'", '"') or text.lower() in TRUTH else text
    except yaml.YAMLError:  # a quotation mark that is part of the text
        return text
    return read if isinstance(read, (str, bool)) else text


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key. Raises BadInput where a part of it has a value and no keys."""
    *sections, last = key.split(".")
    for depth, section in enumerate(sections, 1):
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise BadInput(f"'{'.'.join(sections[:depth])}' has a value, and '{key}' stands below it")
    both = isinstance(value, dict) and isinstance(tree.get(last), dict)
    tree[last] = over(tree[last], value) if both else value


def as_override(key: str, value: Any) -> str:
    """The `key=value` item that `parse_overrides` reads as just this value: text is quoted where it
    would be read as something else."""
    if isinstance(value, str):
        try:
            if as_text(_value(key, value)) == value and isinstance(_value(key, value), str):
                return f"{key}={value}"
        except (yaml.YAMLError, ValueError, TypeError, RecursionError):
            pass
    text = yaml.dump(value, Dumper=_Quoting, default_flow_style=True, width=math.inf, allow_unicode=True)
    text = text.removesuffix("...\n").strip()  # the end that YAML gives to a document of one plain value
    return f"{key}={text}"


class _Quoting(yaml.SafeDumper):
    """YAML on one line in which every text has quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def nested(keys: dict[str, Any], where: str) -> Layer:
    """A layer from `where`, of dotted keys and values that are read already."""
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        try:
            _put(tree, key, value)
        except BadInput as error:
            raise BadInput(f"{where}: {error}") from None
    return where, tree


def _named_benchmark(item: str, where: str) -> list[dict]:
    """The sources that NAME of `eval.benchmarks` stands for; NAME=FILE reads a local file
    instead, its layout found by itself."""
    name, given, file = item.partition("=")
    if name not in benchmarks():
        raise BadInput(f"{where}: eval.benchmarks: unknown benchmark '{name}'{nearest(name, benchmarks())}")
    path = EXPERIMENTS / "benchmarks" / f"{name}.yaml"
    items = read_yaml(path)["eval"]["benchmarks"]
    made = [source for i in items for source in (_named_benchmark(i, str(path)) if isinstance(i, str) else [i])]
    if given and len(made) > 1:
        raise BadInput(f"{where}: eval.benchmarks: '{name}' stands for {len(made)} benchmarks and takes no file")
    kept = ("name", "verifier", *SAMPLING)
    return [{**{k: v for k, v in made[0].items() if k in kept}, "file": file}] if given else made


def _with_named_benchmarks(tree: dict, where: str) -> dict:
    """`tree` with the names in its `eval.benchmarks` written out; what its `eval` says itself
    stands above their own settings."""
    section = tree.get("eval")
    if not isinstance(section, dict) or not isinstance(section.get("benchmarks"), list):
        return tree
    said = {key for key in SAMPLING if key in section}
    made = []
    for item in section["benchmarks"]:
        named = isinstance(item, str)
        made += (
            [{k: v for k, v in s.items() if k not in said} for s in _named_benchmark(item, where)] if named else [item]
        )
    return {**tree, "eval": {**section, "benchmarks": made}}


def _resolve(layers: Sequence[Layer]) -> tuple[Config, dict[str, str]]:
    """The configuration that `layers` make, checked and complete, and the origin of each of its
    values."""
    origin: dict[str, str] = {}
    merged: dict[str, Any] = {}
    named = {section: getattr(Config(), section) for section in NAMED}  # whose other keys hang on their name
    for where, tree in layers:
        tree = _with_named_benchmarks(tree, where)
        check_keys(tree, Config, where)
        said = tree.get("eval", {})
        # Later wins: eval.k here stands above the k that a benchmark of an earlier layer has.
        for key in SAMPLING:
            for source in merged.get("eval", {}).get("benchmarks", ()):
                if key in said:
                    source.pop(key, None)
        for section in named.keys() & tree.keys():
            before = named[section]
            now = named[section] = _merged_named(section, before, tree[section], where)
            if now["name"] != before["name"]:
                origin = {k: v for k, v in origin.items() if not k.startswith(f"{section}.")}
            origin |= {f"{section}.{k}": where for k in _renamed(now["name"], tree[section] or {})}
        tree = {k: v for k, v in tree.items() if k not in named}
        merged = over(merged, typed_tree(tree, lambda _: where))
        origin |= {k: where for k in flatten(tree)}
    config = built({**merged, **named}, origin)
    check_loss(config.loss, config.steps, origin)
    config.loss = _completed(config.loss, losses.load(config.loss["name"]).Params())
    check_controller(config, origin)
    if config.controller["name"] != controllers.NONE:
        config.controller = _completed(config.controller, controllers.load(config.controller["name"]).Params())
    check_explore(config, origin)
    if config.explore["name"] != explore.NONE:
        config.explore = _completed(config.explore, explore.load(config.explore["name"]).Params())
    for source in (*config.data.train, *config.eval.benchmarks):
        source.name = source.name or source.task or Path(source.file or source.hub or "").stem
    check_values(config, origin)
    return config, origin


def _merged_named(section: str, below: dict[str, Any], given: Any, where: str) -> dict[str, Any]:
    """`below`, a section whose keys hang on its name, with what a layer says on top. Choosing
    another one drops the knobs of the one before."""
    if not isinstance(given, (dict, type(None))):
        raise BadInput(f"{where}: '{section}' takes keys ({section}.name=…), not a single value")
    given = as_numbers(given or {}, f"{where}: {section}")
    name = given.get("name", below["name"])
    return (below if name == below["name"] else {"name": name}) | _renamed(name, given)


def _renamed(name: Any, knobs: dict[str, Any]) -> dict[str, Any]:
    """`knobs` of loss `name`, those that had another name once under the one of now."""
    new = RENAMED_KNOBS.get(name, {}) if isinstance(name, str) else {}
    return {new.get(key, key): value for key, value in knobs.items()}


def _completed(named: dict[str, Any], params: Any) -> dict[str, Any]:
    """A section whose keys hang on its name, with all of its knobs, each of the type that it has in
    `params`, the defaults."""
    defaults = dataclasses.asdict(params)

    def like_default(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [[when, like_default(key, v), *how] for when, v, *how in value]
        return type(defaults[key])(value)

    given = {key: like_default(key, value) for key, value in named.items() if key != "name"}
    return {"name": named["name"], **defaults, **given}
