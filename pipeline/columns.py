"""Which type each column of a shard may have, and the one type that it gets in all shards."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.types as pt

from pipeline.config import RunConfig
from pipeline.parameters import check_parameter_type
from pipeline.shards import BadShard, Shard


def checked_field(shard: Shard, schema: pa.Schema, name: str, config: RunConfig) -> pa.Field:
    """A column that the run reads, with the type that it is read as.

    Raises:
        BadShard: it is missing, there twice, or of a type that does not fit its use.
    """
    places = schema.get_all_field_indices(name)
    if not places and name in shard.partitions:
        return pa.field(name, pa.string())
    if len(places) != 1:
        found = ", ".join(schema.names) or "none"
        problem = "has no column" if not places else "has more than one column"
        said = f"the input shard {shard.path} {problem} {name!r}; its columns: {found}"
        raise BadShard(shard.path, said)
    kind = schema.field(name).type
    if name in config.prompt.columns:
        _check_prompt_type(shard, name, kind, config)
        # A prompt column is kept as text too, unless it holds messages or numbers.
        kind = pa.string() if is_text(kind) or _is_bytes(kind) else kind
    if name in config.row_parameters:
        right = check_parameter_type(name, kind)
        if right is not None:
            raise BadShard(
                shard.path,
                f"the parameter column {name!r} is of type {kind} in {shard.path}: "
                f"it must hold {right}",
            )
    if name == config.id_column:
        kind = _id_type(shard, name, kind)
    return pa.field(name, kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether a type holds text, however it is encoded."""
    if pt.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    if pt.is_dictionary(kind):
        return _is_bytes(kind.value_type)
    return bool(pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind))


def _id_type(shard: Shard, name: str, kind: pa.DataType) -> pa.DataType:
    if is_text(kind):
        return pa.string()
    if pt.is_null(kind):  # what a table without rows often has; rows would be nulls, and refused
        return kind
    value = kind.value_type if pt.is_dictionary(kind) else kind
    if pt.is_integer(value):
        return pa.uint64() if pt.is_uint64(value) else pa.int64()
    raise BadShard(
        shard.path,
        f"the id column {name!r} is of type {kind} in {shard.path}: it must hold integers or text",
    )


def _check_prompt_type(shard: Shard, name: str, kind: pa.DataType, config: RunConfig) -> None:
    if is_text(kind) or _is_bytes(kind) or pt.is_null(kind):
        return
    if config.prompt.template is not None:
        plain = pt.is_primitive(kind) or pt.is_boolean(kind) or pt.is_decimal(kind)
        right = "text, a number, a date or a boolean, to fill the template's field"
    else:
        plain = config.prompt.mode == "chat" and _is_messages(kind)
        right = "text" + (", or a list of {role, content}" if config.prompt.mode == "chat" else "")
    if not plain:
        raise BadShard(
            shard.path,
            f"the prompt column {name!r} is of type {kind} in {shard.path}: it must hold {right}",
        )


def _is_messages(kind: pa.DataType) -> bool:
    if not (pt.is_list(kind) or pt.is_large_list(kind)) or not pt.is_struct(kind.value_type):
        return False
    members = {f.name: f.type for f in kind.value_type}
    return all(is_text(members.get(name, pa.null())) for name in ("role", "content"))


def common_field(one: pa.Field, other: pa.Field) -> pa.Field:
    """A field that the values of both fit: nulls take the other's type, numbers the wider one.

    Raises:
        pa.ArrowTypeError, pa.ArrowInvalid: there is none.
    """
    schemas = [pa.schema([one]), pa.schema([other])]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0)


class Unifier:
    """One type for each column of all shards.

    The first of `names` is the id column.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._schema: pa.Schema | None = None

    def add(self, shard: Shard, schema: pa.Schema) -> None:
        """Take in a shard's schema; it counts only when all of its columns fit.

        Raises:
            BadShard: a column has a type that does not go with that of the shards before.
        """
        if self._schema is None:
            self._schema = schema
            return
        fields = []
        for name in self._names:
            before, now = self._schema.field(name), schema.field(name)
            try:
                fields.append(common_field(before, now))
            except (pa.ArrowTypeError, pa.ArrowInvalid):
                raise BadShard(
                    shard.path,
                    f"the column {name!r} is of type {now.type} in {shard.path} but "
                    f"{before.type} before it: it must have one type in all shards",
                ) from None
        self._schema = pa.schema(fields)

    def schema(self) -> pa.Schema:
        """What all shards added so far can be read as; ids that no shard has would be text."""
        assert self._schema is not None
        ids = self._schema.field(0)
        return (
            self._schema.set(0, ids.with_type(pa.string()))
            if pt.is_null(ids.type)
            else self._schema
        )


def as_column(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A column in its common type. Text keeps bytes that are not UTF-8: they are a row's problem.

    Raises:
        pa.ArrowException: a value does not fit.
    """
    if column.type.equals(kind):
        return column
    if pt.is_dictionary(column.type) and not pt.is_dictionary(kind):
        return as_column(_decoded(column), kind)
    if pt.is_string(kind) and (_is_bytes(column.type) or is_text(column.type)):
        raw = column.cast(pa.large_binary()) if not pt.is_binary(column.type) else column
        return raw.cast(options=pa.compute.CastOptions(kind, allow_invalid_utf8=True))
    return column.cast(kind)


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    chunks = [chunk.dictionary_decode() for chunk in column.chunks]
    return pa.chunked_array(chunks, column.type.value_type)
