"""Configs: every key that is read with values of every kind, and what is no config."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from adapters_store.formats.peft_config import READ_KEYS, UNSUPPORTED_KEYS
from tests.server.hostile.cases import CONFIG, TENSORS, Case, Good, Parts, files, parsed, replaced

_MARK = '"\\u0000mark"'
# As they stand in the file: some are no Python values.
_VALUES = {
    **{"NaN": "NaN", "Infinity": "Infinity", "minus Infinity": "-Infinity", "1e999": "1e999"},
    **{
        "minus one": "-1",
        "zero": "0",
        "2^70": str(2**70),
        "a half": "0.5",
        "400 digits": "1" * 400,
    },
    **{"5000 digits": "1" * 5000, "true": "true", "null": "null", "text": '"x"', "no text": '""'},
    **{"a number as text": '"4"', "surrogate": r'"\ud800"', "NUL": r'"\u0000"', "lists": "[[[]]]"},
    **{"list": '["x"]', "no list": "[]", "list of null": "[null]", "object": '{"x": 1}'},
    **{"no object": "{}", "object of null": '{"x": null}', "deep": "[" * 10_000 + "]" * 10_000},
    **{"deeper than read": "[" * 40 + "]" * 40, "long text": '"' + "x" * 100_000 + '"'},
    "many": json.dumps([f"x{index}" for index in range(20_000)]),
}
# What a key may be beside what is refused: everything that changes nothing, or is a name.
LEGAL: dict[str, set[str]] = {
    "peft_type": set(),
    "base_model_name_or_path": {"null", "text", "no text", "a number as text", "NUL"},
    "r": set(),
    "lora_alpha": {"null", "minus one", "zero", "a half", "2^70"},
    "use_rslora": {"null", "true"},
    "rank_pattern": {"null", "no object", "object"},
    "alpha_pattern": {"null", "no object", "object"},
    "target_modules": {"null"},
    "exclude_modules": {
        *("null", "no text", "no list", "text", "list", "a number as text", "NUL"),
    },
    "layers_to_transform": {"null", "no list"},
    "layers_pattern": {
        "null",
        "no list",
        "no text",
        "text",
        "list",
        "a number as text",
        "NUL",
        "long text",
    },
}


def config(**changes: Any) -> Callable[[Good], Parts]:
    """The sound adapter with some keys changed."""

    def make(good: Good) -> Parts:
        return replaced(good, CONFIG, json.dumps({**json.loads(good[CONFIG]), **changes}).encode())

    return make


def literal(key: str, text: str) -> Callable[[Good], Parts]:
    """The same with what JSON's writer would not write."""

    def make(good: Good) -> Parts:
        written = json.dumps({**json.loads(good[CONFIG]), key: "\0mark"}).replace(_MARK, text)
        return replaced(good, CONFIG, written.encode())

    return make


def text(content: bytes) -> Callable[[Good], Parts]:
    """This in place of the config."""
    return lambda good: replaced(good, CONFIG, content)


