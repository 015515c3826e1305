"""Which of the windows gathered for a feature stay: its top and its sample, in compiled code.

Of copies, windows with the same token ids, the top keeps the largest peak, then the earliest
occurrence; the sample keeps the earliest and counts the others. Every choice has a total order,
so the result depends on what was gathered and not on when.
"""

from __future__ import annotations

import numpy as np

from .firing_passes import EntryLevels, compiled
from .kept_windows import KeptWindows, Staying


@compiled
def choose_staying(
    rows: KeptWindows, kept_top: np.ndarray, kept_sample: np.ndarray, levels: EntryLevels
) -> Staying:
    """Ranks the rows of each slot, and raises the levels that later ones have to pass.

    Args:
        rows: gathered, those kept before among them.
        kept_top: how many the top keeps, by slot.
        kept_sample: how many the sample keeps, by slot.
        levels: of each slot; changed in place.
    """
    slot, token_hash, occurrence = rows.slot, rows.token_hash, rows.occurrence
    peak, copies, in_top, in_sample = rows.peak, rows.copies, rows.in_top, rows.in_sample
    n_slots = len(kept_top)
    begins = np.zeros(n_slots + 1, np.int64)
    for row in range(len(slot)):
        begins[slot[row] + 1] += 1
    begins = np.cumsum(begins)
    by_slot, place = np.empty(len(slot), np.int64), begins.copy()
    for row in range(len(slot)):
        by_slot[place[slot[row]]] = row
        place[slot[row]] += 1

    sampled, standing_for = np.full(len(slot), False), np.zeros(len(slot), np.int32)
    topped = np.full(len(slot), False)
    stays = np.empty(len(slot), np.int64)
    n_stays = 0
    for s in range(n_slots):
        of_slot = by_slot[begins[s] : begins[s + 1]]
        if not len(of_slot):
            continue
        of_slot = of_slot[np.argsort(token_hash[of_slot])]
        best, n_best, n_sampled = np.empty(len(of_slot), np.int64), 0, 0
        first = 0
        while first < len(of_slot):
            # The copies of one window: the earliest for the sample, the best for the top.
            earliest, highest, n_copies, after = -1, -1, 0, first
            while after < len(of_slot) and token_hash[of_slot[after]] == token_hash[of_slot[first]]:
                row = of_slot[after]
                if in_sample[row]:
                    n_copies += copies[row]
                    if earliest < 0 or occurrence[row] < occurrence[earliest]:
                        earliest = row
                if in_top[row] and (
                    highest < 0
                    or peak[row] > peak[highest]
                    or (peak[row] == peak[highest] and occurrence[row] < occurrence[highest])
                ):
                    highest = row
                after += 1
            if earliest >= 0 and n_sampled < kept_sample[s]:
                sampled[earliest], standing_for[earliest] = True, n_copies
                n_sampled += 1
                if n_sampled == kept_sample[s]:
                    levels.largest_hash[s] = token_hash[earliest]
            if highest >= 0:
                best[n_best] = highest
                n_best += 1
            first = after
        best = best[:n_best]
        best = best[np.argsort(occurrence[best])]
        best = best[np.argsort(-peak[best], kind="mergesort")][: kept_top[s]]
        topped[best] = True
        if len(best) and len(best) == kept_top[s]:
            levels.least_peak[s] = peak[best[-1]]
        for row in of_slot:
            if sampled[row] or topped[row]:
                stays[n_stays] = row
                n_stays += 1
    stays = stays[:n_stays].copy()
    return Staying(stays, standing_for[stays], topped[stays], sampled[stays])
