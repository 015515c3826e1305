"""What is declared, what is pinned, and what a wheel holds."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
ROOMS = ("store", "extract", "label", "evaluate", "flows")
# What the package is, beside its rooms, and what describes it.
ROOT_MODULES = ("__init__.py", "py.typed")
DESCRIPTION = ("pyproject.toml", "README.md", "LICENSE")
# Given names by a distribution that pins them exactly.
PART_OF = {"pydantic_core": "pydantic"}
# Imported by tests only, and there because another package cannot do without.
BROUGHT_BY = {"httpx2": "huggingface_hub"}
# Declared, and imported by no room.
NOT_IMPORTED = {
    "sqlalchemy": "bounded, because Prefect's schedules never fire on newer ones",
}


def project() -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return content


def declared(*extras: str) -> dict[str, Requirement]:
    lines = list(project()["dependencies"])
    for extra in extras:
        lines += project()["optional-dependencies"][extra]
    requirements = map(Requirement, lines)
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


# Extras that add to what can be done; without them the rooms say what to install.
OPTIONAL = ("sae-lens", "s3", "dask", "search")


def third_party_imports(files: Iterable[Path]) -> dict[str, str]:
    """Distributions that files import from, each with a file that does."""
    found: dict[str, str] = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top != "scopenote":
                    found[canonicalize_name(PART_OF.get(top, top))] = path.name
    return found


def room_files() -> list[Path]:
    return [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]


def test_every_package_that_a_room_imports_is_declared() -> None:
    imported = third_party_imports(room_files())
    known = declared(*OPTIONAL)
    assert not {name: file for name, file in imported.items() if name not in known}


def test_every_package_that_a_test_imports_is_declared() -> None:
    imported = third_party_imports((ROOT / "tests").rglob("*.py"))
    # Benchmarks, which are scripts, find the tests' own modules so.
    known = set(declared("dev", *OPTIONAL)) | set(BROUGHT_BY) | {"tests"}
    assert not {name: file for name, file in imported.items() if name not in known}


def test_every_declared_package_is_imported_or_has_a_reason() -> None:
    unused = set(declared()) - set(third_party_imports(room_files()))
    assert not unused - set(NOT_IMPORTED), "declared for nothing"
    assert not set(NOT_IMPORTED) & set(third_party_imports(room_files())), "imported by now"


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_constraints_pin_every_declared_package_within_its_range() -> None:
    pinned = pins()
    wanted = declared("dev")
    assert not set(wanted) - set(pinned)
    outside = {
        name: pinned[name]
        for name, requirement in wanted.items()
        if not requirement.specifier.contains(pinned[name])
    }
    assert not outside


def test_constraints_fit_any_machine() -> None:
    """No build of one kind of machine, no path, no editable line."""
    assert not [name for name, version in pins().items() if Version(version).local]
    assert pins()["torch"] == "2.13.0"
    assert "scopenote" not in pins()


def test_the_version_is_the_same_everywhere() -> None:
    import scopenote

    assert scopenote.__version__ == project()["version"]


def shipped_files() -> set[str]:
    """Every file of the rooms that is part of the project, as git sees it where there is git."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *ROOMS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        names = {name for name in listed.stdout.split("\0") if (ROOT / name).is_file()}
    else:
        files = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()]
        names = {path.relative_to(ROOT).as_posix() for path in files}
    return {*ROOT_MODULES, *(name for name in names if "__pycache__" not in name)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built in a copy, because building litters; tests lie beside it, as they do here."""
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    beside = {"Makefile", "tests/conftest.py", "tests/test_packaging.py", *DESCRIPTION}
    for name in shipped_files() | beside:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    build = "import sys; from setuptools import build_meta as b; b.build_wheel(sys.argv[1])"
    built = subprocess.run(
        [sys.executable, "-c", build, str(out)],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_rooms_with_their_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert files == {f"scopenote/{name}" for name in shipped_files()}


def test_the_wheel_brings_the_command_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        described = {name.split(".dist-info/")[-1]: name for name in archive.namelist()}
        commands = configparser.ConfigParser()
        commands.read_string(archive.read(described["entry_points.txt"]).decode())
    assert dict(commands["console_scripts"]) == {"scopenote": "scopenote.flows.cli:main"}
    assert "licenses/LICENSE" in described


def test_the_command_works_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import scopenote; print(scopenote.__file__); from scopenote.flows.cli import main; main()"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    origin, version = answer.stdout.splitlines()
    assert Path(origin).is_relative_to(tmp_path)
    assert version == f"scopenote {project()['version']}"


GIVEN = {
    "datasets", "duckdb", "openai", "prefect", "pydantic", "tenacity", "torch", "transformers",
}  # fmt: skip


def test_every_dependency_that_was_not_given_has_its_reason_in_the_decisions() -> None:
    reasons = (ROOT / "DECISIONS.md").read_text(encoding="utf-8").split("## Dependencies")[1]
    named = {
        canonicalize_name(name)
        for heading in re.findall(r"^- \*\*(.+?)\*\*", reasons, re.MULTILINE)
        for name in heading.split(", ")
    }
    assert named == set(declared("dev", *OPTIONAL)) - GIVEN


def test_a_decision_takes_at_most_three_lines() -> None:
    text = (ROOT / "DECISIONS.md").read_text(encoding="utf-8")
    entries = re.findall(r"^- .*(?:\n  .*)*", text, re.MULTILINE)
    assert not [entry.splitlines()[0] for entry in entries if len(entry.splitlines()) > 3]
