"""Edit facts inside language models: pure functions over parameter pytrees."""

from jedit.editors.alphaedit import alphaedit
from jedit.editors.memit import memit
from jedit.models.load import load, save
from jedit.models.transformer import join, split
from jedit.prompts import edit_batches
from jedit.sequence import edit_sequence
from jedit.types import JeditError, apply_updates

__all__ = [
  'JeditError',
  'alphaedit',
  'apply_updates',
  'edit_batches',
  'edit_sequence',
  'join',
  'load',
  'memit',
  'save',
  'split',
]
