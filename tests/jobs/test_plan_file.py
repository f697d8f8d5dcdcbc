"""Plan files and published sets: what they give a run, who beats whom, and what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from jobs.bench.systems import draft_config, parse_system
from jobs.job_file import JobFile, read_job_file
from jobs.params import plan_config, run_config
from jobs.plan_file import ModelTable, PlanFile, check_model, read_plan
from jobs.published_sets import SETS
from jobs.resolved import resolved_toml
from jobs.shipment import ship_nightly, ship_run
from pipeline.factory import ModelFactory
from pipeline.fingerprint import model_identity
from pipeline.job import check_job

PLACES = {"input": ["in"], "output": "out", "model": "m"}
PLAN = """
[draft]
drop_attention = [3, 1]
drop_mlps = [2]
draft_tokens = 9
exit_threshold = 0.6
exit_target = 0.8
hole_filling = false
[model]
name = "tiny"
layers = 5
[made]
by = "somebody"
"""


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "my-plan.toml"
    path.write_text(PLAN)
    return str(path)


def draft_of(flags: dict, job: JobFile | None = None, source: str | None = None):
    return run_config(PLACES | flags, job or JobFile(), source).engine.draft


def test_a_plan_says_how_to_draft(plan: str) -> None:
    draft = draft_of({"plan": plan})
    assert draft.drop.attention == (3, 1) and draft.drop.mlps == (2,)
    assert draft.draft_tokens == 9 and draft.exit_threshold == 0.6 and not draft.hole_filling
    assert draft.exit.target == 0.8 and draft.exit.step == 0.01
    assert draft == plan_config(plan)
    made_for = run_config(PLACES | {"plan": plan}, JobFile()).made_for
    assert made_for is not None and (made_for.plan, made_for.model) == ("my-plan.toml", "tiny")
    assert run_config(PLACES | {"plan": plan, "plan_any_model": True}, JobFile()).made_for is None


def test_options_beat_the_plan_and_the_plan_that_is_given_beats_the_job_file(
    plan: str, tmp_path: Path
) -> None:
    draft = draft_of({"plan": plan, "drop_layers": 2, "draft_tokens": 3})
    assert draft.drop.count == 2 and draft.drop.attention is None and draft.draft_tokens == 3
    job = tmp_path / "job.toml"
    job.write_text('[draft]\ndraft_tokens = 5\nsimilarity = "last"\ndrop_quantile = 0.5\n')
    draft = draft_of({"plan": plan}, read_job_file(str(job)), str(job))
    assert draft.draft_tokens == 9 and draft.similarity == "last"
    assert draft.drop.attention == (3, 1) and draft.drop.quantile is None
    # What stands beside the plan's name changes the plan.
    job.write_text('[draft]\nplan = "my-plan.toml"\ndraft_tokens = 5\ndrop_quantile = 0.5\n')
    draft = draft_of({}, read_job_file(str(job)), str(job))
    assert draft.draft_tokens == 5 and draft.drop.quantile == 0.5 and draft.exit_threshold == 0.6


@pytest.mark.parametrize("model", SETS)
def test_published_sets_are_plans(model: str) -> None:
    draft = draft_of({"plan": f"draft-verify:{model}"})
    found = SETS[model]
    assert draft.drop.attention == found.attention and draft.drop.mlps == found.mlps
    sizes = {"llama-2-13b": (24, 10), "llama-2-13b-chat": (24, 10), "codellama-13b": (22, 12)}
    assert (len(found.attention), len(found.mlps)) == sizes[model]
    assert not {0, 1, 2, 39} & {*found.attention, *found.mlps}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[draft]\ndrop_layer = 3\n", "draft.drop_layer is not known: did you mean drop_layers?"),
        ("[draft]\ndrop_layers = '3'\n", "draft.drop_layers is '3': it must be a whole number"),
        ("[draft]\naudit = 0.1\n", "draft.audit is not known"),
        ("[made]\nby = 'me'\n", "draft is missing: it must be given"),
        (PLAN.replace("[3, 1]", "[3, 5]"), "draft.drop_attention has layer 5: the layers of the"),
        (PLAN.replace("0.6", "2.0"), "draft.exit_threshold is 2.0: it must be 0 to 1"),
        (PLAN.replace("0.8", "2.0"), "draft.exit_target is 2.0: it must be 0 to 1"),
        ("[draft]\ndrop_layers = 3\ndrop_quantile = 0.1\n", "contradict each other"),
        ("[draft", "is not TOML"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        draft_of({"plan": str(path)})
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_plans_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the plan file none.toml cannot be read"):
        draft_of({"plan": "none.toml"})
    with pytest.raises(ValueError, match=r"did you mean draft-verify:llama-2-13b-chat\?"):
        draft_of({"plan": "draft-verify:Llama-2-13b-chat-hf"})


def model_table(folder: Path, **changes: str | int) -> ModelTable:
    identity = model_identity(str(folder))
    own = {"name": "own", "layers": 5, "config": identity["config"]}
    return ModelTable(**(own | {"weights": identity["weights"]} | changes))


def test_a_plan_for_another_model_is_refused(llama_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    draft = read_plan("draft-verify:llama-2-13b").draft.model_copy(
        update={"drop_attention": [1], "drop_mlps": []}
    )

    def write(**changes: str | int) -> None:
        made = PlanFile(draft=draft, model=model_table(llama_checkpoint, **changes))
        path.write_text(made.to_toml())

    def check(**flags: object) -> None:
        values = PLACES | {"plan": str(path), "model": str(llama_checkpoint)} | flags
        ModelFactory.of(run_config(values, JobFile())).check()

    write()
    check()
    check_model(str(path), str(llama_checkpoint))
    write(name="other", weights="0" * 16)
    name = llama_checkpoint.name
    said = f"the plan plan.toml was made for the model other and not for {name}, whose weights"
    with pytest.raises(ValueError, match=said):
        check()
    with pytest.raises(ValueError, match=said):
        check_model(str(path), str(llama_checkpoint))
    check(plan_any_model=True)
    write(layers=6)
    with pytest.raises(ValueError, match=f"own, which has 6 layers, and not for {name}, which has"):
        check()
    published = "made for the model llama-2-13b, which has 40 layers, and not for"
    with pytest.raises(ValueError, match=published):
        check(plan="draft-verify:llama-2-13b")
    # Nor do its layers fit where the model does not matter.
    with pytest.raises(ValueError, match="drop_attention has layer 37: the model's layers are 0"):
        check(plan="draft-verify:llama-2-13b", plan_any_model=True)


def test_the_run_checks_the_plan_before_anything_else(
    llama_checkpoint: Path, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [1], "prompt": ["x"]}), tmp_path / "rows.parquet")
    values = {"input": [str(tmp_path / "rows.parquet")], "output": str(tmp_path / "out")}
    values |= {"model": str(llama_checkpoint), "plan": "draft-verify:codellama-13b"}
    config = run_config(values, JobFile())
    with pytest.raises(ValueError, match="codellama-13b, which has 40 layers"):
        check_job(config, ModelFactory.of(config))


def test_a_resolved_job_keeps_the_plan_for_its_model(plan: str, tmp_path: Path) -> None:
    settings = run_config(PLACES | {"plan": plan, "draft_tokens": 3}, JobFile())
    job = tmp_path / "again.toml"
    job.write_text(resolved_toml(settings, None, plan))
    again = run_config({}, read_job_file(str(job)), str(job))
    assert again.engine == settings.engine and again.made_for == settings.made_for
    free = run_config(PLACES | {"plan": plan, "plan_any_model": True}, JobFile())
    job.write_text(resolved_toml(free, None, plan))
    again = run_config({}, read_job_file(str(job)), str(job))
    assert again.engine == free.engine and again.made_for is None


def test_plans_are_shipped(plan: str, tmp_path: Path) -> None:
    folder = tmp_path / "sent"
    folder.mkdir()
    shipped = ship_run(folder, PLACES | {"plan": plan}, None, None)
    assert (folder / "plan.toml").read_text() == PLAN
    assert tomllib.loads((folder / "job.toml").read_text())["draft"]["plan"] == "plan.toml"
    arrived = run_config({}, read_job_file(str(folder / "job.toml")))
    assert arrived.engine.draft == plan_config(plan)
    assert arrived.made_for is not None and arrived.made_for.model == "tiny"
    other = tmp_path / "other"
    other.mkdir()
    named = ship_run(other, PLACES | {"plan": "draft-verify:llama-2-13b"}, None, None)
    assert not (other / "plan.toml").exists() and named.fingerprint != shipped.fingerprint
    text = (other / "job.toml").read_text()
    assert tomllib.loads(text)["draft"]["plan"] == "draft-verify:llama-2-13b"


def test_nights_ship_their_plan(plan: str, tmp_path: Path) -> None:
    job = tmp_path / "night.toml"
    job.write_text('input = "in"\noutput = "out"\nmodel = "m"\n[draft]\nplan = "my-plan.toml"\n')
    folder = tmp_path / "sent"
    folder.mkdir()
    ship_nightly(folder, {}, str(job), "2026-11-20")
    assert (folder / "plan.toml").read_text() == PLAN
    assert tomllib.loads((folder / "job.toml").read_text())["draft"]["plan"] == "plan.toml"


def test_the_bench_takes_plans_that_do_not_carry(plan: str) -> None:
    system = parse_system(f"admg:plan={plan},tokens=3")
    draft = draft_config(system)
    assert draft.draft_tokens == 3 and draft.drop.attention == (3, 1)
    assert draft.lookup_store_tokens == 0
    named = draft_config(parse_system("admg:plan=draft-verify:codellama-13b,drop=4"))
    assert named.drop.count == 4 and named.exit_threshold == 0.6
    Path(plan).write_text(PLAN.replace("hole_filling = false", "exit_carry = true"))
    assert plan_config(plan).order_dependent
    with pytest.raises(ValueError, match="exit_carry is true in its plan: it must be false here"):
        parse_system(f"admg:plan={plan}")
    with pytest.raises(ValueError, match=r"the plan file none\.toml cannot be read"):
        parse_system("admg:plan=none.toml")
