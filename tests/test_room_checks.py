"""Whether a run fits: from a configuration, its files and what the machine has."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from scopenote.extract.models import load_model
from scopenote.extract.sites import Site
from scopenote.flows.collect_setup import load_collect_job, sae_sources
from scopenote.flows.config import (
    Config,
    CorpusSection,
    ModelSection,
    SaeEntry,
    SaesSection,
    demo_config,
)
from scopenote.flows.findings import Finding, Verdict
from scopenote.flows.machine_checks import DeviceMemory
from scopenote.flows.progress import Progress
from scopenote.flows.room_checks import check_room
from scopenote.store.errors import ModelError
from scopenote.store.run_folder import RunFolder

from .test_machine_memory import make_tree
from .tiny_gemma import save_tiny_gemma, save_tiny_sae

GB = 10**9
PLENTY = [DeviceMemory("cpu", "", 100 * GB, 90 * GB)]


def tiny_config(model: str, *saes: str | SaeEntry) -> Config:
    entries = tuple(sae if isinstance(sae, SaeEntry) else SaeEntry(path=sae) for sae in saes)
    return Config(
        model=ModelSection(name=model, device="cpu"),
        saes=SaesSection(paths=entries),
        corpus=CorpusSection(standard_library=True),
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_gemma(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_sae(tmp_path_factory.mktemp("saes"), "res", 1, 64, 16).parent)


def found(findings: list[Finding], name: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding


def test_the_demo_fits_where_there_is_room(tmp_path: Path) -> None:
    findings = check_room(demo_config(), tmp_path, PLENTY)
    assert {finding.verdict for finding in findings} == {Verdict.OK}
    assert found(findings, "model").found.startswith("toy: on this machine")
    assert len([finding for finding in findings if finding.name == "SAE"]) == 3
    assert "90.0 GB free of 100 GB" in found(findings, "memory").found


def test_only_the_layers_that_are_read_are_counted(tmp_path: Path, model: str, sae: str) -> None:
    findings = check_room(tiny_config(model, sae), tmp_path, PLENTY)
    assert "2 of 3 layers" in found(findings, "weights").found


def test_losses_take_the_whole_model(tmp_path: Path, model: str, sae: str) -> None:
    config = tiny_config(model, sae)
    collect = config.collect.model_copy(update={"loss_increase": True})
    findings = check_room(config.model_copy(update={"collect": collect}), tmp_path, PLENTY)
    assert "3 of 3 layers" in found(findings, "weights").found


@pytest.mark.parametrize(
    ("total", "free", "verdict"),
    [(GB, GB // 2, "fail"), (3 * GB, GB, "warning"), (3 * GB, 2.9 * GB, "ok"), (GB, None, "fail")],
)
def test_memory_must_suffice(
    tmp_path: Path, model: str, sae: str, total: int, free: float | None, verdict: str
) -> None:
    cpu = DeviceMemory("cpu", "", total, None if free is None else int(free))
    finding = found(check_room(tiny_config(model, sae), tmp_path, [cpu]), "memory")
    assert finding.verdict == verdict
    assert (finding.mend is None) == (verdict == "ok")


@pytest.mark.parametrize(
    ("free", "verdict"), [(10**4, "fail"), (150 * 10**6, "warning"), (GB, "ok")]
)
def test_the_disk_must_suffice(
    tmp_path: Path,
    model: str,
    sae: str,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    verdict: str,
) -> None:
    """64 features and 5 firings a token need some 139 MB."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    finding = found(check_room(tiny_config(model, sae), tmp_path / "new", PLENTY), "disk")
    assert finding.verdict == verdict


def test_what_would_be_downloaded_is_not_at_hand_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = tiny_config(
        "google/gemma-2-2b", "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
    )
    findings = check_room(config, tmp_path, PLENTY)
    assert {finding.name: finding.verdict for finding in findings} == {
        "model": Verdict.NOT_AT_HAND,
        "SAE": Verdict.NOT_AT_HAND,
    }


