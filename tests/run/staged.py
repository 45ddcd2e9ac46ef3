"""A method of two stages, for tests: the first one writes a file that the second one needs."""

from pathlib import Path
from typing import Any

from halfmask.method import Method, Stage, StageContext, StepOutput
from halfmask.methods.supervised import Supervised


def write_note(stage: StageContext) -> dict[str, Path]:
    path = stage.place("note.txt")
    path.write_text(f"{stage.folder.name}: {type(stage.predictor()).__name__}")
    return {"note": path}


class Staged(Method):
    """Supervised training, twice."""

    draws = 0

    def __init__(self, task: Any, build: Any) -> None:
        super().__init__(task)
        self.inner = Supervised(task, build)
        self.student = self.inner.student

    def step(self, batch: Any, progress: Any) -> StepOutput:
        return self.inner.step(batch, progress)

    @classmethod
    def plan(cls, recipe: Any) -> list[Stage]:
        return [Stage("second", {"run.steps": 2}, after=write_note), Stage("first", {"run.steps": 3})]
