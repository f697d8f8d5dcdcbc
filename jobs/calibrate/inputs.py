"""What both calibrations begin with: the job's prompts, its model, and what a plan is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from admg.config import DraftConfig
from admg.draft_rules import ExitRule
from jobs.calibrate.objective import Objective
from jobs.calibrate.sample import Sample, take_sample
from jobs.devices import find_device
from jobs.job_file import DraftTable, JobFile, OwnDraftTable, read_job_file
from jobs.modelled import Shape
from jobs.params import run_config
from jobs.plan_file import MadeTable, ModelTable, PlanFile
from jobs.whole_file import check_folder, write_whole
from pipeline.config import RunConfig
from pipeline.redaction import redacted

if TYPE_CHECKING:
    from admg.families import ModelConfig
    from jobs.calibrate.workbench import Workbench

_EXIT = ("threshold", "every", "match_decay", "target", "step", "threshold_decay")
_KEPT = (*(f"exit_{name}" for name in _EXIT), "draft_tokens", "similarity", "hole_filling")
_KEPT += ("drop_mlps",)


@dataclass(frozen=True, slots=True)
class Inputs:
    """A sample with its model, loaded, and the objective; `command` made it."""

    config: RunConfig
    sample: Sample
    bench: Workbench
    identity: Mapping[str, str]
    folder: str
    objective: Objective
    command: str
    output: Path = field(default_factory=Path)

    def plan_file(self, draft: Mapping[str, Any], **made: Any) -> PlanFile:
        """A plan for this model, with where it comes from."""
        shape = self.bench.shape
        model = ModelTable(
            name=Path(self.folder).name,
            layers=shape.num_layers,
            config=self.identity["config"],
            weights=self.identity["weights"],
        )
        source = MadeTable(
            command=self.command,
            date=date.today().isoformat(),
            version=metadata.version("admg-batch"),
            input=[redacted(path) for path in self.config.input],
            prompts=len(self.sample.requests),
            prompts_digest=self.sample.digest,
            completion_tokens=self.config.sampling.max_tokens,
            seed=self.config.sampling.seed,
            **made,
        )
        return PlanFile(draft=OwnDraftTable(**draft), model=model, made=source)


def exit_values(draft: DraftConfig) -> dict[str, Any]:
    """What a plan says of where drafts end: the threshold, and how it adapts, if of its own."""
    if draft.exit_threshold is None:
        return {}
    own, usual = asdict(draft.exit), asdict(ExitRule())
    adapts = {f"exit_{name}": value for name, value in own.items() if value != usual[name]}
    return {"exit_threshold": draft.exit_threshold} | adapts


def write_plan(plan: PlanFile, output: Path) -> None:
    """Write a plan file; one that is there is replaced as a whole."""
    write_whole(output, plan.to_toml())


def load_inputs(
    flags: Mapping[str, Any],
    *,
    config: str | None,
    output: Path,
    prompts: int,
    device: str,
    batch: int,
    context: float | None,
    command: str,
    check: Callable[[DraftConfig, ModelConfig], None] = lambda draft, model: None,
) -> Inputs:
    """Check everything, then take the sample and load the model.

    Args:
        flags: values by option name, as those of `run`.
        config: a job file, if there is one.
        output: the plan file that is to be written.
        prompts: how many to take.
        device, batch, context: of the objective; without a context it is the sample's own.
        command: that the user gave.
        check: raises for what does not fit the model; called before its weights are loaded.

    Raises:
        ValueError: a user's mistake, in one sentence.
    """
    from admg.families import read_model_config
    from jobs.calibrate.workbench import Workbench
    from jobs.dry_run import with_model
    from pipeline.factory import ModelFactory

    check_folder("--output", output)
    job = JobFile() if config is None else read_job_file(config)
    # A job's own lengths and parameters are those of whole completions.
    given = {k: v for k, v in flags.items() if v is not None} | {"min_tokens": 0}
    # A plan is made here: of the job's own drafting only what a plan leaves as it is counts.
    kept = {name: getattr(job.draft, name) for name in _KEPT}
    draft = DraftTable(drafter="admg", **kept)
    job = job.model_copy(update={"draft": draft, "row_parameters": None})
    settings = run_config(given | {"output": str(output)}, job, config)
    settings = with_model(settings)
    factory = ModelFactory.of(settings)
    sample = take_sample(settings, factory, prompts)
    folder = str(factory.remote.folder(weights=False)) if factory.remote else factory.path
    check(settings.engine.draft, read_model_config(folder))
    found = find_device(device, "bfloat16" if settings.dtype == "auto" else settings.dtype)
    if factory.remote:
        folder = str(factory.remote.folder(weights=True))
    bench = Workbench(folder, settings.dtype, batch)
    length = context or sample.mean_prompt + settings.sampling.max_tokens / 2
    objective = Objective(
        Shape.of(bench.shape),
        found,
        batch,
        length,
        bench.model.dtype.itemsize,
    )
    return Inputs(settings, sample, bench, factory.identity(), folder, objective, command, output)
