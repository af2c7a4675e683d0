"""A copy of a case in which some names are pseudonyms, made by the normal road from its replies.

Replies, requests and parameters are rewritten; evidence, findings and report are made from them
as ever, so all agree. The custody log of the copy begins with what was done, and names the
original by the hash of its manifest. Which pseudonym stands for what is sealed apart, in a file
that age opens. Whatever was not found out by the rules stays; what the rules found stays nowhere,
or there is no copy.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import re
import secrets
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyrage
import zstandard
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tbforensics import build, collect, evidence, manifest, parameters, plainyaml, publish, signing
from tbforensics import case as cases
from tbforensics.archive import Archive
from tbforensics.case import Case
from tbforensics.errors import EvidenceError, ParametersError
from tbforensics.model import Capture, Incident, Json
from tbforensics.pseudonyms import Pattern, Pseudonyms, Rules
from tbforensics.reading import remoteread
from tbforensics.report_page.bundle import vega_bundle

KEY_BYTES = 32
_LONGEST_RULES_BYTES = 1 << 20
_LONGEST_EXPANDED_BYTES = 1 << 30
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


# --- the rules -----------------------------------------------------------------------------


def _regex(text: str) -> str:
    try:
        if re.compile(text).fullmatch(""):
            raise ValueError("it matches nothing at all, so it would match everywhere")
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return text


Prefix = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,19}$")]
Word = Annotated[str, Field(min_length=1, max_length=1000)]


class _Words(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class PatternWords(_Words):
    """What a regular expression finds; its first group, where it has one."""

    regex: Annotated[str, Field(min_length=1), AfterValidator(_regex)]
    prefix: Prefix = "redacted"


class RuleWords(_Words):
    """A file of rules; see `Rules` for what each means."""

    addresses: bool = False
    keys: bool = False
    tokens: bool = False
    names: dict[Prefix, list[Word]] = {}
    labels: list[Word] = []
    fields: list[Word] = []
    patterns: list[PatternWords] = []
    keep: list[Word] = []
    keep_fields: list[Word] = []


def read_rules(path: Path) -> tuple[Rules, str]:
    """The rules of a YAML file and its SHA-256. Errors: ParametersError naming every problem."""
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_RULES_BYTES)
        words = RuleWords.model_validate(plainyaml.read(content) or {})
    except OSError as error:
        raise ParametersError(
            f"{path.name} cannot be read: {error.strerror}", next_step="name a file of rules"
        ) from None
    except plainyaml.NotPlain as error:
        raise ParametersError(
            f"{path.name} is not YAML that can be used: {error}", next_step="correct it there"
        ) from None
    except ValidationError as error:
        raise ParametersError(
            f"{path.name} cannot be used:",
            problems=[
                f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
                for problem in error.errors()
            ],
            next_step="correct these; nothing was redacted",
        ) from None
    if not any(value for name, value in words if not name.startswith("keep")):
        raise ParametersError(
            f"{path.name} names nothing to replace", next_step="switch a rule on: keys: true"
        )
    rules = Rules(
        addresses=words.addresses,
        keys=words.keys,
        tokens=words.tokens,
        names={prefix: tuple(names) for prefix, names in words.names.items()},
        labels=tuple(words.labels),
        fields=tuple(words.fields),
        patterns=tuple(Pattern(p.regex, p.prefix) for p in words.patterns),
        keep=tuple(words.keep),
        keep_fields=tuple(words.keep_fields),
    )
    return rules, manifest.sha256_of(path)


# --- the copy ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Redacted:
    """folder: of the copy. differs: what it says otherwise than the original, in words.

    counts: replacements by rule. withheld: how many replies could not be read and were left out.
    map:    the file that says what stands for what.
    """

    folder: Path
    counts: Mapping[str, int]
    withheld: int
    differs: str
    map: Path


def redact(
    folder: Path,
    rules_file: Path,
    out: Path,
    passphrase: str,
    *,
    key: bytes = b"",
    new_id: str = "",
    map_file: Path | None = None,
) -> Redacted:
    """Make the copy `out/<id>-redacted`, and its map beside it.

    key: of the pseudonyms, from the map of another redaction, whose pseudonyms it then shares.

    Errors: ParametersError for the rules. EvidenceError when the case does not hold, the copy or
            its map is there already, a reply is no JSON any more, or an original still stands
            anywhere in the copy; nothing is left then.
    """
    rules, rules_sha256 = read_rules(rules_file)
    key = key or secrets.token_bytes(KEY_BYTES)
    for check in (*manifest.checks(folder), *signing.checks(folder)):
        if not check.holds:
            raise EvidenceError(
                f"{folder.name} is not redacted: {check.detail}",
                next_step=f"see tbforensics verify {folder}",
            )
    original = cases.open_case(folder)
    names = Pseudonyms(rules, key, _public(original))
    bodies = _Bodies(original)
    for text in (*bodies.texts(), _text(parameters.flat(original.incident))):
        names.learn(text)
    for capture in original.manifest.captures:
        names.learn(_text(dict(capture.request)))
    incident = _incident(original.incident, names, new_id)
    target = out / incident.id
    map_file = map_file or out / f"{incident.id}.map.age"
    for path in (target, map_file):
        if path.exists():
            raise EvidenceError(f"{path} is there already", next_step="give --id, --map or --out")
    out.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(dir=out, prefix=".redacting-"))
    try:
        copy = home / "incidents" / incident.id
        copy.mkdir(parents=True)
        changed = _replies(original, bodies, names, copy)
        _seal(copy, incident, original, names, rules_sha256, changed)
        opened = cases.open_case(copy)
        opened.record_findings()
        if (folder / "report.html").exists():
            _notebook(original, names, home)
            publish.publish(opened, home)
        differs = _differs(original, opened)
        opened.evidence.close()
        _refuse_leaks(copy, names)
        withheld = sum(capture.error.startswith(_WITHHELD) for capture in opened.manifest.captures)
        _seal_map(_map(original, names, key), map_file, passphrase)
        copy.rename(target)
    finally:
        original.evidence.close()
        shutil.rmtree(home, ignore_errors=True)
    return Redacted(target, names.counts, withheld, differs, map_file)


def _public(original: Case) -> set[str]:
    """Words of our own questions: they stand in every case of the kind, so they tell nothing."""
    words = {original.incident.kind, original.kind.title, original.kind.question}
    for query in original.queries:
        words |= {query.name, query.text, query.source, query.unit}
    loose = {word for text in words for word in re.findall(r"[A-Za-z0-9]+|\w+", text)}
    return words | loose


def _incident(incident: Incident, names: Pseudonyms, new_id: str) -> Incident:
    flat = _cleaned(parameters.flat(incident), names)
    flat["incident_id"] = new_id or names.clean(f"{incident.id}-redacted")
    flat |= {"kind": incident.kind, "thresholds": dict(incident.thresholds)}
    return parameters.incident_from(flat, where="the redacted parameters")


def _cleaned(value: Json, names: Pseudonyms) -> Any:
    try:
        return json.loads(names.clean(_text(value)))
    except ValueError:
        raise _no_json("parameters or a request") from None


def _text(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


def _no_json(what: str) -> EvidenceError:
    return EvidenceError(
        f"the rules make {what} something other than JSON; nothing was redacted",
        next_step="let each pattern stay within a text value, without its quotes",
    )


# --- replies -------------------------------------------------------------------------------


class _Bodies:
    """The replies of a case as text, one at a time; None for what cannot be read as text."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.captures = {c.sha256: c for c in case.manifest.captures if c.sha256}

    def texts(self) -> Iterator[str]:
        for sha256 in sorted(self.captures):
            if (text := self.text(sha256)[1]) is not None:
                yield text

    def text(self, sha256: str) -> tuple[bytes, str | None]:
        """The reply as it came, and the text beneath."""
        body = self.case.body(self.captures[sha256])
        return body, _text_of(body)


