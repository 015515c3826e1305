"""How a run stands and how it ended, on a terminal of any width, with or without colour."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..label.pricing import in_dollars
from ..store.batch_record import Batch
from ..store.calls import Spending
from ..store.run_folder import RunFolder
from ..store.status import (
    SCORE_BINS,
    ExtremeLabels,
    ModelLabel,
    PastRun,
    RankedLabel,
    RunStatus,
    SaeStatus,
    SplitStatus,
)
from ..store.unit_names import is_neuron_basis
from .plain_tables import plain_table
from .progress import duration
from .run_page import last_run_blocks
from .show_feature import figure, interval, percentage, sparkline
from .trust_page import trust_blocks
from .visible_text import visible

_UNITS = ("kB", "MB", "GB", "TB")
STATUS_STYLES = {"done": "green", "failed": "red", "interrupted": "yellow", "running": "cyan"}


def render_status(status: RunStatus, folder: RunFolder) -> RenderableType:
    """The page of `scopenote status`."""
    blocks: list[RenderableType] = [_heading(status, folder)]
    if status.saes:
        blocks += ["", _saes_table(status.saes)]
    blocks += _losses_block(status.saes)
    blocks += _failures(status.saes)
    if any(sae.n_labelled for sae in status.saes):
        blocks += ["", *_scores_block(status.saes)]
    blocks += trust_blocks(status)
    if status.spent:
        blocks += ["", _spending_table(status.spent)]
    if status.batches:
        blocks += ["", _batches_table(status.batches)]
    if status.splits:
        blocks += ["", _splits_table(status.splits)]
    if status.last is not None:
        blocks += ["", *last_run_blocks(status.last)]
    if status.runs:
        blocks += ["", _runs_table(status.runs)]
    blocks += ["", _place(status, folder)]
    return Group(*blocks)


def render_ending(
    status: RunStatus,
    extremes: ExtremeLabels,
    folder: RunFolder,
    program: str,
    by_models: Sequence[ModelLabel] = (),
) -> RenderableType:
    """What a finished run ends with: the best and the worst labels, and where to go from here."""
    blocks: list[RenderableType] = []
    if by_models:
        blocks += ["", _model_labels_table(by_models)]
    for title, labels in (("Best labels", extremes.best), ("Worst labels", extremes.worst)):
        if labels:
            blocks += ["", _labels_table(title, labels)]
    if any(sae.n_labelled for sae in status.saes):
        blocks += ["", *_scores_block(status.saes)]
    blocks += _losses_block(status.saes)
    blocks += _failures(status.saes)
    if status.last is not None:
        blocks += ["", *last_run_blocks(status.last, "This run")]
    blocks += ["", *_whereabouts(status, folder)]
    blocks += ["", *_next_steps(extremes, folder, program)]
    return Group(*blocks)


def bytes_in_words(n: int) -> str:
    """A size as people say it: `512 bytes`, `48.2 MB`."""
    if n < 1000:
        return f"{n} bytes"
    power = min(int(math.log(n, 1000)), len(_UNITS))
    # 999,999 bytes are a megabyte, not a thousand kilobytes.
    power += round(n / 1000**power, 1) >= 1000 and power < len(_UNITS)
    size = n / 1000**power
    return f"{size:.{0 if size >= 100 else 1}f} {_UNITS[power - 1]}"


def _heading(status: RunStatus, folder: RunFolder) -> Text:
    models = ", ".join(dict.fromkeys(sae.model for sae in status.saes))
    place = (str(folder.path), "bold")
    if not status.n_tokens:
        return Text.assemble(place, ("  nothing collected yet", "dim"))
    corpus = f"{status.n_tokens:,} tokens of {status.n_documents:,} documents"
    return Text.assemble(place, f"  {models}, {_counted_saes(status.saes)}, {corpus}")


def _counted_saes(saes: Sequence[SaeStatus]) -> str:
    n_bases = sum(is_neuron_basis(sae.sae_id) for sae in saes)
    n_saes = len(saes) - n_bases
    counted = [f"{n_saes} SAE{'s' if n_saes != 1 else ''}"] if n_saes or not n_bases else []
    counted += [f"neurons of {n_bases} layer{'s' if n_bases != 1 else ''}"] if n_bases else []
    return ", ".join(counted)


def _saes_table(saes: Sequence[SaeStatus]) -> Table:
    table = plain_table("SAE", "features>", "alive>", "labelled>", "L0>", "FVU>", "density>")
    for sae in saes:
        table.add_row(
            Text(sae.sae_id, style="cyan"),
            f"{sae.n_features or sae.width:,}",
            f"{sae.n_alive:,}",
            f"{sae.n_labelled:,}",
            figure(sae.mean_l0, 1),
            figure(sae.fvu, 3),
            "–" if sae.density is None else percentage(sae.density),
        )
    return table


def _losses_block(saes: Sequence[SaeStatus]) -> list[RenderableType]:
    """What the SAEs cost the model; nothing where it was not measured."""
    measured = [(sae.sae_id, sae.loss) for sae in saes if sae.loss is not None]
    if not measured:
        return []
    table = plain_table("SAE", "model>", "spliced in>", "zeroed>", "increase>", "recovered>")
    for sae_id, loss in measured:
        table.add_row(
            Text(sae_id, style="cyan"),
            figure(loss.own, 3),
            figure(loss.spliced, 3),
            figure(loss.zeroed, 3),
            figure(loss.increase, 4),
            "–" if loss.recovered is None else f"{figure(100 * loss.recovered, 1)}%",
        )
    what = f"  nats per token, over {measured[0][1].n_tokens:,} tokens of text"
    return ["", Text.assemble(("Next-token loss", "bold"), (what, "dim")), table]


def _failures(saes: Sequence[SaeStatus]) -> list[RenderableType]:
    lines = [
        Text(f"  {sae.sae_id}  {count:,} {visible(reason)}")
        for sae in saes
        for reason, count in sae.failures.items()
    ]
    return ["", Text("Features without a label", style="bold"), *lines] if lines else []


def _scores_block(saes: Sequence[SaeStatus]) -> Iterator[RenderableType]:
    what = "  correlation of simulated and true activations on unseen text"
    yield Text.assemble(("Scores", "bold"), (what, "dim"))
    table = plain_table("SAE", "scored>", "median>", "middle half", f"0{'1':>{SCORE_BINS + 1}}")
    for sae in saes:
        scores = sae.scores
        # A bar between marks, so that an empty end of the scale is seen as one.
        bar = Text(f"▕{sparkline(scores.histogram)}▏", style="cyan", no_wrap=True)
        middle = Text(interval(scores.quarter, scores.three_quarters), no_wrap=True)
        count = f"{scores.n:,}"
        table.add_row(Text(sae.sae_id, style="cyan"), count, figure(scores.median), middle, bar)
    yield table
    for sae in saes:
        undefined = [
            f"{count:,} undefined: {visible(reason)}"
            for reason, count in sae.scores.undefined.items()
        ]
        below = [f"{sae.scores.n_negative:,} below 0"] if sae.scores.n_negative else []
        stale = (
            [f"{sae.scores.n_stale:,} overtaken by newer text, to be scored again"]
            if sae.scores.n_stale
            else []
        )
        for line in (*below, *stale, *undefined):
            yield Text(f"  {sae.sae_id}  {line}", style="dim")


def _spending_table(spent: Sequence[Spending]) -> Table:
    table = plain_table(
        "calls for", "model", "calls>", "failed>", "read>", "cached>", "written>", "dollars>"
    )
    for each in spent:
        usd = "unknown" if each.usd is None else in_dollars(each.usd)
        tokens = (each.prompt_tokens, each.cached_tokens, each.completion_tokens)
        table.add_row(
            Text(visible(each.purpose)),
            Text(visible(each.model)),
            f"{each.n_calls:,}",
            f"{each.n_failed:,}",
            *("" if n is None else f"{n:,}" for n in tokens),
            f"{usd}+" if each.usd is not None and each.n_unpriced else usd,
        )
    return table


def _batches_table(batches: Sequence[Batch]) -> Table:
    table = plain_table("batches under way", "model", "requests>", "state", "submitted", "at most>")
    for batch in batches:
        table.add_row(
            Text(visible(batch.provider_id or "not yet submitted")),
            Text(visible(batch.model)),
            f"{batch.n_requests:,}",
            visible(batch.state.replace("_", " ")),
            moment(batch.submitted_at),
            "unknown" if batch.most_usd is None else in_dollars(batch.most_usd),
        )
    return table


def _splits_table(splits: Sequence[SplitStatus]) -> Table:
    table = plain_table("split", "tokens>", "windows>", "kept>", "of documents>")
    for split in splits:
        table.add_row(
            split.split,
            f"{split.n_tokens:,}",
            f"{split.n_windows:,}",
            f"{split.n_kept_windows:,}",
            f"{split.n_kept_documents:,}",
        )
    return table


def _runs_table(runs: Sequence[PastRun]) -> Table:
    table = plain_table("last runs", "started", "took>", "ended")
    for run in runs:
        seconds = None
        if run.started_at is not None and run.finished_at is not None:
            seconds = (run.finished_at - run.started_at).total_seconds()
        status = run.status or "–"
        table.add_row(
            run.command or run.run_id,
            moment(run.started_at),
            "–" if seconds is None else duration(seconds),
            Text(status, style=STATUS_STYLES.get(status, "")),
        )
    return table


def moment(when: datetime | None) -> str:
    """A time as it is here, to the minute."""
    return "–" if when is None else when.astimezone().strftime("%Y-%m-%d %H:%M")


def _place(status: RunStatus, folder: RunFolder) -> Text:
    size = bytes_in_words(status.database_bytes)
    return Text.assemble(("database  ", "dim"), f"{folder.database}, {size}")


def _labels_table(title: str, labels: Sequence[RankedLabel]) -> Table:
    table = plain_table("feature", "score>", "interval", "label", title=title)
    for label in labels:
        table.add_row(
            Text(label.feature, style="cyan", no_wrap=True),
            figure(label.score),
            Text(interval(label.ci_low, label.ci_high), no_wrap=True, style="dim"),
            Text(visible(label.text)),
        )
    return table


def _model_labels_table(labels: Sequence[ModelLabel]) -> Table:
    models = " and ".join(dict.fromkeys(label.model for label in labels))
    table = plain_table("feature", "label", title=escape(f"Some labels by {visible(models)}"))
    for label in labels:
        table.add_row(Text(label.feature, style="cyan", no_wrap=True), Text(visible(label.text)))
    return table


def _whereabouts(status: RunStatus, folder: RunFolder) -> Iterator[RenderableType]:
    size = bytes_in_words(status.database_bytes)
    yield Text(f"Everything lies in {folder.path}", style="bold")
    yield _indented(
        (folder.database.name, f"the database: features, contexts, labels, scores ({size})"),
        (folder.config_file.name, "the configuration, every setting explained"),
        (f"{folder.logs.name}/", "what Prefect and its server wrote"),
    )


def _next_steps(
    extremes: ExtremeLabels, folder: RunFolder, program: str
) -> Iterator[RenderableType]:
    run = shell_quoted(str(folder.path))
    yield Text("What to try next", style="bold")
    for what, labels in (
        ("the page of a feature, its contexts shaded by activation", extremes.best),
        ("what a label that scored badly has missed", extremes.worst),
    ):
        for label in labels[:1]:
            yield from _suggestion(what, f"{program} show {run} {shell_quoted(label.feature)}")
    yield from _suggestion("all of it in a browser", f"{program} serve {run}")
    yield from _suggestion("how the run stands", f"{program} status {run}")


def _suggestion(what: str, command: str) -> Iterator[Text]:
    yield Text(f"  {what}", style="dim")
    # Never wrapped: it is there to be copied.
    yield Text(f"    {command}", style="cyan", no_wrap=True, overflow="ignore")


def _indented(*rows: Iterable[str]) -> Padding:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(style="dim", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return Padding(grid, (0, 0, 0, 2))


def shell_quoted(argument: str) -> str:
    """An argument as it is typed in a shell."""
    return shlex.quote(argument)
