"""Going on from a finished run, whose folder config.model names.

Its edited weights are the base, and what its editor remembers of the facts so
far is the state to start from: two runs edit as one over both streams would (in
bfloat16, but for the rounding between them). The second moments are in there;
none are made.
"""

import json
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from jedit import checkpoint, sharding
from jedit.types import Editor, JeditError, Params
from launch import stream

_SAME = (
  'method', 'editor', 'updates', 'optimiser', 'layers', 'validation', 'network',
)  # fmt: skip


def find(config: ConfigDict) -> pathlib.Path | None:
  """The run that config.model names; None if it names something else.

  Raises:
    JeditError: when its editor is not the config's, so that nothing would
      protect its facts.
  """
  path = pathlib.Path(config.model)
  if not (path / 'edits' / 'manifest.json').is_file():
    return None
  then, now = (
    read(path, 'config.json'),
    json.loads(config.to_json_best_effort()),
  )
  wrong = [
    f'{name} was {old!r}, is {new!r}'
    for field in _SAME
    for name, old, new in _departures(field, then.get(field), now[field])
  ]
  if wrong:
    raise JeditError(
      f'config.model={path} is a run with another editor ({"; ".join(wrong)}): '
      'choose the same to go on from it, or edit a copy of its weights as a '
      f'new base (launch.convert --base={then.get("model")} --edit={path} '
      '--out=FOLDER), of whose facts no editor knows'
    )
  return path


def _departures(name, old, new):
  if isinstance(old, dict) and isinstance(new, dict):
    for key in old | new:
      yield from _departures(f'{name}.{key}', old.get(key), new.get(key))
  elif old != new:
    yield name, old, new


def read(path: pathlib.Path, name: str) -> Any:
  """What a JSON file of the run holds."""
  try:
    return json.loads((path / name).read_text())
  except (OSError, ValueError) as e:
    raise JeditError(
      f'config.model={path}: {name} is missing or damaged ({e}); a run goes on '
      'from a whole run folder'
    ) from e


def state(path: pathlib.Path, editor: Editor, split: Params) -> Any:
  """The editor's state at the end of the run, on the devices in use.

  Args:
    path: the run.
    editor: as in the run, but for its second moments, which may be made up.
    split: params.
  """

  def small(params):  # as wide as made-up moments are
    few = stream.kernel(params)[:, :2]
    return editor.init(stream.with_kernel(params, few))

  like, tree = jax.tree.flatten(jax.eval_shape(small, split))
  found = checkpoint.read_state(path / 'edits')
  kind = lambda leaves: [(x.ndim, x.dtype) for x in leaves]
  if kind(found) != kind(like):
    raise JeditError(
      f'{path}: the state in it is not that of this editor; it is of another '
      'jedit: make the run again'
    )
  width = stream.kernel(split).shape[1]
  return sharding.by_rows(jax.tree.unflatten(tree, found), width)
