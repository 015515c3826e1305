"""Patterns over the SAEs that Gemma Scope published, such as `gemma-2-2b/*-gemmascope-res-16k`.

A pattern is matched with an SAE's name of Neuronpedia's and with its path on the hub, with or
without the owner. As among files `*` and `?` stay within one name between slashes; `**` does not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from ..store.errors import SaeError
from .gemma_scope import NPZ_FILE, read_layout
from .gemma_scope_index import OWNER, check_published, read_index, resolve_short_name
from .sites import Site


@dataclass(frozen=True, slots=True)
class NamedSae:
    """An SAE of Gemma Scope as its name describes it; its file is not needed.

    Attributes:
        sae_id: as in feature ids, on the model that it was trained on.
        path: on the hub.
        model: that it was trained on.
        width: its features.
        l0: active features a token, as published.
    """

    sae_id: str
    path: str
    model: str
    site: Site
    width: int
    l0: float


def is_pattern(path: str) -> bool:
    """Whether a path stands for any number of SAEs."""
    return "*" in path or "?" in path


@cache
def named_saes() -> dict[str, NamedSae]:
    """All SAEs of Gemma Scope, by their paths on the hub."""
    found = {}
    for repository, entry in read_index().items():
        for sae in entry.saes():
            path = f"{OWNER}/{repository}/{sae.path}"
            layout = read_layout(path, entry.model)
            assert layout is not None and layout.kind is not None, "the index holds full paths"
            found[path] = NamedSae(
                sae_id=f"{entry.model}/{layout.source_id}",
                path=path,
                model=entry.model,
                site=Site(layout.layer, layout.kind),
                width=_width(sae.width),
                l0=float(sae.l0),
            )
    return found


def named_sae(path: str) -> NamedSae | None:
    """The SAE of Gemma Scope that a short name or a path on the hub means; None for others.

    Raises:
        SaeError: it is nearly one of Gemma Scope's, and there is no such.
    """
    in_full = (resolve_short_name(path) or path).rstrip("/").removesuffix(f"/{NPZ_FILE}")
    if on_hub := re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)/(\w[\w./-]*)", in_full):
        check_published(on_hub[1], on_hub[2])
    return named_saes().get(in_full)


def match_saes(pattern: str, model: str | None = None) -> list[NamedSae]:
    """The SAEs that a pattern stands for, in the index's order.

    Args:
        pattern: over names or paths.
        model: only those trained on this model or its other form; None for all.

    Raises:
        SaeError: there are none.
    """
    meant = _compiled(pattern)
    every = [
        sae
        for sae in named_saes().values()
        if any(map(meant.fullmatch, (sae.sae_id, sae.path, sae.path.partition("/")[2])))
    ]
    found = [sae for sae in every if model is None or _base(sae.model) == _base(model)]
    if found:
        return found
    others = sorted({sae.model for sae in every})
    raise SaeError(
        "No SAE of Gemma Scope is meant by this pattern.",
        where="[saes] paths",
        found=f"{pattern}, which matches SAEs of {', '.join(others)} only" if others else pattern,
        expected="a pattern such as gemma-2-2b/*-gemmascope-res-16k or "
        "gemma-scope-2b-pt-res/layer_20/** (`*` within a name, `**` across slashes)"
        + (f", and SAEs of {model}" if others else ""),
    )


def _base(model: str) -> str:
    return model.removesuffix("-it")


def _compiled(pattern: str) -> re.Pattern[str]:
    signs = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*|\*|\?)", pattern)
    return re.compile("".join(signs.get(piece) or re.escape(piece) for piece in pieces))


def _width(written: str) -> int:
    """The power of two that `16k` or `1m` stands for."""
    number = int(written[:-1]) * {"k": 1000, "m": 1_000_000}[written[-1]]
    return min((1 << n for n in range(10, 24)), key=lambda width: abs(width - number))
