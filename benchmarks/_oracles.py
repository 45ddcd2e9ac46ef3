"""The textbook forms of `tests/oracles`, for scripts that run in this folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.oracles import allspark, cct, class_map, confusion, ema, loading, losses, mixing, pseudo, strong_views
from tests.oracles.forms import plain_forms
from tests.oracles.geometry import cut_whole
from tests.oracles.mixing import draw_box, paste_by_index
from tests.oracles.unimatch import unimatch_v2_loss

__all__ = [
    "allspark", "cct", "class_map", "confusion", "cut_whole", "draw_box", "ema", "loading", "losses", "mixing",
    "paste_by_index", "plain_forms", "pseudo", "strong_views", "unimatch_v2_loss",
]  # fmt: skip
