"""Official checkpoints to our bundles: one file per format, each a table of key rules."""

from halfmask.importers._checkpoint import Imported, import_checkpoint

__all__ = ["Imported", "import_checkpoint"]
