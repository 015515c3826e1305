"""What this machine has and how that fits: Python, packages, devices, memory, disk, access.

Everything is read on the spot and nothing is changed or downloaded. What is judged comes in as
values, so that each rule can be tried on a machine that has it otherwise.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ..extract.machine_memory import free_memory_bytes, total_memory_bytes
from .findings import Finding, Verdict
from .summary import bytes_in_words

# What breaks without a word, beyond what a version out of range usually does.
_SILENT_BREAKAGES = {
    "fastapi": "with 0.155 and later every Prefect flow dies, and `pip check` finds nothing wrong",
    "sqlalchemy": "with 2.1 Prefect's cron schedules never fire, and only its server's log says so",
    "prefect": "flows were tested with these versions only",
}
# A finished demo with its database, parts and Prefect's home takes a few hundred megabytes.
_LEAST_FREE_BYTES = 500_000_000
_COMFORTABLE_FREE_BYTES = 5_000_000_000
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True, slots=True)
class DeclaredNeeds:
    """What the package says that it needs.

    Attributes:
        python: versions of Python.
        packages: requirements as in pyproject.toml, without extras.
    """

    python: str
    packages: Sequence[str]


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A device that torch can compute on.

    Attributes:
        name: as in the configuration, such as `cuda:0`.
        description: what it is.
        total_bytes: its memory.
        free_bytes: what of it is free now, if that can be told.
    """

    name: str
    description: str
    total_bytes: int
    free_bytes: int | None


def read_declared_needs() -> DeclaredNeeds:
    """The ranges of pyproject.toml in a checkout, or of the installed package's metadata."""
    project_file = Path(__file__).parents[1] / "pyproject.toml"
    if project_file.is_file():
        # An editable installation keeps the metadata of the day on which it was made.
        project = tomllib.loads(project_file.read_text(encoding="utf-8"))["project"]
        return DeclaredNeeds(project["requires-python"], project["dependencies"])
    declared = metadata.metadata("scopenote")
    return DeclaredNeeds(declared["Requires-Python"], metadata.requires("scopenote") or [])


def check_python(version: str, needed: str) -> Finding:
    """Whether this Python is one that the package is written for."""
    found = f"{version} ({sys.executable}), needed: {needed}"
    if SpecifierSet(needed).contains(version, prereleases=True):
        return Finding("Python", found, Verdict.OK)
    return Finding("Python", found, Verdict.FAIL, f"install Python {needed} and a new environment")


