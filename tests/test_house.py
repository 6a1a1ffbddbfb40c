"""The plan of the house holds: import order, every YAML loads, the pins agree."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from cegppo import config, losses

ROOT = Path(__file__).resolve().parent.parent
# A file may import only what stands above it.
ORDER = (
    "types", "parallel", "grader", "reward", "counts", "advantage", "losses", "entropy", "config", "record", "data",
    "head", "policy",
    "memory", "ledger", "testbed", "rollout", "evaluate", "completions", "train", "launch", "sweep", "search", "screen",
)  # fmt: skip


def room(path: Path) -> str:
    return path.relative_to(ROOT / "cegppo").with_suffix("").parts[0]


def named_modules(node: ast.AST) -> list[str]:
    """The modules that an import statement names; none for any other node."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def imported_rooms(path: Path) -> set[str]:
    """Rooms of the package that a file imports, functions' own imports included."""
    depth = len(path.relative_to(ROOT / "cegppo").parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level < depth:  # inside the same folder: a loss importing another loss, say
                found.add(room(path))
                continue
            module = (node.module or "").split(".")[0]
            found |= {module} if module else {alias.name for alias in node.names}
        names = named_modules(node)
        absolute = [name for name in names if name.split(".")[0] == "cegppo" and not getattr(node, "level", 0)]
        assert not absolute, f"{path}: absolute import"
    return found & set(ORDER)


@pytest.mark.parametrize(
    "path", [p for p in sorted((ROOT / "cegppo").rglob("*.py")) if p.name != "__init__.py"], ids=str
)
def test_import_order(path):
    assert room(path) in ORDER, f"{path} has no place in the order"
    allowed = set(ORDER[: ORDER.index(room(path))])
    if room(path) == "losses":
        allowed = {"types"}
    if room(path) == "rollout":  # samplers may share; losses may not
        allowed |= {"rollout"}
    assert imported_rooms(path) <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "analysis").glob("*.py")), ids=lambda p: p.name)
def test_analysis_reads_files_only(path):
    """The garden: no torch, no scipy and nothing of the package."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = named_modules(node)
        assert not {n.split(".")[0] for n in names} & {"torch", "transformers", "scipy", "cegppo"}, path


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda p: p.name)
def test_every_experiment_loads(path):
    loaded, origin = config.load(path)
    assert loaded.experiment == path.stem and loaded.data.train and loaded.eval.benchmarks
    assert config.explain(loaded, origin)


@pytest.mark.parametrize("name", config.methods())
def test_every_method_loads_on_the_testbed(name):
    loaded, _ = config.load(ROOT / "experiments" / "testbed.yaml", [f"method={name}"])
    assert loaded.method == name and loaded.arm == name
    assert loaded.loss_knobs(0) == {k: v for k, v in loaded.loss.items() if k != "name"}


def test_every_loss_has_a_method():
    used = {yaml.safe_load(p.read_text())["loss"]["name"] for p in (ROOT / "experiments" / "method").glob("*.yaml")}
    assert used == set(losses.names())


def test_the_pins_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {*project["dependencies"], *project["optional-dependencies"]["dev"]}
    pip = next(
        d["pip"] for d in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"] if isinstance(d, dict)
    )
    assert set(pip) == wanted
    for line in (ROOT / "Makefile").read_text().splitlines():
        if "pip install" in line:
            assert "torch==2.13.0" in line, line


def test_every_metric_of_a_run_is_in_the_glossary(tiny, tmp_path):
    """docs/metrics.md has a row for every key that any method logs."""
    from cegppo.record import read_lines
    from cegppo.train import train

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
        train(loaded, Silent())
        logged = {key for row in read_lines(tmp_path / method / "metrics.jsonl") for key in row}
        assert logged <= known, f"not in docs/metrics.md: {sorted(logged - known)}"
