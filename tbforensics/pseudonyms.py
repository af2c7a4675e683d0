"""Names that must not be told -> stable names that tell nothing. Pure: text in, text out.

The same original has the same pseudonym wherever it stands, with one key in every case. What has
a form keeps it: a peer's key becomes another key in the same spelling, so that hex and base58
still join; an address becomes one that nobody has. All else becomes `<prefix>-<10 hex digits>`.
"""

from __future__ import annotations

import hmac
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address

import base58

from tbforensics import theblock

SHORTEST = 4  # a shorter value is replaced in its own field only: elsewhere it may mean anything
_SURE = 8  # a longer one is replaced wherever its letters stand, also within a longer word
_EDGE_BEFORE, _EDGE_AFTER = r"(?<![0-9A-Za-z])", r"(?![0-9A-Za-z])"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_NO_WORD = re.compile(r"[-+]?[0-9.]+(?:[eE][-+]?\d+)?|true|false|null|none|")

_FORMS = {
    "bearer": r"(?i:bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}",
    "jwt": r"eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*",
    "secret": r"(?i:pass(?:word|wd|phrase)|secret|token|api[_-]?key)\"?\s*[:=]\s*\"?"
    r"[^\s\"',;&{}\[\]\\]{4,}",
    "key": rf"{_EDGE_BEFORE}(?:0x)?[0-9a-fA-F]{{64}}{_EDGE_AFTER}"
    rf"|{_EDGE_BEFORE}[1-9A-HJ-NP-Za-km-z]{{43,50}}{_EDGE_AFTER}",
    "v6": r"(?<![0-9A-Za-z])(?=[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:)[0-9A-Fa-f:.]{2,45}(?![0-9A-Za-z])",
    "v4": r"(?<![0-9.])(?:\d{1,3}\.){3}\d{1,3}(?!\d|\.\d)",
}
_TOKENS, _ADDRESSES = ("bearer", "jwt", "secret"), ("v6", "v4")


@dataclass(frozen=True)
class Pattern:
    """What a regular expression finds; its first group, where it has one."""

    regex: str
    prefix: str


@dataclass(frozen=True)
class Rules:
    """What becomes a pseudonym.

    addresses: IPv4 and IPv6, but for loopback and unspecified ones.
    keys:      what is spelled like a key of 32 bytes: 64 hex digits, or base58.
    tokens:    bearer tokens, JSON web tokens, values of password=, secret=, token=, api_key=.
    names:     prefix -> names, found in any case: {"host": ["db-1.example.org"]}.
    labels, fields: text values of Prometheus labels and of JSON fields, wherever they stand.
    keep, keep_fields: what stays though a rule finds it; text values of fields that do.
    """

    addresses: bool = False
    keys: bool = False
    tokens: bool = False
    names: Mapping[str, tuple[str, ...]] | None = None
    labels: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    patterns: tuple[Pattern, ...] = ()
    keep: tuple[str, ...] = ()
    keep_fields: tuple[str, ...] = ()


