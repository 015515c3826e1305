"""One prompt through model and SAEs, against dense arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scopenote.extract.fidelity import FidelitySums
from scopenote.extract.inspection import (
    PromptInspection,
    SaeReading,
    inspect_prompt,
    measure_unexplained,
)
from scopenote.extract.models import SubjectModel, load_model
from scopenote.extract.own_text import read_own_text
from scopenote.extract.sae_sources import SaeSource
from scopenote.extract.saes import Sae
from scopenote.extract.sites import Site, SiteKind, site_width
from scopenote.extract.windows import WindowShape
from scopenote.store.errors import UserMistake

from .tiny_gemma import BOS, sae_arrays, save_tiny_gemma

KINDS: tuple[SiteKind, ...] = ("res", "mlp", "att", "transcoder")
PROMPT = "the thing in a ring, and then another thing"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SubjectModel:
    folder = save_tiny_gemma(tmp_path_factory.mktemp("model") / "tiny")
    return load_model(str(folder), [], "cpu", "float32")


def make_sae(model: SubjectModel, kind: SiteKind, layer: int = 1, name: str = "") -> Sae:
    site = Site(layer, kind)
    weights = {
        key: torch.from_numpy(array)
        for key, array in sae_arrays(24, site_width(site, model.config), seed=layer).items()
    }
    return Sae(
        SaeSource(f"tiny/{name or f'{layer}-{kind}'}", None, site, None, "made up"),
        weights["W_enc"].T.contiguous(),
        weights["b_enc"],
        weights["threshold"],
        weights["W_dec"],
        weights["b_dec"],
        content_hash="0",
    )


def read(
    model: SubjectModel, *saes: Sae, text: str = PROMPT, is_chat: bool = False, mean: float = 0.1
) -> PromptInspection:
    means = {sae.sae_id: np.full(sae.decoder.shape[1], mean) for sae in saes}
    return inspect_prompt(model, [sae.site for sae in saes], saes, means, text, is_chat)


def dense(reading: SaeReading, sae: Sae, n_tokens: int) -> np.ndarray:
    found = np.zeros((sae.width, n_tokens), np.float32)
    found[reading.firings.feature, reading.firings.token] = reading.firings.value
    return found


def vectors(model: SubjectModel, site: Site, text: str = PROMPT) -> torch.Tensor:
    ids = [BOS, *model.tokenizer(text, add_special_tokens=False).input_ids]
    return model.read_sites(torch.tensor([ids]), [site])[site][0, 1:]


def test_each_sae_fires_as_it_does_on_a_document(model: SubjectModel) -> None:
    saes = [make_sae(model, kind) for kind in KINDS]
    found = read(model, *saes)
    assert [each.sae_id for each in found.saes] == [sae.sae_id for sae in saes]
    for sae, reading in zip(saes, found.saes, strict=True):
        own = read_own_text(model, sae, range(sae.width), PROMPT, WindowShape())
        assert found.prompt.tokens == own.tokens
        here = dense(reading, sae, len(own.tokens))
        assert (here > 0).any()
        np.testing.assert_allclose(here, own.activations, rtol=1e-4, atol=1e-5)
        by_hand = sae.encode(vectors(model, sae.site)).T.numpy()
        np.testing.assert_allclose(here, by_hand, rtol=1e-4, atol=1e-5)


def test_the_strongest_of_each_token_come_first(model: SubjectModel) -> None:
    (reading,) = read(model, make_sae(model, "res")).saes
    firings = reading.firings
    order = list(zip(firings.token.tolist(), (-firings.value).tolist(), strict=True))
    assert len(order) > 20
    assert order == sorted(order)


@pytest.mark.parametrize("kind", KINDS)
def test_what_features_leave_unexplained_is_of_what_is_to_be_reconstructed(
    model: SubjectModel, kind: SiteKind
) -> None:
    sae = make_sae(model, kind)
    (reading,) = read(model, sae, mean=0.25).saes
    x, target = vectors(model, sae.site).double(), vectors(model, sae.target).double()
    assert reading.unexplained is not None
    shares = reading.unexplained.by_token
    for place, (row, wanted) in enumerate(zip(x, target, strict=True)):
        pre = sae.encoder.double() @ row + sae.encoder_bias.double()
        f = torch.where(pre > sae.threshold, pre, 0.0)
        error = wanted - f @ sae.decoder.double() - sae.decoder_bias.double()
        expected = float(error.square().sum() / (wanted - 0.25).square().sum())
        assert shares[place] == pytest.approx(expected, rel=1e-4)


def test_the_shares_of_tokens_average_to_the_fraction_of_variance_unexplained() -> None:
    generator = torch.Generator().manual_seed(0)
    # Of every 64th of these tokens fidelity is measured: those that stand here.
    target = torch.randn(640, 8, generator=generator)
    rebuilt = target + 0.3 * torch.randn(640, 8, generator=generator)
    some = slice(0, None, 64)
    mean = target[some].double().mean(0).numpy()
    found = measure_unexplained(target[some], rebuilt[some], mean)
    error = (target[some] - rebuilt[some]).double()
    sums = FidelitySums(
        10,
        target[some].double().sum(0).numpy(),
        float(target[some].double().square().sum()),
        float(error.square().sum()),
    )
    assert found.over(np.ones(10, np.bool_)) == pytest.approx(sums.fvu)
    weighted = np.average(found.by_token, weights=found.distance_sq)
    assert weighted == pytest.approx(sums.fvu)


def test_a_perfect_reconstruction_leaves_nothing_and_none_at_all_leaves_all() -> None:
    target, mean = torch.randn(5, 4), np.full(4, 2.0)
    everything = np.ones(5, np.bool_)
    assert measure_unexplained(target, target, mean).over(everything) == 0
    nothing = torch.full((5, 4), 2.0)
    np.testing.assert_allclose(measure_unexplained(target, nothing, mean).by_token, 1.0)
    assert measure_unexplained(nothing, target, mean).over(everything) is None


def test_neurons_and_saes_without_a_mean_have_no_share(model: SubjectModel) -> None:
    neurons = make_sae(model, "mlp", name="1-mlp-neurons")
    (reading,) = read(model, neurons).saes
    assert reading.unexplained is None
    sae = make_sae(model, "mlp")
    (reading,) = inspect_prompt(model, [sae.site], [sae], {}, PROMPT).saes
    assert reading.unexplained is None
    assert len(reading.firings) > 0


def test_no_feature_fires_on_a_special_token(model: SubjectModel) -> None:
    sae = make_sae(model, "res")
    text = "the ring<eos>in a ring"
    found = read(model, sae, text=text, is_chat=True)
    place = found.prompt.tokens.index("<eos>")
    assert found.prompt.is_special.tolist() == [n == place for n in range(len(found.prompt.tokens))]
    here = dense(found.saes[0], sae, len(found.prompt.tokens))
    assert not here[:, place].any() and here[:, place + 1 :].any()
    as_text = read(model, sae, text=text)
    assert "<eos>" not in as_text.prompt.tokens and not as_text.prompt.is_special.any()


def test_a_prompt_may_be_as_long_as_the_models_context(
    model: SubjectModel,
) -> None:
    sae = make_sae(model, "res")
    found = read(model, sae, text="a" + " a" * 1023)
    assert len(found.prompt.tokens) == 2047
    with pytest.raises(UserMistake, match="longer than what the model sees") as caught:
        read(model, sae, text="a " + "a " * 1023)
    assert "2,048 tokens" in str(caught.value) and "at most 2,047" in str(caught.value)


def test_a_prompt_longer_than_a_collected_sequence_is_still_one(model: SubjectModel) -> None:
    sae = make_sae(model, "res")
    text = "ab " * 400
    assert read_own_text(model, sae, [0], text, WindowShape()).n_sequences == 2
    here = dense(read(model, sae, text=text).saes[0], sae, 1200)
    np.testing.assert_allclose(
        here, sae.encode(vectors(model, sae.site, text)).T.numpy(), rtol=1e-3, atol=1e-4
    )


def test_an_empty_prompt_is_refused(model: SubjectModel) -> None:
    with pytest.raises(UserMistake, match="The text is empty"):
        read(model, make_sae(model, "res"), text="")
