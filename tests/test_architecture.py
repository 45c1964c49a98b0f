"""The law of imports (design, section 1): who may import whom, that nothing goes in circles, and what importing costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "rayjobs"

FOUNDATIONS = {"errors", "config", "storage", "geo"}
ALSO_PLAIN = {"console", "tracking", "workspace"}
PIXELS = {"rasters", "tiles", "labels"}
VECTORS = {"models", "metric", "retrieval"}
VERBS = {
    "cluster", "demo", "doctor", "embed", "evaluate", "export", "fetch", "gc", "index", "label", "labelling",
    "query", "sample", "serve", "train", "tune",
}  # fmt: skip
COMMANDS = {"experiment", "command", "cli"}

SHARED_VERBS = {"embed", "cluster"}
MAY_ALSO_IMPORT = {"tune": {"train", "evaluate"}}
FORBIDDEN_PACKAGES = {
    **dict.fromkeys(FOUNDATIONS | ALSO_PLAIN, frozenset({"ray", "torch", "rasterio", "faiss"})),
    **dict.fromkeys(PIXELS, frozenset({"ray", "torch", "faiss", "timm"})),
    **dict.fromkeys(VECTORS, frozenset({"ray", "rasterio"})),
}


def module_name(path: Path) -> str:
    relative = path.relative_to(ROOT.parent).with_suffix("")
    parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
    return ".".join(parts)


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Every module that a file names in an import, whether at its top, in a function or for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


FILES = sorted(ROOT.rglob("*.py"))


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "rayjobs" and len(parts) > 1 else ""


def rooms_imported(path: Path) -> set[str]:
    names = {room(module) for module in imports_of(path)} - {""}
    return {name for name in names if (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file()}


def is_section(path: Path) -> bool:
    return path.name == "section.py"


def test_every_room_is_known():
    known = FOUNDATIONS | ALSO_PLAIN | PIXELS | VECTORS | VERBS | COMMANDS | {"__init__"}
    found = {
        path.stem if path.is_file() else path.name for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert found <= known


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_one_way(path):
    own = room(module_name(path))
    others = rooms_imported(path) - {own}
    plain = FOUNDATIONS | ALSO_PLAIN
    if own in FOUNDATIONS:
        assert others <= FOUNDATIONS
    elif own in ALSO_PLAIN:
        assert others <= plain
    elif own in PIXELS:
        assert others <= plain | PIXELS
    elif own in VECTORS:
        assert others <= plain | VECTORS
    elif is_section(path):
        assert others <= plain, "a section knows no other room"
    elif own == "query":
        assert others <= plain | COMMANDS, "the client knows the service's HTTP interface alone"
    elif own in VERBS:
        assert others & VERBS <= SHARED_VERBS | MAY_ALSO_IMPORT.get(own, set())


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nouns_do_not_know_what_they_need_not(path):
    own = room(module_name(path))
    packages = {module.split(".")[0] for module in imports_of(path)}
    assert not packages & FORBIDDEN_PACKAGES.get(own, frozenset())
    if "ray" in packages:
        assert own in VERBS
        assert not is_section(path)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_ray_is_imported_by_its_full_name(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    short = [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "ray" for alias in node.names]
    assert not short, "write `import ray.train`: our own packages have the same names"


def test_no_import_cycle_between_modules():
    modules = {module_name(path): path for path in FILES}
    graph = {name: {other for other in imports_of(path) if other in modules and other != name} for name, path in modules.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__main__.py"], ids=module_name)
def test_entry_points_define_nothing(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") < 40
    assert not [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]


@pytest.mark.parametrize(
    ("module", "heavy"), [("rayjobs", "torch ray rasterio numpy pydantic"), ("rayjobs.experiment", "torch ray rasterio faiss mlflow")]
)
def test_importing_loads_nothing_heavy(module, heavy):
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({heavy.split()!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_table_of_modules_says_what_each_module_says_of_itself():
    """A row for each module, with the first paragraph of its docstring; no row for a module that is gone."""
    text = (ROOT.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (.*) \|$", text, re.MULTILINE)
    purposes = [(path, ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "") for path in FILES]
    wanted = {path.relative_to(ROOT).as_posix(): " ".join(purpose.partition("\n\n")[0].split()) for path, purpose in purposes}
    missing = [f"| `{module}` | {purpose} |" for module, purpose in wanted.items() if (module, purpose) not in rows]
    stale = [f"| `{module}` | {purpose} |" for module, purpose in rows if wanted.get(module) != purpose]
    assert (missing, stale) == ([], []), "\n".join(["ARCHITECTURE.md lacks", *missing, "and should not have", *stale])
    assert len(rows) == len(wanted), "a module stands in the table twice"
