"""Hugging Face folders <-> params: data driven, strict, in both directions."""

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors

from jedit.files import save_tensors
from jedit.models import gpt, llama
from jedit.models.hf_config import config
from jedit.models.layers import Config
from jedit.models.transformer import Model, build
from jedit.types import JeditError, Params

_TABLES = {
  'llama': llama.TABLE,
  'mistral': llama.TABLE,
  'qwen2': llama.TABLE,
  'qwen3': llama.TABLE,
  'gpt2': gpt.GPT2_TABLE,
  'gptj': gpt.GPTJ_TABLE,
}
# Buffers of old checkpoints; they hold no parameter.
_BUFFERS = ('.attn.bias', '.attn.masked_bias', '.rotary_emb.inv_freq')
_NAMES = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}
_DTYPES = tuple(_NAMES.values())


def table(kind: str, model: Model) -> dict[str, tuple[str, int | None, bool]]:
  """Name -> (path, layer or None, transpose?) of all that must exist."""
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  paths = set(flatten(shapes))
  out = {}
  for name, (path, transpose) in _TABLES[kind].items():
    if path not in paths:
      continue
    if '{}' in name:
      for layer in range(model.config.num_layers):
        out[name.format(layer)] = path, layer, transpose
    else:
      out[name] = path, None, transpose
  missing = paths - {path for path, _, _ in out.values()}
  assert not missing, f'the table of {kind} lacks {sorted(missing)}'
  return out


def flatten(params: Params, prefix: str = '') -> dict[str, Any]:
  """Nested dict -> {'a/b/c': leaf}."""
  out = {}
  for name, value in params.items():
    if isinstance(value, Mapping):
      out |= flatten(value, f'{prefix}{name}/')
    else:
      out[prefix + name] = value
  return out


def unflatten(flat: Mapping[str, Any]) -> Params:
  """Undoes flatten."""
  out: Params = {}
  for path, value in flat.items():
    *parents, leaf = path.split('/')
    node = out
    for name in parents:
      node = node.setdefault(name, {})
    node[leaf] = value
  return out


class Tensor(NamedTuple):
  """A published tensor that is still in its file.

  Attributes:
    shape: of it.
    dtype: its name, as NumPy spells it.
    read: index (a slice an axis) -> that part of it.
  """

  shape: tuple[int, ...]
  dtype: str
  read: Callable[[tuple[slice, ...]], np.ndarray]


# place(config, path, shape, dtype, read) makes a leaf of params of what
# read(index) of it gives, asking for the parts it wants.
Place = Callable[[Config, str, tuple[int, ...], np.dtype, Callable], Any]


def whole(config, path, shape, dtype, read) -> np.ndarray:
  """The Place that makes NumPy arrays."""
  del config, path, dtype
  return np.ascontiguousarray(read((slice(None),) * len(shape)))


def from_tensors(
  kind: str,
  model: Model,
  tensors: Mapping[str, Tensor],
  place: Place = whole,
) -> Params:
  """Params from published tensors; every mismatch in one error.

  Nothing is read before all is known to fit.
  """
  rows, names = table(kind, model), set(tensors)
  shapes = flatten(jax.eval_shape(model.init, jax.random.key(0)))
  surplus = {n for n in names - set(rows) if not n.endswith(_BUFFERS)}
  if model.config.tied:
    surplus.discard('lm_head.weight')
  bad = [f'no tensor {name}' for name in sorted(set(rows) - names)]
  bad += [f'unknown tensor {name}' for name in sorted(surplus)]
  parts: dict[str, list[Tensor]] = {}
  for name, (path, layer, transpose) in rows.items():
    if name not in names:
      continue
    tensor = tensors[name]
    want = shapes[path].shape if layer is None else shapes[path].shape[1:]
    want = want[::-1] if transpose else want
    if tensor.shape != want:
      bad.append(f'{name} is {tensor.shape}, the config wants {want}')
    elif tensor.dtype not in _DTYPES:
      bad.append(f'{name} is {tensor.dtype}, not one of {", ".join(_DTYPES)}')
    parts.setdefault(path, []).append(_turned(tensor) if transpose else tensor)
    first = parts[path][0].dtype
    if tensor.dtype != first and tensor.dtype in _DTYPES:
      bad.append(f'{name} is {tensor.dtype}, its layer 0 {first}')
  if bad:
    more = f' and {len(bad) - 8} more' if len(bad) > 8 else ''
    raise JeditError(
      'weights do not fit config.json: '
      + '; '.join(bad[:8])
      + more
      + '; use the config.json and all the files of one checkpoint'
    )
  stacked = {path for path, layer, _ in rows.values() if layer is not None}
  flat = {}
  for path, layers in parts.items():
    read = _stacked(layers) if path in stacked else layers[0].read
    dtype = jax.numpy.dtype(layers[0].dtype)
    shape = shapes[path].shape
    flat[path] = place(model.config, path, shape, dtype, read)
  return unflatten(flat)


