"""Scopenote: label the features of a language model's sparse autoencoders, and score the labels.

The public Python API, loaded on first use so that `import scopenote` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .flows.inspect_text import inspect_text
    from .flows.loaded_run import LoadedRun
    from .flows.match_feature import match_feature
    from .flows.steer_run import steer
    from .store.database import Store
    from .store.database import open_store as open

__all__ = ["LoadedRun", "Store", "inspect_text", "match_feature", "open", "steer"]
__version__ = "0.1.0"

# Where each name lies, and what it is called there.
_PLACES = {
    "LoadedRun": ("flows.loaded_run", "LoadedRun"),
    "Store": ("store.database", "Store"),
    "inspect_text": ("flows.inspect_text", "inspect_text"),
    "match_feature": ("flows.match_feature", "match_feature"),
    "open": ("store.database", "open_store"),
    "steer": ("flows.steer_run", "steer"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'scopenote' has no attribute {name!r}")
    place, called = _PLACES[name]
    return getattr(import_module(f".{place}", __name__), called)
