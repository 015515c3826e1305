"""Numbered shards of a corpus, which may be collected apart and brought together."""

from __future__ import annotations

from dataclasses import dataclass

from ..store.errors import UserMistake


@dataclass(frozen=True, slots=True)
class Shard:
    """Every `count`-th chunk of a corpus, from number `number` on, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard written `3/16`.

        Raises:
            UserMistake: it is not written so, or there is no such shard.
        """
        number, slash, count = text.partition("/")
        if slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
            return cls(int(number), int(count))
        raise UserMistake(
            "There is no such shard.",
            where="--shard",
            found=text,
            expected="a number and how many there are, such as 3/16, counted from 1",
        )

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def owns(self, chunk: int) -> bool:
        """Whether the chunk of this number, counted from 0, is part of it."""
        return chunk % self.count == self.number - 1


WHOLE = Shard(1, 1)