def test_an_sae_that_is_not_at_hand_is_said_to_come_on_top(
    tmp_path: Path, model: str, sae: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = tiny_config(model, sae, "google/gemma-scope-x-res/layer_0/width_1k/average_l0_9")
    findings = check_room(config, tmp_path, PLENTY)
    for name in ("memory", "disk"):
        assert "not at hand" in found(findings, name).found
    # It might read the last layer.
    assert "3 of 3 layers" in found(findings, "weights").found


def test_paths_that_lead_nowhere_fail(tmp_path: Path, model: str) -> None:
    findings = check_room(tiny_config("/no/such/model", "/no/such/params.npz"), tmp_path, PLENTY)
    assert [finding.verdict for finding in findings] == [Verdict.FAIL, Verdict.FAIL]
    findings = check_room(tiny_config(model, str(tmp_path)), tmp_path, PLENTY)
    assert found(findings, "SAE").verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("path", "verdict"),
    [
        ("gemma-2-2b/20-gemmascope-res-16k", "not at hand"),
        ("gemma-2-2b/20-gemmascope-res-16k-l0-70", "fail"),
        ("mine/params.safetensors", "fail"),
    ],
)
def test_short_names_are_looked_up_before_any_download(
    tmp_path: Path, model: str, path: str, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    finding = found(check_room(tiny_config(model, path), tmp_path, PLENTY), "SAE")
    assert finding.verdict.value == verdict, finding


def test_an_sae_must_fit_the_model(tmp_path: Path, model: str) -> None:
    too_wide = save_tiny_sae(tmp_path / "wide", "res", 1, 64, 20)
    too_deep = save_tiny_sae(tmp_path / "deep", "res", 9, 64, 16)
    nowhere = save_tiny_sae(tmp_path / "x", "res", 1, 64, 16).rename(tmp_path / "params.npz")
    for file, said in ((too_wide, "the site has 16"), (too_deep, "the model has 3 layers")):
        finding = found(check_room(tiny_config(model, str(file)), tmp_path, PLENTY), "SAE")
        assert finding.verdict is Verdict.FAIL
        assert said in finding.found
    finding = found(check_room(tiny_config(model, str(nowhere)), tmp_path, PLENTY), "SAE")
    assert finding.verdict is Verdict.FAIL
    assert "does not say which tensor" in finding.found
    told = SaeEntry(path=str(nowhere), site="res", layer=1)
    findings = check_room(tiny_config(model, told), tmp_path, PLENTY)
    assert found(findings, "SAE").verdict is Verdict.OK
    # Without a stated L0 nobody knows how much fires.
    assert found(findings, "background tiny/" + tmp_path.name).verdict is Verdict.NOT_AT_HAND


def test_neurons_need_no_file_and_are_counted_like_an_sae(
    tmp_path: Path, model: str, sae: str
) -> None:
    findings = check_room(tiny_config(model, sae, "2-mlp-neurons"), tmp_path, PLENTY)
    assert {finding.verdict for finding in findings} == {Verdict.OK}
    said = [finding.found for finding in findings if finding.name == "SAE"]
    assert said[1] == "tiny/2-mlp-neurons: 32 features of 16 numbers, reads mlp of layer 2"
    assert "3 of 3 layers" in found(findings, "weights").found
    numbers = 2 * 32 * 16 + 2 * 32 + 16
    assert f"{numbers:,} numbers" in found(findings, "SAE tiny/2-mlp-neurons").found
    # A hundredth of 32 units at most.
    assert "× 0.32 features a token" in found(findings, "background tiny/2-mlp-neurons").found


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("3-mlp-neurons", "the model has 3 layers"),
        ("gemma-2-2b/1-mlp-neurons", "model gemma-2-2b, site mlp, layer 1"),
        ("1-mlp-neuron", "no SAE there"),
    ],
)
def test_neurons_that_there_are_not_fail(tmp_path: Path, model: str, path: str, said: str) -> None:
    finding = found(check_room(tiny_config(model, path), tmp_path, PLENTY), "SAE")
    assert finding.verdict is Verdict.FAIL
    assert said in finding.found
    assert "1-mlp-neurons" in (finding.mend or "") or path == "3-mlp-neurons"


def test_neurons_of_a_model_that_is_not_at_hand_are_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = tiny_config("google/gemma-2-2b", "20-mlp-neurons")
    finding = found(check_room(config, tmp_path, PLENTY), "SAE")
    assert finding.verdict is Verdict.NOT_AT_HAND
    assert finding.found.startswith("gemma-2-2b/20-mlp-neurons: as wide as the model")


def test_a_damaged_sae_or_model_fails_and_the_rest_is_still_looked_at(
    tmp_path: Path, model: str, sae: str
) -> None:
    damaged = save_tiny_sae(tmp_path, "mlp", 1, 64, 16)
    damaged.write_bytes(b"no longer")
    findings = check_room(tiny_config(model, str(damaged), sae), tmp_path, PLENTY)
    assert [f.verdict for f in findings if f.name == "SAE"] == [Verdict.FAIL, Verdict.OK]
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    finding = found(check_room(tiny_config(str(broken), sae), tmp_path, PLENTY), "model")
    assert finding.verdict is Verdict.FAIL
    (broken / "config.json").write_text('{"model_type": "gemma2", "head_dim": "many"}')
    finding = found(check_room(tiny_config(str(broken), sae), tmp_path, PLENTY), "model")
    assert "head_dim" in finding.found
    with pytest.raises(ModelError, match="head_dim"):
        load_model(str(broken), [])
    (broken / "config.json").write_text('{"model_type": "gpt2"}')
    finding = found(check_room(tiny_config(str(broken), sae), tmp_path, PLENTY), "model")
    assert "'gpt2'" in finding.found


