"""Eigenvalues and vectors of second moments: made, kept, read.

Every prior comes from them. A layer's are a file, found by the hash of its
moments, so that only the first run on them waits for the decomposition.
"""

import os
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Array, Float

from jedit import sharding
from jedit.files import whole
from jedit.types import JeditError, SecondMoment, Spectrum


def of(moment: SecondMoment) -> Iterator[Spectrum]:
  """That of a layer after the other."""
  if moment.spectrum:
    yield from moment.spectrum
    return
  for values, vectors in decompose(moment.moment):
    yield Spectrum(values, vectors.astype(np.float32))


def decompose(
  moment: Float[Array | np.ndarray, 'E F F'],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Eigenvalues [F], ascending, and vectors [F, F] of a layer after the other.

  In float64, of which no more than one layer's are held.
  """
  for layer in sharding.fetch(moment):
    layer = layer.astype(np.float64)
    if not np.isfinite(layer).all():
      raise JeditError('second moments hold NaN or infinity; make them again')
    layer += layer.T.copy()
    layer /= 2
    yield np.linalg.eigh(layer)


def _layer_type(width: int) -> np.dtype:
  """A Spectrum, as it lies in a file."""
  return np.dtype(
    [('values', '<f8', (width,)), ('vectors', '<f4', (width, width))]
  )


def save(path: str | os.PathLike, spectrum: Spectrum) -> None:
  """Writes the spectrum of a layer."""
  kind = np.lib.format.dtype_to_descr(_layer_type(len(spectrum.values)))
  header = {'descr': kind, 'fortran_order': False, 'shape': ()}
  with whole(pathlib.Path(path)) as f:
    np.lib.format.write_array_header_2_0(f, header)
    for part in spectrum:
      f.write(np.ascontiguousarray(part).data)


def load(path: str | os.PathLike, moment: np.ndarray) -> Spectrum | None:
  """That of a layer's moment [F, F], on disk until used; None if it is not."""
  try:
    found = np.load(path, mmap_mode='r')
  except (OSError, ValueError, EOFError):
    return None
  if found.shape or found.dtype != _layer_type(len(moment)):
    return None
  spectrum = Spectrum(found['values'], found['vectors'])
  alike = np.isclose(spectrum.values.sum(), np.trace(moment), rtol=1e-4)
  return spectrum if alike and spectrum.vectors[-1].any() else None