def _text_of(body: bytes) -> str | None:
    try:
        if body[:2] == _GZIP:
            with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
                body = file.read(_LONGEST_EXPANDED_BYTES + 1)
        elif body[:4] == _ZSTD:
            body = _unzstd(body)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError):
        return None
    if len(body) > _LONGEST_EXPANDED_BYTES:
        return None
    if b"\0" in body:  # the labels of a remote read reply are its only text
        labels = remoteread.labels_in(body)
        return None if labels is None else _text(labels)
    return _plain(body.decode("utf-8", "surrogateescape"))


def _unzstd(body: bytes) -> bytes:
    """Every frame of a body. Errors: ZstdError where one ends early."""
    parts: list[bytes] = []
    left = body
    while left and sum(len(part) for part in parts) <= _LONGEST_EXPANDED_BYTES:
        frame = zstandard.ZstdDecompressor().decompressobj()
        parts.append(frame.decompress(left))
        if not frame.eof:
            raise zstandard.ZstdError("it ends early")
        left = frame.unused_data
    return b"".join(parts)


def _plain(text: str) -> str:
    r"""JSON may spell `-` as `\u002d` and `/` as `\/`; a name must not hide behind that."""
    if "\\u00" not in text and "\\/" not in text:
        return text

    def spelled(match: re.Match[str]) -> str:
        if match[0] == "\\/":
            return "/"
        if not match[1]:
            return match[0]
        character = chr(int(match[1], 16))
        return match[0] if character in '"\\\x7f' else character

    return re.sub(r"\\(?:u00([2-7][0-9A-Fa-f])|\\|/)", spelled, text)


