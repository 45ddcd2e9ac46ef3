"""Official checkpoints to our bundles: one file per format, each a table of key rules.

Reading order: `_checkpoint` (the verb), `_importer` (the contract of a format, and what several formats share),
`_classes` (names of classes, which no checkpoint holds), then any format.
"""

from halfmask.importers._checkpoint import Imported, import_checkpoint

__all__ = ["Imported", "import_checkpoint"]