def test_a_gemma_3_is_reckoned_with_like_a_gemma_2(tmp_path: Path, sae: str) -> None:
    folder = save_tiny_gemma(tmp_path / "tiny", generation=3)
    findings = check_room(tiny_config(str(folder), sae), tmp_path, PLENTY)
    assert {finding.verdict for finding in findings} == {Verdict.OK}
    network = load_model(str(folder), [Site(1, "res")], "cpu", "float32").network
    n = sum(weight.numel() for weight in network.parameters())
    assert f"{n:,} parameters" in found(findings, "weights").found


@pytest.mark.parametrize(
    "stated",
    ['"model_type": "gemma3"', '"model_type": "gemma2", "use_bidirectional_attention": true'],
)
def test_a_model_that_a_run_refuses_fails(tmp_path: Path, sae: str, stated: str) -> None:
    (tmp_path / "config.json").write_text(f"{{{stated}}}")
    finding = found(check_room(tiny_config(str(tmp_path), sae), tmp_path, PLENTY), "model")
    assert finding.verdict is Verdict.FAIL
    assert "a Gemma 3 for text alone" in (finding.mend or "")
    with pytest.raises(ModelError) as refused:
        load_model(str(tmp_path), [])
    assert refused.value.mend == finding.mend


def test_a_model_without_its_weights_is_not_at_hand(tmp_path: Path, model: str, sae: str) -> None:
    (tmp_path / "config.json").write_text((Path(model) / "config.json").read_text())
    findings = check_room(tiny_config(str(tmp_path), sae), tmp_path, PLENTY)
    first = findings[0]
    assert (first.name, first.verdict) == ("model", Verdict.NOT_AT_HAND)
    assert "model.safetensors" in first.found
    assert found(findings, "memory").verdict is Verdict.OK


def test_a_device_that_is_not_there_fails(tmp_path: Path, model: str, sae: str) -> None:
    config = tiny_config(model, sae)
    elsewhere = config.model_copy(
        update={"model": config.model.model_copy(update={"device": "xpu:7"})}
    )
    findings = check_room(elsewhere, tmp_path, PLENTY)
    assert found(findings, "device").verdict is Verdict.FAIL


def test_saes_that_do_not_fit_together_are_counted_by_passes(
    tmp_path: Path, model: str, sae: str
) -> None:
    other = str(save_tiny_sae(tmp_path, "mlp", 1, 64, 16))
    config = tiny_config(model, sae, other)
    together = check_room(config, tmp_path, PLENTY)
    assert not [finding for finding in together if finding.name == "passes"]
    # 64 features remember some 2 MB.
    little = config.model_copy(
        update={"collect": config.collect.model_copy(update={"memory_gib": 0.003})}
    )
    apart = check_room(little, tmp_path, PLENTY)
    assert found(apart, "passes").verdict is Verdict.WARNING
    assert "2 times" in found(apart, "passes").found


def test_doctor_and_collect_count_the_same_passes_in_a_container(
    tmp_path: Path, model: str, sae: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [str(save_tiny_sae(tmp_path, "mlp", layer, 64, 16)) for layer in (0, 1)]
    config = tiny_config(model, sae, *others)
    # 64 features remember some 2 MB each, of which 60% of 10 MB hold two.
    container = make_tree(tmp_path, "0::/\n", {"memory.max": str(10**7)})
    monkeypatch.setattr("scopenote.extract.machine_memory.ROOT", container)
    said = found(check_room(config, tmp_path), "passes").found
    run, progress = RunFolder(tmp_path / "run"), Progress(StringIO(), animate=False)
    passes = load_collect_job(config, sae_sources(config), run, progress).passes
    assert len(passes) == 2
    assert said.endswith(f"{len(passes)} times")


def test_on_a_gpu_what_computes_and_what_remembers_are_added_up_apart(
    tmp_path: Path, model: str, sae: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(
        "scopenote.flows.room_checks.choose_device", lambda name: torch.device("cuda:1")
    )
    devices = [*PLENTY, DeviceMemory("cuda:1", "", 10**5, 10**5)]
    findings = check_room(tiny_config(model, sae), tmp_path, devices)
    assert found(findings, "memory of cuda:1").verdict is Verdict.FAIL
    assert found(findings, "memory of the CPU").verdict is Verdict.OK
    assert "attention scores" in found(findings, "batches").found
    # bfloat16 on a GPU.
    assert "parameters × 2 bytes" in found(findings, "weights").found
