"""Which SAEs Gemma Scope published, which of them are canonical, and their short names.

For the SAEs of Gemma Scope (Lieberum et al. 2024), which published several for each layer and
width, Neuronpedia's plain id means the *canonical* one, with the L0 nearest 100; the others
append their L0. It also means one that was trained on the model it is used on; SAEs of the base
model on its form for chat append `-pt`, those of the latter on the former `-it`. The hub does not
tell the canonical choices. So every SAE stands in `gemma_scope_index.json`, from the pre-trained
SAE list of SAELens 6.54 (MIT licence): {repository: {model, widths: {width: {layer: L0s}}}}, the
canonical L0 first, or null where none was chosen.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from ..store.errors import SaeError

OWNER = "google"
EMBEDDING = "embedding"

# The first Gemma Scope is finished: what the index lacks of it does not exist.
_INDEXED = re.compile(r"gemma-scope-(2b|9b|27b)-")
_SHORT_NAME = re.compile(
    r"(?P<model>[^/]+)/(?P<layer>\d+|e)-gemmascope-(?P<kind>res|mlp|att|transcoder)"
    r"-(?P<width>\w+?)(-(?P<release>pt|it))?((-|__)l0-(?P<l0>\d+))?"
)
_INSIDE = re.compile(
    r"(layer_(?P<layer>\d+)|embedding)/width_(?P<width>\w+)(/average_l0_(?P<l0>\d+))?"
)


@dataclass(frozen=True, slots=True)
class PublishedSae:
    """An SAE's place in a repository: its layer (or `embedding`), width and L0."""

    layer: str
    width: str
    l0: int

    @property
    def path(self) -> str:
        """The folder inside the repository."""
        place = self.layer if self.layer == EMBEDDING else f"layer_{self.layer}"
        return f"{place}/width_{self.width}/average_l0_{self.l0}"


@dataclass(frozen=True, slots=True)
class Repository:
    """The SAEs of one repository: by width and layer (or `embedding`) their L0s."""

    model: str
    widths: dict[str, dict[str, list[int | None]]]

    def canonical_l0(self, layer: str, width: str) -> int | None:
        """The L0 of the SAE with the plain id, if one was chosen."""
        listed = self.widths.get(width, {}).get(layer)
        return listed[0] if listed else None

    def saes(self) -> Iterable[PublishedSae]:
        """All of them."""
        for width, layers in self.widths.items():
            for layer, l0s in layers.items():
                yield from (PublishedSae(layer, width, l0) for l0 in l0s if l0 is not None)

    def nearest(self, layer: str, width: str, l0: int | None) -> list[PublishedSae]:
        """The two that were most probably meant: of that layer, then of that width and L0.

        Where there is no such layer or width, or no L0 is asked for, canonical ones go first.
        """
        is_published = layer in self.widths.get(width, {})

        def distance(sae: PublishedSae) -> tuple[float, bool, bool, int]:
            if layer == sae.layer:
                layers_apart = 0.0
            elif EMBEDDING in (layer, sae.layer):
                layers_apart = float("inf")
            else:
                layers_apart = abs(int(layer) - int(sae.layer))
            is_canonical = sae.l0 == self.canonical_l0(sae.layer, sae.width)
            without_l0 = 0 if is_canonical else sae.l0
            l0_apart = without_l0 if l0 is None else abs(l0 - sae.l0)
            by_choice = not (is_published or is_canonical)
            return layers_apart, by_choice, width != sae.width, l0_apart

        return sorted(self.saes(), key=distance)[:2]


@cache
def read_index() -> dict[str, Repository]:
    """Gemma Scope's repositories by name, without their owner."""
    data = files("scopenote.extract").joinpath("gemma_scope_index.json").read_text("utf-8")
    return {name: Repository(**entry) for name, entry in json.loads(data).items()}


def mark_release(release: str | None, model: str) -> str:
    """What an SAE's id has to say of the form of the model that the SAE was trained on.

    Neuronpedia gives the SAEs of both forms one source id under two models, so that it has none
    for an SAE on the form that it was not trained on, which Gemma Scope's authors recommend.

    Args:
        release: `pt`, `it`, or None where it is not known.
        model: the model that is read, as in feature ids; Gemma's forms for chat end in `-it`.

    Returns:
        `-pt` or `-it` where the SAE was trained on the other form; else nothing.
    """
    own = "it" if model.endswith("-it") else "pt"
    return "" if release in (own, None) else f"-{release}"