def _packed(text: str, like: bytes) -> bytes:
    """Another text in the form in which a reply came."""
    body = text.encode("utf-8", "surrogateescape")
    if like[:2] == _GZIP:
        return gzip.compress(body, mtime=0)
    if like[:4] == _ZSTD:
        return zstandard.ZstdCompressor().compress(body)
    if b"\0" in like:
        return remoteread.with_labels(like, json.loads(text))
    return body


def _replies(
    original: Case, bodies: _Bodies, names: Pseudonyms, copy: Path
) -> dict[str, str | None]:
    """Write every reply anew; its old hash -> its new one, None where it is withheld."""
    archive = Archive(copy)
    (copy / "raw").mkdir()
    fresh: dict[str, str | None] = {}
    for sha256 in sorted(bodies.captures):
        body, text = bodies.text(sha256)
        if text is None:
            fresh[sha256] = None
            continue
        cleaned = names.clean(text)
        if cleaned == text:
            chunks = [body]
        else:
            if _is_json(text) and not _is_json(cleaned):
                raise _no_json(f"raw/{sha256}.zst")
            chunks = [_packed(cleaned, body)]
        fresh[sha256], _ = archive.keep(chunks)
    return fresh


def _is_json(text: str) -> bool:
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


_WITHHELD = "withheld by redaction"


def _capture(
    capture: Capture, names: Pseudonyms, changed: Mapping[str, str | None], archive: Archive
) -> Capture:
    fresh = changed.get(str(capture.sha256))
    lost = capture.sha256 is not None and fresh is None
    told = dataclasses.replace(
        capture,
        source=names.clean(capture.source),
        request=_cleaned(dict(capture.request), names),
        error=names.clean(capture.error),
        notes=tuple(names.clean(note) for note in capture.notes),
        sha256=fresh,
    )
    if lost:
        error = f"{_WITHHELD}: it is no text, so nobody could tell what is in it"
        return dataclasses.replace(told, error=error, bytes=0)
    if fresh is None:
        return told
    with archive.open(told) as body:
        length = sum(len(chunk) for chunk in iter(lambda: body.read(1 << 20), b""))
    return dataclasses.replace(told, bytes=length)


def _seal(
    copy: Path,
    incident: Incident,
    original: Case,
    names: Pseudonyms,
    rules_sha256: str,
    changed: Mapping[str, str | None],
) -> None:
    archive = Archive(copy)
    captures = [_capture(c, names, changed, archive) for c in original.manifest.captures]
    build.build(copy, incident, captures)
    evidence.write_views(copy)
    (copy / "parameters.yaml").write_bytes(parameters.to_yaml(incident))
    queries = collect.catalogue(original.kind, incident.sources)
    manifest.seal(copy, incident, queries, captures)
    files = {n: manifest.sha256_of(copy / n) for n in ("manifest.json", "parameters.yaml")}
    manifest.note_act(
        copy,
        "redacted",
        files=files,
        original_manifest_sha256=original.manifest.sha256,
        rules_sha256=rules_sha256,
        replacements=dict(sorted(names.counts.items())),
        changed={old: new for old, new in sorted(changed.items()) if old != new},
        captures=len(captures),
    )


