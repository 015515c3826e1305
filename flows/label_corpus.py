"""The whole job: from text to scored labels."""

from __future__ import annotations

from decimal import Decimal

from prefect import flow

from ..store.run_folder import RunFolder
from .collect_contexts import collect_contexts
from .config import Config
from .explain_features import explain_features
from .progress import Progress
from .recorded_runs import recorded_run
from .reports import RunReport
from .runners import task_runner
from .score_labels import score_labels

# Where money or time may end before the work does, so many features are labelled and then
# scored, and then the next: labels without scores are of little use.
_FEATURES_A_ROUND = 128


@flow(name="label-corpus", validate_parameters=False)
def label_corpus(
    config: Config,
    folder: RunFolder,
    progress: Progress,
    allow_mismatch: bool = False,
    budget_usd: Decimal | None = None,
) -> RunReport:
    """Collects, explains and scores all that is not in the run's folder already."""
    with (
        recorded_run("run", config, folder, budget_usd) as run,
        task_runner(config.runner, folder),
    ):
        collect_contexts(config, folder, progress, allow_mismatch)
        in_rounds = run.spending.is_limited and config.explain.prompted and config.score.judges
        at_most = _FEATURES_A_ROUND if in_rounds and not config.explain.chat.batch else None
        n_labels, is_last = 0, False
        while not is_last:
            explained = explain_features(config, folder, progress, budget_usd, at_most=at_most)
            # A round that comes to nothing would be followed by the same.
            n_before, n_labels = n_labels, explained.done + explained.n_failed
            is_last = not explained.left or explained.is_spent or n_labels == n_before
            scored = score_labels(config, folder, progress, budget_usd, again=is_last)
            is_last |= scored.is_spent
        return run.report
