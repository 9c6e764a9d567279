"""What is kept on disk: checkpoints by orbax, and an edit as a file.

An edit is a folder with delta.safetensors, one [F, D] matrix a site layer, and
manifest.json. Deltas are float64 differences of the weights as the model holds
them; the few entries that they do not give back (a weight of -0.0) are kept by
their bits, so applying and undoing an edit is exact. Everything is written
under a temporary name and renamed.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from orbax.checkpoint import v1 as ocp

from jedit import sharding
from jedit.files import on_disk, save_tensors, unwritten, whole
from jedit.models import hf
from jedit.types import JeditError, Params

_KERNEL = 'layers.{}.mlp.down.kernel'


def fingerprint(tree) -> str:
  """Hash of a pytree's structure and bytes, 32 hex digits."""
  out = hashlib.blake2b(digest_size=16)
  for path, leaf in sorted(hf.flatten(tree).items()):
    out.update(f'{path} {leaf.shape} {leaf.dtype}'.encode())
    for piece in _pieces(leaf):
      out.update(np.ascontiguousarray(piece).view(np.uint8).data)
  return out.hexdigest()


def _pieces(leaf, size: int = 2**26) -> Iterator[np.ndarray]:
  """A leaf on the host; of one on many devices, `size` bytes at a time."""
  many = isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
  if not many or not leaf.ndim:
    yield np.asarray(leaf)
    return
  rows = max(1, size * len(leaf) // max(leaf.nbytes, 1))
  for start in range(0, len(leaf), rows):
    count = min(rows, len(leaf) - start)
    yield sharding.fetch(jax.lax.dynamic_slice_in_dim(leaf, start, count))


def digest(data: bytes) -> str:
  """Hash of bytes, 32 hex digits."""
  return hashlib.blake2b(data, digest_size=16).hexdigest()


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a file whole or not at all."""
  if not sharding.writes():
    return
  with whole(pathlib.Path(path)) as f:
    f.write(text.encode())


def _filled(tree):
  """None for the arrays without entries, which orbax does not take."""
  return jax.tree.map(lambda x: x if x.size else None, tree)


def save(path: str | os.PathLike, tree) -> None:
  """Orbax checkpoint of a pytree of arrays; replaces an older one."""
  path = pathlib.Path(path).absolute()
  try:
    ocp.save(path, _filled(tree), overwrite=True)
  except (OSError, ValueError) as e:  # ValueError is tensorstore's
    raise unwritten(path, e) from e


def load(path: str | os.PathLike, like):
  """Pytree of a checkpoint; `like` gives structure, shapes and dtypes.

  Arrays come back laid out as those of `like` are, on whatever devices; what is
  but a shape there, as NumPy's.
  """
  path = pathlib.Path(path).absolute()

  def shape(x):
    if isinstance(x, jax.Array):
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    return np.broadcast_to(np.zeros((), x.dtype), x.shape)

  like = jax.tree.map(shape, like)
  try:
    found = ocp.load(path, _filled(like))
    chex.assert_trees_all_equal_shapes_and_dtypes(found, _filled(like))
  except (MemoryError, jax.errors.JaxRuntimeError):
    raise  # of the devices
  except PermissionError as e:
    raise JeditError(f'checkpoint {path} cannot be read: {e}') from e
  except Exception as e:  # orbax raises many kinds for a damaged folder
    raise JeditError(
      f'checkpoint {path} is damaged or of another run ({type(e).__name__}); '
      'remove it to resume from the one before'
    ) from e
  none = lambda x: x is None
  empty = lambda y: (np if isinstance(y, np.ndarray) else jnp).zeros
  fill = lambda x, y: empty(y)(y.shape, y.dtype) if none(x) else x
  return jax.tree.map(fill, found, like, is_leaf=none)


def steps(folder: str | os.PathLike) -> list[int]:
  """Numbers of the whole checkpoints in a folder, ascending."""
  names = [p.name for p in pathlib.Path(folder).glob('*') if p.is_dir()]
  return sorted(int(n) for n in names if re.fullmatch(r'\d{6}', n))


def save_step(
  folder: str | os.PathLike, number: int, tree, keep: int = 2
) -> None:
  """Saves checkpoint `number` of a folder and drops all but the last ones."""
  folder = pathlib.Path(folder)
  save(folder / f'{number:06d}', tree)
  for old in steps(folder)[:-keep] if sharding.writes() else ():
    shutil.rmtree(folder / f'{old:06d}', ignore_errors=True)


def write_edit(
  folder: str | os.PathLike,
  base: np.ndarray,
  edited: np.ndarray,
  manifest: dict,
  state=None,
) -> None:
  """Writes the difference of the site kernels.

  Args:
    folder: replaced when it exists.
    base: [E, F, D] before editing.
    edited: [E, F, D] after, in the dtype of the model.
    manifest: what to remember of the edit; must hold 'layers' and 'base_hash'.
    state: the editor's state, kept as its leaves, by number; or None.
  """
  if not sharding.writes():
    return
  folder = pathlib.Path(folder)
  part = folder.with_name(folder.name + '.part')
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True)
  deltas = {}
  for layer, *pair in zip(manifest['layers'], base, edited, strict=True):
    deltas |= _difference(_KERNEL.format(layer), *map(np.asarray, pair))
  save_tensors(part / 'delta.safetensors', deltas)
  if state is not None:
    leaves = {
      str(i): np.asarray(x, order='C')  # numbers stay numbers
      for i, x in enumerate(jax.tree.leaves(state))
    }
    save_tensors(part / 'state.safetensors', leaves)
  (part / 'manifest.json').write_text(json.dumps(manifest, indent=2) + '\n')
  for path in (*part.iterdir(), part):
    on_disk(path)
  shutil.rmtree(folder, ignore_errors=True)
  part.rename(folder)


def _moved(kernel: np.ndarray, delta: np.ndarray) -> np.ndarray:
  return (kernel.astype(np.float64) + delta).astype(kernel.dtype)


def _bits(x: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(x).view(f'u{x.itemsize}').ravel()


def _difference(
  name: str, base: np.ndarray, edited: np.ndarray
) -> dict[str, np.ndarray]:
  """edited - base, and the entries that it does not give back to the bit.

  There are some where a weight is -0.0, or changes its size out of all measure.
  """
  base = base.astype(edited.dtype)  # float32 copies of the model's own
  delta = edited.astype(np.float64) - base.astype(np.float64)
  out = {name: np.ascontiguousarray(delta)}
  for way, got, want in (
    ('apply', _moved(base, delta), edited),
    ('undo', _moved(edited, -delta), base),
  ):
    here = np.flatnonzero(_bits(got) != _bits(want))
    if here.size:
      out |= {f'{name}.{way}.at': here, f'{name}.{way}.bits': _bits(want)[here]}
  return out


def read_edit(folder: str | os.PathLike) -> tuple[dict, dict[int, np.ndarray]]:
  """(manifest, {layer: float64 delta [F, D]}) of an edit folder."""
  manifest, found = _read_edit(folder)
  return manifest, {n: found[_KERNEL.format(n)] for n in manifest['layers']}


def _read_edit(folder) -> tuple[dict, dict[str, np.ndarray]]:
  folder = pathlib.Path(folder)
  try:
    manifest = json.loads((folder / 'manifest.json').read_text())
    found = safetensors.numpy.load_file(folder / 'delta.safetensors')
    missing = [n for n in manifest['layers'] if _KERNEL.format(n) not in found]
    if missing:
      raise ValueError(f'delta.safetensors lacks layer {missing[0]}')
  except (OSError, ValueError, KeyError, safetensors.SafetensorError) as e:
    raise JeditError(f'{folder} is not a whole edit folder: {e}') from e
  return manifest, found


def read_state(folder: str | os.PathLike) -> list[np.ndarray]:
  """Leaves of the editor's state that an edit folder keeps."""
  path = pathlib.Path(folder) / 'state.safetensors'
  try:
    found = safetensors.numpy.load_file(path)
  except (OSError, ValueError, safetensors.SafetensorError) as e:
    raise JeditError(f'{path} is missing or damaged: {e}') from e
  return [found[str(i)] for i in range(len(found))]


def apply_edit(
  params: Params, folder: str | os.PathLike, undo: bool = False
) -> Params:
  """Unsplit params with an edit applied, or taken back.

  Raises:
    JeditError: when the params are not those the edit was made for.
  """
  manifest, found = _read_edit(folder)
  want = manifest['edited_hash' if undo else 'base_hash']
  if fingerprint(params) != want:
    raise JeditError(
      f'{folder} was made for other weights ({manifest.get("model")}, hash '
      f'{want}); name that model'
    )
  kernel = np.array(sharding.fetch(params['layers']['mlp']['down']['kernel']))
  for layer in manifest['layers']:
    name, way = _KERNEL.format(layer), 'undo' if undo else 'apply'
    delta = found[name]
    kernel[layer] = _moved(kernel[layer], -delta if undo else delta)
    if f'{name}.{way}.at' in found:
      flat = kernel[layer].view(f'u{kernel.itemsize}').reshape(-1)
      flat[found[f'{name}.{way}.at']] = found[f'{name}.{way}.bits']
  mlp = params['layers']['mlp']
  down = {**mlp['down'], 'kernel': kernel}
  return {
    **params,
    'layers': {**params['layers'], 'mlp': {**mlp, 'down': down}},
  }
