"""The run's model and SAEs, at hand to be tried on a person's own text.

Nothing is loaded before somebody asks: a dashboard starts at once, and whoever only reads needs no
torch. The model is then loaded whole and stays; of the SAEs the two used last do. All of it is one
person's at a time, since a model fills the machine that it runs on.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ...store.errors import ScopenoteError
from ...store.run_folder import RunFolder
from ...store.tried_feature import TriedFeature
from ..collected_saes import load_collected_sae, load_whole_model
from ..config import Config, load_config

if TYPE_CHECKING:
    from ...extract.models import SubjectModel
    from ...extract.own_text import OwnText
    from ...extract.saes import Sae
    from ...extract.steering import Comparison

WAIT_SECONDS = 30.0
"""How long somebody waits for their turn before they are told that the model is busy."""

_SAES_KEPT = 2

# Those beyond are told at once: each who waits takes one of the threads that answer all pages.
_MOST_WAITING = 4


class ModelBusy(ScopenoteError):
    """Somebody else is using the model."""


class TriedModel:
    """A run's model, for one person at a time; threads may share it."""

    def __init__(self, run: Path, wait_seconds: float = WAIT_SECONDS) -> None:
        """Of the run in this folder; loads nothing yet."""
        self.run = run
        self.wait_seconds = wait_seconds
        self._turn = threading.Lock()
        self._places = threading.Semaphore(1 + _MOST_WAITING)
        self._model: SubjectModel | None = None
        self._saes: OrderedDict[str, Sae] = OrderedDict()

    def read_text(self, tried: TriedFeature, text: str) -> OwnText:
        """The feature's activations on a text.

        Raises:
            ModelBusy: others did not get done in time.
            UserMistake: the text is empty, or the model or SAE cannot be loaded any more.
        """
        from ...extract.own_text import read_own_text
        from ..collect_setup import window_shape

        with self._own_turn():
            config = self._config()
            model = self._loaded(config)
            return read_own_text(
                model,
                self._sae(tried, config, model),
                [tried.feature_id.feature],
                text,
                window_shape(config),
                config.corpus.chat,
            )

    def steer(
        self, tried: TriedFeature, text: str, strength: float, n_tokens: int, seed: int | None
    ) -> Comparison:
        """What the model writes after a text, without and with the feature turned up.

        Args:
            tried: the feature.
            text: the prompt.
            strength: in units of the feature's activation.
            n_tokens: how many tokens are written at most.
            seed: of the draws; None takes the most probable token each time.

        Raises:
            ModelBusy: others did not get done in time.
            UserMistake: the text is empty or too long, the strength too much, or the model or SAE
                cannot be loaded any more.
        """
        from ...extract.steering import compare_steered

        with self._own_turn():
            config = self._config()
            model = self._loaded(config)
            sae = self._sae(tried, config, model)
            feature = tried.feature_id.feature
            return compare_steered(model, sae, feature, strength, text, n_tokens, seed)

    @contextmanager
    def _own_turn(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise _busy()
        try:
            if not self._turn.acquire(timeout=self.wait_seconds):
                raise _busy()
            try:
                yield
            finally:
                self._turn.release()
        finally:
            self._places.release()

    def _config(self) -> Config:
        return load_config(RunFolder.open_existing(self.run).config_file)

    def _loaded(self, config: Config) -> SubjectModel:
        """The model with all its layers: generation needs them, and reading stops early."""
        if self._model is None:
            self._model = load_whole_model(config)
        return self._model

    def _sae(self, tried: TriedFeature, config: Config, model: SubjectModel) -> Sae:
        """The SAE with the weights that were collected, on the model's device."""
        content_hash = tried.sae.content_hash
        if content_hash not in self._saes:
            # Before the next one is read: an SAE may take gigabytes.
            while len(self._saes) >= _SAES_KEPT:
                self._saes.popitem(last=False)
            found = load_collected_sae(tried.sae, config, RunFolder(self.run), model)
            self._saes[content_hash] = found.to(model.device)
        self._saes.move_to_end(content_hash)
        return self._saes[content_hash]


def _busy() -> ModelBusy:
    return ModelBusy(
        "Somebody else is trying the model, or it is still being loaded.",
        expected="one at a time",
        mend="send the form again in a little while",
    )
