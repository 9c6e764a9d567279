"""The editors: one page each; most over least_squares.py or descent.py."""

from jedit.editors.adaedit import ENGINE as _ADAEDIT
from jedit.editors.adaedit import adaedit
from jedit.editors.alphaedit import alphaedit
from jedit.editors.alphaedit_plus import alphaedit_plus
from jedit.editors.blue import blue
from jedit.editors.emmet import emmet
from jedit.editors.end_to_end import end_to_end
from jedit.editors.fine_tune import fine_tune
from jedit.editors.kde import kde
from jedit.editors.memit import memit
from jedit.editors.mend import mend
from jedit.editors.null_space import null_space
from jedit.editors.pmet import ENGINE as _PMET
from jedit.editors.pmet import pmet
from jedit.editors.rome import ENGINE as _ROME
from jedit.editors.rome import rome
from jedit.editors.ultraedit import ultraedit

__all__ = [
  'adaedit',
  'alphaedit',
  'alphaedit_plus',
  'blue',
  'emmet',
  'end_to_end',
  'fine_tune',
  'kde',
  'memit',
  'mend',
  'null_space',
  'pmet',
  'rome',
  'ultraedit',
]

# What an editor asks of the value engine, where that is not its default.
ENGINES = {'adaedit': _ADAEDIT, 'pmet': _PMET, 'rome': _ROME}
