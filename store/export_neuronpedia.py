"""An export in the layout of Neuronpedia's bulk files, a folder for each source.

`v1/{model}/{source}/{features,explanations,activations}/batch-N.jsonl.gz`, where batch N has the
features from 1024·N on, beside `model.jsonl` and `source.jsonl`. Fields are columns of
Neuronpedia's tables. One that cannot be known here is null or empty; times of creation are left
out, since those tables fill them in. Failed labels and those taken back have no place there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .export_activations import ACTIVATIONS_QUERY, activation_lines
from .export_folder import ExportFolder
from .near_features import read_rows
from .neuronpedia_shape import AUTHOR, NOT_HERE, source_set, type_name
from .packed_lines import LinePacker, packed_lines
from .unit_names import unit_name

if TYPE_CHECKING:
    import duckdb

BATCH = 1024
"""Features of a batch."""

# Where TransformerLens has what an SAE reads; of other sites it has nothing that is the same.
_HOOKS = {
    "res": "blocks.{}.hook_resid_post",
    "mlp": "blocks.{}.hook_mlp_out",
    "att": "blocks.{}.attn.hook_z",
}
_ON_HUB = re.compile(r"(google/gemma-scope[\w.-]*)/(.+?)(?:/params\.\w+)?")

_FEATURES = """
    SELECT f.*, s.site, s.layer, near.indices, near.cosines
    FROM (FROM features SEMI JOIN chosen_features USING (sae_id, feature)
          WHERE sae_id = $1 AND feature BETWEEN $2 AND $3) f
    JOIN saes s USING (sae_id)
    LEFT JOIN (
        SELECT feature, list(neighbour ORDER BY rank) AS indices,
            list(value ORDER BY rank) AS cosines
        FROM neighbours
        WHERE sae_id = $1 AND feature BETWEEN $2 AND $3 AND kind = 'cosine'
        GROUP BY feature
    ) near USING (feature)
    ORDER BY f.feature
"""
_EXPLANATIONS = """
    SELECT l.* FROM labels l SEMI JOIN chosen_labels USING (label_id)
    WHERE l.sae_id = $1 AND l.feature BETWEEN $2 AND $3
        AND l.status = 'done' AND l.text IS NOT NULL
    ORDER BY l.feature, l.label_id
