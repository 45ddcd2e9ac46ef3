"""The command line: one file per verb, each of which calls one function of the package.

Beside the verbs: `app` (the program), `flags` (options that several verbs share), `recipe_flags` (options that are keys
of a recipe), `groups` (options as dataclasses), `listing` (the verb `list`), `train_report` (what `train` prints at its
end), `exits` (exit codes).
"""

from halfmask.cli.app import main

__all__ = ["main"]
