"""The plan of the house holds: import order, every YAML loads, the pins agree."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cegppo import config, losses
from cegppo.schedules import Schedules

ROOT = Path(__file__).resolve().parent.parent
# Every file of the package, in order: it may import only what stands before it.
ORDER = """
types terminal knobs losses.* objective controllers controllers.adaptive_bonus controllers.cegppo_auto
controllers.entrocraft controllers.entropic controllers.oscillating controllers.polarity controllers.positive_weight
controllers.repo_r controllers.stare explore explore.aepo explore.improper explore.oger explore.uec_rl
instrument.entropy instrument.tally instrument.optimizers instrument.parts instrument.derivative
instrument.ledger instrument.tokens
plugins plugins.batch plugins.verl_names plugins.verl plugins.verl_entry
ranks shipped masking config.recipe config.schema config.reference config.checks config.reading config.values
config.layers
config config.__main__
record.files record.names record.tables record.pack record.read record.keep record.aside record.seen
record.provenance record.again record.histograms record.mirror record.shown record.to_wandb record.to_tensorboard
record.run record.fork
problems.grader problems.judges problems.sandboxed problems.sandbox problems.programs problems.instructions
problems.harmless
problems.answers problems.units problems.notation problems.comparison
problems.reward problems.counts problems.completions problems.data problems.logic problems.testbed
problems.stories problems.teachers advantage
model.hub model.parallel model.lora model.head plugins.verl_statistics model.traits model.attention model.cache
model.collate model.bins model.policy model.gguf
model.critic model.optimizer model.memory
rollout rollout.hf rollout.vllm rollout.engines rollout.probe rollout.stale
schedules checkpoint evaluate respond metrics gradient state batch log stop train curves
sweep.launch sweep.verl sweep.description sweep.grid sweep.search sweep.estimate
sweep.command screen
plugins.prime_rl plugins.slime plugins.trl plugins.trl_record
verbs verbs.report verbs.train verbs.fork verbs.eval verbs.sample verbs.sweep verbs.figures verbs.compare verbs.list
verbs.diff verbs.keep measure verbs.advise cli __main__
""".split()


def module(path: Path) -> str:
    """`objective` or `instrument.tally`; every loss is `losses.*`; a package is its folder."""
    parts = path.relative_to(ROOT / "cegppo").with_suffix("").parts
    if parts[0] == "losses":
        return "losses.*"
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def named_modules(node: ast.AST) -> list[str]:
    """The modules that an import statement names; none for any other node."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, functions' own imports included."""
    package = path.relative_to(ROOT / "cegppo").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = named_modules(node)
        absolute = [name for name in names if name.split(".")[0] == "cegppo" and not getattr(node, "level", 0)]
        assert not absolute, f"{path}: absolute import"
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = [*package[: len(package) + 1 - node.level], *(node.module or "").split(".")]
        base = [part for part in base if part]
        for alias in node.names:  # a name may be a module of its own, or stand in one
            full = ROOT.joinpath("cegppo", *base, f"{alias.name}.py")
            parts = [*base, alias.name] if full.is_file() or full.with_suffix("").is_dir() else base
            found.add("losses.*" if parts[0] == "losses" else ".".join(parts))
    return found


@pytest.mark.parametrize(
    "path", [p for p in sorted((ROOT / "cegppo").rglob("*.py")) if p.read_text().count("\n") > 1], ids=str
)
def test_import_order(path):
    mine = module(path)
    assert mine in ORDER, f"{path} has no place in the order"
    before = set(ORDER[: ORDER.index(mine)]) | ({mine} if mine == "losses.*" else set())
    assert imported(path) <= before


@pytest.mark.parametrize("path", sorted((ROOT / "analysis").glob("*.py")), ids=lambda p: p.name)
def test_analysis_reads_files_only(path):
    """No torch, no scipy, and of the package its record alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = named_modules(node)
        assert not {n.split(".")[0] for n in names} & {"torch", "transformers", "scipy"}, path
        of_package = [n for n in names if n.split(".")[0] == "cegppo"]
        assert all(n.startswith("cegppo.record") for n in of_package), path


EXPERIMENTS = sorted([*(ROOT / "experiments").glob("*.yaml"), *(ROOT / "experiments" / "regimes").glob("*.yaml")])


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.name)
def test_every_experiment_loads(path):
    loaded, origin = config.load(path)
    assert loaded.experiment == path.stem and loaded.data.train
    assert loaded.eval.benchmarks or ".py:" in loaded.reward  # a rule has no right answers
    assert config.explain(loaded, origin)


@pytest.mark.parametrize("name", config.methods())
def test_every_method_loads_on_the_testbed(name):
    loaded, _ = config.load(ROOT / "experiments" / "testbed.yaml", [f"method={name}"])
    assert loaded.method == name and loaded.arm == name
    first = lambda value: value[0][1] if isinstance(value, list) else value  # of a schedule
    assert {k: v for k, v in Schedules(loaded).at(0).items() if k.startswith("loss.")} == {
        f"loss.{k}": first(v) for k, v in loaded.loss.items() if k != "name"
    }


def test_every_loss_has_a_method():
    used = {yaml.safe_load(p.read_text())["loss"]["name"] for p in (ROOT / "experiments" / "method").glob("*.yaml")}
    assert used == set(losses.names())


def required() -> dict[str, list[Requirement]]:
    """What pyproject.toml requires, by extra; "" is what everybody gets."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rooms = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in rooms.items()}


