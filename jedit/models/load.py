"""Opens a model wherever it is, and writes one."""

import json
import os
import pathlib
import re
import shutil
from typing import Any, NamedTuple

import huggingface_hub
import jax
import transformers

from jedit import checkpoint
from jedit.models import gguf, hf
from jedit.models.transformer import Model, build
from jedit.types import JeditError, Params


class Loaded(NamedTuple):
  """A model, its unsplit params (NumPy), config.json and tokenizer."""

  model: Model
  params: Params
  config: dict
  tokenizer: Any


def _tokenizer(folder: pathlib.Path):
  try:
    return transformers.AutoTokenizer.from_pretrained(folder)
  except (OSError, ValueError) as e:
    raise JeditError(f'{folder}: no usable tokenizer: {e}') from e


def _fetch(name: str) -> pathlib.Path:
  """The local copy of a model of the Hugging Face hub."""
  patterns = ['*.json', '*.safetensors', '*.model', '*.txt', '*.jinja']
  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(name, allow_patterns=patterns)
    )
  except Exception as e:
    raise JeditError(
      f'model {name!r} is no folder or file here, and the hub does not give it '
      f'({type(e).__name__}); check the name, or give a local folder'
    ) from e


def load(source: str | os.PathLike, place: hf.Place = hf.whole) -> Loaded:
  """Opens a model.

  Args:
    source: `package:NAME` (an installed package with a GGUF file), a .gguf
      file, a Hugging Face folder, a jedit checkpoint, an edit or run folder
      (its base with the edit applied), or a name on the Hugging Face hub.
    place: makes the arrays of a Hugging Face folder or GGUF file; NumPy's by
      default, those of a mesh with sharding.placer, which reads of a folder no
      more than each device holds. What jedit wrote comes as NumPy arrays.
  """
  text, path = str(source), pathlib.Path(source)
  if text.startswith('package:'):
    found = gguf.packaged(text.removeprefix('package:'))
    return Loaded(*gguf.load(found, place))
  if path.suffix == '.gguf' and path.is_file():
    return Loaded(*gguf.load(path, place))
  if (path / 'edits' / 'manifest.json').is_file():
    path = path / 'edits'
  if (path / 'manifest.json').is_file():
    base = load(checkpoint.read_edit(path)[0]['model'])
    return base._replace(params=checkpoint.apply_edit(base.params, path))
  if (path / 'params').is_dir():
    config = hf.read_config(path)
    model = build(hf.config(config))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    dtype = config.get('dtype', 'float32')
    like = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, dtype), shapes)
    params = checkpoint.load(path / 'params', like)
    return Loaded(model, params, config, _tokenizer(path))
  if not path.exists():
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', text):
      raise JeditError(f'model {text}: no such file or folder')
    path = _fetch(text)
  model, params = hf.load(path, place)
  return Loaded(model, params, hf.read_config(path), _tokenizer(path))


def save(folder: str | os.PathLike, loaded: Loaded, kind: str = 'hf') -> None:
  """Writes a Hugging Face folder ('hf') or a jedit checkpoint ('jedit')."""
  model, params, config, tokenizer = loaded
  if kind == 'hf':
    hf.save(folder, model, params, config, tokenizer)
    return
  folder = pathlib.Path(folder)
  if folder.exists():
    raise JeditError(f'{folder} exists; name a new folder')
  part = folder.with_name(folder.name + '.part')
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True)
  found = {str(x.dtype) for x in jax.tree.leaves(params)}
  if len(found) > 1:
    raise JeditError(
      f'a jedit checkpoint holds weights of one dtype, these are '
      f'{", ".join(sorted(found))}: write a Hugging Face folder (--format=hf)'
    )
  (dtype,) = found
  (part / 'config.json').write_text(json.dumps({**config, 'dtype': dtype}))
  tokenizer.save_pretrained(part)
  checkpoint.save(part / 'params', params)
  part.rename(folder)
