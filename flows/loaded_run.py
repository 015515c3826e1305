"""A run's model and SAEs at hand: loaded when first needed, and kept for the next question.

Commands ask one question and end; a notebook asks many of what is loaded by then. One thread at a
time: the model of a dashboard, which several people use, is `dashboard/tried_model.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store.run_folder import RunFolder
from ..store.tried_feature import CollectedSae
from .collected_saes import load_sae_alone, load_whole_model
from .config import Config, load_config
from .working import published

if TYPE_CHECKING:
    from ..extract.models import SubjectModel
    from ..extract.saes import Sae
    from ..store.database import Store

# Of the SAEs used last: a dozen of 16,384 features of Gemma 2 2B.
_KEPT_BYTES = 4 << 30


class LoadedRun:
    """The model of a run, with all its layers, and its SAEs with the weights as collected."""

    def __init__(self, run: Path | str, kept_bytes: int = _KEPT_BYTES) -> None:
        """Loads nothing yet.

        Args:
            run: its folder.
            kept_bytes: of SAEs, how much stays in memory; the one asked for last always does.

        Raises:
            UserMistake: there is no run with its configuration here.
        """
        self.folder = RunFolder.open_existing(run)
        self.config: Config = load_config(self.folder.config_file)
        self._kept_bytes = kept_bytes
        self._model: SubjectModel | None = None
        self._model_config: Any = None
        self._saes: OrderedDict[str, Sae] = OrderedDict()

    @contextmanager
    def store(self) -> Iterator[Store]:
        """What is published of the run by now.

        Raises:
            UserMistake: nothing was collected in it.
        """
        with published(self.folder.path) as (_, store):
            yield store

    @property
    def model(self) -> SubjectModel:
        """The model.

        Raises:
            ModelError: it cannot be loaded.
        """
        if self._model is None:
            self._model = load_whole_model(self.config)
        return self._model

    @property
    def model_config(self) -> Any:
        """The model's configuration, for which the model need not be loaded.

        Raises:
            ModelError: it cannot be read.
        """
        if self._model_config is None:
            from ..extract.models import load_model_config

            self._model_config = load_model_config(self.config.model.name)
        return self._model_config

    def saes(self, wanted: Sequence[CollectedSae]) -> Iterator[Sae]:
        """These SAEs in turn, on the model's device.

        Raises:
            SaeError: the configuration names one no more, or its weights are others now.
        """
        return map(self.sae, wanted)

    def sae(self, collected: CollectedSae) -> Sae:
        """An SAE, on the model's device; the model need not be loaded.

        Raises:
            SaeError: the configuration names it no more, or its weights are others now.
        """
        from ..extract.models import choose_device

        key = collected.content_hash
        if key not in self._saes:
            sae = load_sae_alone(collected, self.config, self.folder, self.model_config)
            # Those used longest ago make room.
            while self._saes and self._n_bytes + sae.n_bytes > self._kept_bytes:
                self._saes.popitem(last=False)
            self._saes[key] = sae.to(choose_device(self.config.model.device))
        self._saes.move_to_end(key)
        return self._saes[key]

    @property
    def _n_bytes(self) -> int:
        return sum(sae.n_bytes for sae in self._saes.values())
