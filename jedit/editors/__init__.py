"""The editors: one page each, over least_squares.py or descent.py."""

from jedit.editors.alphaedit import alphaedit
from jedit.editors.emmet import emmet
from jedit.editors.fine_tune import fine_tune
from jedit.editors.kde import kde
from jedit.editors.memit import memit
from jedit.editors.null_space import null_space
from jedit.editors.rome import rome

__all__ = [
  'alphaedit',
  'emmet',
  'fine_tune',
  'kde',
  'memit',
  'null_space',
  'rome',
]
