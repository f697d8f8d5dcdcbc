"""Systems, workloads, sizes: what is understood, and the sentence for what is not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from jobs.bench import memory, workloads
from jobs.bench.measure import Shape
from jobs.bench.systems import check_peer, draft_config, parse_system, parse_systems
from jobs.bench.workloads import load_texts, spread, tokenize
from pipeline.machine import usable_cores

Call = Callable[..., Result]


class Characters:
    """A tokenizer of one token a character."""

    def __init__(self, chat: bool = False) -> None:
        self.chat_template = "some" if chat else None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [ord(c) for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return "".join(f"<{m['role']}>{m['content']}<assistant>" for m in messages)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with a few lines of each file."""
    rows = [
        {"category": "writing", "turns": ["write 1", "again"]},
        {"category": "summarization", "turns": ["sum 1"]},
        {"category": "rag", "turns": ["rag 1"]},
        {"category": "summarization", "turns": ["sum 2"]},
        {"category": "humanities", "turns": ["write 2", "again"]},
        {"category": "summarization", "turns": ["sum 3"]},
    ]
    files = {
        "spec_bench.jsonl": rows,
        "HumanEval.jsonl": [{"prompt": "def f():"}],
        "gum_cc.jsonl": [{"article": "short"}, {"article": "long " * 1000}],
    }
    for name, lines in files.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "count", "texts"),
    [
        ("summarization", 3, ["sum 1", "sum 2", "sum 3"]),
        ("summarization", 1, ["sum 1"]),
        ("retrieval", 1, ["rag 1"]),
        ("chat", 2, ["write 1", "write 2"]),
        ("code", 1, ["def f():"]),
        ("long-summarization", 1, ["short\n\n" + "long " * 1000]),
    ],
)
def test_texts_of_a_workload(data: Path, name: str, count: int, texts: list[str]) -> None:
    assert load_texts(name, data, count) == texts


def test_documents_are_joined_until_they_are_long_enough() -> None:
    assert workloads.joined(["aaa", "b", "cc"], 3) == ["aaa", "b\n\ncc", "cc\n\naaa"]


def test_the_demo_needs_no_file() -> None:
    texts = load_texts("demo", None, 5)
    assert len(set(texts)) == 5
    assert all("Python documentation" in text for text in texts)
    for text, again in zip(texts, load_texts("copying", None, 5), strict=True):
        begun = again.removeprefix(f"{text}\n\n")
        assert begun and begun != again and text.startswith(begun)


def test_spread_takes_from_all_over() -> None:
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread("abc", 3) == ["a", "b", "c"]


def test_prompts_go_into_the_chat_template_where_there_is_one() -> None:
    tokenizer = Characters(chat=True)
    (prompt,) = tokenize("chat", ["hi"], tokenizer, 100)
    assert tokenizer.decode(prompt) == "<user>hi<assistant>"
    (raw,) = tokenize("code", ["def f():"], tokenizer, 100)
    assert raw == tokenizer.encode("def f():")
    (plain,) = tokenize("chat", ["hi"], Characters(), 100)
    assert plain == tokenizer.encode("hi")


def test_long_documents_are_cut_to_the_room_there_is() -> None:
    for limit, longest in ((5000, workloads.LONG_TOKENS), (500, 500)):
        cut, short = tokenize("long-summarization", ["x" * 9000, "abc"], Characters(), limit)
        assert longest - 64 <= len(cut) <= longest
        assert Characters().decode(short[1:]).endswith("\n\nabc")


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"chat has a prompt of 21 tokens: .* room for 20"):
        tokenize("chat", ["x" * 20], Characters(), 20)


def test_missing_files_and_other_files_are_named(data: Path) -> None:
    with pytest.raises(ValueError, match=r"reads HumanEval.jsonl and no --data was given"):
        load_texts("code", None, 1)
    (data / "HumanEval.jsonl").unlink()
    with pytest.raises(ValueError, match=r"reads HumanEval.jsonl and .* has none: --data must be"):
        load_texts("code", data, 1)
    (data / "HumanEval.jsonl").write_text('{"task": 1}\n')
    with pytest.raises(ValueError, match="not the file that workload code reads"):
        load_texts("code", data, 1)
    (data / "HumanEval.jsonl").write_text("no json\n")
    with pytest.raises(ValueError, match="cannot be read as JSON lines"):
        load_texts("code", data, 1)
    with pytest.raises(ValueError, match="--prompts is 4: workload summarization has 3"):
        load_texts("summarization", data, 4)


