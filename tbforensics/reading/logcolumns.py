"""Columns of `log_lines` from columns of values: what `logrows` says of one, said of many at once.

Where a value is not of the plain sort that is read here, the answer says so, and `logrows` is
asked about its row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from tbforensics.evidence import SCHEMAS
from tbforensics.reading.logrows import level_of, peer_of

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

_WHOLE = r"^(0|-?[1-9][0-9]{0,17}|[1-8][0-9]{18})$"
_NS_PER_MS = 1_000_000


def flags(answers: pa.Array) -> Mask:
    found: Mask = answers.to_numpy(zero_copy_only=False)
    return found.astype(np.bool_, copy=False)


def of_store(values: Mapping[str, pa.Array]) -> list[pa.Array] | None:
    """The columns of `log_lines` from `id` on, of rows of a log store: integers and texts, or null.

    None where there is more to say of some than is said here: a time that cannot be read, or a
    text that is no UTF-8.
    """
    count = len(values["timestamp"])
    ms, fine = ms_of_integers(values["timestamp"].fill_null(0).to_numpy())
    if not fine.all():
        return None
    columns = []
    for field in list(SCHEMAS["log_lines"])[4:-1]:
        said = values.get(field.name)
        if field.name == "ts":
            said = pa.array(ms, mask=flags(values["timestamp"].is_null())).cast(field.type)
        elif said is not None and pa.types.is_string(said.type):
            try:
                said.validate(full=True)
            except pa.ArrowInvalid:
                return None
            said = of_texts(field.name, said)
        columns.append(pa.nulls(count, field.type) if said is None else said)
    return [*columns, pa.repeat(pa.scalar("{}"), count)]


# --- texts -------------------------------------------------------------------------------------


def of_texts(name: str, texts: pa.Array) -> pa.Array:
    """The column of this name, where all that the lines say of it is a text or nothing."""
    if name == "message":
        return texts
    if name in _OF_EACH:
        return _each_distinct(texts, _OF_EACH[name])
    empty = pc.equal(texts, "")  # the store writes "" for "none"
    return pc.if_else(empty, None, texts) if pc.any(empty).as_py() else texts


def _peer(text: str) -> str | None:
    return peer_of(text) if text else None


def _level(text: str) -> str | None:
    return level_of(text) if text else None


_OF_EACH: Mapping[str, Callable[[str], str | None]] = {"peer": _peer, "level": _level}


def _each_distinct(texts: pa.Array, said: Callable[[str], str | None]) -> pa.Array:
    encoded = texts.dictionary_encode()
    distinct = [None if text is None else said(text) for text in encoded.dictionary.to_pylist()]
    return pa.array(distinct, pa.string()).take(encoded.indices)


# --- numbers, from how they are spelled --------------------------------------------------------


def as_spelled(texts: pa.Array) -> Mask:
    """Which of them are JSON numbers that orjson would spell the same way again."""
    if _digits(texts) is not None:
        return np.ones(len(texts), np.bool_)
    numbers = _cast(texts, pa.float64()).to_numpy(zero_copy_only=False)
    spelled = orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].decode()
    fine: Mask = np.isfinite(numbers)  # else `null` would be spelled like itself
    if _joined(texts) != spelled:
        fine &= flags(pc.equal(texts, pa.array(spelled.split(","), pa.string())))
        fine |= flags(pc.match_substring_regex(texts, _WHOLE))
    return fine


def integers(texts: pa.Array) -> tuple[Ints, Mask]:
    """Those that are integers in JSON; and which are."""
    if (numbers := _digits(texts)) is not None:
        return numbers, np.ones(len(texts), np.bool_)
    fine = pc.match_substring_regex(texts, _WHOLE)
    return pc.if_else(fine, texts, "0").cast(pa.int64()).to_numpy(), flags(fine)


def _digits(texts: pa.Array) -> Ints | None:
    """The integers, where all are spelled as digits and nothing else."""
    # Arrow takes long to say that it cannot cast, so it is only asked where it probably can.
    if pc.all(pc.ascii_is_decimal(texts)).as_py():
        with suppress(pa.ArrowInvalid):  # too large
            numbers = texts.cast(pa.int64())
            zeros_first = pc.any(pc.starts_with(texts, "0")).as_py()
            if not zeros_first or numbers.cast(pa.string()).equals(texts):
                return numbers.to_numpy()  # type: ignore[no-any-return]
    return None


def _joined(texts: pa.Array) -> str:
    together = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts)
    return str(pc.binary_join(together, ",")[0])


# --- times -------------------------------------------------------------------------------------


def ms_of_numbers(texts: pa.Array) -> tuple[Ints, Mask]:
    """`logrows.time_ms` of numbers in JSON; and for which of them it is known."""
    numbers, whole = integers(texts)
    ms, fine = ms_of_integers(numbers)
    if not whole.all():  # seconds with a fraction
        others = texts.filter(pa.array(~whole))
        spelled = pa.array(as_spelled(others))
        seconds = pc.if_else(spelled, others, "-1").cast(pa.float64()).to_numpy()
        fine[~whole] = (seconds >= 0) & (seconds < 1e11)
        ms[~whole] = np.floor(np.rint(np.clip(seconds, 0, 1e11) * 1e6) / 1e3).astype(np.int64)
    return ms, fine


def ms_of_integers(values: Ints) -> tuple[Ints, Mask]:
    """`logrows.time_ms` of integers; and for which of them it is known."""
    bounds = [values < 10**11, values < 10**14, values < 10**17]
    in_ms = [values * 1000, values, values // 1000]
    return np.select(bounds, in_ms, values // _NS_PER_MS), values >= 0


def ms_of_texts(texts: pa.Array) -> tuple[Ints, Mask]:
    """`logrows.time_ms` of times as RFC 3339 spells them; and for which of them it is known."""
    times = _cast(texts, pa.timestamp("ns", "UTC"))
    ns = times.cast(pa.int64()).fill_null(0).to_numpy()
    return ns // _NS_PER_MS, flags(times.is_valid())


def _cast(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """What cannot be cast is null. Arrow only says that there is some, so it is looked for."""
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        half = len(texts) // 2
        if not half:
            return pa.nulls(1, kind)
        return pa.concat_arrays([_cast(texts[:half], kind), _cast(texts[half:], kind)])
