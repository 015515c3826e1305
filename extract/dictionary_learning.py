"""SAEs in the files of dictionary_learning, put into the form of Gemma Scope's.

A folder holds `ae.pt`, the state dict of one of its classes, and `config.json`, whose `trainer`
names the class. They are read as data alone: a pickle that holds anything else is refused. Gated
SAEs, whose features have two encoders, are not computed here.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..store.errors import SaeError
from .other_saes import OtherSae, checked_k, in_our_form
from .sae_config import StatedConfig, not_computed, read_sae_config
from .sae_files import unreadable_sae
from .sites import Site

DICTIONARY_FILE = "ae.pt"
DICTIONARY_CONFIG_FILE = "config.json"

_LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
_PLAIN = {name: name for name in _LINEAR}


@dataclass(frozen=True, slots=True)
class _Form:
    """What a class keeps and how it computes.

    Attributes:
        keys: its name of each of our arrays.
        has_threshold: whether only what is above a threshold fires.
        has_k: whether only the k largest fire.
        subtracts_b_dec: from the input.
        keeps_norms: of the decoder's rows; else features are given for rows of unit norm.
    """

    keys: dict[str, str]
    has_threshold: bool = False
    has_k: bool = False
    subtracts_b_dec: bool = True
    keeps_norms: bool = True

    @property
    def is_linear(self) -> bool:
        """Whether its weights are those of `Linear`s, which lie the other way round."""
        return self.keys["W_enc"] == _LINEAR["W_enc"]

    @property
    def needed(self) -> list[str]:
        """The tensors without which it cannot be computed."""
        return [*self.keys.values(), *(["threshold"] if self.has_threshold else [])]


_FORMS = {
    "AutoEncoder": _Form({**_LINEAR, "b_dec": "bias"}, keeps_norms=False),
    "AutoEncoderTopK": _Form({**_LINEAR, "b_dec": "b_dec"}, has_k=True),
    # Batches are a matter of training: afterwards one threshold stands for the k of a batch.
    "BatchTopKSAE": _Form({**_LINEAR, "b_dec": "b_dec"}, has_threshold=True),
    "MatryoshkaBatchTopKSAE": _Form({**_PLAIN, "b_dec": "b_dec"}, has_threshold=True),
    "JumpReluAutoEncoder": _Form(
        {**_PLAIN, "b_dec": "b_dec"}, has_threshold=True, subtracts_b_dec=False
    ),
}


def read_dictionary_config(file: Path) -> StatedConfig | None:
    """What dictionary_learning's config.json says of the site; None if it is someone else's.

    Raises:
        SaeError: it is not there or not JSON.
    """
    config = _read_config(file)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        return None
    buffer = config.get("buffer")
    reads_output = not isinstance(buffer, dict) or buffer.get("io", "out") == "out"
    named = re.fullmatch(r"resid_post_layer_(\d+)", str(trainer.get("submodule_name")))
    return StatedConfig(Site(int(named[1]), "res") if named and reads_output else None, None)


def read_dictionary_sae(path: Path) -> OtherSae:
    """The SAE in a folder of dictionary_learning.

    Args:
        path: its DICTIONARY_FILE.

    Raises:
        SaeError: it is damaged, holds more than tensors, or is of a class that is not computed
            here.
    """
    form, trainer = _read_form(path)
    state = _read_state(path, form)
    ours = {name: state[key] for name, key in form.keys.items()}
    w_enc, w_dec = ours["W_enc"], ours["W_dec"]
    b_enc, b_dec = ours["b_enc"].float(), ours["b_dec"].float()
    try:
        if form.is_linear:
            w_enc, w_dec = w_enc.mT, w_dec.mT
        if not form.keeps_norms:
            norms = w_dec.float().norm(dim=1)
            norms = torch.where(norms > 0, norms, 1.0)
            w_enc, b_enc, w_dec = w_enc * norms, b_enc * norms, w_dec / norms[:, None]
        arrays = in_our_form(
            w_enc,
            # Nothing may stay in the file, which is only mapped.
            w_dec.clone(),
            b_enc,
            b_dec.clone(),
            _threshold(path, form, state, len(b_enc)),
            subtracts_b_dec=form.subtracts_b_dec,
        )
    except (RuntimeError, IndexError, TypeError) as error:
        raise unreadable_sae(path, error, "tensors of shapes that fit each other") from error
    return OtherSae(arrays, _read_k(path, state, trainer, len(b_enc)) if form.has_k else None)


def read_dictionary_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of an SAE's arrays by Gemma Scope's names, without its numbers being read.

    Args:
        path: its DICTIONARY_FILE.

    Raises:
        SaeError: as `read_dictionary_sae`, but for what the numbers are.
    """
    form, _ = _read_form(path)
    state = _read_state(path, form)
    shapes = {name: tuple(state[key].shape) for name, key in form.keys.items()}
    if form.is_linear:
        shapes |= {name: shapes[name][::-1] for name in ("W_enc", "W_dec")}
    return {**shapes, "threshold": shapes["b_enc"]}


