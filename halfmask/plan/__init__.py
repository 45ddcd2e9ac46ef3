"""Choose method, network, crop, batch, steps and validation from the data and the machine, each with its reason.

Reading order: `make` (the plan as a whole), `facts` (what a plan knows of the data and of this machine), `choices` and
`table` (the rules), `budget` and `trials` (what memory and time allow). `machine` serves no plan: it is what
`halfmask doctor` reports.
"""

from halfmask.plan.make import Choice, Plan, make_plan

__all__ = ["Choice", "Plan", "make_plan"]
