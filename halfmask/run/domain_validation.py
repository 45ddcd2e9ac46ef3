"""Validation of a run over several domains: each by its own network on its own images, and the mean of all."""

import statistics
from collections.abc import Mapping
from pathlib import Path

from halfmask.methods.multi_domain import MultiDomain
from halfmask.run.bundle import save_bundle
from halfmask.run.fit_checks import Prepared
from halfmask.run.module import LitMethod
from halfmask.run.validation import Evaluate, Examination, origin_of


class DomainExaminer:
    """Examines every domain.

    Args:
        prepared: what is trained.
        evaluators: of each domain that has images to validate on.
    """

    def __init__(self, prepared: Prepared, evaluators: Mapping[str, Evaluate]) -> None:
        self.domains, self.evaluators = prepared.domains, dict(evaluators)
        self.main_metric, self.has_images = prepared.dataset.task.main_metric, bool(self.evaluators)

    def examine(self, module: LitMethod, rank: int, world: int) -> Examination:
        """Scores are `val/<domain>/<score>`; `val/<main score>` is the mean over the domains and chooses the best."""
        method = module.method
        assert isinstance(method, MultiDomain)
        values: dict[str, float] = {}
        main: dict[str, float] = {}
        for name in method.of(method.names[0]).predictors():
            of_domains: list[float] = []
            for domain, evaluate in self.evaluators.items():
                found = evaluate(method.of(domain).predictors()[name], rank, world)
                scores = found.to_dict()
                values |= {f"{name}/val/{domain}/{key}": value for key, value in scores.items()}
                values |= {} if main else {f"val/{domain}/{key}": value for key, value in scores.items()}
                of_domains.append(found.main[1])
            mean = statistics.mean(of_domains)
            values |= {f"{name}/val/{self.main_metric}": mean} | ({} if main else {f"val/{self.main_metric}": mean})
            main[name] = mean
        return Examination(values, main)

    def ship(self, module: LitMethod, folder: Path, score: dict[str, float]) -> None:
        """Write a bundle of each domain into the folder of its name."""
        method = module.method
        assert isinstance(method, MultiDomain)
        for domain, source in self.domains.items():
            name, model = next(iter(method.of(domain).predictors().items()))
            kept = {"domain": domain, "range": source.dataset.value_range, "nodata": source.dataset.nodata}
            extra = origin_of(module, name) | kept | {f"mean_{key}": value for key, value in score.items()}
            save_bundle(folder / domain, model, source.dataset.task, extra=extra)
