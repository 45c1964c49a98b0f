"""`tf.train.Example`, the message in which TFRecords hold named values, without TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

if TYPE_CHECKING:
    from collections.abc import Mapping

_REPEATED, _OPTIONAL = "LABEL_REPEATED", "LABEL_OPTIONAL"


def _field(name: str, number: int, kind: str, label: str, of: str | None = None, **more: Any) -> dict[str, Any]:
    named = {"typeName": f".rayjobs.{of}"} if of else {}
    return {"name": name, "number": number, "type": f"TYPE_{kind}", "label": label, **named, **more}


def _choice(name: str, number: int, of: str) -> dict[str, Any]:
    return _field(name, number, "MESSAGE", _OPTIONAL, of, oneofIndex=0)


_ENTRY = {
    "name": "FeatureEntry",
    "field": [_field("key", 1, "STRING", _OPTIONAL), _field("value", 2, "MESSAGE", _OPTIONAL, "Feature")],
    "options": {"mapEntry": True},
}
_MESSAGES = {
    "name": "rayjobs/example.proto",
    "package": "rayjobs",
    "syntax": "proto3",
    "messageType": [
        {"name": "BytesList", "field": [_field("value", 1, "BYTES", _REPEATED)]},
        {"name": "FloatList", "field": [_field("value", 1, "FLOAT", _REPEATED)]},
        {"name": "Int64List", "field": [_field("value", 1, "INT64", _REPEATED)]},
        {
            "name": "Feature",
            "field": [_choice("bytes_list", 1, "BytesList"), _choice("float_list", 2, "FloatList"), _choice("int64_list", 3, "Int64List")],
            "oneofDecl": [{"name": "kind"}],
        },
        {"name": "Features", "field": [_field("feature", 1, "MESSAGE", _REPEATED, "Features.FeatureEntry")], "nestedType": [_ENTRY]},
        {"name": "Example", "field": [_field("features", 1, "MESSAGE", _OPTIONAL, "Features")]},
    ],
}
"""The fields and numbers of TensorFlow's `example.proto` and `feature.proto`; names of packages are in no message."""


def _example_class() -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(json_format.ParseDict(_MESSAGES, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("rayjobs.Example"))


Example = _example_class()
"""The message."""


def example(values: Mapping[str, bytes | str | int | float | None]) -> bytes:
    """Return named values as the bytes of an Example; None is a feature of no kind, for which a parser takes its default."""
    made = Example()
    for name, value in values.items():
        feature = made.features.feature[name]  # which is there from now on
        if value is None:
            continue
        if isinstance(value, int):
            feature.int64_list.value.append(value)
        elif isinstance(value, float):
            feature.float_list.value.append(value)
        else:
            feature.bytes_list.value.append(value.encode() if isinstance(value, str) else value)
    return bytes(made.SerializeToString(deterministic=True))
