"""A picture of an inspected text: features by token, an image an SAE, and the logit lens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store.errors import StoreError, UserMistake
from .inspect_text import InspectedLens, InspectedSae, Inspection
from .visible_text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg")
_MOST_SAES, _FEATURES = 6, 12
# Beyond, the names of tokens would be too small to be read.
_NAMED_TOKENS = 80
_LABEL, _TOKEN, _CELL = 38, 12, 8
# Inches.
_COLUMN, _ROW, _BETWEEN, _LEAST_WIDTH = 0.42, 0.24, 1.25, 6.0
_ROW_NAMES = 3.4
# White is nothing; above a share of full colour letters are white.
_ACTIVATION, _PROBABILITY, _DARK = "Oranges", "Blues", 0.55


def require_picture(file: Path) -> None:
    """Makes sure that a picture can be written under this name, before the model is loaded.

    Raises:
        UserMistake: it ends otherwise than pictures do, or its folder is not there.
    """
    if file.suffix.lower() not in ENDINGS:
        raise UserMistake(
            "The picture's name says no kind that can be drawn.",
            where="--plot",
            found=str(file),
            expected=f"a name that ends in {' or '.join(ENDINGS)}",
        )
    if not file.absolute().parent.is_dir():
        raise UserMistake(
            "The picture's folder is not there.", where="--plot", found=str(file.parent)
        )


def draw_inspection(found: Inspection, file: Path) -> list[str]:
    """Draws the strongest features of each SAE on every token, and the lens as a heat map.

    Colour is a feature's activation, from 0 to the SAE's largest in the text; of the lens, the
    probability of the most probable next token. The same inspection gives the same bytes.

    Args:
        found: of more than six SAEs the first are drawn.
        file: a PNG or SVG, by its ending.

    Returns:
        What is to be said about it, a line each.

    Raises:
        StoreError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [sae for sae in found.saes if sae.strongest(1)][:_MOST_SAES]
    n_tokens, heights = len(found.prompt.tokens), [len(sae.strongest(_FEATURES)) for sae in shown]
    if found.lens is not None:
        heights.append(found.lens.n_layers)
    width = max(_LEAST_WIDTH, _ROW_NAMES + 1.2 + _COLUMN * min(n_tokens, 2 * _NAMED_TOKENS))
    height = sum(_BETWEEN + _ROW * max(2, rows) for rows in heights)
    figure = Figure(figsize=(width, max(2.0, height)), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    drawing = _Drawing(found, figure, heights)
    for sae in shown:
        drawing.add_features(sae)
    if found.lens is not None:
        drawing.add_lens(found.lens)
    # Otherwise the date, random names and the version of matplotlib stand in the file.
    stable: Any = {"svg.hashsalt": "scopenote", "svg.fonttype": "none"}
    metadata = (
        {"Date": None, "Creator": None} if file.suffix.lower() == ".svg" else {"Software": None}
    )
    try:
        with matplotlib.rc_context(stable):
            figure.savefig(file, metadata=metadata)
    except OSError as error:
        raise StoreError(
            "The picture cannot be written.", where=str(file), found=error.strerror
        ) from error
    return list(_remarks(found, len(shown), file))


def _remarks(found: Inspection, n_shown: int, file: Path) -> Iterator[str]:
    yield f"drawn: {file}"
    if n_shown < len(found.saes):
        yield (
            f"the picture has {n_shown} of {len(found.saes)} SAEs: "
            f"at most {_MOST_SAES} in which something fires; --sae chooses"
        )


class _Drawing:
    """A figure with an image below the other, all over the same tokens."""

    def __init__(self, found: Inspection, figure: Figure, heights: list[int]) -> None:
        self._found, self._figure = found, figure
        rows = max(1, len(heights))
        ratios = [max(2, each) for each in heights] or [2]
        self._axes = iter(figure.subplots(rows, squeeze=False, height_ratios=ratios)[:, 0])
        self._known = _known_characters()

    def add_features(self, sae: InspectedSae) -> None:
        strongest = sae.strongest(_FEATURES)
        grid = sae.activations([each.feature_id.feature for each in strongest])
        # In the order of the text, so that the eye can follow both.
        order = np.argsort(grid.argmax(axis=1), kind="stable")
        strongest, grid = [strongest[row] for row in order], grid[order]
        names = []
        for each in strongest:
            label = each.known.label
            names.append(f"{self._cut(label, _LABEL)}  {each.name}" if label else each.name)
        unseen = "" if sae.unexplained is None else f", {sae.unexplained:.0%} unseen"
        title = f"{sae.sae.sae_id}: activation{unseen}"
        self._add_image(next(self._axes), grid, names, title, _ACTIVATION, None)

    def add_lens(self, lens: InspectedLens) -> None:
        axes = next(self._axes)
        grid = lens.probability[:, :, 0]
        names = [f"layer {layer}" for layer in range(lens.n_layers)]
        title = "logit lens: the most probable next token, and how probable"
        self._add_image(axes, grid, names, title, _PROBABILITY, 1.0)
        if grid.shape[1] > _NAMED_TOKENS:
            return
        for layer in range(grid.shape[0]):
            for place in range(grid.shape[1]):
                best = lens.next_tokens(layer, place)[0]
                axes.text(
                    place,
                    layer,
                    self._cut(best.text, _CELL),
                    ha="center",
                    va="center",
                    fontsize=5.5,
                    color="white" if best.probability > _DARK else "black",
                    parse_math=False,
                )

    def _add_image(
        self,
        axes: Axes,
        grid: np.ndarray,
        names: list[str],
        title: str,
        colours: str,
        most: float | None,
    ) -> None:
        image = axes.imshow(grid, aspect="auto", cmap=colours, vmin=0.0, vmax=most)
        image.set_interpolation("nearest")
        axes.set_title(title, loc="left", fontsize=9, parse_math=False)
        axes.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
        tokens = self._found.prompt.tokens
        if len(tokens) <= _NAMED_TOKENS:
            shown = [self._cut(token, _TOKEN) for token in tokens]
            axes.set_xticks(range(len(tokens)), shown, rotation=90, fontsize=7, parse_math=False)
            axes.set_xticks(np.arange(len(tokens) + 1) - 0.5, minor=True)
            axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
            axes.grid(which="minor", color="#dddddd", linewidth=0.5)
        else:
            axes.set_xlabel("token", fontsize=8)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        bar = self._figure.colorbar(image, ax=axes, pad=0.01, aspect=max(6, 2 * len(names)))
        bar.ax.tick_params(labelsize=6, length=2)
        bar.outline.set_visible(False)

    def _cut(self, text: str, most: int) -> str:
        """As much of a text as fits, in characters that the font has."""
        shown = visible(text) if text.strip(" ") else "␣" * len(text)
        shown = "".join(each if ord(each) in self._known else "□" for each in shown)
        return shown if len(shown) <= most else shown[: most - 1] + "…"


def _known_characters() -> set[int]:
    """The characters of the font that comes with matplotlib."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    charmap: dict[int, Any] = FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap()
    return set(charmap)
