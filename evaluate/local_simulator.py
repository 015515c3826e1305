"""A language model in this process as simulator: it reads windows with slots, and writes nothing.

`LocalRater` holds the model and rates texts; there is one, for all threads. `LocalSimulator` is
what a batch of labels needs around it. Windows of a label begin with the same tokens, whose keys
and values are computed once (`PrefixCache.share`); the rest of similar windows is read side by
side, padded behind. Of the vocabulary's probabilities only those at slots are ever computed. A
window's ratings do not depend on its neighbours, but for rounding, which differs with the shape of
a batch.

No call to an endpoint is made, so nothing of this is on the record of calls.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64
from jinja2 import TemplateError

from ..label.capped_attention import attend_in_chunks
from ..label.chat_layout import common_length
from ..label.local_model import LocalModel, load_local_model
from ..label.prefix_cache import PrefixCache
from ..store.errors import ModelError
from ..store.records import Label, Windows
from .rating_calls import Rated, simulated_from
from .simulators import Simulated
from .teacher_forced import (
    DIGITS,
    FILLER,
    WindowText,
    before_slots,
    instructions,
    read_slots,
    slot_messages,
    texts_of,
)
from .token_ratings import HIGHEST

if TYPE_CHECKING:
    import torch

NAME = "local"
# Windows read together at most. A CPU gains nothing by more: what a layer makes of several does not
# fit its caches any more (tests/benchmarks/simulator_speed.py).
_TOGETHER, _TOGETHER_ON_CPU = 16, 2
NO_MEMORY = "the device has no memory for it"
NOT_TAKEN = "the model's chat template does not take the text"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A window as the model reads it: its token ids, and at which of them a slot is next."""

    token_ids: list[int]
    slots: list[int]


class LocalRater:
    """A model that rates windows by labels, for any number of threads: they take turns.

    Args:
        model: that rates. A Gemma 2 attends in another order from now on (`capped_attention`).
        batch_size: windows read together at most, fewer once they did not fit into memory; None
            for what suits the device.

    Raises:
        ModelError: its tokenizer has no token for each digit that can stand behind a tab.
    """

    def __init__(self, model: LocalModel, batch_size: int | None = None) -> None:
        self._model = model
        suits = _TOGETHER_ON_CPU if model.device.type == "cpu" else _TOGETHER
        self._batch_size = batch_size or suits
        self._lock = Lock()
        attend_in_chunks(model.network)
        self._prefixes = PrefixCache(model.network, model.layout.beginning)
        *self._digit_ids, self._filler_id = self._sign_ids(DIGITS + FILLER)

    @property
    def name(self) -> str:
        """The model's: hub id or folder."""
        return self._model.name

    def rate(self, label: str, texts: Sequence[WindowText]) -> list[Rated | str]:
        """Rates windows by a label.

        Returns:
            For each its ratings, or why there are none.
        """
        import torch

        with self._lock, torch.inference_mode():
            shared = self._shared_ids(label)
            outcomes: dict[int, Rated | str] = {}
            prompts: dict[int, _Prompt] = {}
            for row, text in enumerate(texts):
                prompt = self._prompt(label, text)
                if isinstance(prompt, str):
                    outcomes[row] = prompt
                else:
                    prompts[row] = prompt
            outcomes |= self._read_all(shared, prompts)
        return [outcomes[row] for row in range(len(texts))]

    # --- what is read -------------------------------------------------------------------------

    def _shared_ids(self, label: str) -> list[int]:
        """The token ids with which all windows of a label begin."""
        try:
            one, other = (
                self._model.layout.token_ids(slot_messages(label, before))
                for before in ((), ("…",))
            )
        except (TemplateError, ValueError):
            return []  # no window is taken either
        return one[: common_length(one, other)]

    def _prompt(self, label: str, text: WindowText) -> _Prompt | str:
        try:
            token_ids = self._model.layout.token_ids(slot_messages(label, text.before))
        except (TemplateError, ValueError):
            return NOT_TAKEN
        slots: list[int] = []
        for piece in self._piece_ids(before_slots(text.tokens)):
            token_ids += piece
            slots.append(len(token_ids) - 1)
            token_ids.append(self._filler_id)
        # Behind the last slot nothing is read.
        prompt = _Prompt(token_ids[:-1], slots)
        limit = self._model.context_tokens
        if limit is not None and len(prompt.token_ids) > limit:
            return f"it has more than the {limit:,} tokens that the model takes"
        return prompt

    def _piece_ids(self, pieces: Sequence[str]) -> list[list[int]]:
        """The token ids of texts, each as it is behind a filler wherever that stays itself."""
        (filler,) = self._encode([FILLER])
        ids = self._encode([FILLER + each for each in pieces])
        joined = [n for n, each in enumerate(ids) if each[: len(filler)] != filler]
        ids = [each[len(filler) :] for each in ids]
        if joined:
            for n, alone in zip(joined, self._encode([pieces[n] for n in joined]), strict=True):
                ids[n] = alone
        return ids

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._model.layout.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True
        )["input_ids"]
        return ids

    def _sign_ids(self, signs: str) -> list[int]:
        """The token that each sign is in a slot."""
        (_, before) = before_slots(["one", " two"])
        alone, *followed = self._piece_ids([before, *(before + sign for sign in signs)])
        added = [ids[len(alone) :] for ids in followed]
        are_apart = all(ids[: len(alone)] == alone for ids in followed)
        found = {ids[0] for ids in added if len(ids) == 1}
        if not are_apart or len(found) < len(signs):
            raise ModelError(
                "The model's tokenizer does not write each rating as one token.",
                where=self.name,
                found=f"after a tab {len(found)} of the {len(signs)} signs {signs} are tokens",
                expected="a token of its own for each digit, whatever stands before it",
                mend="name another model",
            )
        return [ids[0] for ids in added]

    # --- what comes of it ---------------------------------------------------------------------

    def _read_all(
        self, shared: Sequence[int], prompts: dict[int, _Prompt]
    ) -> dict[int, Rated | str]:
        """Reads prompts, as many at once as memory allows, those of a length together."""
        import torch

        outcomes: dict[int, Rated | str] = {}
        left = deque(sorted(prompts, key=lambda row: len(prompts[row].token_ids), reverse=True))
        while left:
            rows = [left.popleft() for _ in range(min(len(left), self._batch_size))]
            said: str | None = None
            try:
                read = self._read(shared, [prompts[row] for row in rows])
            except torch.OutOfMemoryError as error:
                said = str(error).splitlines()[0] if str(error) else "out of memory"
            if said is None:
                outcomes |= zip(rows, map(read_slots, read), strict=True)
                continue
            # Out here the frames that held on to memory are gone.
            torch.cuda.empty_cache()
            if len(rows) == 1:
                outcomes[rows[0]] = NO_MEMORY
                self._prefixes.clear()
                continue
            self._batch_size = len(rows) // 2
            log.warning(
                "%s: no memory for %d windows at once, goes on with %d: %s",
                self.name, len(rows), self._batch_size, said,
            )  # fmt: skip
            left.extendleft(reversed(rows))
        return outcomes

    def _read(
        self, shared: Sequence[int], prompts: Sequence[_Prompt]
    ) -> list[Float64[np.ndarray, "T 10"]]:
        """Log probabilities of the digits at each slot of each prompt."""
        import torch

        network, device = self._model.network, self._model.device
        # All prompts begin alike, but for tokenizers that join what follows to it.
        n = min(len(shared), *(common_length(shared, each.token_ids) for each in prompts))
        cache = self._prefixes.share((instructions(),), shared[:n])
        rest = [each.token_ids[n:] for each in prompts]
        longest = max(map(len, rest))
        # Any token will do behind a row's own, which do not see it.
        padded = [ids + [self._filler_id] * (longest - len(ids)) for ids in rest]
        rows = [row for row, each in enumerate(prompts) for _ in each.slots]
        places = [slot - n for each in prompts for slot in each.slots]
        with _only_at(network, torch.tensor(rows), torch.tensor(places)):
            output = network(
                input_ids=torch.tensor(padded, device=device),
                position_ids=torch.arange(n, n + longest, device=device)[None],
                past_key_values=cache,
                use_cache=True,
            )
        by_window = output.logits[0].split([len(each.slots) for each in prompts])
        return [self._digits(each) for each in by_window]

    def _digits(self, logits: torch.Tensor) -> Float64[np.ndarray, "T 10"]:
        whole = logits.float()
        digits = whole[:, self._digit_ids] - whole.logsumexp(-1, keepdim=True)
        values: Float64[np.ndarray, "T 10"] = digits.double().cpu().numpy()
        return values


