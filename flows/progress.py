"""How far the work is: bars on a terminal, plain lines elsewhere, always on standard error.

The flows know `Progress`, `Stage` and nothing of terminals. Safe to use from several threads.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_LINE_SECONDS = 5.0


class Progress:
    """Shows stages of work on a stream; a context, so that a terminal is always left tidy.

    Args:
        stream: where to; standard error unless given.
        animate: bars that redraw themselves; by default only where the stream is a terminal.
        line_seconds: without bars, at most one line a stage in this time.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        animate: bool | None = None,
        line_seconds: float = _LINE_SECONDS,
    ) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._animate = self._stream.isatty() if animate is None else animate
        self._line_seconds = line_seconds
        self._bars: Bars | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if self._animate:
            self._bars = _bars(self._stream)
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def stage(self, name: str, total: int | None = None, unit: str = "") -> Stage:
        """Begins a stage of so many units of work; without a total if that is not known."""
        task = None
        if self._bars is not None:
            task = self._bars.add_task(name, total=total, unit=unit, note="")
        return Stage(name, total, unit, self, task)

    def say(self, text: str) -> None:
        """Writes a line, above the bars where there are any."""
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
            return
        with self._lock:
            self._stream.write(f"{text}\n")
            self._stream.flush()


@dataclass(slots=True)
class Stage:
    """One stage under way; also a context, which finishes it."""

    name: str
    total: int | None
    unit: str
    progress: Progress
    task: TaskID | None
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)
    _is_finished: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def advance(self, n: int = 1) -> None:
        """So many more units are done."""
        with self._lock:
            self.done += n
            done, now = self.done, time.monotonic()
            is_due = now - self._said >= self.progress._line_seconds
            if is_due:
                self._said = now
        bars = self.progress._bars
        if bars is not None and self.task is not None:
            bars.update(self.task, completed=done)
        elif is_due:
            self.progress.say(self._line(done, now))

    @contextmanager
    def attempt(self) -> Iterator[Callable[[int], None]]:
        """Advances within the block, and takes it back where that fails: it is done again."""
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            self.advance(n)

        try:
            yield advance
        except Exception:
            self.advance(-done)
            raise

    def finish(self, note: str = "") -> None:
        """The stage is over; says how much was done, how fast, and the note."""
        with self._lock:
            if self._is_finished:
                return
            self._is_finished = True
        bars = self.progress._bars
        if bars is not None and self.task is not None:
            # A bar that ended early still ends full: its total was an estimate.
            bars.update(self.task, total=max(self.done, 1), completed=max(self.done, 1), note=note)
            bars.stop_task(self.task)
            return
        seconds = time.monotonic() - self.started
        parts = [f"{self.name}: {_amount(self.done, self.unit)} in {seconds:.1f} s"]
        if self.done and seconds >= 0.1:
            parts.append(f"{_rate(self.done / seconds)}/s")
        if note:
            parts.append(note)
        self.progress.say(", ".join(parts))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()

    def _line(self, done: int, now: float) -> str:
        per_second = done / max(now - self.started, 1e-9)
        if not self.total or done > self.total:  # the total was an estimate
            return f"{self.name}: {_amount(done, self.unit)}, {_rate(per_second)}/s"
        left = max(self.total - done, 0) / max(per_second, 1e-9)
        return (
            f"{self.name}: {done / self.total:.0%}, {done:,} of {_amount(self.total, self.unit)}, "
            f"{_rate(per_second)}/s, {duration(left)} left"
        )


def duration(seconds: float) -> str:
    """A span of time as people say it: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _amount(n: int, unit: str) -> str:
    return f"{n:,} {unit}".rstrip()


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.1f}"


def _bars(stream: TextIO) -> Bars:
    # Here and not above: rich's bars take a tenth of a second to import.
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
    from rich.progress import Progress as Bars
    from rich.table import Column
    from rich.text import Text

    class Figures(ProgressColumn):
        """Done of total, the rate, and the time left."""

        def render(self, task: Task) -> Text:
            unit = task.fields["unit"]
            done = int(task.completed)
            seconds = task.finished_time if task.finished else task.elapsed
            per_second = done / seconds if seconds and seconds > 0.1 else None
            rate = f" · {_rate(per_second)}/s" if per_second else ""
            if task.finished:
                note = f" · {task.fields['note']}" if task.fields["note"] else ""
                return Text(f"{_amount(done, unit)} in {duration(seconds or 0)}{rate}{note}")
            if not task.total or done > task.total:  # the total was an estimate
                return Text(f"{_amount(done, unit)}{rate}")
            left = ""
            if per_second:
                left = f" · {duration((task.total - done) / per_second)} left"
            return Text(f"{done:,} of {_amount(int(task.total), unit)}{rate}{left}")

    console = Console(file=stream, stderr=stream is sys.stderr)
    # The figures need about 64 columns; a line that wraps is not redrawn in its place.
    bar_width = max(8, min(24, console.width - 64))
    return Bars(
        TextColumn("{task.description:<8}", style="bold"),
        BarColumn(bar_width=bar_width, complete_style="cyan", finished_style="green"),
        Figures(table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=console,
        refresh_per_second=8,
    )
