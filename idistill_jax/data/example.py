"""Frozen dataclasses <-> `tf.train.Example` bytes, without TensorFlow.

A field of type `str`, `int` or `float` is a feature with one value; `tuple[str, ...]`, `tuple[int, ...]` and
`tuple[float, ...]` are features with any number of values, none included.  Two more features say what is
held: `record_type`, the class name, and `schema_version`.  Equal records give equal bytes.

Floats are float32 on the wire, as the format has it: a record comes back with its floats rounded to float32,
and is unchanged by every further round trip.  Integers are int64.  Not-finite floats are refused.
"""

import dataclasses
import functools
import math
import os
import pathlib
import re
import struct
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory, text_format

from idistill_jax import by_row
from idistill_jax import records as records_lib
from idistill_jax.data import tfrecord

T = TypeVar("T")

VERSION_FEATURE = "schema_version"
TYPE_FEATURE = "record_type"
_RESERVED = (VERSION_FEATURE, TYPE_FEATURE)
_FLOAT = struct.Struct("<f")
# What stands before an id, and its length, where it is the first of features in the order of their names.
_TO_ID = re.compile(rb"\nV\nV\n\x02id\x12V\nV\n[\0-\x7f]".replace(b"V", rb"[\x80-\xff]*[\0-\x7f]"))


class ExampleError(ValueError):
  """Bytes that are not the record asked for, or a record that cannot be written; it names the feature."""


# `tf.train.Example` under names of our own: under TensorFlow's it would clash with TensorFlow's copy when
# both are imported.  The bytes know nothing of names.
_DESCRIPTOR = """
name: "idistill_jax/example.proto" package: "idistill_jax.example" syntax: "proto3"
message_type { name: "BytesList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "FloatList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Int64List" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type {
  name: "Feature" oneof_decl { name: "kind" }
  field { name: "bytes_list" number: 1 oneof_index: 0 type: TYPE_MESSAGE type_name: "BytesList" }
  field { name: "float_list" number: 2 oneof_index: 0 type: TYPE_MESSAGE type_name: "FloatList" }
  field { name: "int64_list" number: 3 oneof_index: 0 type: TYPE_MESSAGE type_name: "Int64List" }
}
message_type {
  name: "Features"
  field {
    name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: "Features.FeatureEntry"
  }
  nested_type {
    name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: "Feature" }
  }
}
message_type { name: "Example" field { name: "features" number: 1 type: TYPE_MESSAGE type_name: "Features" } }
"""


def _message_class() -> type[message.Message]:
  proto = text_format.Parse(_DESCRIPTOR, descriptor_pb2.FileDescriptorProto())
  pool = descriptor_pool.DescriptorPool()
  pool.AddSerializedFile(proto.SerializeToString())
  return message_factory.GetMessageClass(pool.FindMessageTypeByName("idistill_jax.example.Example"))


_Example: Any = _message_class()


def _to_float32(value: float) -> float:
  """The nearest float32, as a Python float."""
  if not isinstance(value, (float, int)) or not math.isfinite(value):
    raise TypeError(f"a finite float is needed, not {value!r}")
  try:
    return _FLOAT.unpack(_FLOAT.pack(value))[0]
  except OverflowError as e:
    raise TypeError(f"{value!r} is beyond float32") from e


def _to_int64(value: int) -> int:
  if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
    raise TypeError(f"an int of 64 bits is needed, not {value!r}")
  return value


def _to_bytes(value: str) -> bytes:
  if not isinstance(value, str):
    raise TypeError(f"a str is needed, not {value!r}")
  return value.encode()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
  """How values of one Python type lie in a Feature: which list, and there and back."""

  list_name: str
  to_wire: Callable[[Any], Any]
  from_wire: Callable[[Any], Any]


_KINDS = {
  str: _Kind(list_name="bytes_list", to_wire=_to_bytes, from_wire=lambda data: data.decode()),
  int: _Kind(list_name="int64_list", to_wire=_to_int64, from_wire=int),
  float: _Kind(list_name="float_list", to_wire=_to_float32, from_wire=float),
}


@functools.cache
def _features_of(cls: type) -> dict[str, tuple[_Kind, bool]]:
  """Field name -> (kind, whether it is a tuple); raises TypeError for a field that no feature can hold."""
  if not dataclasses.is_dataclass(cls):
    raise TypeError(f"{cls.__name__} is not a dataclass")
  hints = typing.get_type_hints(cls)
  found = {}
  for field in dataclasses.fields(cls):
    hint = hints[field.name]
    args = typing.get_args(hint)
    many = typing.get_origin(hint) is tuple and len(args) == 2 and args[1] is Ellipsis
    kind = _KINDS.get(args[0] if many else hint)
    if kind is None or field.name in _RESERVED:
      raise TypeError(
        f"{cls.__name__}.{field.name}: no feature of that name holds {hint}; fields are str, int, "
        f"float or tuples of one of them, and not called {' or '.join(_RESERVED)}"
      )
    found[field.name] = (kind, many)
  return found


@functools.cache
def _later(cls: type) -> dict[str, Any]:
  """Fields that came when there were records already -> their defaults, with which they are not written."""
  return {field.name: field.default for field in dataclasses.fields(cls) if "later" in field.metadata}


