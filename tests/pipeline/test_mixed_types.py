"""Shards whose types differ: each row's prompt stays its own, and kept values lose nothing.

Without Ray: the stages are called one after another, as a run does it.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admg.config import SamplingParams
from pipeline.columns import without_views
from pipeline.config import PromptConfig, RunConfig
from pipeline.dealing import Dealing
from pipeline.decode import with_results
from pipeline.keys import row_key
from pipeline.prepare import Prepare, readable
from pipeline.schema import PROMPT, ROW_KEY, RowResult, output_schema
from pipeline.sink import encode
from pipeline.source import open_source
from pipeline.stages import Detokenize, Tokenize, errors_of
from tests.pipeline.conftest import write_shards
from tests.pipeline.outputs import PRINT
from tests.pipeline.standin import StandIn

N = PromptConfig(mode="template", template="{n}")
TEXT = pa.string()


def config_of(folder: Path, **changes: Any) -> RunConfig:
    return RunConfig(**{"input": (str(folder),), "output": "out", "model": "m", **changes})


def run_of(config: RunConfig) -> tuple[dict[int, Any], list[dict[str, Any]]]:
    """Prompt, error and key of each row by its id, and the rows of the output."""
    source = open_source(config)
    schema = output_schema(source.schema, config.id_column, config.keep)
    source.scan(config)
    prepare = Prepare(
        config.id_column, config.keep, config.prompt, None, config.row_parameters, config.sampling
    )
    dealing = Dealing(2, 3)
    tokenize = Tokenize(StandIn(), config.prompt, None, config.sampling)
    detokenize = Detokenize(StandIn(), schema)
    rows, outputs = {}, []
    for chunk in source.chunks:
        for table in chunk.read(source.schema):
            prepared = dealing(prepare(table))
            columns = (prepared[PROMPT].to_pylist(), errors_of(prepared))
            found = zip(*columns, prepared[ROW_KEY].to_pylist(), strict=True)
            rows |= dict(zip(prepared[config.id_column].to_pylist(), found, strict=True))
            results = [RowResult(text="t", error=error) for error in columns[1]]
            outputs.append(detokenize(with_results(tokenize(prepared), results)))
    written = encode(pa.concat_tables(outputs), PRINT)
    return rows, pq.read_table(pa.BufferReader(written)).to_pylist()


def prompts_of(folder: Path, columns: Sequence[pa.Array], **changes: Any) -> list[Any]:
    """The prompts of one-row shards, each with its `n`; error rows give their errors."""
    write_shards(folder, [pa.table({"id": [i], "n": n}) for i, n in enumerate(columns)])
    rows, _ = run_of(config_of(folder, prompt=N, **changes))
    return [rows[i][0] or rows[i][1] for i in range(len(columns))]


def not_unicode(kind: pa.DataType = TEXT) -> pa.Array:
    return pa.array([b"a\xff", b"b", None, b"\xff", b"a\xfe"], pa.binary()).view(TEXT).cast(kind)


@pytest.mark.parametrize("keep", [(), ("n",)])
def test_a_number_is_shown_as_its_own_shard_has_it(tmp_path: Path, keep: tuple[str, ...]) -> None:
    shards = [
        pa.array([7]),
        pa.array([7.0]),
        pa.array([None], pa.float64()),
        pa.array([7], pa.int8()),
    ]
    found = prompts_of(tmp_path, shards, keep=keep)
    assert found[:2] == ["7", "7.0"]
    assert found[2].code == "prompt_null"
    assert found[3] == "7"


def test_fields_of_kinds_that_have_no_common_type(tmp_path: Path) -> None:
    """What only fills the template needs none."""
    shards = [
        pa.array([2**53 + 1]),
        pa.array([0.5]),
        pa.array(["text"]),
        pa.array([True]),
        pa.array([Decimal("1.10")]),
        pa.array([datetime.date(2026, 11, 29)]),
    ]
    said = ["9007199254740993", "0.5", "text", "True", "1.10", "2026-11-29"]
    assert prompts_of(tmp_path, shards) == said


def test_messages_are_those_of_their_own_shard(tmp_path: Path) -> None:
    said = {"role": "user", "content": "hi"}
    chats = [[[{**said, "n": n}]] for n in (7, 7.0)]
    write_shards(tmp_path, [{"id": [i], "chat": chat} for i, chat in enumerate(chats)])
    config = config_of(tmp_path, prompt=PromptConfig("chat", "chat"), keep=("chat",))
    rows, written = run_of(config)
    assert [rows[i][0] for i in (0, 1)] == [
        '[{"content": "hi", "n": 7, "role": "user"}]',
        '[{"content": "hi", "n": 7.0, "role": "user"}]',
    ]
    assert [row["chat"] for row in written] == [[{**said, "n": 7.0}]] * 2


def test_messages_go_with_shards_of_text(tmp_path: Path) -> None:
    said = {"role": "user", "content": "hi"}
    write_shards(tmp_path, [{"id": [0], "chat": [[said]]}, {"id": [1], "chat": ["hi"]}])
    rows, _ = run_of(config_of(tmp_path, prompt=PromptConfig("chat", "chat")))
    assert rows[0][0] == rows[1][0] == '[{"content": "hi", "role": "user"}]'


@pytest.mark.parametrize(
    ("kind", "value", "why"),
    [
        (pa.date32(), 2**30, "a date32[day] that cannot be shown: days=1073741824"),
        (pa.timestamp("us"), 2**62, "a timestamp[us] that cannot be shown: date value out of"),
        (pa.timestamp("ms", "UTC"), 2**60, "a timestamp[ms, tz=UTC] that cannot be shown: "),
        (pa.duration("s"), 2**60, "a duration[s] that cannot be shown: "),
        (pa.timestamp("us", "No/Where"), 1, "a timestamp[us, tz=No/Where] that cannot be shown: "),
    ],
    ids=str,
)
def test_what_python_cannot_show_is_an_error_row(
    tmp_path: Path, kind: pa.DataType, value: int, why: str
) -> None:
    raw = pa.array([value, 1], pa.int64() if kind.bit_width == 64 else pa.int32())
    write_shards(tmp_path, [pa.table({"id": [0, 1], "n": raw.view(kind)})])
    rows, _ = run_of(config_of(tmp_path, prompt=N))
    assert rows[0][1].code == "prompt_invalid"
    assert rows[0][1].message.startswith(f"the column 'n' has {why}")
    assert (rows[1][1] is None) == ("No/Where" not in why)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([Decimal("0.1")], pa.decimal128(38, 2)), pa.array([0.1])),
        (pa.array([[0.1]]), pa.array([[Decimal("0.1")]], pa.list_(pa.decimal128(38, 2)))),
        (pa.array([{"a": Decimal("0.1")}]), pa.array([{"b": 1, "a": 0.1}])),
    ],
    ids=["flat", "list", "struct"],
)
def test_decimals_beside_floats_are_refused(tmp_path: Path, one: pa.Array, other: pa.Array) -> None:
    table = {"id": [0], "prompt": ["x"]}
    write_shards(tmp_path, [{**table, "k": one}, {**table, "id": [1], "k": other}])
    with pytest.raises(ValueError, match=r"'k' is of type .* it must have one type in all shards"):
        open_source(config_of(tmp_path, keep=("k",)))


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (pa.array([2**63], pa.uint64()), pa.array([1]), "int64"),
        (pa.array([2**53 + 1]), pa.array([0.5]), "double"),
        (pa.array([2**60], pa.timestamp("us")), pa.array([1], pa.timestamp("ns")), "timestamp[ns]"),
    ],
    ids=str,
)
def test_values_that_do_not_fit_are_told_as_such(
    tmp_path: Path, one: pa.Array, other: pa.Array, kind: str
) -> None:
    table = {"id": [0], "prompt": ["x"]}
    paths = write_shards(tmp_path, [{**table, "k": one}, {**table, "id": [1], "k": other}])
    config = config_of(tmp_path, keep=("k",))
    with pytest.raises(ValueError) as caught:
        open_source(config).scan(config)
    said = f"the column 'k' has values in {paths[0]} that do not fit {kind}, its type over all"
    assert str(caught.value).startswith(said)
    assert f"({one.type} in this one)" in str(caught.value)


VIEW, BYTES = pa.string_view(), pa.binary_view()


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (VIEW, ["b", None]),
        (BYTES, [b"\xff", None]),
        (pa.list_(VIEW), [["b"], None]),
        (pa.list_(BYTES, 1), [[b"b"], None]),
        (pa.struct([("a", pa.large_list(VIEW))]), [{"a": ["b"]}, None]),
        (pa.map_(VIEW, VIEW), [[("b", "c")], None]),
    ],
    ids=str,
)
def test_kept_views_are_written_as_what_they_show(
    tmp_path: Path, kind: pa.DataType, values: list[Any]
) -> None:
    column = pa.array(values, kind)
    write_shards(tmp_path, [pa.table({"id": [2, 1], "prompt": ["x", "y"], "k": column})])
    _, written = run_of(config_of(tmp_path, keep=("k",)))
    assert [row["k"] for row in written] == values[::-1]


def test_views_go_with_text_and_without_views_nothing_changes(tmp_path: Path) -> None:
    table = {"id": [0], "prompt": ["x"]}
    view = pa.array(["a"], pa.string_view())
    write_shards(tmp_path, [{**table, "k": view}, {"id": [1], "prompt": ["x"], "k": ["b"]}])
    source = open_source(config_of(tmp_path, keep=("k",)))
    assert source.schema.field("k").type == pa.string()
    for kind in (pa.list_view(pa.int8()), pa.map_(TEXT, pa.list_(TEXT, 2)), pa.struct([])):
        assert without_views(kind) == kind


@pytest.mark.parametrize("first", [True, False])
def test_categories_go_with_plain_columns(tmp_path: Path, first: bool) -> None:
    columns = [pa.array(["a"]).dictionary_encode(), pa.array(["b"]), pa.nulls(1)]
    columns = columns if first else columns[::-1]
    write_shards(tmp_path, [{"id": [i], "prompt": ["x"], "k": k} for i, k in enumerate(columns)])
    _, written = run_of(config_of(tmp_path, keep=("k",)))
    assert {row["k"] for row in written} == {"a", "b", None}
    assert [row["k"] for row in written] == [k[0].as_py() for k in columns]


def nested(text: pa.Array) -> list[pa.Array]:
    """One column of each kind that has text inside: two rows and a null."""
    lists, large = pa.array([0, 2, None, 5], pa.int32()), pa.array([0, 2, None, 5], pa.int64())
    words = text.dictionary_encode()
    struct = pa.StructArray.from_arrays([text, words], ["a", "b"])
    keys = text.fill_null("k")
    pairs = text.slice(0, 4)
    mask = pa.array([False, True, False])
    return [
        words,
        pa.ListArray.from_arrays(lists, text),
        pa.LargeListArray.from_arrays(large, words),
        pa.ListViewArray.from_arrays(*(pa.array(x, "int32") for x in ([0, 0, 2], [2, 0, 3])), text),
        pa.FixedSizeListArray.from_arrays(pa.concat_arrays([pairs, pairs.slice(2)]), 2, mask=mask),
        struct,
        pa.ListArray.from_arrays(lists, struct),
        pa.MapArray.from_arrays(lists, keys, struct),
        pa.ExtensionArray.from_storage(pa.json_(), text),
    ]


REPAIRED = pa.array(["a\ufffd", "b", None, "\ufffd", "a\ufffd"])


@pytest.mark.parametrize("place", range(len(nested(REPAIRED))))
def test_text_inside_of_kept_columns_is_made_readable(tmp_path: Path, place: int) -> None:
    column, right = nested(not_unicode())[place], nested(REPAIRED)[place].to_pylist()
    for start, length in ((0, None), (1, None), (1, 1)):
        part = pa.chunked_array([column.slice(start, length)])
        made = readable(part)
        made.validate(full=True)
        assert made.type == part.type
        assert made.to_pylist() == right[start : None if length is None else start + length]
    ids = list(range(len(column)))
    write_shards(tmp_path, [pa.table({"id": ids, "prompt": ["x"] * len(ids), "k": column})])
    _, written = run_of(config_of(tmp_path, keep=("k",)))
    assert [row["k"] for row in written] == right


def test_categories_that_become_one_stay_a_dictionary() -> None:
    whole = readable(pa.chunked_array([not_unicode().dictionary_encode()]))
    assert whole.to_pylist() == REPAIRED.to_pylist()
    assert whole.chunk(0).dictionary.to_pylist() == ["a\ufffd", "b", "\ufffd"]


@pytest.mark.parametrize("name", ["_admg_prompt", "_admg_own_n", "_admg_x"])
@pytest.mark.parametrize("use", ["keep", "prompt", "id_column"])
def test_names_of_internal_columns_are_refused(tmp_path: Path, name: str, use: str) -> None:
    write_shards(tmp_path, [{"id": ["1"], "prompt": ["x"], name: ["y"]}])
    named: dict[str, Any] = {"keep": (name,), "prompt": PromptConfig(name), "id_column": name}
    with pytest.raises(ValueError, match=f"the input column '{name}' has a name that begins with"):
        run_of(config_of(tmp_path, **{use: named[use]}))
    assert len(run_of(config_of(tmp_path))[0]) == 1


@pytest.mark.parametrize(
    ("name", "text", "own"),
    [
        ("max_tokens", "4", '{"max_tokens":4}'),
        ("seed", str(2**63 - 1), f'{{"seed":{2**63 - 1}}}'),
        ("temperature", "1", '{"temperature":1.0}'),
        ("ignore_eos", "true", '{"ignore_eos":true}'),
        ("top_k", "__HIVE_DEFAULT_PARTITION__", ""),
    ],
)
def test_parameters_in_folders_are_those_of_a_column(
    tmp_path: Path, name: str, text: str, own: str
) -> None:
    write_shards(tmp_path / f"{name}={text}", [{"id": [1], "prompt": ["x"]}])
    config = config_of(tmp_path, row_parameters=(name,), sampling=SamplingParams(max_tokens=4))
    rows, _ = run_of(config)
    assert rows[1] == ("x", None, row_key(1, "x", own))


@pytest.mark.parametrize(
    ("name", "text", "right"),
    [
        ("max_tokens", "4.5", "a whole number"),
        ("temperature", "hot", "a number"),
        ("ignore_eos", "perhaps", "true or false"),
        ("stop", "x", "a column of the file, for it is a list"),
    ],
)
def test_parameters_in_folders_that_are_none_are_named(
    tmp_path: Path, name: str, text: str, right: str
) -> None:
    (path,) = write_shards(tmp_path / f"{name}={text}", [{"id": [1], "prompt": ["x"]}])
    said = f"the parameter '{name}' is '{text}' in the folders of {path}: it must be {right}"
    with pytest.raises(ValueError) as caught:
        open_source(config_of(tmp_path, row_parameters=(name,)))
    assert str(caught.value) == said


def test_a_parameter_of_a_folder_is_shown_as_the_folder_has_it(tmp_path: Path) -> None:
    write_shards(tmp_path / "max_tokens=04", [{"id": [1]}])
    write_shards(tmp_path / "file", [{"id": [2], "max_tokens": [4.0]}])
    prompt = PromptConfig(mode="template", template="{max_tokens}")
    rows, _ = run_of(config_of(tmp_path, prompt=prompt, row_parameters=("max_tokens",)))
    assert {i: row[0] for i, row in rows.items()} == {1: "04", 2: "4.0"}


def raw(kind: pa.DataType, *values: int) -> pa.Array:
    return pa.array(values, pa.int64() if kind.bit_width == 64 else pa.int32()).view(kind)


MOMENT = datetime.datetime(2026, 11, 29, 1, 2, 3)
NUMBERS = [
    pa.array([7, 2**53 + 1]),
    pa.array([7, None], pa.int8()),
    pa.array([7, 2**63], pa.uint64()),
    pa.array([7.0, None]),
    pa.array([0.1, 7], pa.float32()),
    pa.array([0.1, 7], pa.float16()),
    pa.array([Decimal(7), Decimal("0.01")], pa.decimal128(38, 2)),
    pa.array([Decimal("0.0001"), None], pa.decimal128(10, 4)),
    pa.array([7, 8]).dictionary_encode(),
    pa.array([True, None]),
]
TIMES = [
    pa.array([MOMENT.date(), None]),
    pa.array([MOMENT, None], pa.timestamp("us")),
    pa.array([MOMENT, None], pa.timestamp("ns")),
    pa.array([MOMENT, None], pa.timestamp("ms", "UTC")),
    pa.array([5, None], pa.duration("s")),
    pa.array([5, None], pa.duration("ns")),
]
TEXTS = [
    *(not_unicode(kind).slice(0, 2) for kind in (TEXT, pa.large_string(), pa.string_view())),
    not_unicode().slice(0, 2).dictionary_encode(),
    pa.array(["c", None]).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.large_string())),
    pa.array([b"b", b"\xff"]),
    pa.array([b"b", b"\xff"], pa.binary_view()),
]
INSIDE = [
    *(column.slice(0, 2) for column in nested(not_unicode())),
    pa.array([[7], None]),
    pa.array([[7.5], []]),
    pa.array([[Decimal("0.1")], []]),
    pa.array([{"a": 7}, None]),
    pa.array([{"a": 7.5, "b": "x"}, None]),
    pa.array([["x"], ["y"]], pa.list_(pa.string_view())),
]
FAMILIES = [NUMBERS, TIMES, TEXTS, INSIDE]
KEPT = [*FAMILIES, [column for family in FAMILIES for column in family]]
# Python cannot read these: they are only for templates.
SHOWN = [
    *KEPT[:3],
    [
        raw(pa.date32(), 2**30, 1),
        raw(pa.timestamp("us"), 2**62, 1),
        raw(pa.duration("s"), 2**60, 1),
        raw(pa.timestamp("us", "No/Where"), 1, 1),
        *NUMBERS,
        *TEXTS,
    ],
]


def outcome(config: RunConfig) -> tuple[dict[int, Any], list[dict[str, Any]]] | str:
    """What a run gives, or the one sentence that it ends with."""
    try:
        return run_of(config)
    except ValueError as error:
        assert str(error)
        assert "\n" not in str(error)
        return str(error)


def same(value: Any) -> Any:
    """Kept values to compare: bytes as text, and structs without the members that are null."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, dict):
        return {name: same(member) for name, member in value.items() if member is not None}
    if isinstance(value, list | tuple):
        return [same(item) for item in value]
    return value


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_shard_gives_the_same_rows_alone_and_beside_others(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever types its columns have there: that, or one sentence that names the shard."""
    folder = tmp_path_factory.mktemp("mixed")
    keep = data.draw(st.sampled_from([(), ("k",), ("n",), ("n", "k")]))
    shown = st.sampled_from(data.draw(st.sampled_from(KEPT[:3] if "n" in keep else SHOWN)))
    family = data.draw(st.sampled_from(KEPT))
    kept = st.sampled_from([pa.nulls(2), *family])
    shards = data.draw(st.lists(st.tuples(shown, kept), min_size=2, max_size=3))
    for i, (n, k) in enumerate(shards):
        ids = pa.array([2 * i, 2 * i + 1])
        write_shards(folder / str(i), [pa.table({"id": ids, "n": n, "k": k})])
    alone = [outcome(config_of(folder / str(i), prompt=N, keep=keep)) for i in range(len(shards))]
    together = outcome(config_of(folder, prompt=N, keep=keep))
    if isinstance(together, str):
        assert str(folder) in together
        assert "n" in keep or ("k" in keep and family is not TEXTS)
        return
    rows, written = together
    for part in alone:
        assert not isinstance(part, str)
        assert part[0] == {i: rows[i] for i in part[0]}
        beside = [row for row in written if row["id"] in part[0]]
        assert same(beside) == same(part[1])
