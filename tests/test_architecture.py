"""The rooms: who may import whom, what an import costs, and how files are named."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the top down; each may import those below it, but for the two in the middle.
MAY_IMPORT = {
    "flows": {"evaluate", "extract", "label", "store"},
    "evaluate": {"extract", "label", "store"},
    "extract": {"store"},
    "label": {"store"},
    "store": set(),
}
# What no module of a room may load; torch brings seconds, Prefect most of one.
MUST_NOT_LOAD = {
    "store": {"torch", "transformers", "datasets", "openai", "prefect", "fastapi", "rich"},
    "label": {"torch", "transformers", "datasets", "duckdb", "prefect", "fastapi", "rich"},
    "evaluate": {"torch", "transformers", "datasets", "duckdb", "prefect", "fastapi", "rich"},
    "extract": {"duckdb", "prefect", "openai", "rich"},
}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
MOST_LINES = 400


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


ROOM_FILES = [path for room in MAY_IMPORT for path in files_of(room)]


def module_name(path: Path) -> str:
    return ".".join(("scopenote", *path.relative_to(ROOT).with_suffix("").parts))


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all that a file imports, wherever in it, relative imports resolved."""
    return imports_in(ast.parse(path.read_text(encoding="utf-8")), module_name(path))


def imports_in(tree: ast.AST, module: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                package = module.split(".")[: -node.level]
                origin = ".".join((*package, *([node.module] if node.module else [])))
            # `from . import x` and `from .. import room` name modules after `import`.
            found |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
    return found


def rooms_among(modules: set[str]) -> set[str]:
    parts = [name.split(".") for name in modules]
    return {p[1] for p in parts if p[0] == "scopenote" and len(p) > 1 and p[1] in MAY_IMPORT}


def test_the_rooms_here_are_all_the_rooms_there_are() -> None:
    folders = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and any(path.glob("*.py"))
    }
    assert folders - {"tests"} == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_between_rooms_point_down(room: str) -> None:
    wrong = {
        module_name(path): sorted(upward)
        for path in files_of(room)
        if (upward := rooms_among(imported_modules(path)) - MAY_IMPORT[room] - {room})
    }
    assert not wrong


def test_an_import_of_a_higher_room_would_be_seen_however_it_is_spelled() -> None:
    spellings = [
        "from ..flows import config",
        "from ..flows.config import Config",
        "from .. import flows",
        "import scopenote.flows.config",
        "from scopenote.flows import config",
        "def later():\n    from ..flows.config import Config",
    ]
    for spelling in spellings:
        found = imports_in(ast.parse(spelling), "scopenote.store.labels")
        assert rooms_among(found) == {"flows"}, spelling


def test_rooms_are_imported_relatively() -> None:
    """So that a plain checkout of any folder name can be checked and read."""
    absolute = {
        module_name(path): node.module
        for path in ROOM_FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and not node.level and node.module
        if node.module.split(".")[0] == "scopenote"
    }
    assert not absolute


def test_only_flows_imports_prefect() -> None:
    importers = {
        path.relative_to(ROOT).parts[0]
        for path in ROOM_FILES
        if any(name.split(".")[0] == "prefect" for name in imported_modules(path))
    }
    assert importers == {"flows"}


def test_rooms_have_no_init_file() -> None:
    """With one, `evaluate/` would shadow Hugging Face's package of that name in a checkout."""
    assert not [path for path in ROOM_FILES if path.name == "__init__.py"]


def test_no_two_modules_have_the_same_name() -> None:
    counted = Counter(path.stem for path in ROOM_FILES)
    assert not [name for name, count in counted.items() if count > 1]


def test_modules_are_named_for_an_idea() -> None:
    assert not FORBIDDEN_NAMES & {path.stem for path in ROOM_FILES}


def test_files_are_short() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in ROOM_FILES
    }
    assert not {name for name, length in lengths.items() if length > MOST_LINES}


@dataclass(frozen=True, slots=True)
class Imported:
    """What importing every module of a room did."""

    loaded: set[str]
    environment_changed: list[str]
    files_made: list[Path]


CHANGED_BY_TORCH = {"TORCHINDUCTOR_CACHE_DIR"}
IMPORT_ALL = """
import importlib, json, os, sys
before = dict(os.environ)
for name in sys.argv[1:]:
    importlib.import_module(name)
after = dict(os.environ)
changed = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
print(json.dumps([sorted({name.split(".")[0] for name in sys.modules}), changed]))
"""


def import_in_a_fresh_process(modules: list[str], folder: Path) -> Imported:
    here = folder / "here"
    here.mkdir()
    answer = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *modules],
        cwd=here,
        # Prefect makes its home when it is imported; that is why only flows may.
        env={**os.environ, "PREFECT_HOME": str(folder / "prefect")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    loaded, changed = json.loads(answer.stdout.splitlines()[-1])
    ours = [name for name in changed if name not in CHANGED_BY_TORCH]
    return Imported(set(loaded), ours, sorted(here.iterdir()))


# Those that load torch or Prefect take ten seconds each.
@pytest.mark.parametrize(
    "room",
    [
        pytest.param(room, marks=pytest.mark.slow if room in ("extract", "flows") else ())
        for room in MAY_IMPORT
    ],
)
def test_importing_a_room_loads_no_more_than_it_needs_and_changes_nothing(
    room: str, tmp_path: Path
) -> None:
    modules = [
        module_name(path)
        for path in files_of(room)
        # Run by hand, once: what trains the toy loads all of torch and transformers.
        if not path.name.startswith(("train_", "measure_"))
    ]
    imported = import_in_a_fresh_process(modules, tmp_path)
    assert not imported.loaded & MUST_NOT_LOAD.get(room, set())
    assert not imported.environment_changed
    assert not imported.files_made


def test_importing_the_package_loads_none_of_its_dependencies(tmp_path: Path) -> None:
    alone = import_in_a_fresh_process([], tmp_path)
    (tmp_path / "second").mkdir()
    imported = import_in_a_fresh_process(["scopenote"], tmp_path / "second")
    ours = {name for name in imported.loaded - alone.loaded if name not in sys.stdlib_module_names}
    assert ours == {"scopenote"}


def reads_the_environment(path: Path) -> bool:
    """Whether a module looks into the environment while it is imported."""
    return _reads_environment(ast.parse(path.read_text(encoding="utf-8")))


def _reads_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return False
    if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
        return True
    return any(_reads_environment(child) for child in ast.iter_child_nodes(node))


def test_importing_a_module_reads_no_environment_variable() -> None:
    assert not [module_name(path) for path in ROOM_FILES if reads_the_environment(path)]


def test_a_module_that_reads_the_environment_when_imported_would_be_seen() -> None:
    assert _reads_environment(ast.parse("import os\nHOME = os.environ['HOME']"))
    assert not _reads_environment(ast.parse("import os\ndef home(): return os.getenv('HOME')"))
