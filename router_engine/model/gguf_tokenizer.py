"""The tokenizer of a GGUF file, from the file's own pieces, merges and kinds of token.

Pieces keep their spelling and ids: control tokens and those that a user defined stand in a file as
they are in text, all others of a byte-level vocabulary in GPT-2's alphabet of bytes. How text is
cut before pieces are looked up is named by the file (`tokenizer.ggml.pre`); the expressions are
those that the models' own tokenizers have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from router_engine.errors import UnsupportedModelError
from router_engine.model.gguf_config import read_keys
from router_engine.model.gguf_vocabulary import BYTE_LEVEL, PREFIX, SENTENCEPIECE

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = (
    _CONTRACTIONS + r"|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = ("llama-bpe", "llama-v3", "llama3")  # words that are pieces need no merges; with BOS
_QWEN2 = "qwen2"  # in composed form (NFC)
_EXPRESSIONS = {
    **dict.fromkeys(_LLAMA3, _WORDS.format(digits=r"\p{N}{1,3}")),
    _QWEN2: _WORDS.format(digits=r"\p{N}"),
}
_PLAIN = ("default", "gpt-2", "gpt2")
_DIGITS = ("smollm",)  # each digit apart, then GPT-2's words
_UNNAMED = {"gpt2": "gpt-2", "qwen2": _QWEN2, "qwen3": _QWEN2}  # by architecture: all cut so

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
_NAMES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_TEMPLATE = "tokenizer.chat_template"
_SPACE = "▁"  # sentencepiece's


def load_gguf_tokenizer(file: Path) -> Any:
    """The tokenizer of a GGUF file, of as many tokens as the file has.

    Raises UnsupportedModelError for keys that nothing applies, an unknown way to cut and lists
    that do not fit each other, by name, and whatever the readers raise for a file that is none.
    """
    from transformers import PreTrainedTokenizerFast

    vocabulary = _Vocabulary.read(file)
    byte_level = vocabulary.keys["model"] == BYTE_LEVEL
    backend = _byte_level(vocabulary) if byte_level else _sentencepiece(vocabulary)
    vocabulary.add_whole_tokens(backend)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=vocabulary.chat_template,
        **{name: vocabulary.token(kind) for name, kind in _NAMES.items()},
        add_bos_token=vocabulary.flag("bos"),
        add_eos_token=vocabulary.flag("eos"),
    )


def _byte_level(vocabulary: _Vocabulary) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    merges = [tuple(merge.split(" ", 1)) for merge in vocabulary.items("merges", str)]
    pre = vocabulary.pre
    cut = _pre_tokenizer(pre)
    backend = Tokenizer(
        models.BPE(
            vocabulary.ids,
            merges,
            continuing_subword_prefix="",
            end_of_word_suffix="",
            ignore_merges=pre in _LLAMA3,
        )
    )
    backend.pre_tokenizer, backend.decoder = cut, decoders.ByteLevel()
    if pre == _QWEN2:
        backend.normalizer = normalizers.NFC()
    return backend


def _sentencepiece(vocabulary: _Vocabulary) -> Any:
    """Its BPE: the merges are what the scores of the pieces imply.

    Where the file has a space put before a text, it is put before each text between whole tokens,
    whether or not that begins with a space itself: as sentencepiece and llama.cpp do.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers.convert_slow_tokenizer import generate_merges

    ids, scores = vocabulary.ids, vocabulary.items("scores", Real, one_each=True)
    merges = generate_merges(ids, dict(zip(vocabulary.tokens, scores, strict=True)))
    unknown = vocabulary.token("unknown")
    backend = Tokenizer(
        models.BPE(ids, merges, fuse_unk=True, byte_fallback=True, unk_token=unknown)
    )
    prefix = vocabulary.keys.get("add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    before = [normalizers.Prepend(_SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*before, spaces])
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    return backend


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """A file's pieces by id, and what else it says of them."""

    file: Path
    architecture: str
    keys: Mapping[str, Any]  # below tokenizer.ggml.
    tokens: list[str]
    ids: dict[str, int]
    chat_template: str | None

    @classmethod
    def read(cls, file: Path) -> _Vocabulary:
        every = read_keys(file)
        keys = {
            name.removeprefix(PREFIX): value
            for name, value in every.items()
            if name.startswith(PREFIX)
        }
        tokens = list(keys.get("tokens") or ())
        ids = {token: index for index, token in enumerate(tokens)}
        template = every.get(_TEMPLATE)
        architecture = str(every.get("general.architecture"))
        vocabulary = cls(file, architecture, keys, tokens, ids, template)
        if keys.get("model") not in (BYTE_LEVEL, SENTENCEPIECE):
            raise vocabulary.refuse("model", f"supported: {BYTE_LEVEL}, {SENTENCEPIECE}")
        vocabulary.items("tokens", str)
        if len(ids) != len(tokens):
            twice = next(token for index, token in enumerate(tokens) if ids[token] != index)
            raise vocabulary.refuse("tokens", f"has {twice[:80]!r} twice")
        if not isinstance(template, str | None):
            raise UnsupportedModelError(f"{file}: {_TEMPLATE} is no text")
        return vocabulary

    def refuse(self, key: str, why: str) -> UnsupportedModelError:
        value = self.keys.get(key, "not there")
        told = "" if isinstance(value, list) else f" is {str(value)[:80]}"
        return UnsupportedModelError(f"{self.file}: {PREFIX}{key}{told}: {why}")

    def items(self, key: str, kind: type, *, one_each: bool = False) -> list[Any]:
        """A list of the file's. Raises UnsupportedModelError for none, or another kind of one.

        one_each: as long as that of the tokens.
        """
        values = self.keys.get(key)
        if not isinstance(values, list) or not all(isinstance(one, kind) for one in values):
            raise self.refuse(key, f"a list of {kind.__name__} is needed")
        if one_each and len(values) != len(self.tokens):
            raise self.refuse(key, f"{len(values)} of them for {len(self.tokens)} tokens")
        return values

    def token(self, kind: str) -> str | None:
        """The token that a key names by its id."""
        index = self.keys.get(f"{kind}_token_id")
        return None if index is None else self.tokens[index]

    def flag(self, kind: str) -> bool:
        """Whether a token is put at an end of every text: if no key says so, as llama.cpp does."""
        with_bos = self.keys["model"] == SENTENCEPIECE or self.keys.get("pre") in _LLAMA3
        is_added = bool(self.keys.get(f"add_{kind}_token", kind == "bos" and with_bos))
        if is_added and self.token(kind) is None:
            raise self.refuse(f"{kind}_token_id", "texts of this vocabulary begin or end with one")
        return is_added

    @property
    def pre(self) -> str:
        """How the file says that text is cut; where it says nothing, as its architecture does.

        A Llama with a vocabulary of bytes may cut in any way, and a wrong one degrades answers
        unseen. Such files come from converters of before the key.
        """
        name = self.keys.get("pre") or _UNNAMED.get(self.architecture)
        if name is None:
            raise self.refuse(
                "pre",
                f"the file does not say how its text is cut, and architecture "
                f"{self.architecture} does not either: convert the model anew, or serve its "
                "checkpoint directory",
            )
        return str(name)

    def add_whole_tokens(self, backend: Any) -> None:
        """Tokens that no merges lead to: found whole in a text, before it is cut."""
        from tokenizers import AddedToken

        if "token_type" not in self.keys:
            return
        types = self.items("token_type", int, one_each=True)
        whole = [
            (AddedToken(token, normalized=False, special=kind == _CONTROL), kind)
            for token, kind in zip(self.tokens, types, strict=True)
            if kind in (_CONTROL, _USER_DEFINED) and token
        ]
        backend.add_special_tokens([token for token, kind in whole if kind == _CONTROL])
        backend.add_tokens([token for token, kind in whole if kind == _USER_DEFINED])


def _pre_tokenizer(name: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    if name in _PLAIN:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in _DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if name in _EXPRESSIONS:
        split = pre_tokenizers.Split(Regex(_EXPRESSIONS[name]), behavior="isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, level])
    supported = ", ".join((*_PLAIN, *_DIGITS, *_EXPRESSIONS))
    raise UnsupportedModelError(
        f"tokenizer.ggml.pre {name!r} is not supported; supported: {supported}. A checkpoint "
        "directory with tokenizer.json brings its own"
    )