def test_the_pins_agree():
    """constraints.txt pins what pyproject.toml names, each within its range, and nothing else; make
    and conda install with it."""
    named = [r for room in required().values() for r in room if r.name != "cegppo"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert {canonicalize_name(r.name) for r in named} == pins.keys()
    assert not [str(r) for r in named if pins[canonicalize_name(r.name)] not in r.specifier]
    torch = f"torch=={pins['torch']}"
    for line in (ROOT / "Makefile").read_text().splitlines():
        if "pip install" in line:
            assert torch in line, line
            # verl has pins of its own, and what is installed beside it is to choose none.
            chosen = "-c tests/verl/constraints.txt" if " verl==" in line else "-c constraints.txt"
            assert chosen in line or line == f"\t.venv-verl/bin/pip install --quiet -e . {torch}", line
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (line["pip"] for line in conda if isinstance(line, dict))
    assert pip == ["-c constraints.txt", "-e .[run,dev]", torch]


def test_licence_citation_and_package_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["license"] == project["license"] == "Apache-2.0" and cited["version"] == project["version"]
    (licence,) = project["license-files"]
    assert "Apache License" in (ROOT / licence).read_text().splitlines()[0]
    assert f"({project['version']})" in (ROOT / "CHANGELOG.md").read_text()


def test_every_folder_of_the_package_is_installed():
    folders = {path.parent for path in (ROOT / "cegppo").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


# What a verl or TRL trainer takes from here, into an environment of torch, numpy and little else.
CORE = [
    "losses",
    "objective",
    "instrument.entropy",
    "instrument.tally",
    "instrument.derivative",
    "instrument.ledger",
    "instrument.tokens",
    "plugins.batch",
]
ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused}:
            raise ModuleNotFoundError(f"{{name}} is refused here", name=name)

sys.meta_path.insert(0, Refuse())
import torch
before = set(sys.modules)
import cegppo.{name}, cegppo.losses
for name in cegppo.losses.names():
    cegppo.losses.load(name)
distributed = [name for name in set(sys.modules) - before if name.startswith("torch.distributed")]
assert not distributed, distributed
rooms = {{name.split(".")[1] for name in sys.modules if name.startswith("cegppo.")}}
assert rooms <= {{"types", "knobs", "losses", "objective", "instrument", "plugins"}}, rooms
"""


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_with_torch_and_numpy_alone(name):
    """What only the extras bring is refused, nothing of torch.distributed is loaded that torch does
    not load by itself, and no other room is entered."""
    alone = {r.name for r in required()[""]}
    extra = {r.name.replace("-", "_") for extra in ("run", "search", "ray", "slurm") for r in required()[extra]} - alone
    script = ALONE.format(refused=sorted(extra | {"yaml"}), name=name)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_metric_of_a_run_is_in_the_glossary(tiny, tmp_path):
    """docs/metrics.md has a row for every key that any method logs."""
    from cegppo.record.files import read_lines
    from cegppo.train import run_training

    from .test_train import Silent

    glossary = set(re.findall(r"`([a-z0-9_/{},]+)`", (ROOT / "docs" / "metrics.md").read_text()))
    known = set()
    for entry in glossary:
        head, brace, rest = entry.partition("{")
        options, _, tail = rest.partition("}")
        known |= {head + option + tail for option in options.split(",")} if brace else {entry}
    extra = [
        "update.kl_coef=0.01",
        "update.entropy_coef=0.001",
        "update.nll_coef=0.1",
        "update.dual_clip=3",
        "update.correction=mask",
    ]
    for method in ("cegppo", "ppo"):
        loaded, _ = config.load(tiny, [f"method={method}", f"run_dir={tmp_path / method}", *extra])
        run_training(loaded, Silent())
        logged = {key for row in read_lines(tmp_path / method / "metrics.jsonl") for key in row}
        assert logged <= known, f"not in docs/metrics.md: {sorted(logged - known)}"


def functions(path: Path) -> dict[str, int]:
    """Lines of each function of a file."""
    tree = ast.walk(ast.parse(path.read_text()))
    return {n.name: n.end_lineno - n.lineno + 1 for n in tree if isinstance(n, ast.FunctionDef)}


def test_the_step_is_on_one_page():
    """`train` has everything that happens in a step, in order, and nothing hands it on."""
    lines = functions(ROOT / "cegppo" / "train.py")
    assert lines.pop("train") <= 90 and max(lines.values()) <= 60
    source = (ROOT / "cegppo" / "train.py").read_text()
    order = ["sample_groups", "make_batch", "split_evenly", "weighted_gradient", "optimizer.step", "train_critic",
             "log.step", "evaluator.run", "log.checkpoint"]  # fmt: skip
    places = [source.index(f"{name}(", source.index("def train(")) for name in order]
    assert places == sorted(places)


def late_attributes(path: Path) -> list[str]:
    """Attributes that a class first sets outside __init__ and does not declare."""
    found = []
    for cls in [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)]:
        known, late = set(), set()
        for part in cls.body:
            if isinstance(part, (ast.AnnAssign, ast.Assign)):
                targets = [part.target] if isinstance(part, ast.AnnAssign) else part.targets
                known |= {t.id for t in targets if isinstance(t, ast.Name)}
            if isinstance(part, ast.FunctionDef):
                own = {
                    node.attr
                    for node in ast.walk(part)
                    if isinstance(node, ast.Attribute)
                    and isinstance(node.ctx, ast.Store)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "self"
                }
                known, late = (known | own, late) if part.name == "__init__" else (known, late | own)
        # What a base class of another library declares is not seen from here: `keys` of a cache.
        if not any(isinstance(base, ast.Name) and base.id.endswith("LayerMixin") for base in cls.bases):
            found += [f"{cls.name}.{name}" for name in sorted(late - known)]
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "cegppo").rglob("*.py")), ids=lambda p: p.name)
def test_attributes_appear_in_init(path):
    assert not late_attributes(path)


@pytest.mark.parametrize(
    "path", [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_links_and_images_of_the_texts_are_there(path):
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target
