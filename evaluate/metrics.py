"""The names of the metrics, and the reasons why a figure is undefined."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float32

from .classic import N_QUARTERS
from .correlation import Correlation, ev_correlation
from .explained import absolute_deviation_explained, r_squared

Measure = Callable[
    [Float32[np.ndarray, "W T"], Float32[np.ndarray, "W T"], Bool[np.ndarray, "W T"]], Correlation
]
SCORER = "simulation"
HEADLINE = "correlation"
CLASSIC: Mapping[str, Measure] = {
    "ev_correlation": ev_correlation,
    "ev_r_squared": r_squared,
    "ev_absolute_deviation_explained": absolute_deviation_explained,
}
CLASSIC_WINDOWS = ("top", "random", "top_and_random")
QUARTERS = tuple(f"correlation_quarter_{number}" for number in range(1, N_QUARTERS + 1))
METRICS = (
    HEADLINE,
    *(f"{name}_{windows}" for windows in CLASSIC_WINDOWS for name in CLASSIC),
    *QUARTERS,
)

NO_QUARTERS = "the feature has fewer active windows than there are quarters"
ITSELF_THE_NULL = "the simulator is the null itself"
NO_ACTIVE_WINDOW = "no simulated window stands for the active part of the split"
NO_SILENT_WINDOW = "no simulated window stands for the silent part of the split"
NO_LABEL = "there is no label"
