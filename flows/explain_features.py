"""The flow that writes a label for every feature from its `explain` contexts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from ..label.explainers import NEVER_ACTIVE, Explainer, TokenLookupExplainer
from ..store.absorb import absorb_results
from ..store.contexts import BackgroundWindows, load_background, read_features
from ..store.database import Store, now, open_store, open_work, publish
from ..store.labels import count_labels, label_tables, unlabelled_features
from ..store.parts import remove_unfinished, write_part
from ..store.records import content_hash
from ..store.run_folder import RunFolder, clear_disk_errors
from .batches import as_is, finish_as_completed, require_collected, task_ranges, worker_threads
from .config import Config
from .progress import Progress
from .recorded_runs import recorded_run
from .reports import StageReport

EXPLAINERS: Mapping[str, Explainer] = {"token_lookup": TokenLookupExplainer()}


@flow(
    name="explain-features",
    validate_parameters=False,
    task_runner=ThreadPoolTaskRunner(max_workers=worker_threads()),  # type: ignore[arg-type]
)
def explain_features(config: Config, folder: RunFolder, progress: Progress) -> StageReport:
    """Labels every feature that an explainer has not seen, and publishes the labels."""
    started = time.monotonic()
    with recorded_run("explain", config, folder) as run, clear_disk_errors(folder.path):
        remove_unfinished(folder.parts)
        _absorb(folder)  # what a run that died had finished
        require_collected(folder)
        done: Counter[str] = Counter()
        with open_store(folder.path) as store:
            for name in config.explain.explainers:
                explainer = EXPLAINERS[name]
                for batch in _explain_with(explainer, config, folder, progress, store, run.run_id):
                    done += batch
        if done:
            _absorb(folder)
        with open_work(folder.path) as work:
            n_labels = count_labels(work, config.explain.explainers)
        run.stages.append(
            StageReport(
                stage="explain",
                unit="labels",
                done=done[""],
                already_done=n_labels - done.total(),
                # A feature without any text is no failure of the work: it is said, not alarmed.
                failures={r: n for r, n in sorted(done.items()) if r not in ("", NEVER_ACTIVE)},
                seconds=time.monotonic() - started,
                notes=_notes(done[NEVER_ACTIVE]),
            )
        )
        return run.stages[-1]


@task(name="explain-features", cache_policy=NO_CACHE, persist_result=False)
def explain_batch(
    explainer: Explainer,
    sae_id: str,
    features: range,
    store: Store,
    background: BackgroundWindows,
    texts: Mapping[int, str],
    folder: RunFolder,
    run_id: str,
) -> Counter[str]:
    """Labels consecutive features of one SAE into a part; counts labels and failures."""
    with store.cursor() as connection:
        contexts = read_features(connection, sae_id, features, background)
        labels = [explainer.explain(each, texts.__getitem__) for each in contexts]
    content = content_hash([explainer.name, explainer.version, [each.label_id for each in labels]])
    tables = label_tables(labels, run_id, now())
    write_part(folder.parts, f"explain-{content}", "explain", tables, {})
    return Counter(label.reason or "" for label in labels)


def _explain_with(
    explainer: Explainer,
    config: Config,
    folder: RunFolder,
    progress: Progress,
    store: Store,
    run_id: str,
) -> Iterator[Counter[str]]:
    missing = unlabelled_features(store.connection, explainer.name, explainer.version)
    tasks = list(task_ranges(missing, config.explain.features_per_task))
    if not tasks:
        return
    background = load_background(store.connection, "explain")
    texts = store.token_texts()
    futures = [
        explain_batch.submit(
            as_is(explainer),
            sae_id,
            as_is(features),
            as_is(store),
            as_is(background),
            as_is(texts),
            as_is(folder),
            run_id,
        )
        for sae_id, features in tasks
    ]
    total = sum(len(features) for _, features in tasks)
    with progress.stage("explain", total=total, unit="features") as stage:
        for counted in finish_as_completed(futures):
            stage.advance(counted.total())
            yield counted


def _notes(n_never_active: int) -> tuple[str, ...]:
    if not n_never_active:
        return ()
    return (f"{n_never_active:,} features have no label: {NEVER_ACTIVE}",)


def _absorb(folder: RunFolder) -> None:
    with open_work(folder.path) as work:
        if absorb_results(work, folder.parts, "explain"):
            publish(work, folder.path)
