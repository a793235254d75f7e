"""Text to token ids and back, with the base model's own tokenizer and chat template."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from router_engine.model.checkpoint import is_panic, one_line
from server.errors import InputError

_MARGIN = 1024  # characters: where text is cut the first tokens differ
_KEPT = 1 << 16  # tokens whose spelling is kept


class Tokenization:
    """Wraps a transformers tokenizer. `eos_ids` end an answer; they are no part of it."""

    def __init__(
        self, tokenizer: Any, eos_ids: Sequence[int], max_tokens: int | None = None
    ) -> None:
        """max_tokens: of a prompt; texts that must have more are refused unread."""
        self._tokenizer = tokenizer
        self._longest = max(len(piece) for piece in tokenizer.get_vocab())  # a character is a byte
        self._max_tokens = max_tokens
        # The library's own, where there is one: transformers' wrapper takes longer than it does.
        self._fast = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self.eos_ids = tuple(eos_ids)
        self._special = frozenset(tokenizer.all_special_ids) | frozenset(eos_ids)
        self._skipped = self._special_of(tokenizer)
        self.text_of = functools.lru_cache(maxsize=_KEPT)(self._text_of)
        self.token_of = functools.lru_cache(maxsize=_KEPT)(self._token_of)
        self._decode_one = functools.lru_cache(maxsize=_KEPT)(self._decode)

    def encode(
        self, text: str, *, field: str = "inputs", add_special_tokens: bool = True
    ) -> tuple[int, ...]:
        """Token ids of a prompt, which came in `field`.

        Raises InputError for one that cannot be short enough, and for one that the tokenizer
        cannot read.
        """
        if self._max_tokens is not None:
            most = self._max_tokens * self._longest + _MARGIN
            if len(text) > most:
                raise InputError(
                    field,
                    f"{len(text)} characters",
                    f"too long: {self._max_tokens} tokens have at most {most}; "
                    + ("shorten the prompt or set truncate" if field == "inputs" else "shorten it"),
                )
        try:
            return tuple(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))
        except BaseException as error:  # of the model's own files, such as one without <unk>
            if not (isinstance(error, Exception) or is_panic(error)):
                raise
            size = f"{len(text)} characters"
            hint = f"the base model's tokenizer cannot read it: {one_line(error)}"
            raise InputError(field, size, hint) from error

    def encode_last(self, text: str, count: int) -> tuple[int, ...]:
        """The last `count` token ids of a prompt: what cannot be among them is not read."""
        return self.encode(text[-(count * self._longest + _MARGIN) :])[-count:]

    def encode_first(self, text: str, count: int) -> tuple[int, ...]:
        """The first `count` token ids of a text: what cannot be among them is not read."""
        return self.encode(text[: count * self._longest + _MARGIN])[:count]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens."""
        return self._decode_one(ids[0]) if len(ids) == 1 else self._decode(*ids)

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """Token ids of a conversation, ending where the assistant's answer begins.

        Raises InputError where template or tokenizer refuse it, and for a `name` that the template
        doesn't read.
        """
        if not self._tokenizer.chat_template:
            raise InputError(
                "messages", "given", "this base model has no chat template: use a text prompt"
            )
        text = self._rendered(messages)
        for role in sorted({message["role"] for message in messages if "name" in message}):
            # A template may read it in one role and not in another: only rendering can tell.
            without = [
                {key: value for key, value in message.items() if key != "name"}
                if message["role"] == role
                else message
                for message in messages
            ]
            if self._rendered(without) == text:
                raise InputError(
                    "messages.name",
                    f"given with the role {role}",
                    "this model's chat template does not read it: leave it out, and say in "
                    "content who speaks",
                )
        return self.encode(text, field="messages", add_special_tokens=False)

    def _rendered(self, messages: Sequence[Mapping[str, Any]]) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates are code of the model's authors and raise anything
            raise InputError("messages", "given", f"the chat template refused: {error}") from error
        return text

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special

    def is_skipped(self, token_id: int) -> bool:
        """Whether `decode` leaves a token out."""
        return token_id in self._skipped

    def _text_of(self, token_id: int) -> str:
        """A single token's text, special tokens spelled out."""
        text: str = self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        return text

    def require_room(self, tokens: int, field: str) -> None:
        """Raises InputError for a prompt of so many tokens that none is left for an answer."""
        if self._max_tokens is not None and tokens >= self._max_tokens:
            raise InputError(
                field,
                f"{tokens} tokens",
                f"too long: prompt and answer together may have {self._max_tokens} tokens; "
                "shorten the prompt",
            )

    def check_ids(self, ids: Sequence[int], field: str) -> tuple[int, ...]:
        """Token ids from a client; raises InputError for one outside the vocabulary."""
        size = len(self._tokenizer)
        for token_id in ids:
            if not 0 <= token_id < size:
                raise InputError(field, str(token_id), f"token ids are 0 to {size - 1}")
        return tuple(ids)

    def _decode(self, *ids: int) -> str:
        text: str
        if self._fast is not None:
            text = self._fast.decode(ids, skip_special_tokens=True)
        else:
            text = self._tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        return text

    def _special_of(self, tokenizer: Any) -> frozenset[int]:
        if self._fast is None:
            return frozenset(tokenizer.all_special_ids)
        added = self._fast.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    def _token_of(self, token_id: int) -> str:
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        return token if isinstance(token, str) else ""
