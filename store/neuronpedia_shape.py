"""A feature in the shape of Neuronpedia's API, so that scripts written for one read the other.

Names as in Neuronpedia's `/api/feature/{model}/{layer}/{index}`, where `layer` is the source and
`index` a string. What this project does not have is empty there as well (`vector`, the histogram of
logits, alignments with neurons); what Neuronpedia does not have is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .records import FeatureId
from .unit_names import unit_name

if TYPE_CHECKING:
    from .feature_contexts import ShownContext
    from .feature_labels import ShownLabel
    from .feature_page import FeaturePage, ShownScore

SCORE_TYPE = "scopenote_{scorer}_{metric}"
AUTHOR = "scopenote"
"""The author of what an explainer wrote."""

NOT_HERE: Mapping[str, Any] = MappingProxyType(
    {
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
        "hasVector": False,
        "vector": [],
        "neuron_alignment_indices": [],
        "neuron_alignment_values": [],
        "neuron_alignment_l1": [],
        "correlated_neurons_indices": [],
        "correlated_neurons_pearson": [],
        "correlated_neurons_l1": [],
        "correlated_features_indices": [],
        "correlated_features_pearson": [],
        "correlated_features_l1": [],
        "decoder_weights_dist": [],
    }
)
"""What Neuronpedia has of a feature and this project has not."""


def neuronpedia_ids(feature_id: FeatureId) -> dict[str, str]:
    """How Neuronpedia names a feature: model, source (called `layer`) and index."""
    model, _, source = feature_id.sae_id.partition("/")
    index = unit_name(feature_id.sae_id, feature_id.feature)
    return {"modelId": model, "layer": source, "index": index}


def source_set(source: str) -> str:
    """The set of sources that one belongs to: its name without the layer."""
    return source.partition("-")[2]


def type_name(source: str, explainer: str) -> str | None:
    """How a label was written; None where a person wrote it.

    An imported label goes by what its file called that, without whose it is.
    """
    if source == "human":
        return None
    return explainer.partition("/")[2] or explainer


def neuronpedia_feature(
    page: FeaturePage, scores: Mapping[str, Sequence[ShownScore]]
) -> dict[str, Any]:
    """A feature with its contexts and labels.

    Args:
        page: what is known of it; its contexts become `activations`.
        scores: on `score`, of each label by its id.
    """
    ids = neuronpedia_ids(page.feature_id)
    cosine = [each for each in page.neighbours if each.kind == "cosine"]
    edges = page.histogram_edges or ()
    n_bars = min(len(edges), len(page.histogram))
    labels = [*([page.label] if page.label else []), *page.other_labels]
    return {
        **ids,
        "sourceSetName": source_set(ids["layer"]),
        "maxActApprox": page.max_activation or 0.0,
        "frac_nonzero": page.density,
        "freq_hist_data_bar_heights": list(page.histogram[:n_bars]),
        "freq_hist_data_bar_values": list(edges[:n_bars]),
        "pos_str": [token.text for token in page.top_tokens_positive],
        "pos_values": [token.logit for token in page.top_tokens_positive],
        "neg_str": [token.text for token in page.top_tokens_negative],
        "neg_values": [token.logit for token in page.top_tokens_negative],
        "topkCosSimIndices": [each.feature for each in cosine],
        "topkCosSimValues": [each.value for each in cosine],
        **NOT_HERE,
        "activations": [_activation(context, ids) for context in page.contexts],
        "explanations": [
            neuronpedia_explanation(label, page.feature_id, scores.get(label.label_id, ()))
            for label in labels
        ],
    }


def neuronpedia_explanation(
    label: ShownLabel, feature_id: FeatureId, scores: Sequence[ShownScore]
) -> dict[str, Any]:
    """A label. Undefined scores are left out: Neuronpedia has no place for why."""
    return {
        "id": label.label_id,
        **neuronpedia_ids(feature_id),
        "description": label.text,
        "notes": label.explanation,
        "authorId": label.author or AUTHOR,
        "typeName": type_name(label.source, label.explainer),
        "explanationModelName": label.model,
        "createdAt": None if label.created_at is None else label.created_at.isoformat(),
        "scores": [
            {
                "value": score.value,
                "explanationId": label.label_id,
                "explanationScoreTypeName": SCORE_TYPE.format(
                    scorer=score.scorer, metric=score.metric
                ),
                "explanationScoreModelName": score.simulator,
            }
            for score in scores
            if score.value is not None and score.split == "score"
        ],
    }


def _activation(context: ShownContext, ids: Mapping[str, str]) -> dict[str, Any]:
    values = list(context.activations)
    strongest = max(range(len(values)), key=values.__getitem__, default=0)
    return {
        "id": f"{context.window_id:016x}",
        **ids,
        "tokens": list(context.tokens),
        "values": values,
        "maxValue": max(values, default=0.0),
        "maxValueTokenIndex": strongest,
        "minValue": min(values, default=0.0),
        "dataIndex": context.doc_id,
        "dataSource": context.split,
        "binMin": None,
        "binMax": None,
        "binContains": None,
        "qualifyingTokenIndex": None,
    }