def native(content: object) -> Callable[[Good], Parts]:
    """An adaptermix.json beside the sound adapter's tensors."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda good: files(("adaptermix.json", data), (TENSORS, good[TENSORS]))


_LORA = {
    **{"kind": "lora", "module": "model.layers.0.self_attn.q_proj", "rank": 4, "scale": 1.0},
    **{"in_features": 64, "out_features": 64, "tensor_a": "a", "tensor_b": "b"},
}
_ROUTER = {
    **{"layer": "model.layers.0", "kind": "linear", "input": "post_norm", "outputs": 1},
    **{"features": 64, "prefix": "r"},
}


def sound(key: str = "kind", value: object = "lora") -> Callable[[Good], Parts]:
    """The sound adapter with a manifest of our own, one key of its first expert changed."""

    def make(good: Good) -> Parts:
        header, _ = parsed(good)
        experts = []
        for name in sorted(header):
            if name.endswith("lora_A.weight"):
                pair = (name, name.replace("lora_A", "lora_B"))
                (rank, width), (height, _) = (header[one]["shape"] for one in pair)
                module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                sizes = {"rank": rank, "in_features": width, "out_features": height}
                named = {"module": module, "tensor_a": pair[0], "tensor_b": pair[1]}
                experts.append({**_LORA, **sizes, **named})
        experts[0][key] = value
        return document(experts=experts)(good)

    return make


def document(**changes: Any) -> Callable[[Good], Parts]:
    return native({"format": "adaptermix", "schema": 1, "experts": [_LORA], **changes})


_TYPES = ("IA3", "ADALORA", "LOHA", "LOKR", "PREFIX_TUNING", "PROMPT_TUNING", "VERA", "lora", "", 1)
_BLOWN_UP = ("((a{1000}){1000}){1000}", "(?:a{60000}){60000}", "(a|b){5000}" * 300, "a{4294967295}")
# Ranges over which the compiler goes one by one, again and again.
_WIDE = (
    "(?i)" + "[\0-\uffff]" * 400,
    "[\0-\U0010ffff]" * 800,
    r"(?i)[\0-\uffff]" * 40,
    r"(?i)(?:[\x00-\U0010ffff])+" * 40,
    "(?i:" + "[^a\0-\uffff]" * 500 + ")",
    "(?i)" + "[--\uffff]" * 700,
    "(?s)" + "(?<!" + "[a-\uffff]" * 700 + ")",
    r"[\0-\N{CJK COMPATIBILITY IDEOGRAPH-FA6D}]" * 80,
)
_CATASTROPHES = ("(a+)+$", "(.*)*x", "(.|.)*x", "((.*)+)+x", "(.*.*.*.*.*.*.*.*)*[^a-z]{9}$")
_NO_PATTERNS = (
    "(",
    "[",
    "*",
    "a{2,1}",
    "(?<=a+)(",
    "(?P<a>x)(?P<a>y)",
    "(?R)?a",
    "\\p{L}",
    "(?V1)[a--b]",
    "\\",
    "(" * 2000 + ")" * 2000,
)
_TEXTS: dict[str, bytes] = {
    **{"empty": b"", "cut": b"{", "list": b"[]", "null": b"null", "number": b"1", "text": b'"x"'},
    **{"not UTF-8": b"\xff\xfe", "deep": b"[" * 10_000, "deep objects": b'{"a":' * 10_000},
    **{"a mark": b"\xef\xbb\xbf{}", "a key twice": b'{"r": 4, "r": 8}', "huge": b" " * (2 << 20)},
    **{"trailing": b"{} x", "NUL": b"\0" * 100, "a page": b"<html>", "no keys": b"{}"},
    "many values": b"[" + b"1," * 500_000 + b"1]",
    "UTF-16": '{"peft_type": "LORA"}'.encode("utf-16"),
}

_ODD: tuple[Any, ...] = (None, -1, 0, 2**70, 1.5, 1e39, "", "x", "\ud800", "a\0b", [], {}, True)


def _status(key: str, value: Any) -> tuple[int, ...]:
    """A scale may be any number that float32 holds; null is what gate and copies are without."""
    is_scale = key == "scale" and type(value) in (int, float) and abs(value) < 1e38
    return (201,) if is_scale or (key in ("gate", "copies") and value is None) else (422,)


CASES: dict[str, Case] = {
    **{
        f"{key} = {value}": Case(
            literal(key, text), statuses=(201,) if value in LEGAL[key] else (422,)
        )
        for key in sorted(READ_KEYS)
        for value, text in _VALUES.items()
    },
    **{f"{key} is used": Case(config(**{key: {"x": 1}}), key) for key in sorted(UNSUPPORTED_KEYS)},
    **{
        f"peft_type {word!r}": Case(
            config(peft_type=word, bias="all", zebra=1, use_dora=True), 'supported is "LORA"'
        )
        for word in _TYPES
    },
    **{f"config {key}": Case(text(content)) for key, content in _TEXTS.items()},
    "an unknown key": Case(config(zebra=1), "zebra"),
    "many unknown keys": Case(config(**{f"k{index}": 1 for index in range(20_000)}), "k0"),
    "a key of a megabyte": Case(config(**{"k" * 900_000: 1}), "kkk"),
    "a value of a megabyte": Case(config(zebra="x" * 900_000), "zebra"),
    "an init that changes the base": Case(config(init_lora_weights="pissa"), "pissa"),
    "another rank": Case(config(r=8), "rank 8"),
    "a rank pattern that is wrong": Case(config(rank_pattern={"q_proj": 2}), "rank 2"),
    "many rank patterns": Case(config(rank_pattern={f"x{i}": 4 for i in range(20_000)}), "4096"),
    "many alpha patterns": Case(config(alpha_pattern={f"x{i}": 4 for i in range(20_000)}), "4096"),
    "some rank patterns": Case(
        config(rank_pattern={f"x{i}": 4 for i in range(4000)}), statuses=(201,)
    ),
    "a huge alpha": Case(config(lora_alpha=1e300), "float32"),
    "an alpha of 4000 digits": Case(literal("lora_alpha", "1" * 4000)),
    "targets that are not there": Case(config(target_modules=["nothing"]), "does not name"),
    "too many targets": Case(config(target_modules=["gate_proj", "q_proj"]), "target_modules"),
    "layers out of range": Case(config(layers_to_transform=[99]), "target_modules"),
    "layers below 0": Case(config(layers_to_transform=[-1]), "target_modules"),
    "many layers": Case(config(layers_to_transform=list(range(20_000))), "4096"),
    "all excluded": Case(config(exclude_modules=".*"), "target_modules"),
    **{
        f"{key} {pattern[:20]!r}": Case(config(**{key: pattern}))
        for key in ("target_modules", "exclude_modules")
        for pattern in _NO_PATTERNS
    },
    **{
        f"rank pattern {pattern[:20]!r}": Case(config(rank_pattern={pattern: 4}))
        for pattern in _NO_PATTERNS
    },
    **{
        f"targets by {pattern!r}": Case(config(target_modules=pattern)) for pattern in _CATASTROPHES
    },
    **{
        f"{key} {pattern[:20]!r}": Case(config(**{key: pattern}), "repeats too much")
        for key in ("target_modules", "exclude_modules")
        for pattern in _BLOWN_UP
    },
    **{
        f"rank pattern {pattern[:20]!r}": Case(config(rank_pattern={pattern: 4}), "repeats")
        for pattern in _BLOWN_UP
    },
    **{
        f"{key} of wide ranges {index}": Case(
            config(layers_to_transform=[0], **{key: make(pattern)}), "too many characters"
        )
        for key, make in (
            ("target_modules", str),
            ("exclude_modules", str),
            ("layers_pattern", str),
            ("rank_pattern", lambda pattern: {pattern: 4}),
            ("alpha_pattern", lambda pattern: {pattern: 4}),
        )
        for index, pattern in enumerate(_WIDE)
    },
    "layers by repeats": Case(
        config(layers_to_transform=[0], layers_pattern="((a{999}){999}){999}"), "repeats"
    ),
    "a pattern of 100 kB": Case(config(target_modules="x" * 100_000), "longer than 4096"),
    "a pattern of many repeats": Case(config(target_modules="(a{1000}){1000}"), statuses=(422,)),
    "no config": Case(lambda good: files((TENSORS, good[TENSORS])), "missing"),
    "no tensors": Case(lambda good: files((CONFIG, good[CONFIG])), "missing"),
    "both manifests": Case(
        lambda good: files(*good.items(), ("adaptermix.json", b"{}")), "adapter_config.json"
    ),
    **{f"manifest {key}": Case(native(content)) for key, content in _TEXTS.items()},
    "manifest of another format": Case(document(format="peft"), "format"),
    "manifest of another schema": Case(document(schema=2), "schema"),
    "manifest with an unknown key": Case(document(zebra=1), "zebra"),
    "manifest with many unknown keys": Case(
        document(**{f"k{index}": 1 for index in range(65_000)}), "at most 64"
    ),
    "manifest with many unknown keys of one expert": Case(
        document(experts=[_LORA | {f"k{index}": 1 for index in range(65_000)}]), "at most 64"
    ),
    "manifest with unknown keys of many experts": Case(
        document(experts=[_LORA | {f"rank{index}": 1 for index in range(6)}] * 4000), "unknown"
    ),
    "manifest with unknown keys of many routers": Case(
        document(routers=[_ROUTER | {f"layer{index}": 1 for index in range(6)}] * 4000), "unknown"
    ),
    "manifest with long unknown keys": Case(
        document(**{f"{index}{'k' * 20_000}": 1 for index in range(40)}), "unknown"
    ),
    "manifest with many wrong copies": Case(
        document(experts=[_LORA | {"copies": {"down": ["a"] * 65_000, "up": [1.0]}}]), "at most 512"
    ),
    "manifest with a long module and a gate": Case(
        document(experts=[_LORA | {"gate": 0, "module": "a." * 400_000}], routers=[_ROUTER]),
        "at most 512 characters",
    ),
    **{
        f"manifest with {key} of {sign * digits} digits": Case(
            document(experts=[_LORA | {key: sign * (10**digits - 1)}] * 2), "digits"
        )
        for key in ("rank", "scale", "in_features", "out_features", "gate")
        for digits in (40, 4300)
        for sign in (1, -1)
    },
    **{
        f"manifest with a router's {key} of many digits": Case(
            document(routers=[_ROUTER | {key: 10**4300 - 1}] * 2), "digits"
        )
        for key in ("outputs", "features", "hidden", "top_k")
    },
    "manifest with a long layer": Case(
        document(routers=[_ROUTER | {"layer": "a." * 400_000}]), "at most 512 characters"
    ),
    "manifest without experts": Case(document(experts=[]), "at least one"),
    "manifest of numbers": Case(document(experts=[0] * 20_000), "at most 4096"),
    "manifest of some numbers": Case(document(experts=[0] * 4000), "experts[0]"),
    "manifest of empty objects": Case(document(experts=[{}] * 4000), "kind"),
    "manifest of an unknown kind": Case(document(experts=[{**_LORA, "kind": "ia3"}]), "ia3"),
    "manifest of missing tensors": Case(document(), "missing"),
    "manifest of many experts": Case(document(experts=[_LORA] * 3000), "more than one LoRA"),
    "manifest of many routers": Case(document(routers=[_ROUTER] * 3000), "comes twice"),
    "manifest of many gates": Case(document(experts=[{**_LORA, "gate": 5}] * 3000), "gate 5"),
    **{
        f"manifest with {key} {value!r}": Case(sound(key, value), statuses=_status(key, value))
        for key in (*_LORA, "gate", "copies", "zebra")
        for value in _ODD
    },
    "manifest, sound": Case(sound(), statuses=(201,)),
    **{
        f"manifest with router {key} {value!r}": Case(document(routers=[{**_ROUTER, key: value}]))
        for key in _ROUTER
        for value in _ODD
    },
}
