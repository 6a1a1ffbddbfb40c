"""What a configuration may be: known keys, values within their limits, and what goes together.

Nothing here changes what it looks at. Whatever cannot be used is a BadInput of one line that says
where it was given (`where`, or the key's `origin`), the key, what is wrong, and the nearest valid
name.
"""

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .. import controllers, explore, losses
from ..knobs import beyond, misfit, nearest, numbers, schedule_problem
from ..masking import is_secret
from ..types import BadInput
from .reference import places
from .schema import GONE_VALUES, SAMPLING, SCHEDULES, Config, Source, flatten, kinds, types_of

MOST_BYTES = 200  # of a folder's name, which may be 255 and gets endings
REWARDS = ("task", "random")
VERIFIERS = ("answer", "code", "instructions", "none")

Origin = Mapping[str, str]  # where each key's value was given; a key that is not there has its default


def is_rule(source: str) -> bool:
    """Whether `source` names a rule of the user's, `path.py:function`."""
    return ".py:" in source


# ------------------------------------------------------------------ a layer, before it is merged


def word_of(value: Any, choices: Sequence[Any]) -> Any:
    """Of `choices` the one that was written where YAML, which takes `no` for a truth value, read
    `value`; else `value`."""
    words = () if not isinstance(value, bool) else ("yes", "on") if value else ("no", "off")
    return next((choice for choice in choices if choice in words), value)


def check_keys(tree: dict, schema: type, where: str, prefix: str = "") -> None:
    """The keys of a layer are those of dataclass `schema`, and what has named values has one of
    them."""
    known = types_of(schema)
    for key, value in tree.items():
        if key not in known:
            raise BadInput(f"{where}: unknown key '{prefix}{key}'{_meant(str(key), known, prefix)}")
        if value == "???":  # OmegaConf's word for "still to be given"; it would silently mean the default
            raise BadInput(f"{where}: '{prefix}{key}' has no value")
        allowed = kinds(known[key])
        choices = [choice for kind in allowed if typing.get_origin(kind) is typing.Literal for choice in kind.__args__]
        value = word_of(value, choices)
        if choices and value not in choices and not (value is None and type(None) in allowed):
            if (prefix + key, str(value)) in GONE_VALUES:
                raise BadInput(f"{where}: {prefix}{key}={value}: {GONE_VALUES[prefix + key, str(value)]}")
            raise BadInput(f"{where}: {prefix}{key}: unknown value '{value}'{nearest(str(value), choices)}")
        if typing.get_origin(known[key]) is dict and key != "loss" and not isinstance(value, dict):
            raise BadInput(f"{where}: '{prefix}{key}' takes keys, not {value!r}")
        is_list = typing.get_origin(known[key]) is list
        inner = typing.get_args(known[key])[0] if is_list else known[key]
        if not (isinstance(inner, type) and dataclasses.is_dataclass(inner)):
            continue
        if is_list != isinstance(value, list) or not isinstance(value, (dict, list)):
            raise BadInput(f"{where}: '{prefix}{key}' takes {'a list' if is_list else 'keys'}, not {value!r}")
        for item in value if is_list else [value]:
            if not isinstance(item, dict):
                raise BadInput(f"{where}: '{prefix}{key}' takes a list of keys, not {item!r}")
            check_keys(item, inner, where, f"{prefix}{key}.")


def _meant(key: str, known: Iterable[str], prefix: str) -> str:
    """As `nearest`; a key that lacks its section is looked for in all of them."""
    if not prefix and (found := places(key)):
        *more, last = (f"'{name}'" for name in found)
        return f"; did you mean {', '.join(more)}{' or ' if more else ''}{last}?"
    return nearest(key, known, prefix)


# ----------------------------------------------------- the loss, the controller, and what they take


