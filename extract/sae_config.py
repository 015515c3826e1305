"""What the JSON beside an SAE's weights says, whoever wrote it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..store.errors import SaeError
from .sites import Site


@dataclass(frozen=True, slots=True)
class StatedConfig:
    """What is said of an SAE beside its weights.

    Attributes:
        site: what the SAE reads, if that is told.
        l0: active features per token, if that is told.
    """

    site: Site | None
    l0: float | None


def read_sae_config(file: Path, expected: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        file: such as config.json.
        expected: what the file should be, in words.

    Raises:
        SaeError: it is not there, or not JSON, or no object.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"a {type(config).__name__}")
    except (OSError, ValueError) as error:
        raise unreadable_config(file, error, expected) from error
    return config


def unreadable_config(file: Path, error: Exception, expected: str) -> SaeError:
    """The error where a file of settings is not what it should be."""
    return SaeError(
        f"The SAE's {file.name} cannot be read.",
        where=str(file),
        found=str(error),
        expected=expected,
        mend="download or copy it again, beside the SAE's weights",
    )


def not_computed(path: Path, found: str, expected: str) -> SaeError:
    """The error where an SAE computes what is not computed here."""
    return SaeError(
        "The SAE is of a kind that Scopenote does not compute.",
        where=str(path),
        found=found,
        expected=expected,
    )
