"""What a job leaves on disk, on paper: sketches kept in full, at sizes that were measured.

Most features of a small corpus keep less than they may, so these are upper figures. Sizes are those
of `tests/benchmarks/kept_bytes.py`, windows of 64: the toy's own SAE of 1,024 features on 509,424
tokens, and a random one of 16,384 on 261,429; of the two runs the larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .collect_setup import sketch_sizes
from .config import Config
from .paper_saes import PaperSae
from .paper_words import Line, rounded

# Where a path states no L0.
_ASSUMED_L0 = 100.0
# A label's ratings by a judge, about 100 windows of 64 tokens: DECISIONS.md, "Every prediction".
_BYTES_OF_RATINGS = 25_000


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes on disk.

    Attributes:
        kept: of a window kept for a feature, with its activations.
        firing: of an activation in the background.
        window: of a window's text.
        feature: of a feature beside these.
    """

    kept: float
    firing: float
    window: float
    feature: float


PART = Measured(kept=28.5, firing=8.37, window=174, feature=125)
# Beside: what a feature has in a finished run of the demo, 1,700 bytes of counts, neighbours, label
# and scores, and 14,700 of what the token lookup predicted.
DATABASE = Measured(kept=27.2, firing=10.5, window=249, feature=16_400)


def estimate_disk(
    config: Config, saes: Sequence[PaperSae], tokens: int, n_labels: int
) -> list[Line]:
    """The bytes of a part, of the databases, and of what judges said of so many labels."""
    sizes, window = sketch_sizes(config), config.collect.window_tokens
    in_part = int(sizes.kept_top.sum() + sizes.kept_sample.sum())
    in_tables = sum((*sizes.top, *sizes.sample))
    n_models = len({sae.model for sae in saes})
    lines = [
        _line(
            "merged part",
            saes,
            (in_part, int(sizes.kept_background.sum())),
            (window, tokens, n_models),
            PART,
        ),
        _line(
            "database",
            saes,
            (in_tables, sum(sizes.background)),
            (window, tokens, n_models),
            DATABASE,
        ),
    ]
    part, database = (line.amount for line in lines)
    rated = n_labels * _BYTES_OF_RATINGS * bool(config.score.judges)
    said = "while it is merged and published: two parts and a third at hand; three databases"
    lines.append(Line("disk at the most", 3 * part + 3 * database, "bytes", said))
    if rated:
        basis = f"{n_labels:,} labels × {_BYTES_OF_RATINGS:,} bytes (DECISIONS.md), each copy"
        lines.append(Line("ratings", rated, "bytes", basis))
    return lines


def _line(
    name: str,
    saes: Sequence[PaperSae],
    kept: tuple[int, int],
    text: tuple[int, int, int],
    measured: Measured,
) -> Line:
    rows, background = kept
    window_tokens, tokens, n_models = text
    n_features = sum(sae.width for sae in saes)
    n_windows = min(-(-tokens // window_tokens) * n_models, n_features * rows)
    l0 = sum(sae.l0 or _ASSUMED_L0 for sae in saes)
    firings = min(background, tokens // window_tokens) * window_tokens * l0
    n_bytes = (
        n_features * (rows * measured.kept + measured.feature)
        + firings * measured.firing
        + n_windows * measured.window
    )
    basis = (
        f"{rounded(n_features)} features × ({rows} windows × {measured.kept:g} + "
        f"{measured.feature:g}) + {rounded(firings)} firings of the background × "
        f"{measured.firing:g} + {rounded(n_windows)} windows of text × {measured.window:g} bytes, "
        "measured; at most"
    )
    return Line(name, n_bytes, "bytes", basis)
