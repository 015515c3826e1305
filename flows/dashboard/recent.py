"""What was read of a run not long ago, as long as the run is what it was."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """Keeps the last values of one state; threads may share it."""

    def __init__(self, most: int) -> None:
        """For so many of them."""
        self._most = most
        self._lock = threading.Lock()
        self._state: Hashable = None
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, state: Hashable, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key, made unless it is there.

        Args:
            state: a name of what values are made of, taken before that is read: values of another
                state are forgotten.
            key: which one.
            make: what makes it; two threads may both do so.
        """
        with self._lock:
            if self._state != state:
                self._values.clear()
                self._state = state
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if self._state == state:
                self._values[key] = value
                if len(self._values) > self._most:
                    self._values.popitem(last=False)
        return value
