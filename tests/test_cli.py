"""The command line: what is printed where, and exit statuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from scopenote.flows.cli import main
from scopenote.flows.config import demo_config, load_config
from scopenote.flows.reports import RunReport, StageReport
from scopenote.store.errors import CorpusError, StoreError
from scopenote.store.run_folder import RunFolder

from .made_up_run import RES, make_database

DONE = StageReport("collect", "tokens", done=1000, seconds=2.0, notes=("3 bad rows skipped",))
COMMANDS = (
    "demo",
    "run",
    "collect",
    "explain",
    "score",
    "status",
    "show",
    "search",
    "inspect",
    "steer",
    "match",
    "label",
    "vote",
    "export",
    "import-labels",
    "runs",
    "compare",
    "schedule",
    "serve",
    "estimate",
    "replay",
    "doctor",
)
HEAVY = ("torch", "transformers", "duckdb", "prefect", "pyarrow", "numpy", "rich", "pydantic")


@pytest.fixture
def flows(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts functions in the place of flows, and nothing in that of Prefect."""

    @contextmanager
    def nothing() -> Iterator[None]:
        yield

    home = ModuleType("scopenote.flows.prefect_home")
    home.isolate_prefect = lambda folder, use_own_server: None
    home.without_heartbeats = nothing
    monkeypatch.setitem(sys.modules, home.__name__, home)

    def put(name: str, work: Callable[..., object]) -> None:
        module = ModuleType(f"scopenote.flows.{name}")
        setattr(module, name, work)
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return put