def check_loss(loss: dict[str, Any], steps: int, origin: Origin) -> None:
    """`loss` ({name: …, knob: value or schedule}) names a loss, and knobs of it within their
    limits."""
    name = loss.get("name")
    if name not in losses.names():
        where = origin.get("loss.name", "default")
        raise BadInput(f"{where}: unknown loss '{name}'{nearest(str(name), losses.names())}")
    _check_knobs("loss", loss, losses.load(name).Params, steps, origin)


def check_controller(config: Config, origin: Origin) -> None:
    """`config.controller` ({name: …, knob: value, target: value or schedule}) names a controller or
    none, and knobs of it within their limits that go with the rest. The loss is checked before."""
    given, flat = config.controller, flatten(config.to_dict())
    module = _named("controller", given, controllers, origin)
    if module is None:
        return
    name, where = given["name"], origin.get("controller.name", "default")
    for key, value in given.items():
        if isinstance(value, list) and key != "target":
            at = origin.get(f"controller.{key}", "default")
            raise BadInput(f"{at}: controller.{key} takes one value; controller.target alone may be a schedule")
    _check_knobs("controller", given, module.Params, config.steps, origin)
    for key in module.SETS:
        if key not in flat:
            raise BadInput(f"{where}: controller '{name}' sets {key}, which loss '{config.loss['name']}' does not have")
        if isinstance(flat[key], list):
            at = origin.get(key, "default")
            raise BadInput(f"{at}: {key} is set by controller '{name}' and takes the one value that it starts from")
    params = module.Params(**{key: value for key, value in given.items() if key not in ("name", "target")})
    _check_problem("controller", module, params, flat, origin)


def check_explore(config: Config, origin: Origin) -> None:
    """`config.explore` ({name: …, knob: value}) names a rule of exploration or none, and knobs of
    it within their limits that go with the rest."""
    given, flat = config.explore, flatten(config.to_dict())
    module = _named("explore", given, explore, origin)
    if module is None:
        return
    for key, value in given.items():
        if isinstance(value, list):
            raise BadInput(f"{origin.get(f'explore.{key}', 'default')}: explore.{key} takes one value, no schedule")
    _check_knobs("explore", given, module.Params, config.steps, origin)
    if config.advantage.kind not in ("group", "centred"):
        at, kind = origin.get("advantage.kind", "default"), config.advantage.kind
        raise BadInput(f"{at}: advantage.kind must be group or centred with explore.name={given['name']}, not '{kind}'")
    params = module.Params(**{key: value for key, value in given.items() if key != "name"})
    _check_problem("explore", module, params, flat, origin)


def _named(section: str, given: dict[str, Any], registry: Any, origin: Origin) -> Any:
    """The module that section `section` names in `registry`; None where it says none."""
    name, where = given.get("name"), origin.get(f"{section}.name", "default")
    if name == registry.NONE:
        for key in given.keys() - {"name"}:
            raise BadInput(f"{origin.get(f'{section}.{key}', where)}: {section}.{key} needs a {section}.name")
        return None
    if name not in registry.names():
        raise BadInput(f"{where}: unknown {section} '{name}'{nearest(str(name), [registry.NONE, *registry.names()])}")
    return registry.load(name)


def _check_problem(section: str, module: Any, params: Any, flat: dict[str, Any], origin: Origin) -> None:
    """What a controller or a rule of exploration says itself about the values it goes with."""
    if hasattr(module, "problem") and (found := module.problem(params, flat)):
        values = {f"{section}.{key}": value for key, value in dataclasses.asdict(params).items()} | flat
        raise BadInput(f"{origin.get(found[0], 'default')}: {found[0]} {found[1]}, not {values[found[0]]!r}")


