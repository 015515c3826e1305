"""How often a score drops when a label loses half of its tokens or gains as many: a table.

By density and by how many active and silent windows are simulated, for the headline and for the
classic top-and-random score. Features are planted (`tests/planted_rules.py`).

    python tests/benchmarks/sanity_checks.py [--features 100]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.test_planted_rules import HALF, METRICS, TWICE, sanity_checks

DENSITIES = (0.003, 0.01, 0.05)
SIZES = ((60, 4096), (60, 2000), (60, 500), (30, 60), (60, 20))


def main() -> None:
    """Writes the table, as the README has it."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--features", type=int, default=100, help="planted for each density")
    n_features = arguments.parse_args().features
    rows = ["density | active and silent windows | headline, half | twice | classic, half | twice"]
    rows.append(" | ".join(["---"] * 6))
    for density in DENSITIES:
        for size, found in sanity_checks(density, n_features, SIZES).items():
            shares = [found[metric][label] for metric in METRICS for label in (HALF, TWICE)]
            cells = " | ".join(f"{share:.1%}" for share in shares)
            rows.append(f"{density:.1%} | {size[0]} and {size[1]:,} | {cells}")
    sys.stdout.writelines(f"| {row} |\n" for row in rows)


if __name__ == "__main__":
    main()
