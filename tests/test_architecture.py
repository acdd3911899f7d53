"""The walls of the house: who may import whom, sole importers, no prints, nothing happens on import."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "livetalk"
SOURCES = [ROOT / "app.py", *sorted(PACKAGE.rglob("*.py"))]

# Rooms from top to bottom; rooms on one line never import each other.
LEVELS = [
    {"app", "livetalk.__main__"},
    {"livetalk.ui", "livetalk.eval"},
    {"livetalk.stream", "livetalk.distill"},
    {"livetalk.rollout", "livetalk.hub", "livetalk.publish", "livetalk.media", "livetalk.voice", "livetalk.rulers"},
    {"livetalk.download"},
    {"livetalk.flow", "livetalk.model"},
    {"livetalk.types", "livetalk.config", "livetalk.engine", "livetalk.resources", "livetalk._version"},
]
WITHIN_LEVEL = {("livetalk.config", "livetalk.types"), ("livetalk.engine", "livetalk.types")}
SOLE_IMPORTERS = {
    "gradio": {"app", "livetalk.ui"},
    "spaces": {"app", "livetalk.ui"},
    "ray": {"livetalk.ui"},
    # models and clients; files that come; files that go
    "huggingface_hub": {"livetalk.hub", "livetalk.download", "livetalk.publish"},
    "av": {"livetalk.media"},
    "soundfile": {"livetalk.media"},
}
# Packages that may be imported inside functions: optional, or too heavy for mini's start.
OPTIONAL = {"skia", "espeakng_loader", "accelerate", "matplotlib", "transformers", "diffusers", "playwright", "spaces"}
OPTIONAL |= {"psutil", "ftfy", "cv2", "pocket_tts", "ray"}
REQUIREMENTS = tuple(f"requirements{part}.txt" for part in ("", "-train", "-extra", "-voice", "-dev"))
PUBLIC_DOOR = "livetalk"  # the package's own __init__ hands out names of any room


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in SOURCES}


def room(module: str) -> str:
    """The room a module belongs to: the first two parts of its dotted name."""
    return ".".join(module.split(".")[:2])


def level(name: str) -> int | None:
    return next((depth for depth, rooms in enumerate(LEVELS) if name in rooms), None)


def imports(tree: ast.AST) -> list[tuple[str, ast.stmt]]:
    """Every imported module, nested imports included."""
    found: list[tuple[str, ast.stmt]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            source = node.module or ""
            for alias in node.names:  # a module of a package, or a name of a module
                inner = f"{source}.{alias.name}"
                found.append((inner if source == "livetalk" or inner in MODULES else source, node))
    return found


PARSED = {path: ast.parse(path.read_text("utf-8")) for path in SOURCES if path.exists()}


@pytest.mark.parametrize("path", PARSED, ids=lambda path: module_name(path))
def test_imports_go_down_only(path: Path) -> None:
    module = module_name(path)
    here = room(module)
    if module == PUBLIC_DOOR:
        return
    assert level(here) is not None, f"{here} is no room of the house; add it to LEVELS and to the map"
    for target, node in imports(PARSED[path]):
        if not target.startswith("livetalk"):
            continue
        there = room(target)
        if there in (here, PUBLIC_DOOR):
            continue
        depth = level(there)
        if depth is None:  # a name of the package's front door, such as livetalk.load
            assert level(here) <= 1, f"{module}:{node.lineno} uses the front door ({target}); import the room"
            continue
        fine = depth > level(here) or (here, there) in WITHIN_LEVEL
        assert fine, f"{module}:{node.lineno} imports {target}: {there} is not below {here}"


@pytest.mark.parametrize("path", PARSED, ids=lambda path: module_name(path))
def test_sole_importers(path: Path) -> None:
    module = module_name(path)
    for target, node in imports(PARSED[path]):
        owners = SOLE_IMPORTERS.get(target.split(".")[0])
        assert owners is None or room(module) in owners, f"{module}:{node.lineno} imports {target}; only {owners} may"


@pytest.mark.parametrize("path", PARSED, ids=lambda path: module_name(path))
def test_nested_imports_are_optional_packages(path: Path) -> None:
    module = module_name(path)
    top = {id(node) for node in PARSED[path].body}
    guarded = [n for n in PARSED[path].body if isinstance(n, (ast.If, ast.Try))]
    top |= {id(node) for block in guarded for node in ast.walk(block)}
    for target, node in imports(PARSED[path]):
        if id(node) in top or module in ("livetalk.__main__", PUBLIC_DOOR):
            continue  # entry points may load a room only when its command is called
        assert target.split(".")[0] in OPTIONAL, f"{module}:{node.lineno} imports {target} inside a function"


@pytest.mark.parametrize("path", PARSED, ids=lambda path: module_name(path))
def test_nothing_happens_on_import(path: Path) -> None:
    """At module level: definitions, constants, and the usual main guard; no loose calls."""
    for node in PARSED[path].body:
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"{path.name}:{node.lineno} does something on import"


def test_no_cycles_between_modules() -> None:
    names = {module_name(path): path for path in PARSED}
    graph = {
        name: {t for t, _ in imports(PARSED[path]) if t in names and t not in (name, PUBLIC_DOOR)}
        for name, path in names.items()
        if name != PUBLIC_DOOR
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail, name))}"
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def requirement_names(file: str) -> list[str]:
    lines = (ROOT / file).read_text("utf-8").splitlines()
    return [re.split(r"[<>=!~\[; ]", line)[0].lower() for line in lines if line.strip() and not line.startswith("#")]


def test_every_requirement_is_imported_somewhere() -> None:
    tests = {path: ast.parse(path.read_text("utf-8")) for path in (ROOT / "tests").glob("*.py")}
    used = {target.split(".")[0] for tree in {**PARSED, **tests}.values() for target, _ in imports(tree)}
    provided = packages_distributions()
    tools = {"ruff", "mypy", "setuptools", "pytest-xdist"}  # run, not imported
    for file in REQUIREMENTS:
        for name in requirement_names(file):
            modules = {m for m, dists in provided.items() if name in [d.lower().replace("_", "-") for d in dists]}
            assert name in tools or modules & used, f"{file} lists {name}, which nothing imports"


def test_every_import_is_a_requirement() -> None:
    listed = {name for file in REQUIREMENTS for name in requirement_names(file)}
    provided = packages_distributions()
    for path, tree in PARSED.items():
        for target, node in imports(tree):
            package = target.split(".")[0]
            if package in sys.stdlib_module_names or package in ("livetalk", "__future__") or package in OPTIONAL:
                continue
            names = {d.lower().replace("_", "-") for d in provided.get(package, [package])}
            assert names & listed, f"{module_name(path)}:{node.lineno} imports {package}, which no requirements list"
