"""Semi-supervised methods, one file each. The contract they keep is `halfmask.method`.

Read `supervised` first, then `fixmatch` (one network), `mean_teacher` and `unimatch_v2` (an EMA teacher), `allspark`
(a bottleneck and a memory), `cct` (auxiliary decoders) and `multi_domain` (several data sets). The methods they are
compared with: `cps` and `fpl` (two networks), `cutmix_seg`, `augseg`, `ps_mt` (teachers), `ccvc` (a mean of networks),
`u2pl` and `pixcon` (queues and contrast), `gta_seg` (two optimizers), `prevmatch` (earlier networks), `rankmatch`,
`st_plus_plus` (stages).
"""

from halfmask.method import Method, ModelBuilder, ParamGroup, Stage, StepOutput, Update

__all__ = ["Method", "ModelBuilder", "ParamGroup", "Stage", "StepOutput", "Update"]
