"""The messages of Prometheus remote read, as `protobuf` classes made without a compiler.

Importing this costs what protobuf costs, so only what meets such messages does.

Two things differ from upstream, and not on the wire: an enum is a number, so that one that we do
not know can be told; text is bytes, so that a label that is no UTF-8 costs its own series and not
the whole frame.

Source: prometheus/prompb/remote.proto and types.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError as DecodeError

_Field = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "tbforensics.prometheus"

# name of a message: {name of a field: (number, type, repeated)}
_MESSAGES: Mapping[str, Mapping[str, tuple[int, str, bool]]] = {
    "LabelMatcher": {
        "type": (1, "int32", False),
        "name": (2, "bytes", False),
        "value": (3, "bytes", False),
    },
    "Query": {
        "start_timestamp_ms": (1, "int64", False),
        "end_timestamp_ms": (2, "int64", False),
        "matchers": (3, "LabelMatcher", True),
    },
    "ReadRequest": {
        "queries": (1, "Query", True),
        "accepted_response_types": (2, "int32", True),
    },
    "Label": {"name": (1, "bytes", False), "value": (2, "bytes", False)},
    "Chunk": {
        "min_time_ms": (1, "int64", False),
        "max_time_ms": (2, "int64", False),
        "type": (3, "int32", False),
        "data": (4, "bytes", False),
    },
    "ChunkedSeries": {"labels": (1, "Label", True), "chunks": (2, "Chunk", True)},
    "ChunkedReadResponse": {
        "chunked_series": (1, "ChunkedSeries", True),
        "query_index": (2, "int64", False),
    },
}
STREAMED_XOR_CHUNKS = 1  # ReadRequest.accepted_response_types
XOR, HISTOGRAM, FLOAT_HISTOGRAM = 1, 2, 3  # Chunk.type


def _classes() -> Mapping[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3"
    )
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind, repeated) in fields.items():
            field = described.field.add(name=name, number=number)
            field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            if kind in _MESSAGES:
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                field.type = getattr(_Field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in ("ReadRequest", "ChunkedReadResponse")
    }


_CLASSES = _classes()
ReadRequest: Any = _CLASSES["ReadRequest"]
ChunkedReadResponse: Any = _CLASSES["ChunkedReadResponse"]