def encode(record: Any) -> bytes:
  """Wire bytes of a record; raises ExampleError for a value that its feature cannot hold."""
  cls = type(record)
  later = _later(typing.cast(Any, cls))
  example = _Example()
  feature = example.features.feature
  feature[VERSION_FEATURE].int64_list.value.append(records_lib.SCHEMA_VERSION)
  feature[TYPE_FEATURE].bytes_list.value.append(cls.__name__.encode())
  for name, (kind, many) in _features_of(typing.cast(Any, cls)).items():
    value = getattr(record, name)
    if name in later and value == later[name]:
      continue
    values = getattr(feature[name], kind.list_name)
    # An empty list is written as one: absence means that the feature is missing.
    values.SetInParent()
    try:
      values.value.extend([kind.to_wire(item) for item in (value if many else (value,))])
    except (TypeError, UnicodeEncodeError) as e:
      raise ExampleError(f"{cls.__name__}.{name}: {e}") from e
  return example.SerializeToString(deterministic=True)


def decode(cls: type[T], data: bytes) -> T:
  """The record that `encode` was given, floats rounded to float32.

  Raises ExampleError for bytes that are no Example, another schema version or record type, and for missing,
  unknown or wrongly typed features.
  """
  try:
    feature = _Example.FromString(data).features.feature
  except message.DecodeError as e:
    raise ExampleError(f"{len(data)} bytes are not a tf.train.Example") from e
  expected = _features_of(typing.cast(Any, cls))
  _check_header(cls, feature)
  if later := _later(typing.cast(Any, cls)):
    expected = {name: of for name, of in expected.items() if name in feature or name not in later}
  if len(feature) > len(expected) + len(_RESERVED):
    unknown = sorted(set(feature) - expected.keys() - set(_RESERVED))
    raise ExampleError(f"{cls.__name__} has no fields {', '.join(unknown)}, which the example carries")
  return cls(**{name: _value(cls, feature, name, kind, many) for name, (kind, many) in expected.items()})


def _check_header(cls: type, feature: Any) -> None:
  if VERSION_FEATURE not in feature:
    raise ExampleError(f"feature {VERSION_FEATURE} is missing: this is not a record of ours")
  version = _value(cls, feature, VERSION_FEATURE, _KINDS[int], many=False)
  if version != records_lib.SCHEMA_VERSION:
    raise ExampleError(
      f"{VERSION_FEATURE} is {version}, this program knows {records_lib.SCHEMA_VERSION}: "
      "run the stage that wrote the file again"
    )
  name = _value(cls, feature, TYPE_FEATURE, _KINDS[str], many=False)
  if name != cls.__name__:
    raise ExampleError(f"{TYPE_FEATURE} is {name}, asked for was {cls.__name__}")


def _value(cls: type, feature: Any, name: str, kind: _Kind, many: bool) -> Any:
  # Indexing a missing key of a proto map would add it.
  if name not in feature:
    raise ExampleError(f"{cls.__name__}.{name}: the feature is missing")
  held = feature[name]
  values = getattr(held, kind.list_name).value
  # One that holds another kind of list has an empty one of this kind.
  if not values and held.WhichOneof("kind") != kind.list_name:
    raise ExampleError(f"{cls.__name__}.{name}: a {kind.list_name} is needed, found {held.WhichOneof('kind')}")
  if not many and len(values) != 1:
    raise ExampleError(f"{cls.__name__}.{name}: one value is needed, found {len(values)}")
  try:
    return tuple(map(kind.from_wire, values)) if many else kind.from_wire(values[0])
  except UnicodeDecodeError as e:
    raise ExampleError(f"{cls.__name__}.{name}: not UTF-8 ({e})") from e


def write_records(
  folder: str | os.PathLike[str], name: str, records: Iterable[Any], shards: int = 1, count: int | None = None
) -> list[pathlib.Path]:
  """Writes records as the TFRecord shards `folder/name-*.tfrecord`; `count` is theirs, see `tfrecord.write`."""
  return tfrecord.write(folder, name, map(encode, records), shards, count)


def write_shard(
  folder: str | os.PathLike[str], name: str, records: Iterable[Any], shard: int, shards: int
) -> pathlib.Path:
  """One of several shards of records, as `tfrecord.write_shard` does."""
  return tfrecord.write_shard(folder, name, map(encode, records), shard, shards)


def read_records(folder: str | os.PathLike[str], name: str, cls: type[T]) -> Iterator[T]:
  """Records of all shards in order.

  Raises CorruptRecord, MissingShard, or ExampleError naming file and record.
  """
  for path in tfrecord.shard_paths(folder, name):
    for number, data in enumerate(tfrecord.read(path)):
      yield _decode_at(path, number, cls, data)


def _decode_at(path: pathlib.Path, number: int, cls: type[T], data: bytes) -> T:
  try:
    return decode(cls, data)
  except ExampleError as e:
    raise ExampleError(f"{path}: record {number}: {e}") from e


class Records(by_row.ByRow[T]):
  """Records of several files, each read, checked and decoded when it is asked for; raises as `read_records` does."""

  def __init__(self, payloads: tfrecord.Payloads, cls: type[T]):
    self._payloads, self._cls = payloads, cls

  def __len__(self) -> int:
    return len(self._payloads)

  def at(self, row: int) -> T:
    return _decode_at(*self._payloads.place(row), self._cls, self._payloads.read(row))


def open_records(folder: str | os.PathLike[str], name: str, cls: type[T]) -> Records[T]:
  """Records of all shards in order, found by number; raises as `tfrecord.payloads` does."""
  return Records(tfrecord.payloads(folder, name), cls)


def read_ids(path: pathlib.Path, cls: type) -> Iterator[tuple[bytes, int]]:
  """(id as UTF-8, length of the payload) of each record of a file; of what `encode` wrote nothing else is decoded."""
  for number, data in enumerate(tfrecord.read(path)):
    if head := _TO_ID.match(data):
      yield data[head.end():head.end() + data[head.end() - 1]], len(data)
    else:
      yield typing.cast(Any, _decode_at(path, number, cls, data)).id.encode(), len(data)