def _notebook(original: Case, names: Pseudonyms, home: Path) -> None:
    """The project's own notebook of the kind, so that the copy tells the same story. It may be a
    worked example of this very incident, so it loses its outputs and the names in its cells."""
    path = publish.notebook_of(original.incident.kind, original.folder.resolve().parent.parent)
    notebook = json.loads(path.read_bytes())
    for cell in notebook["cells"]:
        cell["source"] = names.clean("".join(cell["source"]))
        if cell["cell_type"] == "code":
            cell["outputs"] = []
    (home / "notebooks").mkdir()
    (home / "notebooks" / path.name).write_bytes(manifest.canonical(notebook))


def _differs(original: Case, copy: Case) -> str:
    """What the copy concludes otherwise; "" when it says the same."""
    before, after = original.assessment, copy.assessment
    if before.verdict is not after.verdict:
        return f"the verdict is {after.verdict.value}; of the original it is {before.verdict.value}"
    numbers = [
        Counter((finding.id, finding.value) for finding in assessment.findings)
        for assessment in (before, after)
    ]
    other = (numbers[0] - numbers[1]) + (numbers[1] - numbers[0])
    if other:
        return f"these findings have other numbers: {', '.join(sorted({i for i, _ in other}))}"
    return ""


# --- the proof -----------------------------------------------------------------------------


def _refuse_leaks(copy: Path, names: Pseudonyms) -> None:
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        name = path.relative_to(copy).as_posix()
        found = names.remaining(name)
        for text in _texts(path):
            found |= names.remaining(text)
        if found:
            raise EvidenceError(
                f"{len(found)} names would still stand in {name}; there is no copy",
                problems=sorted(found)[:5],
                next_step="name them under `names`, or under `keep` where they are no secret",
            )


def _texts(path: Path) -> Iterator[str]:
    """What a file of the copy says to whoever opens it."""
    if path.suffix == ".duckdb":
        return  # only views over the parts
    if path.suffix == ".zst":
        with zstandard.ZstdDecompressor().stream_reader(path.read_bytes()) as body:
            yield _text_of(body.read()) or ""
    elif path.suffix == ".parquet":
        yield from _columns(pq.read_table(path))
    else:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        yield text.replace(vega_bundle(), "") if path.suffix == ".html" else text


def _columns(table: pa.Table) -> Iterator[str]:
    for field in table.schema:
        values = table.column(field.name).to_pylist() if _says(field.type) else []
        if pa.types.is_map(field.type):
            values = [_text(dict(value)) for value in values]
        yield "\n".join(
            value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
            for value in values
        )


def _says(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_map(kind))


# --- the map -------------------------------------------------------------------------------


def _map(original: Case, names: Pseudonyms, key: bytes) -> bytes:
    return manifest.canonical(
        {
            "format": 1,
            "key": key.hex(),
            "original": {"incident": original.incident.id, "manifest": original.manifest.sha256},
            "originals": {fresh: was for was, fresh in sorted(names.originals.items())},
        }
    )


def _seal_map(content: bytes, path: Path, passphrase: str) -> None:
    """Write the map so that `age -d` opens it with the passphrase."""
    if not passphrase:
        raise EvidenceError("the map needs a passphrase", next_step="give one")
    manifest.write_atomically(path, bytes(pyrage.passphrase.encrypt(content, passphrase)))
    path.chmod(0o600)


def key_of(path: Path, passphrase: str) -> bytes:
    """The key in the map of an earlier redaction. Errors: EvidenceError."""
    try:
        value = json.loads(pyrage.passphrase.decrypt(path.read_bytes(), passphrase))
        key = bytes.fromhex(value["key"])
    except (OSError, ValueError, KeyError, TypeError, pyrage.DecryptError):
        key = b""
    if len(key) != KEY_BYTES:
        raise EvidenceError(
            f"{path.name} is no map of a redaction, or its passphrase is another",
            next_step="give the map that was written beside the earlier copy",
        )
    return key
