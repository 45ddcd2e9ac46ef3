"""Do the tests notice when a formula is wrong? Change one place at a time in a copy of the tree, and run its tests.

    python tests/mutations.py                 all of the table; some minutes
    python tests/mutations.py ema metrics     those whose name or file holds one of these words

Prints one line per mutation, and the survivors at the end; the exit code is 1 if there are any. A survivor means that
a test is missing: write it, instead of taking the line off the table. `tests/test_mutations.py` checks that every
pattern still occurs exactly once in its file.
"""

import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# What takes long to import, and what no mutation touches: imported once, and shared by the process of each mutation.
HEAVY = ("torch", "torchvision", "lightning", "timm", "pydantic", "beartype", "jaxtyping", "scipy.ndimage", "rich")


class Mutation(NamedTuple):
    """One change that a test has to notice.

    Args:
        file: below the root of the repository.
        old: text that occurs once in it.
        new: what it becomes.
        tests: files that should fail.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


# Each file, the tests that should fail, and changes: text that occurs once in the file, and what it becomes.
TABLE: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "halfmask/losses/cross_entropy.py",
        "tests/losses/test_cross_entropy.py",
        (
            ("return total / denominator.sum()", "return total / keep.sum()"),
            ("hard = probability <= smallest", "hard = probability < smallest"),
            ("too_few = valid.sum() < min_kept", "too_few = valid.sum() > min_kept"),
        ),
    ),
    (
        "halfmask/losses/consistency.py",
        "tests/losses/test_consistency.py",
        (
            ("target_rows.max(1).values > threshold", "target_rows.max(1).values >= threshold"),
            ("denominator = classes * keep.sum() if", "denominator = classes * valid.sum() if"),
        ),
    ),
    (
        "halfmask/losses/cross_entropy.py",
        "tests/losses/test_class_weights.py",
        (("min(raw(count), ceiling) / mean if", "raw(count) / mean if"),),
    ),
    (
        "halfmask/views/mixing.py",
        "tests/views/test_mixing.py",
        (
            ("corners[on >= p] = 0", "corners[on < p] = 0"),
            ("u_ratio * (1 / aspect - aspect)", "u_ratio / aspect"),
        ),
    ),
    (
        "halfmask/views/boxes.py",
        "tests/views/test_boxes.py tests/views/test_mixing.py",
        (
            ("(rows < bottom)", "(rows <= bottom)"),
            ("return times % 2 == 1", "return times >= 1"),
            ("side = (1 - share.double()).sqrt()", "side = share.double().sqrt()"),
        ),
    ),
    (
        "halfmask/views/strong.py",
        "tests/views/test_strong.py",
        (
            ("gray=on[:, 1] < self.gray", "gray=on[:, 1] > self.gray"),
            ("low + uniform() * (high - low)", "low + uniform() * high"),
            ("(torch.arange(4, device=device) != HUE)", "(torch.arange(4, device=device) >= 0)"),
        ),
    ),
    (
        "halfmask/views/channel_dropout.py",
        "tests/views/test_channel_dropout.py",
        (("order.argsort() < images // 2", "order.argsort() <= images // 2"),),
    ),
    (
        "halfmask/views/weak.py",
        "tests/views/test_weak.py",
        (("min(last, pixel)\n", "last\n"),),
    ),
    (
        "halfmask/views/vat.py",
        "tests/views/test_vat.py",
        (("w = p * (v - (p * v)", "w = p * (v + (p * v)"),),
    ),
    (
        "halfmask/teaching/ema.py",
        "tests/teaching/test_ema.py",
        (("in averaged], 1 - decay)", "in averaged], decay)"),),
    ),
    (
        "halfmask/teaching/ramps.py",
        "tests/teaching/test_ramps.py",
        (
            ("return min(1 - 1 / (step + 1), decay)", "return min(1 - 1 / (step + 2), decay)"),
            ("0.0 if step < start else", "0.0 if step <= start else"),
        ),
    ),
    (
        "halfmask/teaching/alignment.py",
        "tests/teaching/test_alignment.py",
        (("return logits + ratio.log()", "return logits - ratio.log()"),),
    ),
    (
        "halfmask/teaching/memory.py",
        "tests/teaching/test_memory.py",
        (("slot = (start[classes] + rank) % slots", "slot = (start[classes] + rank + 1) % slots"),),
    ),
    (
        "halfmask/teaching/pseudo_label.py",
        "tests/teaching/test_pseudo_label.py",
        (("((confidence >= edge) & valid)", "((confidence > edge) & valid)"),),
    ),
    (
        "halfmask/methods/fixmatch.py",
        "tests/methods/test_baselines.py",
        (
            ("keep = valid & (confidence >=", "keep = valid & (confidence >"),
            ("keep = valid & (confidence >=", "keep = (confidence >="),
            ("/ (1 + self.unlabeled_weight)", "/ 2"),
        ),
    ),
    (
        "halfmask/methods/unimatch.py",
        "tests/methods/test_unimatch.py tests/methods/test_unimatch_switches.py",
        (("(1 - self.feature_weight) * loss_s", "self.feature_weight * loss_s"),),
    ),
    (
        "halfmask/methods/unimatch_v2.py",
        "tests/methods/test_unimatch.py tests/methods/test_unimatch_switches.py",
        (("keep = valid_v & (confidence_v >=", "keep = valid_v & (confidence_v >"),),
    ),
    (
        "halfmask/methods/mean_teacher.py",
        "tests/methods/test_baselines.py",
        (("return StepOutput(loss_l + weight", "return StepOutput(loss_l - weight"),),
    ),
    (
        "halfmask/methods/cct.py",
        "tests/methods/test_cct.py",
        (
            (
                "None if self.threshold is None else confidence > self.threshold",
                "None if self.threshold is None else confidence >= self.threshold",
            ),
        ),
    ),
    (
        "halfmask/methods/allspark.py",
        "tests/methods/test_allspark.py",
        (("progress.epoch >= self.warmup_epochs", "progress.epoch > self.warmup_epochs"),),
    ),
    (
        "halfmask/methods/u2pl.py",
        "tests/methods/test_u2pl.py",
        (
            ("100 - (100 - self.percent) * late", "100 - self.percent * late"),
            ("torch.where(labeled, other, unlikely)", "torch.where(labeled, unlikely, other)"),
            ("+ self.contrast_weight * loss_c", "- self.contrast_weight * loss_c"),
            ("self.teacher_head.update(self.head, decay)", "self.teacher_head.update(self.head, 1.0)"),
        ),
    ),
    (
        "halfmask/methods/gta_seg.py",
        "tests/methods/test_gta_seg.py",
        (
            ("for _, theirs in pairs], 1 - decay)", "for _, theirs in pairs], decay)"),
            ("StepOutput(self.unlabeled_weight * loss_u, {", "StepOutput(loss_u, {"),
        ),
    ),
    (
        "halfmask/teaching/weighting.py",
        "tests/teaching/test_weighting.py",
        (
            ("masked_percentile(confidence, valid, 100 - percent)", "masked_percentile(confidence, valid, percent)"),
            ("entropy < masked_percentile(", "entropy > masked_percentile("),
            ("conflict = (own != other)", "conflict = (own == other)"),
            ("1 + (weight - 1) * conflict", "1 + weight * conflict"),
        ),
    ),
    (
        "halfmask/models/encoders/efficientnet_lite.py",
        "tests/models/test_efficientnet_lite.py",
        (
            ("self.size_multiple = self.strides[-1]", "self.size_multiple = 1"),
            ("pads += [total // 2, total - total // 2]", "pads += [total - total // 2, total // 2]"),
        ),
    ),
    (
        "halfmask/methods/augseg.py",
        "tests/methods/test_augseg.py",
        (
            ("(draws > sure)", "(draws < sure)"),
            ('divisor="all"', 'divisor="kept"'),
        ),
    ),
    (
        "halfmask/methods/prevmatch.py",
        "tests/methods/test_unimatch_peers.py",
        (
            ("abs(2 * progress.fraction - 1)", "abs(progress.fraction - 1)"),
            ("weight * (1 + rise))", "weight * rise)"),
            ("or score > float(self.best)", "or score >= float(self.best)"),
        ),
    ),
    (
        "halfmask/methods/rankmatch.py",
        "tests/methods/test_unimatch_peers.py",
        (
            ("(first + second) / 4 + self._loss", "(first + second) / 2 + self._loss"),
            ("/ (1 + weight) + self.rank_weight", "/ (1 + weight) - self.rank_weight"),
        ),
    ),
    (
        "halfmask/methods/pixcon.py",
        "tests/methods/test_unimatch_peers.py",
        (
            ("right = (truth == found) & (truth !=", "right = (truth == truth) & (truth !="),
            ("+ 2.0 * (chosen == classes)", "- 2.0 * (chosen == classes)"),
            (
                "self.unlabeled_weight) + self.contrast_weight * loss_pix",
                "self.unlabeled_weight) - self.contrast_weight * loss_pix",
            ),
        ),
    ),
    (
        "halfmask/methods/fpl.py",
        "tests/methods/test_mixed_peers.py",
        (
            ("return loss * (plain / loss.detach().clamp_min(1e-12))", "return loss"),
            ("self._fuzzy(full(logits_b), z_a, keep)", "self._fuzzy(full(logits_b), z_b, keep)"),
        ),
    ),
    (
        "halfmask/methods/cps.py",
        "tests/methods/test_mixed_peers.py",
        (
            ("cross_loss(logits_a, label_b, keep)", "cross_loss(logits_a, label_a, keep)"),
            ("eval_mode(net) if self.labels_in_eval else", "eval_mode(net) if not self.labels_in_eval else"),
            ("loss = loss_l + self.unlabeled_weight * loss_u", "loss = loss_l + loss_u"),
        ),
    ),
    (
        "halfmask/methods/cutmix_seg.py",
        "tests/methods/test_mixed_peers.py",
        (
            ("if self.per_pixel else confident", "if not self.per_pixel else confident"),
            ("partner=(x_1, logits_1, second.valid)", "partner=(x_1, logits_0, second.valid)"),
            ("softmax(1), valid * weight)", "softmax(1), torch.ones_like(valid) * weight)"),
        ),
    ),
    (
        "halfmask/methods/st_plus_plus.py",
        "tests/methods/test_st_plus_plus.py",
        (
            ("label.masked_fill(box, self.task.ignore_index)", "label"),
            ("key=lambda id: (-by_stability[id], id)", "key=lambda id: (by_stability[id], id)"),
            ("recipe.run.seed + stage", "recipe.run.seed"),
        ),
    ),
    (
        "halfmask/methods/ps_mt.py",
        "tests/methods/test_ps_mt.py",
        (
            ("if int(epoch) % 2 == 1 else", "if int(epoch) % 2 == 0 else"),
            ("return (1 - math.cos(math.pi * done)) / 2", "return done"),
            ("scatter_(1, best, True), other, core)", "scatter_(1, best, True), core, other)"),
            ('divisor="kept", weight=c_m)', 'divisor="kept")'),
        ),
    ),
    (
        "halfmask/methods/ccvc.py",
        "tests/methods/test_ccvc.py",
        (
            ("return 1 + (one.mean()", "return 1 - (one.mean()"),
            ("(discrepancy(g_la, g_lb) + discrepancy(g_ua, g_ub)) / 2", "discrepancy(g_la, g_lb)"),
        ),
    ),
    (
        "halfmask/run/loop/optim.py",
        "tests/run/test_engine.py",
        (
            ("if parameter.ndim > 1]", "if parameter.ndim > 2]"),
            ("max(step - optim.schedule_lag, 0)", "max(step, 0)"),
            ('group["base_lr"] * factor', 'group["lr"] * factor'),
        ),
    ),
    (
        "halfmask/run/loop/callbacks.py",
        "tests/run/test_engine.py",
        (("or score > module.best[name]", "or score >= module.best[name]"),),
    ),
    (
        "halfmask/run/loop/module.py",
        "tests/run/test_engine.py",
        (("SeedSequence([seed, rank, step])", "SeedSequence([seed, rank, 0])"),),
    ),
    (
        "halfmask/run/checkpoint.py",
        "tests/run/test_crash.py",
        (("newest = max(intact", "newest = min(intact"),),
    ),
    (
        "halfmask/data/loading/sampler.py",
        "tests/data/test_sampler.py tests/data/test_balance.py",
        (
            ("(self.seed, self.stream, number)", "(self.seed, self.stream, 0)"),
            ("np.flatnonzero(counts[:, number]) for", "np.flatnonzero(counts[:, number] > 10) for"),
        ),
    ),
    (
        "halfmask/data/splits/drawing.py",
        "tests/data/test_splits.py",
        (
            ("best = max(present", "best = min(present"),
            ("(uses[list(present[id])] > 1)", "(uses[list(present[id])] > 0)"),
        ),
    ),
    (
        "halfmask/data/folder/masks/decode.py",
        "tests/data/test_masks.py tests/data/test_folder.py tests/data/test_folder_classes.py",
        (("return stored if 0 <= stored < self.classes", "return stored if 0 < stored < self.classes"),),
    ),
    (
        "halfmask/infer/metrics.py",
        "tests/infer/test_metrics.py",
        (
            ("union = target + predicted - hits", "union = target + predicted"),
            ('if absent == "zero" else', 'if absent == "skip" else'),
        ),
    ),
    (
        "halfmask/infer/inference.py",
        "tests/infer/test_inference.py",
        (
            ("total.div_(_coverage(boxes, (height, width)).to(total))", "total"),
            ("found = found.flip(-1) if flip else found", "found = found"),
            ("antialias=scale < 1", "antialias=False"),
            ("bottom < height and right < width", "bottom <= height and right <= width"),
        ),
    ),
    (
        "halfmask/infer/predict/tiles.py",
        "tests/infer/test_tiles.py",
        (("(place - start - zero)", "(place - start)"),),
    ),
)

MUTATIONS = tuple(
    Mutation(file, old, new, tuple(tests.split())) for file, tests, changes in TABLE for old, new in changes
)


def copy_tree(to: Path) -> None:
    """Copy what the tests need: the package, the tests, and what they read."""
    for name in ("halfmask", "tests", "recipes", "docs"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, to / name)


def notice(folder: Path, tests: tuple[str, ...]) -> bool | None:
    """Return whether a test fails; `None` if the tests could not run."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(nowhere.fileno(), stream.fileno())
            os.chdir(folder)
            sys.path.insert(0, str(folder))
            os._exit(int(pytest.main(["-q", "-x", "-n0", "-p", "no:cacheprovider", "--rootdir", str(folder), *tests])))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code not in (0, 1) else code == 1


def main(words: list[str]) -> int:
    """Try the mutations, all or those named."""
    chosen = [one for one in MUTATIONS if not words or any(word in f"{one.file} {one.old}" for word in words)]
    os.environ.setdefault("HALFMASK_SHARED", str(ROOT.parent / "shared"))  # the copy has no such neighbor
    os.environ["OMP_NUM_THREADS"] = "1"
    for module in HEAVY:
        importlib.import_module(module)
    survivors = []
    with tempfile.TemporaryDirectory(prefix="halfmask-mutations-") as name:
        folder = Path(name)
        copy_tree(folder)
        for number, mutation in enumerate(chosen, 1):
            path = folder / mutation.file
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
            found = notice(folder, mutation.tests)
            path.write_text(text, encoding="utf-8")
            verdict = {True: "noticed", False: "SURVIVED", None: "TESTS DID NOT RUN"}[found]
            change = f"{mutation.old.strip()}  ->  {mutation.new.strip()}"
            print(f"{number:3} of {len(chosen)}  {verdict:9}  {mutation.file}: {change}", flush=True)
            survivors += [] if found else [f"{mutation.file}: {change}"]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} noticed", *survivors, sep="\n  ")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
