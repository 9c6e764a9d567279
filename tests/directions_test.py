"""The growing basis against NumPy's SVD, a column at a time."""

import jax
import numpy as np

from jedit.editors import directions


def grown(basis, keys, energy, capacity):
  """The columns of `directions.extend` for one layer, one at a time."""
  _, size, rows = np.linalg.svd(keys - keys @ basis @ basis.T)
  for s, row in zip(size, rows, strict=False):
    left = np.linalg.norm(keys - keys @ basis @ basis.T) ** 2
    enough = left <= (1 - energy) * np.linalg.norm(keys) ** 2
    if enough or s < 1e-4 * np.linalg.norm(keys) or basis.shape[1] == capacity:
      break
    basis = np.column_stack([basis, row])
  return basis


def test_directions():
  """A share of the energy, all of it, little new, and a full cache."""
  rng = np.random.default_rng(0)
  extend = jax.jit(directions.extend, static_argnums=2)
  known, want = directions.none(2, 40, 16), [np.zeros((40, 0))] * 2
  sizes = []
  for rank, energy, old in (
    (6, 0.95, 0), (6, 0.95, 0), (4, 1.0, 0), (0, 1.0, 9), (2, 1.0, 999),
    (9, 1.0, 0),
  ):  # fmt: skip
    keys = rng.normal(size=(2, 30, rank)) * 0.7 ** np.arange(rank)
    keys = keys @ rng.normal(size=(2, rank, 40))
    keys += old * rng.normal(size=(2, 30, 16)) @ np.asarray(known.basis).mT
    keys[:, 20:] = 0  # places that hold no token
    known = extend(known, np.float32(keys), energy)
    want = [grown(b, k, energy, 16) for b, k in zip(want, keys, strict=True)]
    sizes.append(known.used.tolist())
    for basis, used, b in zip(*map(np.asarray, known), want, strict=True):
      assert used == b.shape[1]
      eye = np.diag(np.arange(16.0) < used)
      np.testing.assert_allclose(basis.T @ basis, eye, atol=1e-5)
      np.testing.assert_allclose(basis @ basis.T, b @ b.T, atol=1e-3)
  assert 0 < sizes[0][0] < 6 and sizes[1][0] < 12
  assert sizes[2] == sizes[3] and max(sizes[4]) < 16 and sizes[5] == [16, 16]