def _turned(tensor: Tensor) -> Tensor:
  """The transpose."""
  return tensor._replace(
    shape=tensor.shape[::-1], read=lambda index: tensor.read(index[::-1]).T
  )


def _stacked(layers: list[Tensor]) -> Callable:
  """What reads of layers on top of each other."""

  def read(index):
    some = layers[index[0]]
    first = some[0].read(index[1:])
    out = np.empty((len(some), *first.shape), first.dtype)
    out[0] = first
    for row, layer in zip(out[1:], some[1:], strict=True):
      row[...] = layer.read(index[1:])
    return out

  return read


def to_tensors(
  kind: str, model: Model, params: Params
) -> Iterator[tuple[str, np.ndarray]]:
  """Published (name, tensor) pairs of unsplit params."""
  flat = flatten(params)
  for name, (path, layer, transpose) in table(kind, model).items():
    tensor = np.asarray(flat[path] if layer is None else flat[path][layer])
    yield name, np.ascontiguousarray(tensor.T if transpose else tensor)


def read_config(folder: str | os.PathLike) -> dict:
  """config.json of a folder, checked to be one."""
  path = pathlib.Path(folder) / 'config.json'
  if not path.is_file():
    raise JeditError(f'{folder}: no config.json; give a Hugging Face folder')
  try:
    return json.loads(path.read_text())
  except ValueError as e:
    raise JeditError(f'{path} is not JSON: {e}') from e


def _open(folder: pathlib.Path) -> dict[str, safetensors.safe_open]:
  """Tensor name -> the open file that holds it."""
  index = folder / 'model.safetensors.index.json'
  single = folder / 'model.safetensors'
  if index.is_file():
    try:
      named = set(json.loads(index.read_text())['weight_map'].values())
    except (ValueError, KeyError, AttributeError, TypeError) as e:
      raise JeditError(
        f'{index} is damaged ({type(e).__name__}); fetch the folder again'
      ) from e
    files = [folder / name for name in sorted(named)]
  else:
    files = (
      [single] if single.is_file() else sorted(folder.glob('*.safetensors'))
    )
  if not files:
    raise JeditError(
      f'{folder}: no *.safetensors file; convert it with transformers '
      '(save_pretrained) first'
    )
  where, bad = {}, []
  for path in files:
    try:
      handle = safetensors.safe_open(path, framework='numpy')
      where |= dict.fromkeys(handle.keys(), handle)
    except (safetensors.SafetensorError, OSError) as e:
      bad.append(f'{path.name} is missing or damaged ({e})')
  if bad:
    raise JeditError(f'{folder}: {"; ".join(bad)}; fetch the folder again')
  return where


def load(
  folder: str | os.PathLike, place: Place = whole
) -> tuple[Model, Params]:
  """Model and params (their dtype kept) of a safetensors folder.

  Args:
    folder: in the published format.
    place: makes the arrays; NumPy's by default.
  """
  folder = pathlib.Path(folder)
  hf = read_config(folder)
  model = build(config(hf))
  where = _open(folder)
  prefix = ''
  if hf['model_type'] == 'gpt2' and 'wte.weight' in where:
    prefix = 'transformer.'  # the hub's oldest folders omit it
  tensors = {prefix + name: _lazy(f, name) for name, f in where.items()}
  return model, from_tensors(hf['model_type'], model, tensors, place)


def _lazy(file: safetensors.safe_open, name: str) -> Tensor:
  about = file.get_slice(name)
  kind = about.get_dtype()
  read = lambda index: file.get_slice(name)[index]
  return Tensor(tuple(about.get_shape()), _NAMES.get(kind, kind), read)


def save(
  folder: str | os.PathLike,
  model: Model,
  params: Params,
  hf: dict,
  tokenizer=None,
) -> None:
  """Writes a folder that transformers loads; whole or not at all.

  Args:
    folder: must not exist.
    model: the network.
    params: unsplit params, of any float dtype.
    hf: its config.json; kept as it is but for the dtype.
    tokenizer: saved too, if given.
  """
  folder = pathlib.Path(folder)
  if folder.exists():
    raise JeditError(f'{folder} exists; name a new folder')
  tensors = dict(to_tensors(hf['model_type'], model, params))
  dtype = next(iter(tensors.values())).dtype.name
  key = 'torch_dtype' if 'torch_dtype' in hf else 'dtype'
  if hf.get(key, 'float32') != dtype:
    hf = {**hf, key: dtype}
  part = folder.with_name(folder.name + '.part')
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True)
  try:
    save_tensors(part / 'model.safetensors', tensors, metadata={'format': 'pt'})
    (part / 'config.json').write_text(json.dumps(hf, indent=2) + '\n')
    if tokenizer is not None:
      tokenizer.save_pretrained(part)
    part.rename(folder)
  except BaseException:
    shutil.rmtree(part, ignore_errors=True)
    raise
