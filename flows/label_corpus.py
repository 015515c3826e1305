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
from .score_labels import score_labels


@flow(name="label-corpus", validate_parameters=False)
def label_corpus(
    config: Config,
    folder: RunFolder,
    progress: Progress,
    allow_mismatch: bool = False,
    budget_usd: Decimal | None = None,
) -> RunReport:
    """Collects, explains and scores all that is not in the run's folder already."""
    with recorded_run("run", config, folder) as run:
        collect_contexts(config, folder, progress, allow_mismatch)
        explain_features(config, folder, progress, budget_usd)
        score_labels(config, folder, progress, budget_usd)
        return run.report
