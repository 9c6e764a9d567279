"""Edit facts inside language models: pure functions over parameter pytrees."""

from jedit.editors import (
  alphaedit,
  emmet,
  fine_tune,
  kde,
  memit,
  null_space,
  rome,
)
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
  'emmet',
  'fine_tune',
  'join',
  'kde',
  'load',
  'memit',
  'null_space',
  'rome',
  'save',
  'split',
]
