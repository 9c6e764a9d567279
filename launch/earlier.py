"""Going on from a finished run, whose folder config.model names.

Its edited weights are the base, and what its editor remembers of the facts so
far is the state to start from: two runs edit as one over both streams would (in
bfloat16, but for the rounding between them). The second moments are in there;
none are made. What is limited (max_norm, max_perplexity) is limited afresh.
"""

import json
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from jedit import checkpoint, sharding
from jedit.types import Editor, JeditError, Params, kernel_of, with_kernel
from launch import common, method

_SAME = 'method', 'editor', 'updates', 'layers', 'validation'
_OF_MOMENTS = 'corpus', 'corpus_tokens', 'corpus_window', 'self_text_start'


def folder_of(model: str) -> pathlib.Path | None:
  """The run folder that a model's name is of, or its edit folder is in."""
  path = pathlib.Path(model)
  if (path / 'manifest.json').is_file():
    return path.resolve().parent
  return path if (path / 'edits' / 'manifest.json').is_file() else None


def find(config: ConfigDict) -> pathlib.Path | None:
  """The run that config.model names; None if it names something else.

  Raises:
    JeditError: when its editor is not the config's, so that nothing would
      protect its facts; or when it is named by config.params.
  """
  if config.params:
    raise JeditError(
      f'config.params={config.params!r}: launch.evaluate and launch.trace look '
      'at it; a run to go on from is named by --config.model'
    )
  path = folder_of(config.model)
  if path is None:
    return None
  then = read(path, 'config.json', dict)
  now = json.loads(config.to_json_best_effort())
  now['inputs'] = {}
  if config.network:
    now['inputs']['network'] = common.file_hash(config.network)
  old, new = (_decisive(c, method.needs_moment(config)) for c in (then, now))
  names = [name for name in old | new if old.get(name) != new.get(name)]
  if 'method' in names:
    names = ['method']  # the rest follows
  if names:
    wrong = '; '.join(
      f'{name} was {old.get(name)!r}, is {new.get(name)!r}' for name in names
    )
    raise JeditError(
      f'config.model={path} is a run with another editor ({wrong}): '
      f'choose the same to go on from it, or {_copy(path)}, of whose facts no '
      'editor knows'
    )
  return path


def _decisive(config: dict, moments: bool) -> dict:
  """What must agree, by name."""
  fields = _SAME + (_OF_MOMENTS if moments else ())
  out = {field: config.get(field) for field in fields}
  for part in 'editor', 'updates':
    for name, value in (out.pop(part) or {}).items():
      if name != 'products':  # nothing that an editor remembers
        out[f'{part}.{name}'] = value
  anchor = config.get('optimiser', {}).get('anchor_norm')
  network = config.get('inputs', {}).get('network')
  return out | {'optimiser.anchor_norm': anchor, 'network': network}


def _copy(path):
  return (
    'edit a copy of its weights as a new base (launch.convert --base=... '
    f'--edit={path} --out=FOLDER)'
  )


def read(path: pathlib.Path, name: str, kind: type = list) -> Any:
  """The `kind` that a JSON file of the run holds.

  Raises:
    JeditError: when it is missing, damaged, or holds something else.
  """
  try:
    found = json.loads((path / name).read_text())
    if not isinstance(found, kind):
      raise ValueError(f'it holds no {kind.__name__}')
    return found
  except (OSError, ValueError) as e:
    raise JeditError(
      f'config.model={path}: {name} is missing or damaged ({e}); name a whole '
      f'run folder to go on from, or {_copy(path)}'
    ) from e


def state(
  path: pathlib.Path, config: ConfigDict, editor: Editor, split: Params
) -> Any:
  """The editor's state at the end of the run, on the devices in use.

  Args:
    path: the run.
    config: of the run that goes on.
    editor: its editor (method.rehearse).
    split: params.

  Raises:
    JeditError: when the state is damaged, or another editor's.
  """

  def start(params):
    if method.needs_moment(config):  # those of the rehearsal are this wide
      few = kernel_of(params)[:, :2]
      params = with_kernel(params, few)
    return editor.init(params)

  like, tree = jax.tree.flatten(jax.eval_shape(start, split))
  found = checkpoint.read_state(path / 'edits')
  kind = lambda leaves: [(x.ndim, x.dtype) for x in leaves]
  if kind(found) != kind(like):
    raise JeditError(
      f'{path}: the state in it is not that of this editor; it is of another '
      f'jedit: make the run again, or {_copy(path)}'
    )
  width = kernel_of(split).shape[1]
  return sharding.by_rows(jax.tree.unflatten(tree, found), width)
