"""Small runs made for searches: features with labels, scores, neighbours, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
from scopenote.flows.config import demo_config
from scopenote.store.database import open_work, publish
from scopenote.store.facts import set_meta
from scopenote.store.run_folder import RunFolder

LOW, HIGH = "toy-gemma-2/1-res-1k", "toy-gemma-2/3-mlp-1k"


@dataclass(frozen=True, slots=True)
class Said:
    """A feature and its label; no text: none."""

    feature: int
    text: str | None
    explanation: str | None = None
    sae: str = LOW
    score: float | None = None
    density: float = 0.01
    explainer: str = "highlighted"

    @property
    def label_id(self) -> str:
        return f"{self.sae}:{self.feature}"


def make_searched_run(
    folder: Path, said: list[Said], near: tuple[tuple[int, int, float], ...] = (), config: str = ""
) -> RunFolder:
    """A published run.

    Args:
        folder: of the run.
        said: its features.
        near: pairs of features of the first SAE, and the cosine of their decoder rows.
        config: lines to add to its configuration.
    """
    run = RunFolder(folder).create()
    run.write_config(demo_config().to_toml().partition("[search]")[0] + config)
    with open_work(folder) as work:
        fill(work, said, near)
        publish(work, folder)
    return run


def fill(
    work: duckdb.DuckDBPyConnection,
    said: list[Said],
    near: tuple[tuple[int, int, float], ...] = (),
) -> None:
    work.execute(
        "INSERT INTO saes (sae_id, model, site, layer, width) VALUES "
        f"('{LOW}', 'toy-gemma-2', 'res', 1, 1024), ('{HIGH}', 'toy-gemma-2', 'mlp', 3, 1024)"
    )
    rows = pa.Table.from_pylist(
        [
            {
                **{name: getattr(each, name) for name in Said.__slots__},
                "label_id": each.label_id,
            }
            for each in said
        ],
        schema=pa.schema(
            {
                "feature": pa.int32(),
                **dict.fromkeys(("text", "explanation", "sae", "explainer"), pa.string()),
                **dict.fromkeys(("score", "density"), pa.float64()),
                "label_id": pa.string(),
            }
        ),
    )
    work.register("said", rows)
    work.execute(
        """
        INSERT INTO features BY NAME
        SELECT sae AS sae_id, feature, 10 AS n_active, density, 5 AS max_activation FROM said;
        INSERT INTO labels BY NAME
        SELECT label_id, sae AS sae_id, feature, text, explanation, explainer,
            '1' AS prompt_version, 0 AS draw, 'auto' AS source, 'done' AS status, 'r' AS run_id
        FROM said WHERE text IS NOT NULL;
        INSERT INTO scores BY NAME
        SELECT label_id, 'simulation' AS scorer, 'token_lookup' AS simulator,
            'correlation' AS metric, 'score' AS split, score AS value, score - 0.1 AS ci_low,
            score + 0.1 AS ci_high
        FROM said WHERE score IS NOT NULL;
        """
    )
    work.unregister("said")
    for one, other, cosine in near:
        work.execute(
            "INSERT INTO neighbours VALUES ($1, $2, 'cosine', 1, $3, $4, NULL)",
            [LOW, one, other, cosine],
        )
    set_meta(work, "revision", f"{len(said)} said")
