"""`scopenote doctor` as a whole: what it reads, what it prints, and how it ends."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from scopenote.extract.golden import load_full_model, next_token_probabilities
from scopenote.extract.golden_checks import GoldenNumbers, GoldenResult, parse_golden_numbers
from scopenote.extract.local_files import find_local_model
from scopenote.extract.models import TOY
from scopenote.flows import doctor
from scopenote.flows.cli import main
from scopenote.flows.config import demo_config
from scopenote.flows.doctor import GoldenRequest, examine, golden_finding
from scopenote.flows.findings import (
    Finding,
    FindingGroup,
    Verdict,
    has_failed,
    plain_lines,
    print_findings,
    render_findings,
)
from scopenote.store.errors import ModelError
from scopenote.store.run_folder import RunFolder
from transformers import Gemma2Config

GROUPS = [
    FindingGroup(
        "This machine",
        [
            Finding("Python", "3.11.7, needed: >=3.11", Verdict.OK),
            Finding("a name that is longer than its column is wide", "x " * 60, Verdict.WARNING),
            Finding("fastapi", "0.165.0 \x1b[31m", Verdict.FAIL, "python -m pip install 'fastapi'"),
            Finding("next token", "no model", Verdict.NOT_AT_HAND),
        ],
    )
]
WELL = [Finding("Python", "3.11", Verdict.OK), Finding("token", "none", Verdict.WARNING, "log in")]


def printed(is_terminal: bool, width: int = 80) -> list[str]:
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, color_system=None, force_terminal=is_terminal, highlight=False
    )
    print_findings(GROUPS, console)
    return stream.getvalue().splitlines()


@pytest.fixture
def scopenote(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command on a machine where all is well; its exit status and both outputs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(doctor, "check_machine", lambda folder: WELL)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["scopenote", "doctor", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            main()
        output = capsys.readouterr()
        assert isinstance(ending.value.code, int)
        return ending.value.code, output.out, output.err

    return run


# --- how it looks -------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_keeps_to_the_terminal_and_loses_nothing(width: int) -> None:
    lines = printed(True, width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for group in GROUPS:
        for finding in group.findings:
            assert finding.verdict in text
    assert text.count("x") >= 60
    assert "to mend: python -m pip install 'fastapi'" in " ".join(" ".join(lines).split())
    assert lines[-1].strip() == "1 ok, 1 warning, 1 fail, 1 not at hand"


def test_elsewhere_every_finding_is_one_line_whatever_its_length() -> None:
    assert printed(False, 40) == list(plain_lines(GROUPS))
    assert len(printed(False)) == 6
    assert printed(False)[1] == "ok: Python: 3.11.7, needed: >=3.11"
    assert printed(False)[4] == "not at hand: next token: no model"


def test_what_was_found_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in "\n".join(printed(True) + printed(False))


def test_only_a_failure_fails() -> None:
    assert has_failed(GROUPS)
    rest = [finding for finding in GROUPS[0].findings if finding.verdict is not Verdict.FAIL]
    assert not has_failed([FindingGroup("", rest)])
    assert not has_failed([])


def test_nothing_found_can_be_rendered() -> None:
    Console(file=io.StringIO()).print(render_findings([FindingGroup("empty", [])]))


# --- how it ends --------------------------------------------------------------------------


def test_warnings_alone_are_well(scopenote: Callable[..., tuple]) -> None:
    status, output, errors = scopenote()
    assert (status, errors) == (0, "")
    assert output.splitlines() == [
        "# This machine",
        "ok: Python: 3.11",
        "warning: token: none [to mend: log in]",
        "# 1 ok, 1 warning",
    ]


def test_a_failure_exits_with_one(
    scopenote: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "check_machine", lambda folder: [GROUPS[0].findings[2]])
    status, output, _ = scopenote()
    assert status == 1
    assert "1 fail" in output


def test_a_configuration_or_a_run_is_looked_at(
    scopenote: Callable[..., tuple], tmp_path: Path
) -> None:
    (tmp_path / "toy.toml").write_text(demo_config().to_toml())
    folder = RunFolder(tmp_path / "run").create()
    folder.write_config(demo_config().to_toml())
    for path in ("toy.toml", "run", "run/run.toml"):
        status, output, _ = scopenote(path)
        assert status == 0, output
        assert f"# Room for {path}" in output
        assert "1,024 features × 201 kept rows" in output


def test_the_disk_is_that_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    looked_at: list[Path] = []
    monkeypatch.setattr(doctor, "check_machine", lambda folder: looked_at.append(folder) or WELL)
    (tmp_path / "mine.toml").write_text(demo_config().to_toml())
    RunFolder(tmp_path / "run").create().write_config(demo_config().to_toml())
    for path in (None, Path("mine.toml"), Path("run"), Path("run/run.toml")):
        examine(path)
    assert looked_at == [tmp_path, Path("mine"), Path("run"), Path("run")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing.toml",), "There is no such configuration file."),
        (("empty",), "There is no run here."),
        (("--golden", "--model", "nowhere"), "--model nowhere"),
        (("--golden", "--saes", "nowhere"), "--saes nowhere"),
        (("--golden", "--model", "empty"), "no config.json"),
        (("--model", "empty"), "belong to `--golden`"),
        (("--saes", "empty"), "belong to `--golden`"),
    ],
)
def test_a_path_that_leads_nowhere_is_the_users_mistake(
    scopenote: Callable[..., tuple], tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    status, output, errors = scopenote(*arguments)
    assert (status, output) == (2, "")
    assert said in errors


# --- published numbers --------------------------------------------------------------------


def test_without_weights_nothing_passes_and_that_is_a_failure(
    scopenote: Callable[..., tuple],
) -> None:
    status, output, _ = scopenote("--golden")
    assert status == 1
    section = output.partition("# Published numbers\n")[2].splitlines()
    assert section[0] == "not at hand: next token: google/gemma-2-2b is not on this machine"
    assert not [line for line in section if line.startswith("ok")]
    assert section[-2].startswith("fail: all of them: none could be measured")


def numbers_of_the_toy(probability: float) -> GoldenNumbers:
    check = {
        "name": "next token",
        "kind": "next_token",
        "prompt": "import",
        "expected": {" the": probability},
        "within": {"absolute": 1e-4},
        "origin": "us",
    }
    return parse_golden_numbers({"model": "toy", "checks": [check], "left_out": []})


@pytest.mark.parametrize(("off", "exit_status"), [(0.0, 0), (0.01, 1)])
def test_with_weights_a_number_passes_or_fails(
    scopenote: Callable[..., tuple],
    monkeypatch: pytest.MonkeyPatch,
    off: float,
    exit_status: int,
) -> None:
    toy = find_local_model(TOY)
    assert toy is not None
    model = load_full_model(toy)
    true = float(next_token_probabilities(model, model.encode("import"))[model.token_id(" the")])
    monkeypatch.setattr(
        "scopenote.extract.golden_checks.read_golden_numbers",
        lambda: numbers_of_the_toy(true + off),
    )
    monkeypatch.setattr(doctor, "_full_model_bytes", lambda folder, name: 0)
    status, output, errors = scopenote("--golden", "--model", toy)
    assert (status, errors) == (exit_status, "")
    section = output.partition("# Published numbers\n")[2].splitlines()
    assert section[0].startswith("fail: " if off else "ok: ")
    assert "not at hand" not in output


def test_another_model_is_not_taken_for_gemma_2_2b() -> None:
    toy = find_local_model(TOY)
    with pytest.raises(ModelError, match="another model") as caught:
        examine(None, GoldenRequest(toy))
    assert "num_hidden_layers 3" in str(caught.value)
    assert "num_hidden_layers 26" in str(caught.value)


def test_a_model_too_large_for_memory_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_full_model_bytes", lambda folder, name: 13_057_367_552)
    monkeypatch.setattr(doctor, "free_memory_bytes", lambda: 4 * 10**9)
    folder, why_not = doctor._find_model(find_local_model(TOY), "google/gemma-2-2b")
    assert folder is None
    assert why_not.endswith("take 13.1 GB of memory, and 4.0 GB are free")


def test_the_memory_of_gemma_2_2b_is_that_of_its_weights_and_some_more(tmp_path: Path) -> None:
    Gemma2Config().save_pretrained(tmp_path)
    needed = doctor._full_model_bytes(tmp_path, "google/gemma-2-2b")
    assert needed == 4 * 2_614_341_888 + 2_600_000_000


def test_a_folder_that_is_named_is_not_replaced_by_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "google" / "gemma-2-2b").mkdir(parents=True)
    monkeypatch.setattr("scopenote.extract.local_files._find_cached", lambda *_: tmp_path / "x")
    with pytest.raises(ModelError, match="does not hold the model"):
        doctor._find_model(Path("google/gemma-2-2b"), "google/gemma-2-2b")


def result(expected: dict[str, object], measured: dict[str, object] | None) -> GoldenResult:
    check = {
        "name": "next token",
        "kind": "next_token",
        "expected": expected,
        "within": {"absolute": 0.1, "relative": 0.02},
        "origin": "somebody's notebook",
    }
    content = {"model": "m", "checks": [check], "left_out": []}
    (parsed,) = parse_golden_numbers(content).checks
    return GoldenResult(parsed, measured, None if measured else "no model")


def test_a_published_number_is_shown_beside_the_measured_one() -> None:
    finding = golden_finding(result({" a": 1.0, "b": [2, 3]}, {" a": 1.05, "b": [2, 3]}))
    assert finding.verdict is Verdict.OK
    assert finding.found == ("a: 1.05, published 1; b: 2 × 3, published 2 × 3 (within 0.1 + 2%)")


def test_what_is_wrong_is_shown_first_with_whose_number_it_is() -> None:
    expected = {str(n): 1.0 for n in range(20)}
    measured = {str(n): 1.0 for n in range(19)} | {"7": 2.0}
    finding = golden_finding(result(expected, measured))
    assert finding.verdict is Verdict.FAIL
    assert finding.found.startswith(
        "2 of 20 wrong: 7: 2, published 1; 19: none, published 1 (within"
    )
    assert finding.mend is not None
    assert "somebody's notebook" in finding.mend
    all_well = golden_finding(result(expected, expected))
    assert "and 12 more" in all_well.found


def test_what_was_not_measured_is_not_at_hand() -> None:
    assert golden_finding(result({"a": 1.0}, None)) == Finding(
        "next token", "no model", Verdict.NOT_AT_HAND
    )


def test_what_clamping_gives_stands_beside_what_adding_gave() -> None:
    added = replace(result({" a": 1.0}, {" a": 1.0}), clamped={" a": 3.0})
    assert golden_finding(added).verdict is Verdict.OK
    assert golden_finding(added).found == (
        "a: 1, published 1; clamped instead of added: a 3 (within 0.1 + 2%)"
    )
    clamped = golden_finding(replace(added, measured={" a": 3.0}, clamped={" a": 1.0}))
    assert clamped.verdict is Verdict.FAIL
    assert "; clamped instead of added, as published: a 1 (within" in clamped.found
