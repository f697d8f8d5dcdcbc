"""What `bench gpu` is asked to do: checked where it is made, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from jobs.bench.gpu.text import MADE
from jobs.bench.workloads import WORKLOADS

_OF_TEXT = ("model", "data", "folder", "peer_python")
_OF_SIZES = ("model", "shape", "folder")


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked for. `model` is widened for the text part, unless it is wide already.

    Raises:
        ValueError: a value outside its range, or one that the chosen parts do not use, by the name
            of its option.
    """

    shape: str = "llama-2-13b"
    parts: tuple[str, ...] = ("dummy", "widened")
    device: str = "cuda"
    tiny: bool = False
    minutes: float = 10.0
    model: str = "demo"
    folder: Path | None = None
    threads: int = 1
    data: Path | None = None
    peer_python: str | None = None

    def __post_init__(self) -> None:
        from jobs.bench.systems import check_peer
        from jobs.shapes import shape_named

        shape_named(self.shape)
        if not 0 < self.minutes <= 240:
            raise ValueError(f"--minutes is {self.minutes:g}: it must be above 0 and at most 240")
        if self.device == "cpu" and not self.tiny:
            raise ValueError(f"--device is cpu: it must be cuda for {self.shape}, or add --tiny")
        if self.tiny:
            self._refuse(_OF_SIZES, "--tiny has a model and a shape of its own")
        if "widened" not in self.parts:
            self._refuse(_OF_TEXT, "--weights dummy measures no text")
        if self.peer_python is not None:
            check_peer(self.peer_python)
        self._check_data()
        self._check_model()

    def _refuse(self, names: tuple[str, ...], why: str) -> None:
        usual = {f.name: f.default for f in fields(self)}
        for name in names:
            if (value := getattr(self, name)) != usual[name]:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} is {value}: {why}, so it must be left out")

    def _check_data(self) -> None:
        file = WORKLOADS["summarization"].file
        assert file is not None
        if self.data is not None and not (self.data / file).is_file():
            raise ValueError(f"--data is {self.data}: it must be a folder that holds {file}")

    def _check_model(self) -> None:
        if self.model == "demo":
            return
        from admg.llm import check_checkpoint

        try:
            check_checkpoint(self.model)
        except ValueError as error:
            raise ValueError(f"--model is {self.model}: {error}") from error
        if (Path(self.model) / MADE).is_file():
            self._refuse(("folder",), "--model is widened already")
