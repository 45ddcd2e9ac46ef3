"""Semi-supervised methods, one file each; the contract is in `_method.py`."""

from halfmask.methods._method import Method, ModelBuilder, ParamGroup, Stage, StepOutput, Update

__all__ = ["Method", "ModelBuilder", "ParamGroup", "Stage", "StepOutput", "Update"]