@pytest.fixture
def scopenote(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in an empty folder; its exit status and both outputs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["scopenote", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            main()
        output = capsys.readouterr()
        assert isinstance(ending.value.code, int)
        return ending.value.code, output.out, output.err

    return run


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made-up") / "scopenote.duckdb"
    make_database(path).close()
    return path


@pytest.fixture
def demo_run(tmp_path: Path, database: Path) -> RunFolder:
    """A finished run in `demo`."""
    folder = RunFolder(tmp_path / "demo").create()
    folder.write_config(demo_config().to_toml())
    shutil.copy(database, folder.database)
    return folder


def finishes(report: StageReport = DONE) -> Callable[..., RunReport]:
    return lambda *_: RunReport((report,))


@pytest.mark.parametrize("command", [(), *[(command,) for command in COMMANDS]])
def test_help_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    code = f"""
    import sys
    from scopenote.flows.cli import main
    sys.argv = ["scopenote", *{command!r}, "--help"]
    try:
        main()
    except SystemExit as ending:
        print("loaded", [name for name in {HEAVY!r} if name in sys.modules], ending.code)
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines()[0].startswith("Usage: ")
    # Typer itself loads pydantic to check the arguments.
    assert found.stdout.splitlines()[-1] in {"loaded [] 0", "loaded ['pydantic'] 0"}


def test_help_names_every_command_with_its_whole_line(scopenote: Callable[..., tuple]) -> None:
    status, output, _ = scopenote("--help")
    assert status == 0
    lines = output.partition("Commands:\n")[2].splitlines()
    assert tuple(line.split()[0] for line in lines[: len(COMMANDS)]) == COMMANDS
    assert not any(line.endswith("...") for line in lines)


def test_the_version_is_told(scopenote: Callable[..., tuple]) -> None:
    assert scopenote("--version") == (0, "scopenote 0.1.0\n", "")


@pytest.mark.parametrize(
    "arguments", [("frobnicate",), ("show",), ("run", "x", "--frob"), ("show", "a", "b", "--n", -1)]
)
def test_wrong_arguments_are_the_users_mistake(
    scopenote: Callable[..., tuple], arguments: tuple[str, ...]
) -> None:
    status, output, errors = scopenote(*arguments)
    assert (status, output) == (2, "")
    assert "Error: " in errors


def test_a_demo_ends_with_its_report_on_stderr_and_its_labels_on_stdout(
    scopenote: Callable[..., tuple], flows: Callable[..., None], demo_run: RunFolder
) -> None:
    flows("label_corpus", finishes())
    status, output, errors = scopenote("demo")
    assert status == 0
    assert errors == "collect: 3 bad rows skipped\n"
    assert "Best labels" in output
    assert "scopenote show demo" in output


def test_a_run_that_finds_everything_done_says_so(
    scopenote: Callable[..., tuple], flows: Callable[..., None], demo_run: RunFolder
) -> None:
    flows("label_corpus", finishes(StageReport("collect", "tokens", 0, already_done=612_000)))
    status, _, errors = scopenote("demo")
    assert (status, errors) == (0, "collect: nothing to do, 612,000 tokens already there\n")


def test_stored_failures_are_counted_and_change_the_exit_status(
    scopenote: Callable[..., tuple], flows: Callable[..., None], demo_run: RunFolder
) -> None:
    report = StageReport("explain", "features", 1000, failures={"no reply": 2})
    flows("explain_features", lambda *_: report)
    status, _, errors = scopenote("explain", "demo")
    assert status == 3
    assert errors == "explain: 2 failed: no reply\n"


def test_a_run_is_named_after_its_configuration_and_keeps_it(
    scopenote: Callable[..., tuple],
    flows: Callable[..., None],
    tmp_path: Path,
    database: Path,
) -> None:
    (tmp_path / "tiny.toml").write_text(demo_config(max_tokens=1000).to_toml())
    given = []

    def label_corpus(config: object, folder: RunFolder, progress: object, *_: object) -> RunReport:
        given.append((config, folder))
        shutil.copy(database, folder.database)
        return RunReport((DONE,))

    flows("label_corpus", label_corpus)
    status, _, errors = scopenote("run", "tiny.toml")
    assert status == 0, errors
    assert given == [(demo_config(max_tokens=1000), RunFolder(Path("tiny")))]
    assert load_config(tmp_path / "tiny" / "run.toml") == demo_config(max_tokens=1000)
    # A run's folder knows its configuration.
    flows("label_corpus", finishes())
    assert scopenote("run", "tiny")[0] == 0
    assert scopenote("run", "tiny/run.toml")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "tiny.toml"]


def test_another_configuration_for_the_same_run_is_refused_by_its_keys(
    scopenote: Callable[..., tuple], flows: Callable[..., None], tmp_path: Path, demo_run: RunFolder
) -> None:
    demo_run.path.rename("mine")
    collect = demo_config().collect.model_copy(update={"seed": 5})
    other = demo_config().model_copy(update={"collect": collect})
    (tmp_path / "other.toml").write_text(other.to_toml())
    flows("label_corpus", finishes())
    flows("collect_contexts", lambda *_: DONE)
    for command in (("run", "other.toml", "--out"), ("collect", "--config", "other.toml")):
        status, output, errors = scopenote(*command, "mine")
        assert (status, output) == (2, "")
        assert "`collect.seed` is 0 there and 5 here" in errors
        assert "scopenote run mine" in errors
    assert load_config(tmp_path / "mine" / "run.toml") == demo_config()


def test_a_stage_alone_needs_a_run_or_a_configuration(
    scopenote: Callable[..., tuple], flows: Callable[..., None], tmp_path: Path
) -> None:
    flows("collect_contexts", lambda *_: DONE)
    status, _, errors = scopenote("collect", "new")
    assert status == 2
    assert "There is no run here." in errors
    (tmp_path / "c.toml").write_text(demo_config().to_toml())
    assert scopenote("collect", "new", "--config", "c.toml")[0] == 0
    assert scopenote("collect", "new")[0] == 0


def test_a_mistake_is_one_message_without_a_traceback(
    scopenote: Callable[..., tuple], flows: Callable[..., None]
) -> None:
    def label_corpus(*_: object) -> RunReport:
        raise CorpusError("The corpus is empty.", where="texts/", mend="add text")

    flows("label_corpus", label_corpus)
    status, output, errors = scopenote("demo")
    assert (status, output) == (2, "")
    assert errors == "Error: The corpus is empty.\n  where: texts/\n  to mend: add text\n"


def test_a_failure_that_is_no_mistake_exits_with_one(
    scopenote: Callable[..., tuple], flows: Callable[..., None]
) -> None:
    def label_corpus(*_: object) -> RunReport:
        raise StoreError("The disk is full.")

    flows("label_corpus", label_corpus)
    assert scopenote("demo") == (1, "", "Error: The disk is full.\n")


def test_a_defect_of_ours_keeps_its_traceback_and_asks_for_a_report(
    scopenote: Callable[..., tuple], flows: Callable[..., None]
) -> None:
    def label_corpus(*_: object) -> RunReport:
        raise ZeroDivisionError("what nobody foresaw")

    flows("label_corpus", label_corpus)
    status, _, errors = scopenote("demo")
    assert status == 1
    assert "Traceback" in errors
    assert "ZeroDivisionError: what nobody foresaw" in errors
    assert "Please report it" in errors.splitlines()[-1]


def test_a_second_run_on_the_same_folder_is_told_who_is_there(
    scopenote: Callable[..., tuple], flows: Callable[..., None], demo_run: RunFolder
) -> None:
    flows("label_corpus", finishes())
    with demo_run.lock("scopenote collect"):
        status, _, errors = scopenote("demo")
        assert status == 1
        assert f"process {os.getpid()}, `scopenote collect`" in errors
        assert scopenote("status", "demo")[0] == 0  # readers are never in the way


def test_status_and_show_print_their_pages(
    scopenote: Callable[..., tuple], demo_run: RunFolder
) -> None:
    status, output, errors = scopenote("status", "demo")
    assert (status, errors) == (0, "")
    assert "612,034 tokens" in output
    status, output, errors = scopenote("show", "demo", f"{RES}/0", "--n", 2)
    assert (status, errors) == (0, "")
    assert "2 of 12" in output


def test_status_and_show_print_json(scopenote: Callable[..., tuple], demo_run: RunFolder) -> None:
    assert json.loads(scopenote("status", "demo", "--json")[1])["n_tokens"] == 612_034
    page = json.loads(scopenote("show", "demo", f"{RES}/0", "--json")[1])
    assert page["feature_id"] == f"{RES}/0"


def test_a_run_without_a_database_is_answered_with_the_command_to_type(
    scopenote: Callable[..., tuple], demo_run: RunFolder
) -> None:
    demo_run.database.unlink()
    status, _, errors = scopenote("status", "demo")
    assert status == 2
    assert "scopenote run demo" in errors


def test_a_database_without_its_run_can_be_read(
    scopenote: Callable[..., tuple], demo_run: RunFolder
) -> None:
    demo_run.config_file.unlink()
    assert scopenote("status", "demo")[0] == 0


def test_a_reader_that_has_gone_is_no_error_to_shout_about(demo_run: RunFolder) -> None:
    code = "from scopenote.flows.cli import main; main()"
    command = [sys.executable, "-c", code, "show", str(demo_run.path), f"{RES}/0"]
    reading, writing = os.pipe()
    os.close(reading)
    found = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (found.returncode, found.stderr) == (1, "")
