"""Job files: every mistake is named with its place, and the options override them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from admg.config import DraftConfig, EngineConfig
from admg.draft_rules import WindowRule
from jobs.cli import main
from jobs.job_file import JobFile, option_names, read_job_file
from jobs.params import run_config
from pipeline.config import RunConfig

WHOLE = """
input = ["prompts", "s3://bucket/more"]
output = "/data/out"
model = "demo"
id_column = "key"
keep = ["lang"]

[prompt]
template = "summarise.txt"
chat = true
system = "Be brief."
on_long_prompt = "truncate-right"

[sampling]
max_tokens = 64
min_tokens = 2
temperature = 1
top_p = 0.9
top_k = 40
min_p = 0.05
repetition_penalty = 1.1
seed = 7
stop = ["\\n\\n"]
stop_token_id = [2]
ignore_eos = true

[draft]
drafter = "admg"
draft_tokens = 6
drop_layers = 8
exit_threshold = 0.6
similarity = "last"
verification = "block"
hole_filling = false
remake_after = 16
remake_every = 64
draft_weights = "int8"
drop_mlps = [3, 2]
lookup_store_tokens = 0
window_share = 0.5
window = 32

[engine]
max_num_seqs = 8
kv_budget = "1.5GiB"
max_model_len = 2048
dtype = "float32"
actors = 2
gpus_per_actor = 0.5
rows_per_block = 16
max_crashes = 3
row_deadline_seconds = 30
token_deadline_seconds = 0.5
"""

Write = Callable[[str], Path]
GIVEN = {"input": ["in"], "output": "out", "model": "m"}


@pytest.fixture
def job(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        (tmp_path / "summarise.txt").write_text("Summarise: {text}")
        path = tmp_path / "job.toml"
        path.write_text(text)
        return path

    return write


def resolve(path: Path, **flags: Any) -> RunConfig:
    return run_config(flags, read_job_file(str(path)), path.name)


def refusal(path: Path, **flags: Any) -> str:
    with pytest.raises(ValueError) as caught:
        resolve(path, **flags)
    return str(caught.value).replace(f"{path.parent}/", "")


def test_every_key_reaches_the_configuration(job: Write) -> None:
    path = job(WHOLE)
    config = resolve(path)
    assert config.input == (str(path.parent / "prompts"), "s3://bucket/more")
    assert (config.output, config.model, config.id_column) == ("/data/out", "demo", "key")
    assert config.keep == ("lang",)
    assert config.prompt.template == "Summarise: {text}"
    assert (config.prompt.mode, config.prompt.system) == ("chat", "Be brief.")
    assert config.prompt.on_long == "truncate-right"
    law = dataclasses.asdict(config.sampling)
    assert law == {
        **{"max_tokens": 64, "min_tokens": 2, "temperature": 1, "top_k": 40, "top_p": 0.9},
        **{"min_p": 0.05, "repetition_penalty": 1.1, "seed": 7, "stop": ("\n\n",)},
        **{"stop_token_ids": (2,), "ignore_eos": True},
    }
    draft = config.engine.draft
    assert (draft.drafter, draft.draft_tokens, draft.exit_threshold) == ("admg", 6, 0.6)
    assert (draft.similarity, draft.verification) == ("last", "block")
    assert (draft.hole_filling, draft.remake_after, draft.draft_weights) == (False, 16, "int8")
    assert (draft.windows, draft.remake_every) == (WindowRule(share=0.5, window=32), 64)
    assert (draft.drop.mlps, draft.lookup_store_tokens) == ((3, 2), 0)
    assert (draft.drop.count, draft.drop.threshold, draft.drop.quantile) == (8, None, None)
    assert (config.engine.max_num_seqs, config.engine.max_model_len) == (8, 2048)
    assert config.engine.kv_budget_bytes == 3 * 2**29
    assert (config.dtype, config.actors, config.gpus_per_actor) == ("float32", 2, 0.5)
    assert (config.rows_per_block, config.max_crashes) == (16, 3)
    assert (config.row_deadline_seconds, config.token_deadline_seconds) == (30, 0.5)


def test_options_and_keys_have_the_same_names() -> None:
    run = main.commands["run"]
    options = {p.name for p in run.params if isinstance(p, click.Option)} - {"config", "verbose"}
    options -= {"dry_run", "no_sample", "as_json"}
    # A system message belongs to a job, not to a command line.
    assert options == set(option_names()) - {"system"}


def test_an_option_overrides_its_key_and_no_other(job: Write) -> None:
    path = job(WHOLE)
    flags: dict[str, Any] = {"max_tokens": 5, "temperature": 0.0, "chat": None, "input": ["x"]}
    config = resolve(path, **flags)
    assert (config.sampling.max_tokens, config.sampling.temperature) == (5, 0.0)
    assert config.input == ("x",)
    assert (config.sampling.top_k, config.prompt.mode) == (40, "chat")


def test_a_level_on_the_command_line_replaces_the_files(job: Write) -> None:
    drop = resolve(job(WHOLE), similarity_threshold=0.99).engine.draft.drop
    assert (drop.count, drop.threshold) == (None, 0.99)


def test_nothing_given_means_the_classes_defaults_and_the_drafter_that_pays() -> None:
    engine = EngineConfig(draft=DraftConfig(drafter="auto"))
    plain = RunConfig(input=("in",), output="out", model="m", engine=engine)
    assert run_config(GIVEN, JobFile()) == plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inptu = []", "job.toml: inptu is not known: did you mean input?"),
        (
            "[sampling]\ntemperatur = 1",
            "job.toml: sampling.temperatur is not known: did you mean temperature?",
        ),
        (
            "[sampling]\nmax-tokens = 1",
            "job.toml: sampling.max-tokens is not known: did you mean max_tokens?",
        ),
        (
            "max_tokens = 1",
            "job.toml: max_tokens is not known: max_tokens belongs into the table [sampling]",
        ),
        (
            "[engine]\nmodel = 'm'",
            "job.toml: engine.model is not known: model belongs into the top of the file",
        ),
        (
            "[sampling]\nmax_tokens = '64'",
            "job.toml: sampling.max_tokens is '64': it must be a whole number",
        ),
        (
            "[sampling]\nmax_tokens = 64.0",
            "job.toml: sampling.max_tokens is 64.0: it must be a whole number",
        ),
        (
            "[sampling]\nignore_eos = 1",
            "job.toml: sampling.ignore_eos is 1: it must be true or false",
        ),
        (
            "[sampling]\ntemperature = nan",
            "job.toml: sampling.temperature is nan: it must be a number that is not nan and not "
            "infinite",
        ),
        (
            "[engine]\nrow_deadline_seconds = inf",
            "job.toml: engine.row_deadline_seconds is inf: it must be a number that is not nan and "
            "not infinite",
        ),
        ("[engine]\nactors = true", "job.toml: engine.actors is true: it must be a whole number"),
        ("output = 2026-11-20", "job.toml: output is 2026-11-20: it must be text in quotes"),
        ("input = 'a'", "job.toml: input is 'a': it must be a list, as in [...]"),
        ("sampling = 3", "job.toml: sampling is 3: it must be a table"),
        (
            "[draft]\ndrafter = 'eagle'",
            "job.toml: draft.drafter is 'eagle': it must be 'auto', 'admg', 'ngram' or 'none'",
        ),
        (
            "[sampling]\nmax_tokens = 0",
            "job.toml: sampling.max_tokens is 0: it must be at least 1",
        ),
        (
            "[draft]\ndrop_quantile = 1.5",
            "job.toml: draft.drop_quantile is 1.5: it must be a share, 0 to 1",
        ),
        (
            "[engine]\nkv_budget = 'lots'",
            "job.toml: engine.kv_budget is 'lots': it must be a size as 2GiB",
        ),
        ("[engine]\nactors = 0", "job.toml: engine.actors is 0: it must be at least 1"),
        ("id_column = ''", "job.toml: id_column is '': it must be the name of a column"),
        (
            "[draft]\nwindow_share = 2.0",
            "job.toml: draft.window_share is 2.0: it must be a share, 0 to 1",
        ),
        (
            "[draft]\nwindow_share = 'aut'",
            "job.toml: draft.window_share is 'aut': it must be a number or 'auto'",
        ),
        (
            "[draft]\nwindow = 32",
            "job.toml: draft.window says how much limited heads read: it must go with "
            "--window-share or --window-threshold, which say how many are limited",
        ),
        (
            "[draft]\nwindow_share = 0.5\nwindow_threshold = 0.9",
            "job.toml: draft.window_share and job.toml: draft.window_threshold contradict each "
            "other: give one of them",
        ),
        (
            "[draft]\ndrop_layers = 1\ndrop_quantile = 0.1",
            "job.toml: draft.drop_layers and job.toml: draft.drop_quantile contradict each other: "
            "give one of them",
        ),
        ("a = ", "job.toml is not TOML: Invalid value (at end of document)"),
    ],
)
def test_a_mistake_is_named_with_its_place(job: Write, text: str, message: str) -> None:
    assert refusal(job(text), **GIVEN) == message


def test_all_mistakes_are_named_at_once(job: Write) -> None:
    said = refusal(job("modle = 'm'\n[draft]\ndraft_tokens = 'x'\n[engine]\nactor = 1"))
    assert [line.split(" is ")[0] for line in said.splitlines()] == [
        "job.toml: draft.draft_tokens",
        "job.toml: engine.actor",
        "job.toml: modle",
    ]


def test_a_value_of_the_command_line_is_blamed_on_its_option(job: Write) -> None:
    path = job("[sampling]\nmax_tokens = 4")
    assert refusal(path, **GIVEN, max_tokens=-1) == "--max-tokens is -1: it must be at least 1"
    said = refusal(path, **GIVEN, min_tokens=9)
    assert said == "--min-tokens is 9: it must be between 0 and max_tokens (4)"
    said = refusal(path, **GIVEN, drop_layers=-2)
    assert said == "--drop-layers is -2: it must be 0 or more"


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize(
    "name", ["gpus_per_actor", "row_deadline_seconds", "token_deadline_seconds", "storage_patience"]
)
def test_nan_is_no_number_on_the_command_line_either(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} is {value}: it must be"):
        run_config(GIVEN | {name: float(value)}, JobFile())


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ValueError, match="--input and --model must be given"):
        run_config({"output": "o"}, JobFile())
    with pytest.raises(ValueError, match=r"no/job\.toml cannot be read"):
        read_job_file("no/job.toml")


@pytest.mark.parametrize(
    ("size", "number"),
    [
        ("123", 123),
        ("5b", 5),
        ("2GiB", 2**31),
        ("2G", 2**31),
        ("2GB", 2 * 10**9),
        ("1.5 mib", 3 * 2**19),
        ("1TiB", 2**40),
    ],
)
def test_sizes_are_read_as_people_write_them(size: str, number: int) -> None:
    config = run_config(GIVEN | {"kv_budget": size}, JobFile())
    assert config.engine.kv_budget_bytes == number


@pytest.mark.parametrize("size", ["", "GiB", "-1G", "2XB", "1e9"])
def test_other_sizes_are_refused(size: str) -> None:
    with pytest.raises(ValueError, match="--kv-budget is"):
        run_config(GIVEN | {"kv_budget": size}, JobFile())


@pytest.mark.parametrize(
    ("flags", "mode"),
    [({}, "raw"), ({"chat": False}, "raw"), ({"chat": True}, "chat")],
)
def test_the_prompt_mode(flags: dict[str, Any], mode: str, tmp_path: Path) -> None:
    assert run_config(GIVEN | flags, JobFile()).prompt.mode == mode
    template = tmp_path / "t.txt"
    template.write_text("Say {word}")
    if flags.get("chat") is False:
        with pytest.raises(ValueError, match=r"--template .* cannot go with --raw"):
            run_config(GIVEN | flags | {"template": str(template)}, JobFile())
    else:
        prompt = run_config(GIVEN | flags | {"template": str(template)}, JobFile()).prompt
        assert (prompt.mode, prompt.columns) == ("chat" if flags else "template", ("word",))


def test_a_template_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--template is 'none.txt', which cannot be read"):
        run_config(GIVEN | {"template": "none.txt"}, JobFile())
    (tmp_path / "t.txt").write_text("no field")
    with pytest.raises(ValueError, match=r"no \{column\} field"):
        run_config(GIVEN | {"template": str(tmp_path / "t.txt")}, JobFile())


def test_a_template_in_a_home_that_nobody_has_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"--template is '~nobodyxyz/x', which cannot be read"):
        run_config(GIVEN | {"template": "~nobodyxyz/x"}, JobFile())
