"""The field's data sets, which are not part of the project."""

import os
import pathlib

_BESIDE = pathlib.Path(__file__).parents[2] / 'shared' / 'data'
# The folder, which need not exist: JEDIT_DATA, or shared/data beside the
# checkout.
FOLDER = pathlib.Path(os.environ.get('JEDIT_DATA', _BESIDE))
