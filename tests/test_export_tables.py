"""The tables of an export: what is in them, and which of them a choice leaves."""

from __future__ import annotations

import pytest
from scopenote.store.byte_pieces import join_bytes
from scopenote.store.database import open_store
from scopenote.store.export_choice import TABLES
from scopenote.store.feature_contexts import read_contexts
from scopenote.store.records import FeatureId
from scopenote.store.run_folder import RunFolder
from scopenote.store.splits import SPLITS
from scopenote.store.unit_names import unit_name

from .exported_runs import rows_of
from .hostile_run import NEURONS, make_hostile_run
from .made_up_run import MLP, RES


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_hostile_run(tmp_path_factory.mktemp("hostile") / "run")


def test_contexts_are_those_of_the_feature_pages_token_by_token(hostile: RunFolder) -> None:
    rows = rows_of(hostile, "contexts")
    with open_store(hostile.path) as store:
        found = []
        for sae_id in (MLP, RES):
            for feature in range(40):
                for split in SPLITS:
                    for kind in ("top", "sample"):
                        feature_id = FeatureId(sae_id, feature)
                        kept = read_contexts(store.connection, feature_id, split, kind)
                        found += [(feature_id, context) for context in kept.contexts]
    assert len(rows) == len(found) == 2 * 39 * 12 + 4
    for row, (feature_id, context) in zip(rows, found, strict=True):
        assert row["feature_id"] == str(feature_id)
        assert (row["split"], row["kind"], row["rank"]) == (
            context.split,
            context.kind,
            context.rank,
        )
        assert int(row["window_id"], 16) == context.window_id
        assert row["tokens"] == list(context.tokens)
        assert row["activations"] == list(context.activations)
        assert row["prefix"] == "".join(join_bytes(context.prefix, [0.0] * len(context.prefix))[0])
        assert row["weight"] == context.weight


def test_text_has_characters_whole_that_tokens_have_in_bytes(hostile: RunFolder) -> None:
    (row,) = [
        r for r in rows_of(hostile, "contexts") if r["split"] == "score" and r["feature"] == 0
    ]
    assert row["tokens"][:6] == ["<0xE2>", "<0x96>", "<0x81>", "<0xC3>", "<0xA9>", "<0xF0>"]
    assert row["text"].startswith("▁é\ufffd▁\r\n\r\x00")
    assert row["text"].endswith("<unk><2000>")
    assert row["tokens"][-1] == "<2000>"
    assert len(row["tokens"]) == len(row["token_ids"]) == len(row["activations"])


def test_neurons_are_called_by_neuron_and_sign(hostile: RunFolder) -> None:
    rows = rows_of(hostile, "features", saes=(NEURONS,))
    assert [row["feature_id"] for row in rows] == [
        f"{NEURONS}/{unit_name(NEURONS, feature)}" for feature in range(4)
    ]
    assert rows[3]["feature_id"] == f"{NEURONS}/1-"


def test_labels_in_force_are_those_of_the_view_with_their_figures(hostile: RunFolder) -> None:
    rows = rows_of(hostile, "labels")
    with open_store(hostile.path) as store:
        names = ["label_id", "text", "score", "score_reason", "ci_low", "null_value", "simulator"]
        expected = store.connection.execute(
            f"SELECT {', '.join(names)} FROM current_labels ORDER BY sae_id, feature"
        ).fetchall()
    assert [tuple(row[name] for name in names) for row in rows] == expected
    assert all(row["in_force"] for row in rows)


def test_all_labels_have_the_failed_ones_with_their_reasons(hostile: RunFolder) -> None:
    rows = rows_of(hostile, "labels", all_labels=True)
    failed = [row for row in rows if row["status"] == "failed"]
    assert [row["reason"] for row in failed] == ["never active in explain"] * 2
    assert not any(row["in_force"] for row in failed)
    in_force = [row for row in rows if row["in_force"]]
    assert in_force == rows_of(hostile, "labels")


def test_a_least_score_leaves_out_labels_and_what_belongs_to_them(hostile: RunFolder) -> None:
    labels = rows_of(hostile, "labels", min_score=0.5)
    assert 0 < len(labels) < len(rows_of(hostile, "labels"))
    assert min(row["score"] for row in labels) >= 0.5
    ids = {row["feature_id"] for row in labels}
    assert {row["feature_id"] for row in rows_of(hostile, "features", min_score=0.5)} == ids
    assert {row["feature_id"] for row in rows_of(hostile, "contexts", min_score=0.5)} == ids
    scores = rows_of(hostile, "scores", min_score=0.5)
    assert {row["label_id"] for row in scores} == {row["label_id"] for row in labels}


def test_one_sae_alone(hostile: RunFolder) -> None:
    for name in TABLES:
        assert {row["sae_id"] for row in rows_of(hostile, name, saes=(RES,))} == {RES}
