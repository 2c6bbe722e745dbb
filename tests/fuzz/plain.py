"""Plain values, as JSON has them, of which a few are others; and text in which a few words are."""

from __future__ import annotations

import copy
import json
import re
from random import Random
from typing import Any

__all__ = ["dumped", "json_file", "json_text", "lines", "nested", "other_text", "tree", "words"]

HUGE, DEEP = "@huge@", "@deep@"  # what no JSON library writes stands for itself until the text is made
NUMBERS: list[Any] = [
    *(0, -1, 1, 7, 10**9, -(10**9), 2**31, 2**63, 10**400, HUGE, 1e39, -1e39, 1e308, -1e308, 1e19, 1e-45, 1e-320),
    *(float("nan"), float("inf"), -float("inf"), 0.5, -0.0, 1e6, 1e12, True, False),
]
OTHERS: list[Any] = [
    *(None, "", "x", [], {}, [[]], [1, [2]], {"a": {"b": 1}}, DEEP, "a" * 300, "b" * 5000, "a\nb", "\0", "\ud800"),
    *("../../etc/passwd", "/etc/passwd", ".", "..", "~", "C:\\x", "é" * 200, "/dev/zero", "\x1b[2J", "nan", "1e5"),
    *(
        "a/b",
        "a/../../b",
        "\n",
        " ",
        "train/",
        "a\0b",
        "CON",
        "%s",
        "{x}",
        "${x}",
        "*",
        "[",
        "\u202e",
        "a" * 255 + ".png",
    ),
]
_WORDS = [
    *(b"", b"nan", b"inf", b"-inf", b"-1", b"0", b"1e39", b"1e308", b"x", b"9" * 30, b"9" * 5000, b"#", b"\0", b"\xff"),
    *(b"\n", b"1e-320", b"0x10", b"1_0", b"\xd9\xa3", b"True", b"null", b"1.5", b"-0", b"2147483648", b"../x", b"a b"),
]


def tree(random: Random, content: Any) -> Any:
    """Plain values, of which a few are others, or missing, or there twice."""
    content = copy.deepcopy(content)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        places = nested(content)
        if not places:
            return random.choice(OTHERS)
        # Long lists of numbers would hide all else: a key's name is drawn first, then one of its places.
        names = sorted({str(key) for _, key in places})
        name = random.choice(names)
        node, key = random.choice([place for place in places if str(place[1]) == name])
        kind = random.randrange(10)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]))
        elif kind == 1:
            node[random.choice(names)] = node[key]
        else:
            node[key] = _another(random, kind, node[key])
    return content


def nested(content: Any) -> list[tuple[Any, Any]]:
    """All places in nested values: a dictionary or list, and a key or index in it."""
    places: list[tuple[Any, Any]] = []
    left = [content]
    while left:
        node = left.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
        places += [(node, key) for key in keys]
        left += [node[key] for key in keys]
    return places


def _another(random: Random, kind: int, value: Any) -> Any:
    """Another value, or the same number or list in a disguise."""
    if kind == 2 and isinstance(value, int | float):
        return value * random.choice([1e20, 1e-20, -1, 1e38, 0])
    if kind == 3:
        return [value]
    if kind == 4 and isinstance(value, int | float | str):
        return random.choice([str(value), bool(value), {"value": value}])
    if kind == 5 and isinstance(value, list | dict):
        return random.choice([type(value)(), list(value), [*value, *value], str(value)])
    return random.choice(NUMBERS if kind < 8 else OTHERS)


def dumped(content: Any) -> bytes:
    """JSON, with what no JSON library writes."""
    text = json.dumps(content)
    text = text.replace(f'"{HUGE}"', "1" * 5000).replace(f'"{DEEP}"', "[" * 3000 + "]" * 3000)
    return text.encode("utf-8", "surrogatepass")


def json_file(random: Random, content: bytes) -> bytes:
    return dumped(tree(random, json.loads(content)))


def json_text(random: Random, content: bytes) -> bytes:
    """What is JSON to some readers, and what has a key twice."""
    text = content.decode()
    kind = random.randrange(6)
    if kind < 2:
        key = random.choice(re.findall(r'"(\w+)":', text) or ["x"])
        pair = f'"{key}": {random.choice(["null", "[]", "NaN", "Infinity", "1"])}'
        begins, ends = text.replace("{", "{" + pair + ", ", 1), text.rstrip()[:-1] + ", " + pair + "}"
        return (ends if kind else begins).encode()
    if kind == 2:
        return text.replace('"', "'").encode()
    if kind == 3:
        return re.sub(r"([\]}])", r",\1", text, count=random.choice([0, 1])).encode()
    if kind == 4:
        number = random.choice(["NaN", "-Infinity", "1e999", "0x1", ".5", "1.", "01", "-"])
        return re.sub(r"-?\d+\.\d+", number, text, count=1).encode()
    return f"// a comment\n{text}\n/* another */".encode()


def words(random: Random, content: bytes) -> bytes:
    """A text in which a word is another, or missing."""
    found = list(re.finditer(rb"[^\s,:\[\]{}]+", content))
    places = random.sample(found, min(len(found), random.choice([1, 1, 2])))
    for match in sorted(places, key=lambda match: -match.start()):
        content = content[: match.start()] + random.choice(_WORDS) + content[match.end() :]
    return content


def lines(random: Random, content: bytes) -> bytes:
    rows = content.splitlines(keepends=True)
    if rows:
        at = random.randrange(len(rows))
        row = rows[at]
        rows[at : at + 1] = random.choice(
            [[], [row] * 2, [row[: len(row) // 2] + b"\n"], [b"\n", row], [row.rstrip(), b" 1\n"]]
        )
    return b"".join(rows)


def other_text(random: Random, content: bytes) -> bytes:
    """The same letters in another encoding, or with other ends of lines."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content[::-1]
    encoding = random.choice(["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp037", "utf-7"])
    return random.choice(
        [
            text.encode(encoding, "replace"),
            content.replace(b"\n", b"\r\n"),
            content.replace(b"\n", b"\r"),
            content + b"\0" * 10,
            b"\n\n" + content,
            content.rstrip() + b"\x1a",
        ]
    )
