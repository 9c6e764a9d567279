"""The editors: one page each, all over least_squares.py."""

from jedit.editors.alphaedit import alphaedit
from jedit.editors.memit import memit

__all__ = ['alphaedit', 'memit']
