"""Which text a document's windows may be used for, decided before anything is ranked.

Labels are written from `explain`, the best candidate is chosen on `select`, and only `score`
is reported. The split is a function of the document's content alone, so the same text never
lands in two splits, whatever file or shard it came from.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Split = Literal["explain", "select", "score"]
SPLITS: tuple[Split, ...] = get_args(Split)

# Explain 50%, select 20%, score 30% of the documents.
_EXPLAIN_BELOW, _SELECT_BELOW = 0.5, 0.7


def document_id(text: str) -> str:
    """Names a document by its content: 16 hexadecimal digits."""
    content = text.encode("utf-8", "surrogatepass")
    return blake2b(content, digest_size=8, person=b"document").hexdigest()


def split_of(doc_id: str) -> Split:
    """The split of a document, from a hash of its id."""
    digest = blake2b(doc_id.encode(), digest_size=8, person=b"split").digest()
    share = int.from_bytes(digest, "big") / 2**64
    if share < _EXPLAIN_BELOW:
        return "explain"
    return "select" if share < _SELECT_BELOW else "score"


def token_hash(token_ids: npt.NDArray[np.int32], seed: int) -> int:
    """The 64-bit number that identifies a window's exact token ids under a sampling seed.

    Windows with the smallest numbers form the uniform samples. Every feature uses the same
    number for a window, so that features share windows and copies of a window coincide.
    """
    salt = seed.to_bytes(8, "little", signed=True)
    digest = blake2b(_as_bytes(token_ids), digest_size=8, salt=salt, person=b"tokens").digest()
    return int.from_bytes(digest, "little")


def window_id(tokenizer: str, doc_id: str, start: int, token_ids: npt.NDArray[np.int32]) -> int:
    """Names one occurrence of a window, by tokenizer, document, place and content (64 bits)."""
    place = f"{tokenizer}\0{doc_id}\0{start}\0".encode()
    digest = blake2b(place + _as_bytes(token_ids), digest_size=8, person=b"window").digest()
    return int.from_bytes(digest, "little")


def _as_bytes(token_ids: npt.NDArray[np.int32]) -> bytes:
    return np.ascontiguousarray(token_ids, dtype="<i4").tobytes()
