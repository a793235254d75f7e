"""Text that UTF-8 can say, as a check of settings: bytes of the environment may be none."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from adapters_store.texts import is_utf8


def require_utf8(value: Any) -> Any:
    """The value of a setting, paths as they are. Raises ValueError for text that is no UTF-8."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(text, str) and not is_utf8(text):
        raise ValueError("is not UTF-8")
    return value