class Pseudonyms:
    """First `learn` from all texts, then `clean` them: a value that one text names as a label is
    replaced in all others. Patterns come first; all other rules look at a text once, together.

    originals: original -> pseudonym, as they were spelled.
    counts:    replacements by what they were.
    public:    words that everybody may know; they are replaced in their own field only.
    """

    def __init__(self, rules: Rules, key: bytes, public: Collection[str] = ()) -> None:
        self.originals: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self._rules, self._key, self._public = rules, key, {word.lower() for word in public}
        self._taken: dict[str, str] = {}  # pseudonym -> what it stands for, in one spelling
        self._keep = set(rules.keep)
        self._learnt: dict[str, str] = {}  # value -> prefix
        self._patterns = [(re.compile(p.regex), p.prefix) for p in rules.patterns]
        self._names = {
            name.lower(): prefix for prefix, names in (rules.names or {}).items() for name in names
        }
        self._named = _field_pattern((*rules.labels, *rules.fields))
        self._kept = _field_pattern(rules.keep_fields)
        self._whole: re.Pattern[str] | None = None

    # --- the first round ------------------------------------------------------------------

    def learn(self, text: str) -> None:
        """Take note of every value that a named label or field has, or that a pattern finds."""
        self._whole = None
        if self._kept:
            self._keep |= {_value(match)[1] for match in self._kept.finditer(text)}
        if self._named:
            for match in self._named.finditer(text):
                name, value = _value(match)
                self._note(_host(value)[0], _prefix(name))
        for pattern, prefix in self._patterns:
            for match in pattern.finditer(text):
                self._note(_found(match)[1], prefix)

    def _note(self, value: str, prefix: str) -> None:
        if value and value not in self._keep and not self._form(value):
            self._learnt.setdefault(value, prefix)

    def _everywhere(self) -> dict[str, str]:
        """What is replaced wherever it stands -> prefix; given names are in lower case."""
        learnt = {
            value: prefix
            for value, prefix in self._learnt.items()
            if len(value) >= SHORTEST
            and value.lower() not in self._public
            and not _NO_WORD.fullmatch(value.lower())
        }
        return {**learnt, **self._names}

    # --- the second round -----------------------------------------------------------------

    def clean(self, text: str) -> str:
        """The text with pseudonyms."""
        for pattern, prefix in self._patterns:
            text = pattern.sub(partial(self._patterned, prefix=prefix), text)
        parts, at = [], 0
        for match in self._hits(text):
            parts += [text[at : match.start()], self._replaced(match)]
            at = match.end()
        return "".join([*parts, text[at:]])

    def remaining(self, text: str) -> set[str]:
        """Originals that still stand in a text."""
        found: set[str] = set()
        for pattern, _ in self._patterns:
            found |= {_found(match)[1] for match in pattern.finditer(text)}
        for match in self._hits(text):
            group = str(match.lastgroup)
            if group == "named":
                found |= {(value := _value(match)[1]), _host(value)[0]}
            elif group != "keep":
                found.add(_inner(group, match[0])[1])
        return found & self.originals.keys() - self._keep

    def _hits(self, text: str) -> Iterator[re.Match[str]]:
        """What is found and is what it looks like; what is not hides nothing that follows."""
        pattern, at = self._pattern(), 0
        while match := pattern.search(text, at):
            if _is(str(match.lastgroup), match[0]):
                yield match
                at = match.end()
            else:
                at = match.start() + 1

    def _pattern(self) -> re.Pattern[str]:
        if self._whole is None:
            rules = self._rules
            everywhere = self._everywhere()
            given = _words(word for word in everywhere if word in self._names)
            learnt = _words(word for word in everywhere if word not in self._names)
            parts = {
                "keep": _words(self._keep),
                "named": self._named.pattern if self._named else "",
                **{name: _FORMS[name] for name in _TOKENS if rules.tokens},
                "name": f"(?i:{given})",
                "learnt": learnt,
                "key": _FORMS["key"] if rules.keys else "",
                **{name: _FORMS[name] for name in _ADDRESSES if rules.addresses},
            }
            self._whole = re.compile(
                "|".join(f"(?P<{name}>{regex})" for name, regex in parts.items() if regex)
            )
        return self._whole

    def _replaced(self, match: re.Match[str]) -> str:
        group = str(match.lastgroup)
        if group == "keep":
            return match[0]
        if group == "named":
            return self._named_replaced(match)
        before, value = _inner(group, match[0])
        fresh = self._of(group, value)
        self.counts[_RULE[group]] += 1
        return before + fresh + match[0][len(before) + len(value) :]

    def _named_replaced(self, match: re.Match[str]) -> str:
        name, value = _value(match)
        if not value or value in self._keep:
            return match[0]
        host, port = _host(value)
        fresh = self._form(value)
        if fresh is None:
            fresh = (self._form(host) or self._word(host, _prefix(name))) + port
        self.counts["fields"] += 1
        written = match["value"]
        quoted = written.startswith('"')
        return match[0][: match.start("value") - match.start()] + (
            json.dumps(fresh) if quoted else fresh
        )

    def _of(self, group: str, value: str) -> str:
        if group in ("key", *_ADDRESSES):
            return self._form(value) or value
        if group in _TOKENS:
            return self._generic(value, "token")
        if group == "name":
            return self._word(value, "")
        return self._form(value) or self._word(value, "")

    def _patterned(self, match: re.Match[str], prefix: str) -> str:
        before, value, after = _found(match)
        if not value or value in self._keep:
            return match[0]
        self.counts["patterns"] += 1
        return before + (self._form(value) or self._word(value, prefix)) + after

    def _word(self, value: str, prefix: str) -> str:
        if given := self._names.get(value.lower()):
            return self._generic(value, given, value.lower())
        return self._generic(value, self._learnt.get(value, prefix))

    # --- what an original becomes ---------------------------------------------------------

    def _form(self, value: str) -> str | None:
        """The pseudonym of a key or an address in its own form; None for all else."""
        if value in self._keep:
            return None
        if self._rules.keys and (raw := _key(value)):
            fresh = hmac.digest(self._key, b"key\0" + raw, "sha256")
            return self._known(value, _spelled_as(value, fresh))
        if self._rules.addresses and (address := _address(value)):
            return self._known(value, str(self._address(address)))
        return None

    def _address(self, address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            inner = self._address(address.ipv4_mapped)
            return IPv6Address(f"::ffff:{inner}")
        attempt = 0
        while True:
            said = b"address\0%d\0" % attempt + address.packed
            digest = hmac.digest(self._key, said, "sha256")
            # 240.0.0.0/4 was never given to anybody. The documentation nets would hold 762.
            four = (240 << 24) | (int.from_bytes(digest[:4], "big") % ((1 << 28) - 1))
            six = (0x20010DB8 << 96) | int.from_bytes(digest[:12], "big")
            fresh = IPv4Address(four) if address.version == 4 else IPv6Address(six)
            if self._taken.setdefault(str(fresh), str(address)) == str(address):
                return fresh
            attempt += 1

    def _generic(self, value: str, prefix: str, meaning: str = "") -> str:
        meaning = meaning or value
        if value in self.originals:
            return self.originals[value]
        said = b"word\0" + meaning.encode("utf-8", "surrogatepass")
        digits = hmac.digest(self._key, said, "sha256").hex()
        length = 10
        while self._taken.setdefault(f"{prefix}-{digits[:length]}", meaning) != meaning:
            length += 2
        return self._known(value, f"{prefix}-{digits[:length]}")

    def _known(self, value: str, pseudonym: str) -> str:
        self.originals[value] = pseudonym
        return pseudonym


_RULE = {"v4": "addresses", "v6": "addresses", "key": "keys", "name": "names", "learnt": "fields"}
_RULE |= dict.fromkeys(_TOKENS, "tokens")


def _inner(group: str, text: str) -> tuple[str, str]:
    """What stands before the value within what was found, and the value."""
    start = None
    if group == "bearer":
        start = re.match(r"\S+\s+", text)
    elif group == "secret":
        start = re.match(r"[A-Za-z_-]+\"?\s*[:=]\s*\"?", text)
    elif group == "key":
        start = re.match(r"0x(?=.{64}$)", text)
    elif group == "v6":  # what ends a sentence or leads on to a port or a word
        return "", next((t for t in (text, text[:-1], text[:-2]) if _address(t)), text)
    before = start[0] if start else ""
    return before, text[len(before) :]


def _is(group: str, text: str) -> bool:
    """Whether what was found by its looks is a key, an address or a token."""
    value = _inner(group, text)[1]
    if group == "key":
        return _key(value) is not None
    if group in _ADDRESSES:
        return _address(value) is not None
    return group not in _TOKENS or not _NO_WORD.fullmatch(value.lower())


def _words(words: Iterable[str]) -> str:
    """Any of the words, the longest first; a short one only where no longer word holds it."""
    ordered = sorted(set(words), key=lambda word: (-len(word), word))
    parts = [
        re.escape(word) if len(word) >= _SURE else f"{_EDGE_BEFORE}{re.escape(word)}{_EDGE_AFTER}"
        for word in ordered
        if word
    ]
    return "|".join(parts) or r"(?!)"


def _field_pattern(names: Iterable[str]) -> re.Pattern[str] | None:
    """`"name": "value"` of JSON, and `name="value"` of labels and logfmt."""
    known = "|".join(re.escape(name) for name in sorted(set(names)))
    if not known:
        return None
    return re.compile(
        rf'(?:"(?P<field>{known})"\s*:\s*|(?<![0-9A-Za-z_"])(?P<label>{known})=)(?P<value>{_QUOTED})'
    )


def _found(match: re.Match[str]) -> tuple[str, str, str]:
    """What a pattern found: what stands before its first group, that group, and what follows."""
    if not match.re.groups or match[1] is None:
        return "", match[0], ""
    start, end = match.start(1) - match.start(), match.end(1) - match.start()
    return match[0][:start], match[1], match[0][end:]


def _value(match: re.Match[str]) -> tuple[str, str]:
    """Name and text of a field that was found."""
    try:
        value = json.loads(match["value"], strict=False)
    except ValueError:
        value = match["value"].strip('"')
    return match["field"] or match["label"], value


def _host(value: str) -> tuple[str, str]:
    """Host and `:port`; an empty port where there is none."""
    match = re.fullmatch(r"(.+?)(:\d{1,5})", value)
    if match and (":" not in match[1] or match[1].startswith("[")):
        return match[1], match[2]
    return value, ""


def _prefix(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "value"


def _key(text: str) -> bytes | None:
    if known := theblock.peer_hex(text):
        return bytes.fromhex(known)
    if not 43 <= len(text) <= 44:
        return None
    try:
        raw = base58.b58decode(text)
    except ValueError:
        return None
    return bytes(raw) if len(raw) == 32 else None


def _spelled_as(text: str, key: bytes) -> str:
    if re.fullmatch("[0-9a-fA-F]{64}", text):
        return key.hex().upper() if text.upper() == text and text.lower() != text else key.hex()
    if theblock.peer_hex(text):
        return theblock.peer_base58(key.hex())
    return str(base58.b58encode(key).decode("ascii"))


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.strip("[]"))
    except ValueError:
        return None
    return None if address.is_loopback or address.is_unspecified else address
