"""What `scopenote compare` compares: sides of one run, or two runs by their labels in force."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..store.database import Store
from ..store.errors import StoreError, UserMistake
from ..store.paired_scores import (
    Figure,
    ScoredSide,
    SideKey,
    read_metrics,
    read_scored_in_force,
    read_scored_sides,
    read_side,
    read_side_in_force,
)
from ..store.side_facts import SharedSaes, SideFacts, read_side_facts, share_saes
from ..store.side_pairs import count_texts
from .compared_sides import (
    BesideLookup,
    Compared,
    Comparison,
    Side,
    beside_lookup,
    compare_tables,
)
from .terminal import program

_SPLITS = ("select", "score")
_HEADLINE = ("simulation", "correlation")


def compare_sides(
    store: Store, by: SideKey, base: str | None, metric: str, n_shown: int
) -> Comparison:
    """Compares what a run's labels by different explainers, models and so on score.

    Args:
        store: the run's.
        by: what tells sides apart.
        base: what the others are compared with; None: the side with most scores.
        metric: of the simulation, or `scorer/metric`.
        n_shown: how many features that moved most, each way.

    Raises:
        UserMistake: there are not two sides, or none has scores by one simulator.
    """
    scorer, name = _metric(metric)
    with store.cursor() as connection:
        scored = read_scored_sides(connection, by, scorer, name)
        facts = read_side_facts(connection, by)
        if not any(each.n for each in scored):
            raise _no_scores(f"{scorer}/{name}", read_metrics(connection))
    if len(facts) < 2:
        (only,) = facts
        raise UserMistake(
            f"All labels are by the same {_words(by)}.",
            found=title_of(only, by),
            expected=f"two sides, by {', '.join(SideKey)}",
            mend="name another run to compare this one with, or label it in another way too: "
            "change `[explain]` in a configuration and run it with `--out` here",
        )
    sides = {
        each: Side(title_of(each, by), behind, store)
        for each, behind in sorted(facts.items(), key=lambda it: title_of(it[0], by))
    }
    chosen = _base(base, by, sides, scored)
    found: list[Compared] = []
    lookups: list[BesideLookup] = []
    for figure, names in _figures(scored):
        with store.cursor() as connection:
            tables = {each: read_side(connection, by, each, figure) for each in names}
        if figure.split == "score":
            compared = (beside_lookup(figure, sides[each], tables[each]) for each in names)
            lookups += [each for each in compared if each is not None]
        if chosen in tables:
            others = [(sides[each], tables[each]) for each in names if each != chosen]
            found += compare_tables(figure, sides[chosen], others, tables[chosen], n_shown)
    if not lookups and not any(it.rows for it in found):
        raise UserMistake(
            f"No feature has scores by {sides[chosen].title} and by another under one simulator.",
            found="; ".join(_counted(scored, by)),
            expected="labels of the same features, scored by the same simulator",
            mend="name another side with `--base`, or have one judge score both: "
            "`[score] simulators`",
        )
    ordered = [sides.pop(chosen), *sides.values()]
    return Comparison(
        by=by.value,
        metric=f"{scorer}/{name}",
        sides=tuple((each.title, each.facts) for each in ordered),
        compared=tuple(found),
        lookups=tuple(lookups),
        notes=tuple(_differing(by, ordered)),
    )


def compare_runs(
    base: Store, other: Store, titles: tuple[str, str], metric: str, n_shown: int
) -> Comparison:
    """Compares two runs by the labels in force of the SAEs that they share.

    Raises:
        UserMistake: they share no SAE, or no simulator has scored labels of both.
    """
    scorer, name = _metric(metric)
    stores = (base, other)
    with base.cursor() as here, other.cursor() as there:
        shared = share_saes(here, there)
        if not shared.both:
            raise _nothing_shared(shared, titles)
        counts = [read_scored_in_force(each, scorer, name) for each in (here, there)]
        facts = [
            read_side_facts(each, None).get(None, SideFacts.of_nothing()) for each in (here, there)
        ]
        simulators = [it for it in counts[0] if counts[0][it] and counts[1].get(it)]
        if not simulators:
            known = [", ".join(it for it in each if each[it]) or "nothing" for each in counts]
            raise UserMistake(
                f"No simulator has scored labels of both runs by {scorer}/{name}.",
                found="; ".join(
                    f"{title}: {words}" for title, words in zip(titles, known, strict=True)
                ),
                expected="scores by the same simulator: another judge is another scale",
                mend="have the same judge score both: `[score]` in the configuration",
            )
        figures = [Figure(scorer, name, it, "score") for it in simulators]
        tables = [
            [read_side_in_force(each, figure, shared.both) for each in (here, there)]
            for figure in figures
        ]
    first, second = (
        Side(title, replace(behind, name=title), store)
        for title, behind, store in zip(titles, facts, stores, strict=True)
    )
    compared: list[Compared] = []
    for figure, (of_base, of_other) in zip(figures, tables, strict=True):
        compared += compare_tables(figure, first, [(second, of_other)], of_base, n_shown)
    if not any(it.rows for it in compared):
        raise UserMistake(
            "No feature has a score in both runs.",
            found=f"scores by {', '.join(simulators)}, of different features",
            expected="the same features: `features` under `[explain]` draws the same ones for "
            "the same SAEs",
        )
    return Comparison(
        by="run",
        metric=f"{scorer}/{name}",
        sides=tuple((each.title, each.facts) for each in (first, second)),
        compared=tuple(compared),
        texts=count_texts(*tables[0]),
        notes=tuple(_left_out(shared)),
    )


def require_current(store: Store, run: str) -> None:
    """Refuses what an older version published and nothing could bring up to date.

    Raises:
        StoreError: it is such a run.
    """
    if store.is_older:
        raise StoreError(
            "An older version of Scopenote published this run.",
            where=run,
            found="the published database alone, or somebody at work on it",
            mend=f"bring it up to date where its folder is whole: `{program()} status RUN`",
        )


def title_of(name: str | None, by: SideKey) -> str:
    """What a side is called."""
    return f"no {_words(by)}" if name is None else name


def _words(by: SideKey) -> str:
    return by.value.replace("_", " ")


def _metric(words: str) -> tuple[str, str]:
    scorer, slash, metric = words.partition("/")
    return (scorer, metric) if slash else (_HEADLINE[0], words)


def _no_scores(asked: str, known: Sequence[str]) -> UserMistake:
    if not known:
        return UserMistake(
            "There is nothing to compare: no label has a score.",
            mend=f"`{program()} score RUN`",
        )
    return UserMistake(
        "No label has such a score.",
        found=f"--metric {asked.removeprefix('simulation/')}",
        expected=", ".join(it.removeprefix("simulation/") for it in known),
    )


def _nothing_shared(shared: SharedSaes, titles: Sequence[str]) -> UserMistake:
    if shared.different:
        return UserMistake(
            "The two runs have SAEs of the same names and with other tensors: their features have "
            "nothing in common.",
            where=" and ".join(titles),
            found=", ".join(shared.different),
        )
    return UserMistake(
        "The two runs have no SAE in common.",
        where=" and ".join(titles),
        found=", ".join(shared.only_one) or "no SAE at all",
        expected="runs over the same SAEs",
    )


def _base(
    wanted: str | None,
    by: SideKey,
    sides: Mapping[str | None, Side],
    scored: Sequence[ScoredSide],
) -> str | None:
    """The side that the others are compared with."""
    if wanted is not None:
        for name, side in sides.items():
            if side.title == wanted:
                return name
        raise UserMistake(
            f"There is no such {_words(by)}.",
            found=f"--base {wanted}",
            expected=", ".join(side.title for side in sides.values()),
        )
    n_others: dict[tuple[Figure, str | None], int] = {
        (each.figure, each.name): sum(
            it.n > 0 for it in scored if it.figure == each.figure and it.name != each.name
        )
        for each in scored
    }

    def weight(name: str | None) -> tuple[int, int]:
        mine = [each for each in scored if each.name == name and each.n]
        # First who can be compared at all: the token lookup is its own simulator.
        shared = [each.n for each in mine if n_others[each.figure, name]]
        return max(shared, default=0), max((each.n for each in mine), default=0)

    return max(sides, key=weight)


def _figures(scored: Sequence[ScoredSide]) -> Iterator[tuple[Figure, list[str | None]]]:
    """What is compared, with the sides that have it: by simulator, `score` last.

    What a single side has is wanted where the token lookup stands beside it.
    """
    names: dict[Figure, list[str | None]] = defaultdict(list)
    for each in scored:
        if each.n and each.figure.split in _SPLITS:
            names[each.figure].append(each.name)
    beside = {each.figure for each in scored if each.n_lifts and each.figure.split == "score"}
    names = {figure: it for figure, it in names.items() if len(it) > 1 or figure in beside}
    for figure in sorted(names, key=lambda it: (it.simulator, _SPLITS.index(it.split))):
        yield figure, sorted(names[figure], key=lambda it: (it is None, it))


def _counted(scored: Sequence[ScoredSide], by: SideKey) -> Iterator[str]:
    for each in scored:
        if each.n and each.figure.split == "score":
            yield f"{title_of(each.name, by)}: {each.n:,} by {each.figure.simulator}"


def _differing(by: SideKey, sides: Sequence[Side]) -> Iterator[str]:
    """What sides differ in besides what they are told apart by: it may be the cause as well."""
    for column, key in (("explainers", SideKey.explainer), ("models", SideKey.model)):
        values = {side.title: getattr(side.facts, column) for side in sides}
        values = {title: names for title, names in values.items() if names}
        if key != by and len(set(values.values())) > 1:
            listed = "; ".join(f"{title}: {', '.join(it)}" for title, it in values.items())
            yield f"the sides differ in {column} too ({listed})"


def _left_out(shared: SharedSaes) -> Iterator[str]:
    if shared.different:
        yield "left out, of the same name with other tensors: " + ", ".join(shared.different)
    if shared.only_one:
        yield "left out, in one of the runs only: " + ", ".join(shared.only_one)
