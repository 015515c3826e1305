"""How often the 95% interval holds the truth, with screened silence and preset looks: a table.

By density, share of silent windows with a false positive, and silent windows rated: without a
screen, and with screens that fire in half, 75% and 95% of those false positives and in 2% of other
silent windows; then the same at looks after 1/4, 1/2 and all of the windows, which stop when the
interval is narrower than 0.2 or on one side of a threshold. A cell is the coverage in percent
and, in brackets, the mean width. `plain` is the bootstrap without a guard and with plain
percentiles, without a screen; `used` is the mean share of the windows that looks used, likewise.
Populations and draws are those of `tests/populations.py`.

    python tests/benchmarks/interval_coverage.py [--draws 1000] [--active 60] [--cells "0.3% 1.0%"]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.populations import NEAR, RECALLS, Cell, Covered, Kind, cover

DENSITIES = (0.003, 0.01, 0.05)
FALSE_SHARES = (0.002, 0.01)
N_SILENT = (20, 60, 200, 500, 2000)


def main() -> None:
    """Writes the table, as the README has it, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000, help="samples drawn for each cell")
    parser.add_argument("--active", type=int, default=60, help="active windows in each sample")
    parser.add_argument("--cells", default="", help="only rows whose beginning contains this")
    parser.add_argument("--of-tokens", action="store_true", help="false positives by tokens")
    parser.add_argument("--threshold", type=float, default=NEAR, help="from the truth, for looks")
    arguments = parser.parse_args()
    names = ["none", *(f"{recall:.0%}" for recall in RECALLS[1:])]
    heads = ["density", "false", "silent", *names, *(f"looks, {name}" for name in names)]
    print_row([*heads, "plain", "used"])
    print_row(["---"] * (len(heads) + 2))
    worst = 1.0
    for density in DENSITIES:
        for share in FALSE_SHARES:
            for n_silent in N_SILENT:
                begins = [f"{density:.1%}", f"{share:.1%}", f"{n_silent:,}"]
                if arguments.cells not in " ".join(begins):
                    continue
                kind = Kind(density, share, arguments.of_tokens)
                found = [
                    cover(
                        Cell(kind, arguments.active, n_silent, recall),
                        arguments.draws,
                        arguments.threshold,
                    )
                    for recall in RECALLS
                ]
                worst = min(worst, *(min(each.fixed, each.looks) for each in found))
                print_row([*begins, *cells(found)])
    sys.stderr.write(f"the lowest coverage is {worst:.1%}\n")


def cells(found: list[Covered]) -> list[str]:
    """What a row says of each screen."""
    fixed = [cell(each.fixed, each.width) for each in found]
    looks = [cell(each.looks, each.width_of_looks) for each in found]
    plain = cell(found[0].plain, found[0].width_of_plain)
    return [*fixed, *looks, plain, f"{found[0].used:.0%}"]


def cell(coverage: float, width: float) -> str:
    """The coverage in percent and the mean width."""
    return f"{100 * coverage:.1f} ({width:.2f})".replace("(0.", "(.")


def print_row(row: list[str]) -> None:
    """Writes one line of the table."""
    sys.stdout.write(f"| {' | '.join(row)} |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