def _read_config(file: Path) -> dict[str, Any]:
    return read_sae_config(file, "a JSON object, as dictionary_learning and Gemma Scope 2 write it")


def _read_form(path: Path) -> tuple[_Form, dict[str, Any]]:
    """How the class in config.json computes, and what else is said of the training."""
    file = path.parent / DICTIONARY_CONFIG_FILE
    trainer = _read_config(file).get("trainer")
    settings = trainer if isinstance(trainer, dict) else {}
    name = settings.get("dict_class")
    if not isinstance(name, str) or name not in _FORMS:
        raise not_computed(file, f"dict_class {name!r} of trainer", ", ".join(_FORMS))
    return _FORMS[name], settings


def _read_state(path: Path, form: _Form) -> dict[str, torch.Tensor]:
    expected = "the state dict of an SAE, as torch.save writes it"
    try:
        # Files of before torch 1.6 cannot be mapped.
        state = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        # Torch's own message advises to let the file run code.
        raise SaeError(
            "The SAE's file holds something other than plain tensors, and is not opened.",
            where=str(path),
            found="Python objects, which could run code when they are read, or no file of torch",
            expected=expected,
            mend="save its state_dict() alone, where you trust the file",
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise unreadable_sae(path, error, expected) from error
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
        for value in state.values()
    ):
        found = ValueError(f"a {type(state).__name__} that is no table of tensors")
        raise unreadable_sae(path, found, expected)
    if missing := [name for name in form.needed if name not in state]:
        raise SaeError(
            "The SAE's file lacks arrays.",
            where=str(path),
            found=", ".join(map(str, state)) or "none",
            expected=", ".join(form.needed),
            mend=f"{missing[0]} is missing: is {DICTIONARY_CONFIG_FILE} that of another SAE?",
        )
    return state


def _threshold(path: Path, form: _Form, state: dict[str, torch.Tensor], width: int) -> torch.Tensor:
    if not form.has_threshold:
        return torch.zeros(width)
    threshold = state["threshold"].float()
    if threshold.dim() > 0:
        # ReLU is applied as well, so that below zero a threshold changes nothing.
        return threshold.clamp(min=0)
    if threshold < 0:
        raise not_computed(
            path, f"threshold {float(threshold):g}", "one that training has set, at least 0"
        )
    return threshold.expand(width).clone()


def _read_k(path: Path, state: dict[str, torch.Tensor], trainer: dict[str, Any], width: int) -> int:
    stored = state["k"].tolist() if "k" in state else trainer.get("k")
    if trainer.get("k", stored) != stored:
        raise not_computed(
            path, f"k {stored}", f"the k of {DICTIONARY_CONFIG_FILE}, {trainer['k']}"
        )
    return checked_k(path, stored, width)
