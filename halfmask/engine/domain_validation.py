"""Validation of a run over several domains: each by its own network on its own images, and the mean of all."""

import statistics
from collections.abc import Mapping

import lightning as L

from halfmask.engine.bundle import save_bundle
from halfmask.engine.callbacks import Evaluate, MetricsLog, Validation, origin_of
from halfmask.engine.fit_checks import Prepared
from halfmask.engine.module import LitMethod
from halfmask.engine.rundir import RunDir
from halfmask.methods.multi_domain import MultiDomain


class DomainValidation(Validation):
    """Scores are `val/<domain>/<score>`; `val/<main score>` is the mean over the domains and chooses the checkpoint.

    Args:
        run: its folder; each domain's bundle goes to a folder of its name.
        prepared: what is trained.
        metrics: writes the records.
        evaluators: of each domain that has images to validate on.
    """

    def __init__(
        self, run: RunDir, prepared: Prepared, metrics: MetricsLog, evaluators: Mapping[str, Evaluate]
    ) -> None:
        self.domains, self.evaluators = prepared.domains, dict(evaluators)
        # The first domain's stands for all where only their presence matters.
        evaluate = next(iter(self.evaluators.values()), None)
        super().__init__(run, prepared.dataset.task, metrics, evaluate, prepared.eval_every)

    def _scores(self, trainer: L.Trainer, module: LitMethod) -> dict[str, float]:
        method = module.method
        assert isinstance(method, MultiDomain)
        values: dict[str, float] = {}
        predictors = list(method.of(method.names[0]).predictors())
        for position, name in enumerate(predictors):
            main: list[float] = []
            for domain, evaluate in self.evaluators.items():
                model = method.of(domain).predictors()[name]
                found = evaluate(model, trainer.global_rank, trainer.world_size)
                scores = found.to_dict()
                values |= {f"{name}/val/{domain}/{key}": value for key, value in scores.items()}
                values |= {f"val/{domain}/{key}": value for key, value in scores.items()} if position == 0 else {}
                main.append(found.main[1])
            mean = self.task.main_metric, statistics.mean(main)
            values |= {f"{name}/val/{mean[0]}": mean[1]} | ({f"val/{mean[0]}": mean[1]} if position == 0 else {})
            self._keep_best(trainer, module, name, mean, shipped=position == 0)
        return values

    def _save_bundle(self, trainer: L.Trainer, module: LitMethod, score: dict[str, float] | None) -> None:
        if not trainer.is_global_zero:
            return
        method = module.method
        assert isinstance(method, MultiDomain)
        for domain, source in self.domains.items():
            name, model = next(iter(method.of(domain).predictors().items()))
            kept = {"domain": domain, "range": source.dataset.value_range, "nodata": source.dataset.nodata}
            extra = origin_of(module, name) | kept | {f"mean_{key}": value for key, value in (score or {}).items()}
            save_bundle(self.run.path / domain, model, source.dataset.task, extra=extra)
