"""The machine: versions against ranges, builds of torch, memory, disk, and the hub's token."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from scopenote.extract.machine_memory import total_memory_bytes
from scopenote.flows.findings import Verdict
from scopenote.flows.machine_checks import (
    check_disk,
    check_machine,
    check_packages,
    check_python,
    check_token,
    check_torch,
    judge_torch_build,
    nearest_existing,
    read_declared_needs,
    read_devices,
)

from .test_packaging import project


def test_the_needs_are_those_of_pyproject() -> None:
    needs = read_declared_needs()
    assert needs.python == project()["requires-python"]
    assert list(needs.packages) == project()["dependencies"]


@pytest.mark.parametrize(
    ("version", "verdict"),
    [("3.11.0", "ok"), ("3.14.0rc1", "ok"), ("3.10.14", "fail"), ("2.7.18", "fail")],
)
def test_python_must_be_one_that_is_supported(version: str, verdict: str) -> None:
    finding = check_python(version, ">=3.11")
    assert finding.verdict == verdict
    assert (finding.mend is None) == (verdict == "ok")


@pytest.mark.parametrize(
    ("version", "verdict"),
    [
        ("2.13.0", "ok"),
        ("2.13.0+cpu", "ok"),
        ("2.6.0", "ok"),
        ("2.14.0", "fail"),
        ("2.5.1", "fail"),
        (None, "fail"),
    ],
)
def test_a_package_must_lie_in_its_range(version: str | None, verdict: str) -> None:
    (finding,) = check_packages(["torch>=2.6,<2.14"], lambda _: version)
    assert finding.verdict == verdict
    if verdict == "fail":
        assert finding.mend == "python -m pip install 'torch<2.14,>=2.6'"
        assert (version or "not installed") in finding.found


@pytest.mark.parametrize(
    ("package", "version", "what"),
    [
        ("fastapi>=0.139,<0.151", "0.165.0", "every Prefect flow dies"),
        ("sqlalchemy>=2.0,<2.1", "2.1.9", "cron schedules never fire"),
        ("prefect>=3.8.8,<4", "3.7.0", "tested with these versions only"),
    ],
)
def test_what_breaks_in_silence_is_said_aloud(package: str, version: str, what: str) -> None:
    (finding,) = check_packages([package], lambda _: version)
    assert finding.verdict is Verdict.FAIL
    assert what in finding.found


def test_packages_of_another_system_or_an_extra_are_passed_over() -> None:
    lines = ["pytest>=8; extra == 'dev'", "numpy>=2; sys_platform == 'nowhere'"]
    assert list(check_packages(lines, lambda _: None)) == []


def test_every_declared_package_is_looked_at() -> None:
    named = [finding.name for finding in check_packages(read_declared_needs().packages)]
    assert {"torch", "prefect", "fastapi", "sqlalchemy", "packaging"} <= set(named)
    assert len(named) == len(project()["dependencies"])


@pytest.mark.parametrize(
    ("toolkit", "has_gpu", "has_driver", "verdict"),
    [
        (None, False, False, "ok"),
        ("13.0", True, True, "ok"),
        ("13.0", False, False, "ok"),
        (None, True, False, "ok"),  # Apple's GPUs need no toolkit
        (None, False, True, "warning"),
        ("13.0", False, True, "warning"),
    ],
)
def test_a_gpu_that_torch_does_not_use_is_a_warning(
    toolkit: str | None, has_gpu: bool, has_driver: bool, verdict: str
) -> None:
    finding = judge_torch_build("2.13.0", toolkit, has_gpu=has_gpu, has_driver=has_driver)
    assert finding.verdict == verdict


@pytest.mark.parametrize("error", [ImportError("no torch"), OSError("libcudart.so: cannot open")])
def test_a_torch_that_cannot_be_imported_fails(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "torch":
                raise error

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    (finding,) = check_torch()
    assert finding.verdict is Verdict.FAIL
    assert str(error) in finding.found


def test_the_cpu_is_the_first_device_and_has_memory() -> None:
    cpu = read_devices()[0]
    assert cpu.name == "cpu"
    assert cpu.total_bytes == total_memory_bytes() > 2**28
    assert cpu.free_bytes is None or 0 < cpu.free_bytes <= cpu.total_bytes


@pytest.mark.parametrize(("free", "verdict"), [(10**8, "fail"), (10**9, "warning"), (10**11, "ok")])
def test_a_disk_must_have_room(tmp_path: Path, free: int, verdict: str) -> None:
    finding = check_disk("disk", tmp_path / "not" / "there yet", free)
    assert finding.verdict == verdict
    assert str(tmp_path / "not" / "there yet") in finding.found


def test_a_folder_that_may_not_be_written_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write anywhere, so that the mode alone would not tell.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    finding = check_disk("disk", tmp_path, 10**12)
    assert finding.verdict is Verdict.FAIL
    assert finding.mend == "change its permissions"


def test_the_nearest_folder_is_the_one_that_is_there(tmp_path: Path) -> None:
    assert nearest_existing(tmp_path / "a" / "b") == tmp_path
    assert nearest_existing(tmp_path) == tmp_path


SECRET = "hf_" + "x" * 34


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_a_token_is_seen_and_never_shown(tmp_path: Path, name: str) -> None:
    finding = check_token({name: SECRET}, tmp_path / "none")
    assert finding.verdict is Verdict.OK
    assert name in finding.found
    assert SECRET not in repr(finding)


def test_a_saved_login_is_as_good_and_not_read(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(SECRET)
    finding = check_token({"HF_TOKEN": ""}, file)
    assert finding.verdict is Verdict.OK
    assert SECRET not in repr(finding)


def test_without_a_token_there_is_a_warning(tmp_path: Path) -> None:
    assert check_token({}, tmp_path / "none").verdict is Verdict.WARNING


def test_the_machine_on_which_tests_run_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    findings = check_machine(tmp_path)
    assert not [f for f in findings if f.verdict is Verdict.FAIL]
    assert SECRET not in repr(findings)
    names = [finding.name for finding in findings]
    assert {"Python", "torch build", "cpu", "Hugging Face token"} <= set(names)
