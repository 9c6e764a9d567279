"""The editors: one page each, most of them over least_squares.py."""

from jedit.editors.adaedit import ENGINE as _ADAEDIT
from jedit.editors.adaedit import adaedit
from jedit.editors.alphaedit import alphaedit
from jedit.editors.alphaedit_plus import alphaedit_plus
from jedit.editors.blue import blue
from jedit.editors.emmet import emmet
from jedit.editors.memit import memit
from jedit.editors.pmet import ENGINE as _PMET
from jedit.editors.pmet import pmet
from jedit.editors.rome import ENGINE as _ROME
from jedit.editors.rome import rome

__all__ = [
  'adaedit',
  'alphaedit',
  'alphaedit_plus',
  'blue',
  'emmet',
  'memit',
  'pmet',
  'rome',
]

# What an editor asks of the value engine, where that is not its default.
ENGINES = {'adaedit': _ADAEDIT, 'pmet': _PMET, 'rome': _ROME}
