"""Semi-supervised methods, one file each. The contract they keep is `halfmask.method`.

Read `supervised` first, then `fixmatch` (one network), `mean_teacher` and `unimatch_v2` (an EMA teacher), `allspark`
(a bottleneck and a memory), `cct` (auxiliary decoders) and `multi_domain` (several data sets).
"""

from halfmask.method import Method, ModelBuilder, ParamGroup, Stage, StepOutput, Update

__all__ = ["Method", "ModelBuilder", "ParamGroup", "Stage", "StepOutput", "Update"]