def installed_version(package: str) -> str | None:
    """The installed version of a distribution; None if there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_packages(
    packages: Sequence[str], version_of: Callable[[str], str | None] = installed_version
) -> Iterator[Finding]:
    """Every declared package against its range.

    Args:
        packages: requirements as in pyproject.toml.
        version_of: the installed version of a distribution.
    """
    for line in packages:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = version_of(requirement.name)
        needed = str(requirement.specifier) or "any version"
        mend = f"python -m pip install '{requirement.name}{requirement.specifier}'"
        why = _SILENT_BREAKAGES.get(requirement.name)
        if version is None:
            yield Finding(requirement.name, f"not installed, needed: {needed}", Verdict.FAIL, mend)
        elif requirement.specifier.contains(version, prereleases=True):
            yield Finding(requirement.name, f"{version}, needed: {needed}", Verdict.OK)
        else:
            found = f"{version}, needed: {needed}" + (f" ({why})" if why else "")
            yield Finding(requirement.name, found, Verdict.FAIL, mend)


def check_torch() -> Iterator[Finding]:
    """Which build of torch this is, and the devices that it can compute on."""
    try:
        import torch
    except (ImportError, OSError) as error:
        # A build whose shared libraries are not on this machine raises OSError.
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        mend = "install torch again, in a build for this machine"
        yield Finding("torch build", f"cannot be imported: {said}", Verdict.FAIL, mend)
        return
    yield judge_torch_build(
        torch.__version__,
        torch.version.cuda or torch.version.hip,
        has_gpu=torch.cuda.is_available() or torch.backends.mps.is_available(),
        has_driver=shutil.which("nvidia-smi") is not None,
    )
    for device in read_devices():
        yield _device_finding(device)


def judge_torch_build(
    version: str, gpu_toolkit: str | None, *, has_gpu: bool, has_driver: bool
) -> Finding:
    """Whether torch uses the GPU that there is.

    Args:
        version: of torch.
        gpu_toolkit: the version of CUDA or ROCm that it was built with; None for a CPU build.
        has_gpu: whether torch can compute on one.
        has_driver: whether NVIDIA's driver is installed.
    """
    build = f"built for GPUs ({gpu_toolkit})" if gpu_toolkit else "built for CPUs"
    found = f"{version}, {build}"
    if has_gpu or not has_driver:
        return Finding("torch build", found, Verdict.OK)
    if gpu_toolkit:
        mend = "update the NVIDIA driver, or install a torch built for its version of CUDA"
        return Finding("torch build", f"{found}, but it finds no GPU", Verdict.WARNING, mend)
    return Finding(
        "torch build",
        f"{found}, although NVIDIA's driver is installed",
        Verdict.WARNING,
        "install a build of torch for GPUs: README.md, Installing",
    )


def read_devices() -> list[DeviceMemory]:
    """The CPU and every GPU that torch sees; the CPU comes first."""
    import torch

    n_processors = _usable_processors()
    devices = [
        DeviceMemory(
            "cpu",
            f"{n_processors} processors, {torch.get_num_threads()} threads of torch, "
            f"{platform.machine()}",
            total_memory_bytes(),
            free_memory_bytes(),
        )
    ]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            devices.append(DeviceMemory(f"cuda:{number}", name, total, free))
    if torch.backends.mps.is_available():
        total = torch.mps.recommended_max_memory()
        devices.append(DeviceMemory("mps", "Apple GPU, shares the CPU's memory", total, None))
    return devices


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _device_finding(device: DeviceMemory) -> Finding:
    memory = f"{bytes_in_words(device.total_bytes)} of memory"
    if device.free_bytes is not None:
        memory += f", {bytes_in_words(device.free_bytes)} free"
    return Finding(device.name, f"{device.description}; {memory}", Verdict.OK)


def check_disk(name: str, folder: Path, free_bytes: int | None = None) -> Finding:
    """Whether there is room, and leave to write, in a folder or where it will be made.

    Args:
        name: what the line is called.
        folder: may not exist yet.
        free_bytes: instead of what the disk says.
    """
    place = nearest_existing(folder)
    free = shutil.disk_usage(place).free if free_bytes is None else free_bytes
    found = f"{bytes_in_words(free)} free in {folder.absolute()}"
    mend = "make room, or choose a folder on another disk"
    if not os.access(place, os.W_OK):
        return Finding(
            name, f"{found}, which may not be written", Verdict.FAIL, "change its permissions"
        )
    if free < _LEAST_FREE_BYTES:
        return Finding(name, found, Verdict.FAIL, mend)
    if free < _COMFORTABLE_FREE_BYTES:
        return Finding(name, f"{found}: enough for the demo only", Verdict.WARNING, mend)
    return Finding(name, found, Verdict.OK)


def nearest_existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    absolute = folder.absolute()
    return next(place for place in (absolute, *absolute.parents) if place.exists())


def check_token(environment: Mapping[str, str], token_file: Path) -> Finding:
    """Whether the hub's gated models can be downloaded; the token itself is never shown.

    Args:
        environment: the variables of this process.
        token_file: where `hf auth login` leaves its token.
    """
    named = next((name for name in _TOKEN_VARIABLES if environment.get(name)), None)
    if named:
        return Finding("Hugging Face token", f"{named} is set", Verdict.OK)
    if token_file.is_file():
        return Finding("Hugging Face token", "saved by `hf auth login`", Verdict.OK)
    return Finding(
        "Hugging Face token",
        "neither HF_TOKEN nor a saved login; needed only to download Gemma",
        Verdict.WARNING,
        "accept Gemma's licence on its hub page, then `hf auth login` or set HF_TOKEN",
    )


def check_machine(folder: Path) -> list[Finding]:
    """Everything about this machine.

    Args:
        folder: where a run lies or would lie.
    """
    from huggingface_hub import constants

    needs = read_declared_needs()
    return [
        check_python(platform.python_version(), needs.python),
        *check_packages(needs.packages),
        *check_torch(),
        check_disk("disk of the run", folder),
        check_disk("disk of the hub's cache", Path(constants.HF_HUB_CACHE)),
        check_token(os.environ, Path(constants.HF_TOKEN_PATH)),
    ]
