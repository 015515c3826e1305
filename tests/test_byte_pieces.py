"""Characters that tokens spell in bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from scopenote.store.byte_pieces import join_bytes


@given(text=st.text(), seed=st.integers(0, 99))
def test_characters_spelled_in_bytes_are_joined_and_keep_their_strongest_activation(
    text: str, seed: int
) -> None:
    tokens: list[str] = []
    for character in text.encode("utf-8", "replace").decode():
        spelled = character.encode()
        tokens += [character] if len(spelled) == 1 else [f"<0x{byte:02X}>" for byte in spelled]
    activations = [float((seed + 7 * place) % 5) for place in range(len(tokens))]
    joined, strongest = join_bytes(tokens, activations)
    assert "".join(joined) == text.encode("utf-8", "replace").decode()
    assert max(strongest, default=0) == max(activations, default=0)


def test_bytes_that_spell_no_character_stay_as_they_are() -> None:
    tokens = ["a", "<0x80>", "<0xE2>", "<0x80>", "b", "<0xE2>"]
    activations = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert join_bytes(tokens, activations) == (tokens, activations)
