"""Scopenote: label the features of a language model's sparse autoencoders, and score the labels.

The public Python API, loaded on first use so that `import scopenote` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .store.database import Store
    from .store.database import open_store as open

__all__ = ["Store", "open"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "open":
        from .store.database import open_store

        return open_store
    if name == "Store":
        from .store.database import Store

        return Store
    raise AttributeError(f"module 'scopenote' has no attribute {name!r}")
