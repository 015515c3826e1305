"""`scopenote doctor`: this machine, a run's room on it, and published numbers measured again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..extract.machine_memory import free_memory_bytes
from ..store.errors import ModelError, UserMistake
from ..store.run_folder import RunFolder
from .config import Config, load_config
from .findings import Finding, FindingGroup, Verdict
from .machine_checks import check_machine
from .summary import bytes_in_words

if TYPE_CHECKING:
    from ..extract.golden_checks import GoldenCheck, GoldenResult, Number

_MOST_LISTED = 8
# Five SAEs of 300 MB, one of them twice while it is loaded, and the program.
_BESIDE_THE_MODEL_BYTES = 2_600_000_000


@dataclass(frozen=True, slots=True)
class GoldenRequest:
    """Where the weights are on which published numbers are to be measured.

    Attributes:
        model: a local folder; None for the hub's cache.
        saes: folders with SAEs, beside the hub's cache.
    """

    model: Path | None = None
    saes: Sequence[Path] = ()


def examine(path: Path | None, golden: GoldenRequest | None = None) -> list[FindingGroup]:
    """Everything that `scopenote doctor` looks at.

    Args:
        path: a configuration or the folder of a run; None for the machine alone.
        golden: to measure published numbers as well.

    Raises:
        UserMistake: a path that was given is not there, or is not what it should be.
    """
    config, folder = (None, Path.cwd()) if path is None else _read(path)
    if golden is not None:
        _require_folders(golden)
    groups = [FindingGroup("This machine", check_machine(folder))]
    if config is not None:
        from .room_checks import check_room

        groups.append(FindingGroup(f"Room for {path}", check_room(config, folder)))
    if golden is not None:
        groups.append(FindingGroup("Published numbers", list(_measure(golden))))
    return groups


def _read(path: Path) -> tuple[Config, Path]:
    """A configuration and the folder of its run, which may not exist yet."""
    if path.is_dir():
        folder = RunFolder.open_existing(path)
        return load_config(folder.config_file), folder.path
    config = load_config(path)
    return config, path.parent if path.name == "run.toml" else Path(path.stem)


def _require_folders(golden: GoldenRequest) -> None:
    model = [] if golden.model is None else [("--model", golden.model)]
    for option, folder in [*model, *(("--saes", folder) for folder in golden.saes)]:
        if not folder.is_dir():
            raise UserMistake(
                "There is no such folder.",
                where=f"{option} {folder}",
                found="a file" if folder.exists() else "nothing",
                expected="a folder with the files of the hub's repository",
                mend="correct the path, or leave it out to look in the hub's cache",
            )


# --- published numbers --------------------------------------------------------------------


def _measure(golden: GoldenRequest) -> Iterator[Finding]:
    from ..extract.golden import load_full_model
    from ..extract.golden_checks import Bench, measure_golden_numbers, read_golden_numbers

    numbers = read_golden_numbers()
    folder, why_not = _find_model(golden.model, numbers.model)
    model = None if folder is None else load_full_model(folder)
    n_measured = 0
    for result in measure_golden_numbers(numbers, Bench(model, why_not, golden.saes)):
        n_measured += result.measured is not None
        yield golden_finding(result)
    for left_out in numbers.left_out:
        yield Finding(left_out.name, f"not measured: {left_out.reason}", Verdict.NOT_AT_HAND)
    if not n_measured:
        # Whoever asks for proof must not be told by an exit status that there was some.
        yield Finding(
            "all of them",
            "none could be measured",
            Verdict.FAIL,
            f"download {numbers.model} and the SAEs named above, or name their folders with "
            "--model and --saes",
        )


def golden_finding(result: GoldenResult) -> Finding:
    """What came of measuring some published numbers, as a line: what is wrong comes first."""
    check, wrong = result.check, result.wrong
    if result.measured is None:
        return Finding(check.name, result.reason or "", Verdict.NOT_AT_HAND)
    listed = wrong or list(check.expected)
    shown = "; ".join(
        f"{name.strip()}: {_number(result.measured.get(name))}, published "
        f"{_number(check.expected[name])}"
        for name in listed[:_MOST_LISTED]
    )
    more = f"; and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
    more += _clamped(result)
    bounds = _bounds(check)
    if not wrong:
        return Finding(check.name, f"{shown}{more} ({bounds})", Verdict.OK)
    found = f"{len(wrong)} of {len(check.expected)} wrong: {shown}{more} ({bounds})"
    mend = f"compare model, SAE and versions with those of {check.origin}"
    return Finding(check.name, found, Verdict.FAIL, mend)


def _clamped(result: GoldenResult) -> str:
    """What the feature gives if it is clamped, where it was added."""
    if result.clamped is None:
        return ""
    numbers = ", ".join(
        f"{name.strip()} {_number(result.clamped.get(name))}" for name in result.check.expected
    )
    as_well = ", as published" if result.holds_clamped else ""
    return f"; clamped instead of added{as_well}: {numbers}"


def _number(value: Number | None) -> str:
    if value is None:
        return "none"
    return " × ".join(map(str, value)) if isinstance(value, list) else f"{value:.5g}"


def _bounds(check: GoldenCheck) -> str:
    bounds = [f"{check.absolute:g}"] if check.absolute else []
    bounds += [f"{100 * check.relative:g}%"] if check.relative else []
    return f"within {' + '.join(bounds)}" if bounds else "exact"


def _find_model(given: Path | None, name: str) -> tuple[Path | None, str]:
    """The folder of the model; or None, and why it cannot be measured on.

    Raises:
        ModelError: the folder that was given does not hold this model.
    """
    from ..extract.local_files import find_local_model, missing_weights

    if given is None:
        folder = find_local_model(name)
    else:
        # As a name it might be found in the hub's cache, which was not asked for.
        folder = given if (given / "config.json").is_file() else None
    missing = "config.json" if folder is None else missing_weights(folder)
    if folder is None or missing is not None:
        if given is not None:
            raise ModelError(
                "The folder does not hold the model.",
                where=f"--model {given}",
                found=f"no {missing}",
                expected=f"the files of {name}",
                mend="copy the whole of the hub's repository there",
            )
        part = "" if folder is None else f"{missing} of "
        return None, f"{part}{name} is not on this machine"
    needed, free = _full_model_bytes(folder, name), free_memory_bytes()
    if free is not None and free < needed:
        return None, (
            f"the whole model in float32 and its SAEs take {bytes_in_words(needed)} of memory, and "
            f"{bytes_in_words(free)} are free"
        )
    return folder, ""


def _full_model_bytes(folder: Path, name: str) -> int:
    """Memory of the whole model in float32, with what is measured on it.

    Raises:
        ModelError: it is another model than the published numbers are of.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, Gemma2Config

    from ..extract.memory_needs import count_parameters

    try:
        config = AutoConfig.from_pretrained(folder).get_text_config()
    except (OSError, ValueError, StrictDataclassError) as error:
        raise ModelError(
            "The model's configuration cannot be read.",
            where=str(folder / "config.json"),
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            mend="download or copy the model again",
        ) from error
    # The defaults of this class are Gemma 2 2B's.
    wanted, sizes = Gemma2Config(), ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")
    differing = [size for size in sizes if getattr(config, size) != getattr(wanted, size)]
    if differing:
        raise ModelError(
            "The published numbers are of another model.",
            where=str(folder),
            found=", ".join(f"{size} {getattr(config, size)}" for size in differing),
            expected=f"{name}: "
            + ", ".join(f"{size} {getattr(wanted, size)}" for size in differing),
            mend=f"name a folder with {name}",
        )
    return 4 * count_parameters(config, config.num_hidden_layers) + _BESIDE_THE_MODEL_BYTES