"""


@dataclass(frozen=True, slots=True)
class _Source:
    """An SAE as Neuronpedia names it."""

    sae_id: str
    model: str
    source: str

    @property
    def folder(self) -> str:
        return f"v1/{self.model}/{self.source}"

    def ids(self, feature: int) -> dict[str, str]:
        index = unit_name(self.sae_id, feature)
        return {"modelId": self.model, "layer": self.source, "index": index}


def write_neuronpedia(
    connection: duckdb.DuckDBPyConnection,
    folder: ExportFolder,
    advance: Callable[[int], None] = lambda n: None,
) -> None:
    """Writes what `choose` has chosen.

    Args:
        connection: that `choose` was given.
        folder: to write into.
        advance: called with how many more features, labels and contexts are written.
    """
    written: dict[str, _Written] = {}
    with packed_lines() as packer:
        output = _Output(folder, packer, written, advance)
        for source, batches in _sources(connection).items():
            _describe(connection, source, folder)
            for batch in batches:
                _write_batch(connection, source, batch, output)
        for found in activation_lines(connection, BATCH):
            source = _source(found.block.sae_id)
            name = _file(source, "activations", found.block.first // BATCH)
            output.add(name, "activations", ACTIVATIONS_QUERY, found.n, found.lines)
    for name, file in sorted(written.items(), key=lambda each: _in_order(each[0])):
        folder.add(name, file.holds, file.rows, " ".join(file.query.split()))


@dataclass(slots=True)
class _Written:
    holds: str
    query: str
    rows: int = 0


@dataclass(frozen=True, slots=True)
class _Output:
    folder: ExportFolder
    packer: LinePacker
    written: dict[str, _Written]
    advance: Callable[[int], None]

    def add(self, name: str, holds: str, query: str, n: int, lines: bytes | memoryview) -> None:
        """Adds rows to a file; none are no file."""
        if n:
            self.written.setdefault(name, _Written(holds, query)).rows += n
            self.packer.append(self.folder.new_file(name), lines)
            self.advance(n)


def _write_batch(
    connection: duckdb.DuckDBPyConnection, source: _Source, batch: int, output: _Output
) -> None:
    wanted = [source.sae_id, batch * BATCH, batch * BATCH + BATCH - 1]
    ((edges,),) = connection.execute(
        "SELECT max(value) FROM meta WHERE key = 'histogram_edges'"
    ).fetchall()
    bars = json.loads(edges or "[]")
    for holds, query, shape in (
        ("features", _FEATURES, lambda row: _feature(source, row, bars)),
        ("explanations", _EXPLANATIONS, lambda row: _explanation(source, row)),
    ):
        rows = read_rows(connection, query, wanted)
        lines = "".join(map(_line, map(shape, rows))).encode()
        output.add(_file(source, holds, batch), holds, query, len(rows), lines)


def _feature(source: _Source, row: Mapping[str, Any], bars: Sequence[float]) -> dict[str, Any]:
    n_bars = min(len(bars), len(row["histogram"] or ()))
    hook = _HOOKS.get(row["site"])
    return {
        **source.ids(row["feature"]),
        "creatorId": AUTHOR,
        "sourceSetName": source_set(source.source),
        "maxActApprox": row["max_activation"] or 0.0,
        "frac_nonzero": row["density"],
        "freq_hist_data_bar_heights": (row["histogram"] or [])[:n_bars],
        "freq_hist_data_bar_values": bars[:n_bars],
        "pos_str": row["top_tokens_positive"] or [],
        "pos_values": row["top_logits_positive"] or [],
        "neg_str": row["top_tokens_negative"] or [],
        "neg_values": row["top_logits_negative"] or [],
        "topkCosSimIndices": row["indices"] or [],
        "topkCosSimValues": row["cosines"] or [],
        "hookName": None if hook is None else hook.format(row["layer"]),
        "vectorLabel": None,
        "vectorDefaultSteerStrength": None,
        **NOT_HERE,
    }


def _explanation(source: _Source, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": row["label_id"],
        **source.ids(row["feature"]),
        "authorId": row["author"] or AUTHOR,
        "description": row["text"],
        "notes": row["explanation"],
        "typeName": type_name(row["source"], row["explainer"]),
        "explanationModelName": row["model"],
        "embedding": None,
    }


def _describe(connection: duckdb.DuckDBPyConnection, source: _Source, folder: ExportFolder) -> None:
    """Writes what is known of the model and of the source, a row each."""
    ((made_of, dataset),) = connection.execute(
        """
        SELECT s.source, (
            SELECT config->'corpus'->>'dataset' FROM runs
            WHERE config IS NOT NULL ORDER BY started_at DESC, run_id LIMIT 1
        ) FROM saes s WHERE sae_id = ?
        """,
        [source.sae_id],
    ).fetchall()
    on_hub = _ON_HUB.fullmatch(made_of or "")
    model = {
        "id": source.model,
        "displayNameShort": source.model,
        "displayName": source.model,
        "creatorId": AUTHOR,
        "tlensId": None,
        "dimension": None,
        "visibility": "PRIVATE",
        "defaultSourceSetName": None,
        "defaultSourceId": None,
        "inferenceEnabled": False,
        "instruct": source.model.endswith("-it"),
        "layers": None,
        "neuronsPerLayer": None,
        "owner": None,
        "website": None,
    }
    of_source = {
        "id": source.source,
        "modelId": source.model,
        "hasDashboards": True,
        "inferenceEnabled": False,
        "saelensConfig": None,
        "saelensRelease": None,
        "saelensSaeId": None,
        "hfRepoId": on_hub[1] if on_hub else None,
        "hfFolderId": on_hub[2] if on_hub else None,
        "visibility": "PRIVATE",
        "defaultOfModelId": None,
        "setName": source_set(source.source),
        "creatorId": AUTHOR,
        "hasUmap": False,
        "hasUmapLogSparsity": False,
        "hasUmapClusters": False,
        "num_prompts": None,
        "num_tokens_in_prompt": None,
        "dataset": dataset,
        "notes": None,
        "cosSimMatchModelId": None,
        "cosSimMatchSourceId": None,
    }
    folder.add_text(f"{source.folder}/model.jsonl", _line(model))
    folder.add_text(f"{source.folder}/source.jsonl", _line(of_source))


def _sources(connection: duckdb.DuckDBPyConnection) -> dict[_Source, list[int]]:
    """The SAEs that features were chosen of, and the batches of each."""
    rows = connection.execute(
        "SELECT DISTINCT sae_id, feature // ? AS batch FROM chosen_features ORDER BY ALL", [BATCH]
    ).fetchall()
    found: dict[_Source, list[int]] = {}
    for sae_id, batch in rows:
        found.setdefault(_source(sae_id), []).append(batch)
    return found


def _source(sae_id: str) -> _Source:
    model, _, source = sae_id.partition("/")
    return _Source(sae_id, model, source)


def _file(source: _Source, holds: str, batch: int) -> str:
    return f"{source.folder}/{holds}/batch-{batch}.jsonl.gz"


def _in_order(name: str) -> tuple[str, int]:
    folder, _, batch = name.rpartition("/batch-")
    return folder, int(batch.partition(".")[0])


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"