def _check_knobs(section: str, given: dict[str, Any], params: type, steps: int, origin: Origin) -> None:
    """What `given` says besides its name are knobs of dataclass `params`, values or schedules."""
    name, knobs = given["name"], {f.name: f for f in dataclasses.fields(params)}
    for key, value in given.items():
        if key == "name":
            continue
        where = origin.get(f"{section}.{key}", "default")
        if key not in knobs:
            hint = nearest(str(key), knobs, f"{section}.") if knobs else "; it has no knobs"
            raise BadInput(f"{where}: {section} '{name}' has no knob '{section}.{key}'{hint}")
        if isinstance(value, list) and (problem := schedule_problem(value, steps)):
            raise BadInput(f"{where}: {section}.{key}: {problem}")
        kind = type(knobs[key].default).__name__
        if isinstance(value, list) and kind != "float" and any(len(entry) == 3 for entry in value):
            raise BadInput(f"{where}: {section}.{key} takes a {kind}: from one value to the next it can only step")
        choices = typing.get_args(types_of(params)[key])  # of a Literal
        for one in [entry[1] for entry in value] if isinstance(value, list) else [value]:
            if choices and one not in choices:
                raise BadInput(f"{where}: {section}.{key}: unknown value '{one}'{nearest(str(one), choices)}")
            if problem := misfit(one, knobs[key]):
                raise BadInput(f"{where}: {section}.{key} {problem}")


# --------------------------------------------------------------------- a whole configuration


