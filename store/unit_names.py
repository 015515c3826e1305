"""What features are called within an SAE: by number; in a neuron basis by neuron and sign.

A neuron basis, `{model}/{layer}-mlp-neurons`, has the coordinates of a layer's MLP output for its
features. A neuron is two of them, because what it means where it is high need not be what it
means where it is low: `1393+` is the coordinate where positive, `1393-` where negative. The store
numbers them 2·1393 and 2·1393 + 1.
"""

from __future__ import annotations

import re
from functools import lru_cache

_BASIS = re.compile(r"(?P<layer>0|[1-9]\d*)-mlp-neurons", re.ASCII)
FEATURE_ID_SQL = """{0}.sae_id || '/' || CASE
    WHEN regexp_full_match({0}.sae_id, '(.*/)?(0|[1-9][0-9]*)-mlp-neurons')
    THEN ({0}.feature // 2)::VARCHAR || CASE WHEN {0}.feature % 2 = 1 THEN '-' ELSE '+' END
    ELSE {0}.feature::VARCHAR END"""
"""What `unit_name` does, with the SAE's id before it, of a row that is called `{0}`."""

_UNIT = re.compile(r"(?P<neuron>\d+)(?P<sign>[+-])", re.ASCII)
_NUMBER = re.compile(r"\d+", re.ASCII)


def split_basis_name(name: str) -> tuple[str | None, int] | None:
    """Model, if it is named, and layer of what a person writes: `gemma-2-2b/20-mlp-neurons`.

    None for what is not the name of a neuron basis; a path on disk begins with `.`, `/` or `~`.
    """
    model, slash, source = name.rpartition("/")
    found = _BASIS.fullmatch(source)
    if found is None or "/" in model or name.startswith((".", "/", "~")):
        return None
    return model if slash else None, int(found["layer"])


@lru_cache(maxsize=1024)
def is_neuron_basis(sae_id: str) -> bool:
    """Whether the features of this SAE, named `{model}/{source}`, are neurons."""
    # Asked for each of thousands of features of few SAEs.
    return _BASIS.fullmatch(sae_id.rpartition("/")[2]) is not None


def unit_name(sae_id: str, feature: int) -> str:
    """What people call a feature of this SAE: `8249`, or in a neuron basis `1393+`."""
    if not is_neuron_basis(sae_id):
        return str(feature)
    return f"{feature // 2}{'-' if feature % 2 else '+'}"


def unit_number(sae_id: str, name: str) -> int | None:
    """The feature that people call so; None for what is no name of a feature of this SAE.

    Whether the SAE is so wide is not known here.
    """
    if not is_neuron_basis(sae_id):
        return int(name) if _NUMBER.fullmatch(name) else None
    found = _UNIT.fullmatch(name)
    return None if found is None else 2 * int(found["neuron"]) + (found["sign"] == "-")
