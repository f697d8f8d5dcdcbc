"""Which type each column of a shard may have, and the one type that it gets in all shards."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from pipeline.config import RunConfig
from pipeline.parameters import check_parameter_type, type_of_text
from pipeline.shards import BadShard, Shard


def checked_field(shard: Shard, schema: pa.Schema, name: str, config: RunConfig) -> pa.Field:
    """A column that the run reads, with the type that it is read as.

    A column that only makes prompts, and is no text, has the type null: see `own_columns`.

    Raises:
        BadShard: it is missing, there twice, or of a type that does not fit its use.
    """
    places = schema.get_all_field_indices(name)
    if not places and name in shard.partitions:
        return pa.field(name, _partition_type(shard, name, config))
    if len(places) != 1:
        found = ", ".join(schema.names) or "none"
        problem = "has no column" if not places else "has more than one column"
        said = f"the input shard {shard.path} {problem} {name!r}; its columns: {found}"
        raise BadShard(shard.path, said)
    kind = schema.field(name).type
    if name in config.prompt.columns:
        _check_prompt_type(shard, name, kind, config)
        if _is_textual(kind):
            kind = pa.string()  # kept so, too
        elif name not in (config.id_column, *config.keep, *config.row_parameters):
            kind = pa.null()
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
    return pa.field(name, without_views(kind))


def _partition_type(shard: Shard, name: str, config: RunConfig) -> pa.DataType:
    """Folders' names give text, which is a number where a parameter is one."""
    if name not in config.row_parameters:
        return pa.string()
    text = shard.partitions[name]
    kind, right = type_of_text(name, text)
    if kind is None:
        raise BadShard(
            shard.path,
            f"the parameter {name!r} is {text!r} in the folders of {shard.path}: "
            f"it must be {right}",
        )
    return kind


def own_columns(schema: pa.Schema, config: RunConfig) -> frozenset[str]:
    """The columns that prompts are made of in the shard's own type: all but text.

    The type over all shards would not do: 7 becomes 7.0 where another shard holds fractions, and
    then new shards would change the prompts of old rows.
    """
    here = set(schema.names)
    in_folders = set(config.row_parameters) - here
    return frozenset(
        name
        for name in config.prompt.columns
        if name in in_folders or (name in here and not _is_textual(schema.field(name).type))
    )


def without_views(kind: pa.DataType) -> pa.DataType:
    """The type with views of text and bytes as plain text and bytes: Arrow cannot sort views."""
    if pt.is_string_view(kind):
        return pa.string()
    if pt.is_binary_view(kind):
        return pa.binary()
    if pt.is_struct(kind):
        return pa.struct([_without_views(member) for member in kind])
    if pt.is_map(kind):
        members = _without_views(kind.key_field), _without_views(kind.item_field)
        return pa.map_(*members, keys_sorted=kind.keys_sorted)
    if pt.is_fixed_size_list(kind):
        return pa.list_(_without_views(kind.value_field), kind.list_size)
    for is_kind, make in _LISTS:
        if is_kind(kind):
            return make(_without_views(kind.value_field))
    return kind


_LISTS = (
    (pt.is_list, pa.list_),
    (pt.is_large_list, pa.large_list),
    (pt.is_list_view, pa.list_view),
    (pt.is_large_list_view, pa.large_list_view),
)


def _without_views(field: pa.Field) -> pa.Field:
    return field.with_type(without_views(field.type))


def is_text(kind: pa.DataType) -> bool:
    """Whether a type holds text, however it is encoded."""
    if pt.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def _is_textual(kind: pa.DataType) -> bool:
    return is_text(kind) or _is_bytes(kind)


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
    if _is_textual(kind) or pt.is_null(kind):
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

    What only one of them encodes as a dictionary is plain.

    Raises:
        pa.ArrowTypeError, pa.ArrowInvalid: there is none.
    """
    if _lose_digits(one.type, other.type):
        raise pa.ArrowTypeError(f"a decimal and a float: {one.type} and {other.type}")
    schemas = [pa.schema([one]), pa.schema([other])]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0)
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        plain = [f.with_type(f.type.value_type) if _is_coded(f) else f for f in (one, other)]
        if plain == [one, other]:
            raise
        return common_field(*plain)


def _is_coded(field: pa.Field) -> bool:
    return bool(pt.is_dictionary(field.type))


def _lose_digits(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether decimals and floats stand in the same place: Arrow would round decimals silently."""
    if pt.is_struct(one) and pt.is_struct(other):
        return any(
            _lose_digits(member.type, other.field(member.name).type)
            for member in one
            if other.get_field_index(member.name) >= 0
        )
    if one.num_fields == other.num_fields == 1:  # lists and maps
        return _lose_digits(one.field(0).type, other.field(0).type)
    if pt.is_decimal(one):
        return bool(pt.is_floating(other))
    return bool(pt.is_floating(one) and pt.is_decimal(other))


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
    if pt.is_null(kind) or (is_text(kind) and not _is_textual(column.type)):
        # No values, or such that only prompts are made of, in the shard's own type.
        return pa.chunked_array([pa.nulls(len(column), kind)])
    if pt.is_dictionary(column.type) and not pt.is_dictionary(kind):
        return as_column(decoded(column), kind)
    return column.cast(options=pc.CastOptions(kind, allow_invalid_utf8=True))


def decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without its dictionary, if it has one."""
    if not pt.is_dictionary(column.type):
        return column
    chunks = [chunk.dictionary_decode() for chunk in column.chunks]
    return pa.chunked_array(chunks, column.type.value_type)