def gemma_scope_id(
    model: str,
    repository: str,
    layer: str,
    kind: str,
    width: str,
    l0: int,
    by_layer: str | None = None,
) -> str:
    """An SAE's part of feature ids, such as `20-gemmascope-res-16k` or, not canonical, `…-l0-22`.

    Args:
        model: that is read, as in feature ids.
        repository: its name, without the owner.
        layer: as the repository calls it; `embedding` becomes `e`, and its kind `res`.
        kind: what is read.
        width: as the repository writes it.
        l0: as the repository states it.
        by_layer: the layer to show, where the caller knows better than the repository.
    """
    entry = read_index().get(repository)
    canonical = entry.canonical_l0(layer, width) if entry else None
    start = "e" if layer == EMBEDDING else by_layer or layer
    shown = "res" if layer == EMBEDDING else kind
    release = re.search(r"-(pt|it)-", repository)
    source = f"{start}-gemmascope-{shown}-{width}" + mark_release(release and release[1], model)
    return source + ("" if l0 == canonical else f"-l0-{l0}")


def resolve_short_name(name: str) -> str | None:
    """The hub path that a short name such as `gemma-2-2b/20-gemmascope-res-16k` stands for.

    Neuronpedia's own spelling of an L0, `…-16k__l0-22`, is understood as well as `…-16k-l0-22`.
    `gemma-2-9b-it/9-gemmascope-res-16k-pt` is an SAE of gemma-2-9b.

    Returns:
        None for what is no short name.

    Raises:
        SaeError: Gemma Scope has no such SAE; with those that are nearest.
    """
    asked = _SHORT_NAME.fullmatch(name)
    if asked is None:
        return None
    model = asked["model"]
    if asked["release"]:
        model = model.removesuffix("-it") + ("-it" if asked["release"] == "it" else "")
    repository = _repository_for(model, asked["kind"])
    if repository is None:
        kinds = sorted(f"{entry.model} ({_kind_of(name)})" for name, entry in read_index().items())
        raise SaeError(
            "Gemma Scope has no SAEs of this model and site.",
            where="[saes] paths",
            found=name,
            expected="one of " + ", ".join(kinds),
        )
    entry = read_index()[repository]
    layer, width = EMBEDDING if asked["layer"] == "e" else asked["layer"], asked["width"]
    l0 = int(asked["l0"]) if asked["l0"] else entry.canonical_l0(layer, width)
    if l0 is not None and PublishedSae(layer, width, l0) in entry.saes():
        return f"{OWNER}/{repository}/{PublishedSae(layer, width, l0).path}"
    near = [
        f"{asked['model']}/"
        + gemma_scope_id(asked["model"], repository, sae.layer, asked["kind"], sae.width, sae.l0)
        for sae in entry.nearest(layer, width, l0)
    ]
    raise _no_such_sae(name, f"one of the SAEs of {OWNER}/{repository}", near)


def check_published(repository: str, inside: str) -> None:
    """Makes sure, without asking the hub, that a path in Gemma Scope's repositories exists.

    What is not of the first Gemma Scope passes: only the hub knows.

    Args:
        repository: `owner/name`.
        inside: the folder in it.

    Raises:
        SaeError: it does not exist; with the nearest that do.
    """
    owner, _, name = repository.partition("/")
    if owner != OWNER or not _INDEXED.match(name):
        return
    entry = read_index().get(name)
    if entry is None:
        near = difflib.get_close_matches(name, read_index(), n=2, cutoff=0)
        paths = [f"{OWNER}/{other}" for other in near]
        raise _no_such_sae(repository, "a repository of Gemma Scope", paths)
    published = [sae.path for sae in entry.saes()]
    if inside in published:
        return
    if asked := _INSIDE.match(inside):
        l0 = int(asked["l0"]) if asked["l0"] else None
        meant = entry.nearest(asked["layer"] or EMBEDDING, asked["width"], l0)
        near = [sae.path for sae in meant]
    else:
        near = difflib.get_close_matches(inside, published, n=2, cutoff=0)
    raise _no_such_sae(
        f"{repository}/{inside}",
        f"one of the {len(published)} SAEs of {repository}",
        [f"{repository}/{path}" for path in near],
    )


def _repository_for(model: str, kind: str) -> str | None:
    for name, entry in read_index().items():
        if entry.model == model and _kind_of(name) == kind:
            return name
    return None


def _kind_of(repository: str) -> str:
    ending = repository.rpartition("-")[2]
    return "transcoder" if ending == "transcoders" else ending


def _no_such_sae(found: str, expected: str, near: list[str]) -> SaeError:
    return SaeError(
        "Gemma Scope has no such SAE.",
        where="[saes] paths",
        found=found,
        expected=expected,
        mend=f"the nearest are {' and '.join(near)}",
    )
