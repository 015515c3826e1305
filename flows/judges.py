"""The simulators that read what labels say: how each is opened once, and made for some labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..evaluate.chat_simulator import ChatSimulator
from ..evaluate.free_screen import FreeScreen
from ..evaluate.local_simulator import LocalRater, LocalSimulator, open_rater
from ..evaluate.looked_at_label import Allowance, Screen
from ..evaluate.simulators import Simulator
from ..evaluate.sparse_ratings import kept_digits
from ..evaluate.sparse_screen import SparseScreen
from ..evaluate.sparse_simulator import SparseChatSimulator
from ..evaluate.vllm_simulator import VllmSimulator, slot_digits_of
from ..label.chat import ChatClient, ChatReply
from ..label.labelling import Ask
from .event_loop import EventLoopThread
from .score_settings import JudgeKind, ScoreSection

Run = Callable[[Any], Any]
"""Runs a coroutine to its end, whatever thread asks for it, and gives its result."""


@dataclass(frozen=True, slots=True)
class Texts:
    """How the subject model's tokens read.

    Attributes:
        token_text: spells a token.
        prefix_of: the tokens before a window, by its id.
    """

    token_text: Callable[[int], str]
    prefix_of: Callable[[int], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Judge:
    """A model that is open, and how it is asked.

    Attributes:
        kind: of simulator.
        settings: how labels are scored.
        loop: where calls are made.
        client: what answers them; None where none are made.
        rater: the model in this process that only reads; None for the other kinds.
    """

    kind: JudgeKind
    settings: ScoreSection
    loop: EventLoopThread
    client: ChatClient | None
    rater: LocalRater | None

    @property
    def model(self) -> str:
        """Its name at the endpoint, on the hub or on disk."""
        assert self.settings.chat.model is not None, "the configuration was validated"
        return self.settings.chat.model

    @property
    def name(self) -> str:
        """What its scores are stored under."""
        return self.settings.judge_name(self.kind)

    def kept_logprobs(self, reply: ChatReply) -> Any:
        """What of a reply's log probabilities is kept on the record."""
        return slot_digits_of(reply) if self.kind == "vllm" else kept_digits(reply)

    def run(self, coroutine: Any) -> Any:
        """Runs a coroutine in the loop and gives its result."""
        return self.loop.submit(coroutine).result()

    def simulator(self, ask: Ask, texts: Texts) -> Simulator:
        """The simulator for windows whose tokens read so."""
        if self.rater is not None:
            return LocalSimulator(self.rater, texts.token_text, texts.prefix_of)
        made = {"chat": ChatSimulator, "chat_sparse": SparseChatSimulator, "vllm": VllmSimulator}
        simulator: Simulator = made[self.kind](
            model=self.model,
            ask=ask,
            run=self.run,
            token_text=texts.token_text,
            prefix_of=texts.prefix_of,
        )
        return simulator

    def allowance(self, ask: Ask, texts: Texts) -> Allowance:
        """How many windows of a label it may simulate."""
        chat = self.settings.chat
        return Allowance(
            n_active=chat.active_windows,
            n_silent=chat.silent_windows,
            looks=chat.looked_at(),
            screen=self._screen(ask, texts),
            n_screened=chat.screened_windows,
        )

    def _screen(self, ask: Ask, texts: Texts) -> Screen | None:
        screen = self.settings.chat.screen
        if screen == "words_or_lookup":
            return FreeScreen(texts.token_text)
        if screen == "chat_sparse" and self.client is not None:
            sparse = SparseChatSimulator(
                self.model, ask, self.run, texts.token_text, texts.prefix_of
            )
            return SparseScreen(sparse, self.settings.seed)
        return None


@contextmanager
def opened_judge(
    kind: JudgeKind, settings: ScoreSection, loop: EventLoopThread, n_clients: int = 1
) -> Iterator[Judge]:
    """Opens what a judge needs, one of so many of the kind, for as long as the block lasts.

    Raises:
        ConfigurationError: no key, no such address.
        ModelError: the model was to run here and cannot be loaded.
    """
    chat = settings.chat
    if kind == "local":
        assert chat.model is not None, "the configuration was validated"
        rater = open_rater(chat.model, chat.device, "[score.chat] model")
        yield Judge(kind, settings, loop, None, rater)
        return
    with loop.entered(chat.client(n_clients)) as client:
        yield Judge(kind, settings, loop, client, None)