def test_systems_by_name() -> None:
    systems = parse_systems(["admg:drop=8,tokens=2", "transformers:order=length", "plain"])
    assert [s.name for s in systems] == [
        "plain",
        "admg:drop=8,tokens=2",
        "transformers:order=length",
    ]
    draft = draft_config(systems[1])
    assert (draft.drafter, draft.drop.count, draft.draft_tokens) == ("admg", 8, 2)
    assert draft_config(systems[0]).drafter == "none"
    assert draft_config(parse_system("admg:threshold=0.98,exit=0.5")).drop.threshold == 0.98
    assert draft_config(parse_system("admg")).drop.quantile is not None
    filled = draft_config(parse_system("admg:drop=4,fill=0,remake=16,weights=int4"))
    assert (filled.hole_filling, filled.remake_after, filled.low_bit) == (False, 16, "int4")
    assert parse_system("transformers-lookup").runs(1)
    assert not parse_system("transformers-lookup").runs(2)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("transformer", "must be one of .*did you mean transformers"),
        ("admg:layers=3", "'layers' is not an option of admg"),
        ("admg:drop=many", "drop=many is not a value that drop takes"),
        ("admg:drop=3,quantile=0.5", "exactly one of threshold, quantile, count"),
        ("admg:tokens=0", "draft_tokens is 0"),
        ("plain:tokens=3", "not an option of plain"),
        ("transformers:order=random", "not a value that order takes"),
    ],
)
def test_systems_that_are_refused(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_system(name)


def test_peers_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--system vllm needs --peer-python"):
        check_peer(None)
    with pytest.raises(ValueError, match="must be the path of a python program"):
        check_peer(str(tmp_path / "python"))
    with pytest.raises(ValueError, match="vllm is not installed there"):
        check_peer(sys.executable)
    silent = tmp_path / "silent"
    silent.write_text("not a program")
    with pytest.raises(ValueError, match="it does not run"):
        check_peer(str(silent))
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho 0.6.4.post1\n")
    old.chmod(0o755)
    with pytest.raises(ValueError, match=r"its vllm is 0\.6\.4\.post1, 0\.10 or later"):
        check_peer(str(old))


def test_memory_counts_every_system() -> None:
    config: Any = SimpleNamespace(num_parameters=1000)
    shape = Shape(900, 2, kv_bytes_per_token=8, attention_width=16)
    process = 2000 + memory.PROCESS_BYTES
    systems = parse_systems(["transformers", "transformers-lookup"])
    need = memory.needed(systems, config, shape, [4, 2], prompts=9, length=10)
    # Plain holds 4 sequences of 10 tokens, padded batches twice that, lookup one sequence twice.
    assert need.total == 3 * process + 8 * 10 * (4 + 2 * 4 + 2 * 1)
    fewer = memory.needed(systems[:1], config, shape, [4], prompts=3, length=10)
    assert fewer.total == process + 8 * 10 * 3
    memory.check_memory(need, need.total)
    with pytest.raises(ValueError, match=r"--batch is 4: .* up to 10 tokens .* 1\.5 GiB"):
        memory.check_memory(need, need.total - 1)
    assert memory.available_bytes() > 2**20


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--workload", "sumarization"], "did you mean summarization"),
        (["--workload", "code", "--data", "."], "--data must be a folder that holds it"),
        (["--system", "vllm"], "--system vllm needs --peer-python"),
        (["--system", "sglang"], "--system is 'sglang': it must be one of plain, admg"),
        (["--batch", 0], "--batch is 0"),
        (["--temperature", -1], "--temperature is -1"),
        (["--prompts", 0], "--prompts is 0"),
        (["--max-tokens", 1], "--max-tokens is 1"),
        (["--repeats", 0], "--repeats is 0"),
        (["--threads", usable_cores() + 1], "--threads is"),
        (["--record", "no/such/folder/r.json"], "its folder must exist"),
        (["--model", "no-such-folder"], "must be a folder with a config.json"),
    ],
)
def test_mistakes_end_with_one_sentence(
    admg_batch: Call, monkeypatch: pytest.MonkeyPatch, options: list[object], sentence: str
) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr("jobs.bench.runner.Worker", start)
    result = admg_batch("bench", "engine", "--prompts", 2, *options)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: ") and sentence in lines[0]
    assert result.stdout == ""
