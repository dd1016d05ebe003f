"""Finding secrets in text, and the tokens that stand for them.

A secret becomes ``[redacted:TYPE:hex]``, where hex is a keyed hash of the value: equal secrets get equal tokens, so
that a session can still be followed, and nobody without the key can test guesses. Everything around a secret keeps its
bytes. Detectors work on bytes that a peer chose, so every expression is linear: bounded or possessive repeats only.
"""

import json
import re
from collections.abc import Callable, Iterable
from hashlib import blake2b

TOKEN_BYTES = 8
_REMEMBERED = 4096  # tokens, and names; both are cheap to compute again
_LONGEST_LINES = 1024  # bytes of header lines that are remembered: together at most 4 MiB
_LONGEST_REMEMBERED = 256  # bytes: a peer that sends long ones may not fill our memory with them


class Tokens:
    """Values to tokens, by a key that stays on this machine."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._known: dict[tuple[str, bytes], bytes] = {}
        self.made = 0  # how many values were replaced

    def token(self, kind: str, value: bytes) -> bytes:
        """What is stored in place of ``value``."""
        self.made += 1
        token = self._known.get((kind, value))
        if token is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            digest = blake2b(value, digest_size=TOKEN_BYTES, key=self._key).hexdigest()
            token = f"[redacted:{kind}:{digest}]".encode()
            if len(value) <= _LONGEST_REMEMBERED:
                self._known[kind, value] = token
        return token


class Names:
    """Which names of headers, parameters and fields announce a secret. Case and punctuation do not count."""

    def __init__(self, further: Iterable[str] = ()) -> None:
        self._exact = dict(_EXACT)
        self._exact.update((_plain(name.encode()), "configured") for name in further)
        self._known: dict[bytes, str | None] = {}

    def kind(self, name: bytes) -> str | None:
        """The type of the secret that a value under this name is; None when it is none."""
        try:
            return self._known[name]
        except KeyError:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            kind = self._kind(_plain(name))
            if len(name) <= _LONGEST_REMEMBERED:
                self._known[name] = kind
            return kind

    def _kind(self, plain: str) -> str | None:
        if plain in _HARMLESS:
            return None
        if plain in self._exact:
            return self._exact[plain]
        return next((kind for suffix, kind in _SUFFIXES.items() if plain.endswith(suffix)), None)


class Detectors:
    """The searches for secrets; each returns the very same object when it found nothing."""

    def __init__(self, tokens: Tokens, further_names: Iterable[str] = ()) -> None:
        self._tokens = tokens
        self._token = tokens.token
        self._names = Names(further_names)
        self._clean: dict[bytes, None] = {}  # header lines, and responses' heads, in which nothing was found
        # With names of the user's, any head and any text may hold one: the quick refusal would have to know them.
        self._always = bool(tuple(further_names))

    def head(self, head: bytes) -> bytes:
        """A message head: start line and header lines.

        Peers repeat their header lines to the letter, so the lines below a start line that were found clean are
        remembered, and only the start line is looked at again.
        """
        end = head.find(b"\n")
        lines = head[end:]
        if lines in self._clean and not self._start_line_may_hold_secrets(head[:end]):
            return head
        clean = head
        if self._always or head_may_hold_secrets(head.lower()):
            clean = self.url(self._header_lines(head))
        if clean is head:
            self._remember(lines)
        return clean

    def response_head(self, head: bytes) -> bytes:
        """The same for a head whose start line is repeated too."""
        if head in self._clean:
            return head
        clean = self.head(head)
        if clean is head:
            self._remember(head)
        return clean

    def _remember(self, clean: bytes) -> None:
        if len(clean) <= _LONGEST_LINES:
            if len(self._clean) >= _REMEMBERED:
                self._clean.clear()
            self._clean[clean] = None

    def _start_line_may_hold_secrets(self, line: bytes) -> bool:
        text = line.lower().decode("latin-1")
        if "@" in text or "%" in text:
            return True
        if "=" in text and (self._always or text_may_hold_fields(text)):
            return True
        return text_may_hold_keys(text)

    def url(self, text: bytes) -> bytes:
        """Text that may hold URLs: parameters, user information, JSON Web Tokens, well-known keys."""
        low = text.lower().decode("latin-1")
        clean = text
        if ("=" in low or "%3" in low) and (self._always or text_may_hold_fields(low)):
            clean = self._parameters(text)
        made = self._tokens.made
        if b"@" in clean:
            replaced = _USER_INFORMATION.sub(lambda found: found[1] + self._token("password", found[2]) + b"@", clean)
            clean = clean if self._tokens.made == made else replaced
        return self._keys(clean) if text_may_hold_keys(low) else clean

    def text(self, data: bytes, *, is_json: bool) -> bytes:
        """A textual body: fields of JSON, forms, multipart and XML; then whatever looks like a key or a card number."""
        made = self._tokens.made
        low = data.lower().decode("latin-1")
        clean = self._fields(data) if self._always or text_may_hold_fields(low) else data
        if text_may_hold_keys(low):
            clean = self._keys(clean)
        if _DIGITS in clean.translate(_DIGIT_CLASSES, b" -"):
            clean = _CARD.sub(lambda found: self._card(found, is_json), clean)
        return data if self._tokens.made == made else clean

    def kind(self, name: bytes) -> str | None:
        """The type of secret that a value under this name is, None when it is none."""
        return self._names.kind(name)

    # Heads

    def _header_lines(self, head: bytes) -> bytes:
        lines = head.split(b"\n")
        changed = False
        for number in range(1, len(lines)):
            line = lines[number]
            colon = line.find(b":")
            name = line[:colon]
            if colon <= 0 or (kind := self._names.kind(name)) is None:
                continue
            # obs-fold (RFC 9112 §5.2): lines that begin with white space belong to the value.
            last = number + 1
            while last < len(lines) and lines[last][:1] in (b" ", b"\t") and lines[last].strip():
                last += 1
            value = b"\n".join(lines[number:last])[colon + 1 :]
            start = len(value) - len(value.lstrip())
            end = len(value.rstrip())
            if end <= start:
                continue
            lines[number] = (
                line[: colon + 1] + value[:start] + self._header_value(kind, name, value[start:end]) + value[end:]
            )
            lines[number + 1 : last] = [_FOLDED] * (last - number - 1)
            changed = True
        return b"\n".join([line for line in lines if line is not _FOLDED]) if changed else head

    def _header_value(self, kind: str, name: bytes, value: bytes) -> bytes:
        if kind == "credentials":
            scheme, space, rest = value.partition(b" ")
            if space and rest.strip():
                word = scheme.decode("latin-1").lower()
                return scheme + space + self._token(word if word in ("basic", "bearer") else kind, rest.strip())
            return self._token(kind, value)
        if kind == "cookie":
            first, *more = value.split(b";")
            if name.lower() == b"set-cookie":  # what follows the first ";" are attributes (RFC 6265 §4.1)
                return b";".join([self._cookie(first), *more])
            return b";".join([self._cookie(pair) for pair in (first, *more)])
        return self._token(kind, value)

    def _cookie(self, pair: bytes) -> bytes:
        name, equals, value = pair.partition(b"=")
        if not equals:  # a cookie without a name is all value
            name, value = pair[: len(pair) - len(pair.lstrip())], pair.lstrip()
        secret = value.strip()
        return pair if not secret else name + equals + value.replace(secret, self._token("cookie", secret), 1)

    def _keys(self, text: bytes) -> bytes:
        made = self._tokens.made
        clean = _KEY.sub(lambda found: self._token("jwt" if found.lastgroup == "jwt" else "key", found[0]), text)
        return text if self._tokens.made == made else clean

    # Fields

    def _fields(self, data: bytes) -> bytes:
        if b'"' in data:
            data = _JSON_FIELD.sub(self._json_field, data)
            if b'\\"' in data:
                data = _ESCAPED_FIELD.sub(self._named(3), data)
        if b"<" in data:
            data = _XML_FIELD.sub(self._named(3), data)
        if b"form-data" in data:
            data = _MULTIPART_FIELD.sub(self._named(3), data)
        return self.url(data)

    def _parameters(self, text: bytes) -> bytes:
        pieces: list[bytes] = []
        at = 0
        for found in _PARAMETER.finditer(text):
            name = found[2]
            kind = self._names.kind(_unquoted(name) if b"%" in name else name)
            if kind is None or found.start() < at:
                continue
            values = _ENCODED_VALUE if found[3] != b"=" else _PATH_VALUE if found[1] == b";" else _VALUE
            value = values.match(text, found.end())
            if value is not None:
                pieces += (text[at : found.end()], self._token(kind, value[0]))
                at = value.end()
        return b"".join((*pieces, text[at:])) if pieces else text

    def _json_field(self, found: "re.Match[bytes]") -> bytes:
        name, value = found[2], found[3]
        kind = self._names.kind(_unescaped(name) if b"\\" in name else name)
        if kind is None:
            return found[0]
        if not value.startswith(b'"'):
            return found[1] + b'"' + self._token(kind, value) + b'"'
        closed = value.endswith(b'"') and len(value) > 1
        secret = value[1:-1] if closed else value[1:]
        return found[1] + b'"' + (self._token(kind, secret) if secret else b"") + (b'"' if closed else b"")

    def _named(self, group: int) -> "Callable[[re.Match[bytes]], bytes]":
        def replace(found: "re.Match[bytes]") -> bytes:
            kind = self._names.kind(found[2])
            return found[0] if kind is None else found[1] + self._token(kind, found[group])

        return replace

    def _card(self, found: "re.Match[bytes]", is_json: bool) -> bytes:
        digits = found[2].translate(None, b" -")
        if len(digits) not in _CARD_LENGTHS[digits[0] - 48] or not luhn(digits):
            return found[0]
        token = self._token("card", digits)
        # A bare number in JSON becomes a string, so that the document stays readable.
        bare = is_json and found[1] is not None and found[3] is not None
        return (found[1] or b"") + (b'"' + token + b'"' if bare else token)


def head_may_hold_secrets(low: bytes) -> bool:
    """Whether a lower-cased head deserves a closer look: searches at C speed, on text, which is twice as fast.

    Most heads hold no secret, and this runs for every one: what can only matter together with something else is asked
    last.
    """
    text = low.decode("latin-1")
    return (
        "auth" in text
        or "cookie" in text
        or "token" in text
        or "key" in text
        or "secret" in text
        or "pass" in text
        or "sess" in text
        or "pwd" in text
        or "otp" in text
        or "sid" in text
        or "sig" in text
        or "card" in text
        or "eyj" in text
        or "@" in text
        or "akia" in text
        or "asia" in text
        or "aiza" in text
        or "xox" in text
        or "glpat-" in text
        or ("_" in text and text_may_hold_keys(text))
        or (("?" in text or "#" in text) and text_may_hold_fields(text))
    )


def text_may_hold_fields(low: str) -> bool:
    """Whether a lower-cased text holds any part of the names that announce secrets, or escapes that may spell one."""
    return (
        "pass" in low
        or "pwd" in low
        or "token" in low
        or "key" in low
        or "secret" in low
        or "auth" in low
        or "credential" in low
        or "cookie" in low
        or "sess" in low
        or "sid" in low
        or "sig" in low
        or "card" in low
        or "ccn" in low
        or "cc_n" in low
        or "cc-n" in low
        or "cvv" in low
        or "cvc" in low
        or "otp" in low
        or "@" in low
        or "%" in low
        or "\\u00" in low
    )


def text_may_hold_keys(low: str) -> bool:
    """Whether a lower-cased text holds the beginning of a JSON Web Token or of a well-known kind of key."""
    return (
        "eyj" in low
        or "akia" in low
        or "asia" in low
        or "aiza" in low
        or "ghp_" in low
        or "gho_" in low
        or "ghu_" in low
        or "ghs_" in low
        or "ghr_" in low
        or "github_pat_" in low
        or "glpat-" in low
        or "xox" in low
        or "k_live_" in low
        or "private key" in low
    )


def luhn(digits: bytes) -> bool:
    """The check digit of card numbers (ISO/IEC 7812-1 annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = digit - 48
        if place % 2:
            value = value * 2 - 9 if value > 4 else value * 2
        total += value
    return total % 10 == 0


def _plain(name: bytes) -> str:
    return _PUNCTUATION.sub(b"", name.lower()).decode("latin-1")


def _unquoted(name: bytes) -> bytes:
    return _PERCENT.sub(lambda found: bytes([int(found[1], 16)]), name)


def _unescaped(name: bytes) -> bytes:
    try:
        return str(json.loads(b'"' + name + b'"')).encode("utf-8", "replace")
    except ValueError:
        return name


_FOLDED = bytes(bytearray(b"(folded)"))  # compared by identity: a line may say anything
_PUNCTUATION = re.compile(rb"[^a-z0-9]")
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")

_EXACT = {
    "authorization": "credentials",
    "proxyauthorization": "credentials",
    "cookie": "cookie",
    "setcookie": "cookie",
    "pass": "password",
    "pwd": "password",
    "passphrase": "password",
    "credentials": "credentials",
    "sig": "signature",
    "signature": "signature",
    "xamzsignature": "signature",
    "xgoogsignature": "signature",
    "sid": "session",
    "sessid": "session",
    "jsessionid": "session",
    "phpsessid": "session",
    "xauthkey": "key",
    "cardnumber": "card",
    "ccnumber": "card",
    "cvv": "card",
    "cvv2": "card",
    "cvc": "card",
    "otp": "otp",
}
_SUFFIXES = {
    "password": "password",
    "passwd": "password",
    "secret": "secret",
    "token": "token",
    "sessionid": "session",
    "apikey": "key",
    "secretkey": "key",
    "accesskey": "key",
    "privatekey": "key",
    "functionskey": "key",
    "subscriptionkey": "key",
}
# Positions in a list and names of types: no secrets, and useful to see.
_HARMLESS = frozenset(
    ("pagetoken", "nextpagetoken", "prevpagetoken", "nexttoken", "continuationtoken", "synctoken", "skiptoken")
)
# Groups are repeated atomically, (?>(?:…)*), never possessively: CPython 3.11 forgets to step back from a last repeat
# that began and failed (`(?:a|%(?!b))*+` on "a%b" does not match).
#
# A parameter's name and what it stands between; a URL inside a parameter has its punctuation percent-encoded.
_PARAMETER = re.compile(
    rb"([?&;#\n ]|%3[Ff]|%26|\A)((?>(?:[A-Za-z0-9_.\-\[\]]|%(?!3[DdFf]|26)[0-9A-Fa-f]{2}){1,64}))(=|%3[Dd])"
)
_VALUE = re.compile(rb"[^&;#\s\"'<>\\]++")
_PATH_VALUE = re.compile(rb"[^&;#?/\s\"'<>\\]++")  # ;jsessionid=… ends with its path segment (RFC 3986 §3.3)
_ENCODED_VALUE = re.compile(rb"(?>(?:[^&;#\s\"'<>\\%]|%(?!26|23))+)")
# 1: what leads to the value, 2: the name, 3: the value.
_USER_INFORMATION = re.compile(rb"(://[^\s/?#@:\"'<>\\]{0,256}+:)([^\s/?#@\"'<>\\]{1,256}+)@")
_JSON_FIELD = re.compile(
    rb'("((?>(?:[^"\\]|\\.){1,64}))"[ \t\r\n]{0,64}+:[ \t\r\n]{0,64}+)'
    rb'("(?>(?:[^"\\]++|\\.)*)(?:"|\\?\Z)|-?\d[\d.eE+-]*+)',
    re.S,
)
_ESCAPED_FIELD = re.compile(rb'(\\"([\w.\-]{1,64}+)\\"\s{0,16}+:\s{0,16}+\\")((?>(?:[^"\\]++|\\\\\\?.)*))', re.S)
_XML_FIELD = re.compile(rb"(<(?:\w{1,32}+:)?([\w.\-]{1,64}+)(?:\s[^<>]{0,256}+)?>)([^<]++)(?=</)")
_MULTIPART_FIELD = re.compile(rb'(name="([^"\r\n]{1,64}+)"[^\r\n]*+\r\n(?>(?:[^\r\n]++\r\n){0,8})\r\n)([^\r\n]++)')

_KEY = re.compile(
    rb"(?P<jwt>\beyJ[A-Za-z0-9_-]{6,}+\.[A-Za-z0-9_-]{2,}+\.[A-Za-z0-9_-]*+(?:\.[A-Za-z0-9_-]++\.[A-Za-z0-9_-]++)?)"
    rb"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{35}|\bgh[pousr]_[A-Za-z0-9]{36,}+|\bgithub_pat_\w{22,}+"
    rb"|\bglpat-[\w-]{20,}+|\bxox[abeoprs]-[A-Za-z0-9-]{10,}+|\b[rs]k_live_[A-Za-z0-9]{16,}+"
    rb"|(?<=PRIVATE KEY-----)[A-Za-z0-9+/=\s\\]++"
)

_DIGIT_CLASSES = bytes(48 if 48 <= byte <= 57 else 0 for byte in range(256))
_DIGITS = b"0" * 13
# 1: what makes a bare JSON value of it, 3: likewise. No digit or point before: a long fraction is no card.
_CARD = re.compile(
    rb"([:,\[][ \t\r\n]{0,16}+)?(?<![\d.])([2-6](?>(?:[ -]?\d){12,18}))(?!\d)(?=([ \t\r\n]{0,16}+[,}\]]))?"
)
_CARD_LENGTHS: dict[int, tuple[int, ...]] = {
    2: (16,),
    3: (14, 15, 16),
    4: (13, 16, 19),
    5: (16,),
    6: (16, 17, 18, 19),
}
