"""Where an endpoint is and the key to it.

Keys come from the environment and go into one header; here is all that knows them.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from ..store.errors import ConfigurationError

KEY_VARIABLE = "OPENAI_API_KEY"
ADDRESS_VARIABLE = "OPENAI_BASE_URL"
OPENAI = "https://api.openai.com/v1"
# Shorter ones are no secrets but what local endpoints are given because something must be given
# (`EMPTY`, `ollama`, `not-needed`), and words like those may stand in any reply.
SHORTEST_SECRET = 12


class ApiKey:
    """A key, or that there is none. It shows itself nowhere."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    @classmethod
    def from_environment(cls, address: str) -> ApiKey:
        """The key in `OPENAI_API_KEY`. Only OpenAI itself cannot do without.

        Args:
            address: of the endpoint it is for.

        Raises:
            ConfigurationError: it is missing, or cannot be a key.
        """
        where = f"the environment variable {KEY_VARIABLE}"
        secret = os.environ.get(KEY_VARIABLE, "").strip()
        if not secret and urlsplit(address).hostname == urlsplit(OPENAI).hostname:
            raise ConfigurationError(
                "there is no key for OpenAI",
                where,
                found="nothing",
                mend=f"export {KEY_VARIABLE}=…, or name another endpoint",
            )
        # What a header cannot carry would be quoted in the error of some library.
        if not secret.isascii() or not secret.isprintable() or " " in secret:
            raise ConfigurationError(
                "this cannot be a key",
                where,
                found="spaces, or characters that no header may have",
                mend="copy it again, without line breaks",
            )
        return cls(secret)

    def __bool__(self) -> bool:
        """Whether there is a key."""
        return bool(self._secret)

    def __repr__(self) -> str:
        return f"ApiKey({'set' if self else 'none'})"

    @property
    def for_header(self) -> str:
        """What is sent; endpoints of one's own are sent something too, which they ignore."""
        return self._secret or "none"

    def struck_out_of(self, text: bytes) -> bytes:
        """A text that came from elsewhere, without the key."""
        if len(self._secret) < SHORTEST_SECRET:
            return text
        return text.replace(self._secret.encode(), b"[key]")


def endpoint_address(configured: str | None) -> str:
    """The address of the endpoint: the configured one, that of `OPENAI_BASE_URL`, or OpenAI's.

    Raises:
        ConfigurationError: it is no address, or has a name or password in it.
    """
    where = "base_url" if configured else f"the environment variable {ADDRESS_VARIABLE}"
    address = configured or os.environ.get(ADDRESS_VARIABLE) or OPENAI
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises where it is no number
    except ValueError:
        is_address = False
    if "@" in address:
        raise ConfigurationError(
            "the address of the endpoint has a name or password in it, which would be stored",
            where,
            expected="http://… or https://… without an @",
            mend=f"keys belong into {KEY_VARIABLE}",
        )
    if not is_address:
        raise ConfigurationError(
            "this is not the address of an endpoint",
            where,
            found=address,
            expected="http://… or https://…, for example http://127.0.0.1:8000/v1",
        )
    return address.rstrip("/")
