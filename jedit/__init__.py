"""Edit facts inside language models: pure functions over parameter pytrees."""

from jedit.editors import (
  adaedit,
  alphaedit,
  alphaedit_plus,
  blue,
  emmet,
  end_to_end,
  fine_tune,
  kde,
  memit,
  mend,
  null_space,
  pmet,
  rome,
  ultraedit,
)
from jedit.models.load import load, save
from jedit.models.transformer import join, split
from jedit.prompts import edit_batches
from jedit.sequence import edit_sequence
from jedit.types import JeditError, apply_updates

__all__ = [
  'JeditError',
  'adaedit',
  'alphaedit',
  'alphaedit_plus',
  'apply_updates',
  'blue',
  'edit_batches',
  'edit_sequence',
  'emmet',
  'end_to_end',
  'fine_tune',
  'join',
  'kde',
  'load',
  'memit',
  'mend',
  'null_space',
  'pmet',
  'rome',
  'save',
  'split',
  'ultraedit',
]