@contextmanager
def _only_at(network: Any, rows: torch.Tensor, places: torch.Tensor) -> Iterator[None]:
    """Within the block, the network's head sees these tokens of a batch only, as one row.

    What a model does to the head's numbers (Gemma 2 caps them) it does to these.
    """

    def pick(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *more = args
        return (hidden[rows.to(hidden.device), places.to(hidden.device)][None], *more)

    handle = network.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True, slots=True)
class LocalSimulator:
    """Predicts activations by a model in this process; `name` says which.

    Attributes:
        rater: the model.
        token_text: spells a token of the subject model.
        prefix_of: the tokens before a window, by its id.
    """

    rater: LocalRater
    token_text: Callable[[int], str]
    prefix_of: Callable[[int], Sequence[int]]
    depends_on_order: bool = False
    full_scale: float | None = float(HIGHEST)

    @property
    def name(self) -> str:
        """What its scores are stored under: two models are two judges."""
        return f"{NAME}/{self.rater.name}"

    def simulate(self, label: Label, windows: Windows) -> Simulated:
        """The ratings of each token of the windows."""
        outcomes = self.rater.rate(
            label.text or "", texts_of(windows, self.token_text, self.prefix_of)
        )
        return simulated_from(outcomes, windows.token_ids.shape)


def open_rater(
    name: str, device: str, setting: str = "[score.local] model", batch_size: int | None = None
) -> LocalRater:
    """Loads a model that is to rate windows.

    Args:
        name: hub id or folder.
        device: a torch device, or `auto` for the first GPU if there is one.
        setting: the key that names it, for the message if it cannot be loaded.
        batch_size: windows read together at most; None for what suits the device.

    Raises:
        ModelError: it cannot be loaded or used for this.
    """
    return LocalRater(load_local_model(name, device, "rate windows", setting), batch_size)