def _leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field]]:
    """(key, value, field) of everything that `section` and the sections in it hold."""
    for knob in dataclasses.fields(section):
        value = getattr(section, knob.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{knob.name}.")
        else:
            yield f"{prefix}{knob.name}", value, knob


def check_values(config: Config, origin: Origin) -> None:
    """Every value is within its limits, and those that depend on each other go together."""
    flat = {}
    for key, value, knob in _leaves(config):
        flat[key] = value
        if key in SCHEDULES and isinstance(value, list):
            problem = schedule_problem(value, config.steps)
            if problem or len(numbers(value)) < len(value):
                problem = problem or "a schedule takes numbers"
                raise BadInput(f"{origin.get(key, 'default')}: {key}: {problem}")
        for number in numbers(value):
            if problem := beyond(number, knob):
                leave = " (leave it out for the default)" if knob.default is None else ""
                raise BadInput(f"{origin.get(key, 'default')}: {key} {problem}{leave}, not {value!r}")
    if config.reward not in REWARDS and not is_rule(config.reward):
        hint = nearest(config.reward, [*REWARDS, "path.py:function"])
        raise BadInput(f"{origin.get('reward', 'default')}: reward: unknown value '{config.reward}'{hint}")
    where = origin.get("testbed.workers", "default")
    for worker in config.testbed.workers:
        for key, value, knob in _leaves(worker):
            if problem := beyond(value, knob):
                raise BadInput(f"{where}: testbed.workers: {key} {problem}, not {value}")
    if found := config.testbed.problem():
        raise BadInput(f"{origin.get(f'testbed.{found[0]}', 'default')}: testbed.{found[0]} {found[1]}")
    if secret := next((key for key, value in flat.items() if is_secret(str(value))), None):
        why = "every run records its configuration; put it into the environment"
        raise BadInput(f"{origin.get(secret, 'default')}: {secret} holds a token or a password, and {why}")
    for key, rule in _clashes(config):
        raise BadInput(f"{origin.get(key, 'default')}: {key} {rule}, not {flat[key]!r}")
    for key, sources in (("data.train", config.data.train), ("eval.benchmarks", config.eval.benchmarks)):
        where = f"{origin.get(key, 'default')}: {key}: "
        for source in sources:
            _check_source(source, where, key == "eval.benchmarks")
        names = [source.name for source in sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise BadInput(f"{where}two sources are named '{twice[0]}'")
        strange = [name for name in names if name and not name.isprintable()]
        if strange:
            raise BadInput(f"{where}{strange[0]!r} cannot be the name of a source")


def _clashes(config: Config) -> Iterator[tuple[str, str]]:
    """(key, what it must be) for every value that does not go with the others."""
    rollout, update, gae = config.rollout, config.update, config.advantage.kind == "gae"
    for key in ("experiment", "arm"):  # names of folders under `results`
        if (
            (name := getattr(config, key)) in (".", "..")
            or set(name) & {"/", "\\", "\0"}
            or len(name.encode()) > MOST_BYTES
        ):
            yield key, f"must be the name of one folder, of at most {MOST_BYTES} bytes"
    if config.reward == "task" and config.reward_signal and any(s.verifier == "none" for s in config.data.train):
        yield "reward", "must be path.py:function or random where a source of data.train has verifier: none"
    if config.reward == "random" and config.reward_signal not in (0, 1):
        yield "reward_signal", "needs a reward that says something; reward=random is reward_signal=0"
    if not all(rollout.stop):
        yield "rollout.stop", "must not hold an empty string"
    if rollout.engine == "vllm" and rollout.temperature != 1 and (rollout.top_p < 1 or rollout.top_k):
        why = "vllm reports no log-probabilities after the one, before the other"  # it has two ways, and neither fits
        yield "rollout.temperature", f"must be 1 with top_p or top_k: {why}"
    if rollout.staleness and config.explore["name"] != explore.NONE:
        yield "rollout.staleness", "must be 0 with an explore.name, which says itself whom responses are sampled from"
    if update.correction_high <= update.correction_low:
        yield "update.correction_high", f"must be above update.correction_low={update.correction_low}"
    if 0 < update.dual_clip <= 1:
        yield "update.dual_clip", "must be 0 (off) or above 1"
    if len(config.reward_values) != 2 or config.reward_values[0] >= config.reward_values[1]:
        yield "reward_values", "must be [failed, correct] with failed < correct"
    drops, a_round = rollout.drop_constant_groups != "no", rollout.prompts_per_round
    if a_round is not None and (not drops or a_round < config.prompts_per_step):
        needs = "needs rollout.drop_constant_groups, and at least prompts_per_step prompts"
        yield "rollout.prompts_per_round", needs
    if config.group_size == 1 and not gae:
        yield "group_size", f"must be at least 2 with advantage.kind={config.advantage.kind}"
    if config.group_size == 1 and gae and drops:
        yield "group_size", "must be at least 2 to tell constant groups"
    rows = config.prompts_per_step * config.group_size
    if rows % config.updates_per_step:
        yield "updates_per_step", f"must divide prompts_per_step × group_size = {rows}"


def _check_source(source: Source, where: str, benchmark: bool) -> None:
    given = [v for v in (source.task, source.file, source.hub) if v is not None]
    if len(given) != 1:
        raise BadInput(f"{where}each source names either a task or a file or a dataset of the hub")
    strange = sorted(set(source.columns) - {"problem", "answer"})
    if strange:
        raise BadInput(f"{where}unknown column '{strange[0]}'{nearest(strange[0], ('problem', 'answer'))}")
    unasked = source.verifier == "none" or is_rule(source.verifier)
    if source.columns and len(source.columns) < 2 and not (unasked and "problem" in source.columns):
        raise BadInput(f"{where}columns names both 'problem' and 'answer'; with verifier: none or a rule, 'problem'")
    if source.verifier not in VERIFIERS and not is_rule(source.verifier):
        hint = nearest(source.verifier, [*VERIFIERS, "path.py:function"])
        raise BadInput(f"{where}unknown verifier '{source.verifier}'{hint}")
    if source.task is not None and source.verifier in ("code", "instructions"):
        raise BadInput(f"{where}verifier '{source.verifier}' needs rows with tests, and a task has its own scorer")
    if benchmark and source.verifier == "none":
        raise BadInput(f"{where}a benchmark counts right answers, so its verifier cannot be 'none'")
    own = [key for key in SAMPLING if getattr(source, key) is not None]
    if own and not benchmark:
        raise BadInput(f"{where}'{own[0]}' is for benchmarks; training samples by rollout.* and group_size")
    for key, value, knob in _leaves(source):
        for number in numbers(value):
            if problem := beyond(number, knob):
                raise BadInput(f"{where}{key} of '{source.name}' {problem}, not {value}")
