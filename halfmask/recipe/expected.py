"""The number that a recipe is compared with: a section of its own, filled in by recipes of published runs."""

from typing import Literal

from halfmask.recipe.sections import Fraction, Section, Text


class ExpectedRecipe(Section):
    """The published number this recipe is compared with by `halfmask evaluate` and by reports.

    Args:
        metric: name of the score as in metrics.json: `miou`, `acc`, `iou/<class>`.
        value: as a fraction; one per split where the recipe serves several; with `data.domains` one per domain, and
            `mean`.
        source: paper and table.
        confidence: `high`: read in a public source; `medium`: recalled, check before quoting; per split like `value`.
        part: images of the published number; `null`: `eval.select_on`; per domain where they differ.
    """

    metric: str = "miou"
    value: Fraction | dict[Text, Fraction]
    source: str
    confidence: Literal["high", "medium", "low"] | dict[Text, Literal["high", "medium", "low"]] | None = None
    part: Literal["val", "test"] | dict[Text, Literal["val", "test"]] | None = None

    def number(self, split: str | None) -> float | None:
        """Return the published value of a split, or `None` where that split has none.

        >>> ExpectedRecipe(value={"92": 0.863}, source="Table 1").number("92")
        0.863
        """
        return self.value.get(split or "") if isinstance(self.value, dict) else self.value

    def of_domain(self, name: str) -> "ExpectedRecipe | None":
        """Return what is published of one domain, or of the `mean` of all; `None` where nothing is.

        >>> both = ExpectedRecipe(value={"a": 0.4, "mean": 0.5}, source="Table 1", part={"a": "test", "b": "val"})
        >>> one = both.of_domain("a")
        >>> one.value, one.part, both.of_domain("b"), both.of_domain("mean")
        (0.4, 'test', None, None)
        """
        value = self.value.get(name) if isinstance(self.value, dict) else self.value if name == "mean" else None
        mixed = isinstance(self.part, dict) and len(set(self.part.values())) > 1
        # A mean over the parts of several names is the score of no single evaluation.
        if value is None or (name == "mean" and mixed):
            return None
        confidence = self.confidence.get(name) if isinstance(self.confidence, dict) else self.confidence
        part = self.part.get(name) if isinstance(self.part, dict) else self.part
        return self.model_copy(update={"value": value, "confidence": confidence, "part": part})
