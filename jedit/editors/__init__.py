"""The editors: one page each; those in closed form over least_squares.py."""

from jedit.editors.alphaedit import alphaedit
from jedit.editors.emmet import emmet
from jedit.editors.memit import memit
from jedit.editors.mend import mend
from jedit.editors.rome import rome
from jedit.editors.ultraedit import ultraedit

__all__ = ['alphaedit', 'emmet', 'memit', 'mend', 'rome', 'ultraedit']
