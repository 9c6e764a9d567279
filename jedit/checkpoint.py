"""What is kept on disk: checkpoints by orbax, and an edit as a file.

An edit is a folder with delta.safetensors, one [F, D] matrix a site layer, and
manifest.json. Deltas are float64 differences of float32 weights, so applying
and undoing an edit gives back the very bits. Everything is written under a
temporary name and renamed.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from orbax.checkpoint import v1 as ocp

from jedit.models import hf
from jedit.types import JeditError, Params

_KERNEL = 'layers.{}.mlp.down.kernel'


def fingerprint(tree) -> str:
  """Hash of a pytree's structure and bytes, 32 hex digits."""
  out = hashlib.blake2b(digest_size=16)
  for path, leaf in sorted(hf.flatten(tree).items()):
    leaf = np.ascontiguousarray(leaf)
    out.update(f'{path} {leaf.shape} {leaf.dtype}'.encode())
    out.update(leaf.view(np.uint8).data)
  return out.hexdigest()


def digest(data: bytes) -> str:
  """Hash of bytes, 32 hex digits."""
  return hashlib.blake2b(data, digest_size=16).hexdigest()


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a file whole or not at all."""
  path = pathlib.Path(path)
  part = path.with_name(path.name + '.part')
  part.write_text(text)
  part.rename(path)


def _shape(x) -> tuple[int, ...]:
  """The shape that is stored: orbax takes no empty arrays."""
  return x.shape if x.size else (1,)


def save(path: str | os.PathLike, tree) -> None:
  """Orbax checkpoint of a pytree of arrays; replaces an older one."""
  path = pathlib.Path(path).absolute()
  full = lambda x: x if x.size else jnp.zeros(_shape(x), x.dtype)
  tree = jax.tree.map(lambda x: full(jnp.asarray(x)), tree)
  try:
    ocp.save(path, tree, overwrite=True)
  except (OSError, ValueError) as e:  # ValueError is tensorstore's
    raise JeditError(
      f'{path} cannot be written: {e}; if the disk is full, free space and '
      'run the same command again'
    ) from e


def load(path: str | os.PathLike, like):
  """Pytree of a checkpoint; `like` gives structure, shapes and dtypes."""
  path = pathlib.Path(path).absolute()
  stored = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      _shape(x),
      x.dtype,
      sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
    ),
    like,
  )
  try:
    got = ocp.load(path, stored)
  except Exception as e:  # orbax raises many kinds for a damaged folder
    raise JeditError(
      f'checkpoint {path} is damaged or of another run ({type(e).__name__}); '
      'remove it to resume from the one before'
    ) from e
  return jax.tree.map(
    lambda x, want: x if want.size else jnp.zeros(want.shape, want.dtype),
    got,
    like,
  )


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
  for old in steps(folder)[:-keep]:
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
    edited: [E, F, D] after.
    manifest: what to remember of the edit; must hold 'layers' and 'base_hash'.
    state: the editor's state, to go on editing later; or None.
  """
  folder = pathlib.Path(folder)
  part = folder.with_name(folder.name + '.part')
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True)
  change = np.asarray(edited, np.float64) - np.asarray(base, np.float64)
  deltas = {
    _KERNEL.format(layer): np.ascontiguousarray(d)
    for layer, d in zip(manifest['layers'], change, strict=True)
  }
  safetensors.numpy.save_file(deltas, part / 'delta.safetensors')
  if state is not None:
    leaves = {
      str(i): np.ascontiguousarray(x)
      for i, x in enumerate(jax.tree.leaves(state))
    }
    safetensors.numpy.save_file(leaves, part / 'state.safetensors')
  (part / 'manifest.json').write_text(json.dumps(manifest, indent=2) + '\n')
  shutil.rmtree(folder, ignore_errors=True)
  part.rename(folder)


def read_edit(folder: str | os.PathLike) -> tuple[dict, dict[int, np.ndarray]]:
  """(manifest, {layer: float64 delta [F, D]}) of an edit folder."""
  folder = pathlib.Path(folder)
  try:
    manifest = json.loads((folder / 'manifest.json').read_text())
    with safetensors.safe_open(folder / 'delta.safetensors', 'numpy') as f:
      deltas = {
        int(name.split('.')[1]): f.get_tensor(name) for name in f.keys()
      }
  except (OSError, ValueError, safetensors.SafetensorError) as e:
    raise JeditError(f'{folder} is not a whole edit folder: {e}') from e
  return manifest, deltas


def apply_edit(
  params: Params, folder: str | os.PathLike, undo: bool = False
) -> Params:
  """Unsplit params with an edit applied, or taken back.

  Raises:
    JeditError: when the params are not those the edit was made for.
  """
  manifest, deltas = read_edit(folder)
  want = manifest['edited_hash' if undo else 'base_hash']
  if fingerprint(params) != want:
    raise JeditError(
      f'{folder} was made for other weights ({manifest.get("model")}, hash '
      f'{want}); name that model'
    )
  kernel = np.array(params['layers']['mlp']['down']['kernel'])
  for layer, delta in deltas.items():
    change = -delta if undo else delta
    kernel[layer] = (kernel[layer].astype(np.float64) + change).astype(
      kernel.dtype
    )
  mlp = params['layers']['mlp']
  down = {**mlp['down'], 'kernel': kernel}
  return {
    **params,
    'layers': {**params['layers'], 'mlp': {**mlp, 'down': down}},
  }
