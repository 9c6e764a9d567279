"""A growing orthonormal basis a layer: the directions that keys have taken."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jedit.parts import each_layer

_FLOOR = 1e-4  # of |K|; the singular values below are rounding


class Directions(NamedTuple):
  """Bases of the layers.

  Attributes:
    basis: float32 [E, F, capacity], orthonormal columns, then zeros.
    used: int32 [E], the columns that are not zero.
  """

  basis: jax.Array
  used: jax.Array


def none(layers: int, width: int, capacity: int) -> Directions:
  """No direction yet."""
  basis = jnp.zeros((layers, width, capacity))
  return Directions(basis, jnp.zeros(layers, jnp.int32))


def extend(
  known: Directions, keys: Float[Array, 'E M F'], energy: float
) -> Directions:
  """Adds the largest directions of keys that are not explained yet.

    K - K B B' = U S V',    B+ = [B v_1 ... v_n],
    n the least with |K - K B+ B+'|^2 <= (1 - energy) |K|^2

  Args:
    known: B. What no longer fits in it is dropped, the smallest first.
    keys: K; zero rows are inert.
    energy: share of the squared norm of K that is to be explained.
  """

  def one(basis, used, k):
    mm = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    off = lambda x: x - mm(mm(x, basis), basis.T)
    _, size, rows = jnp.linalg.svd(off(k), full_matrices=False)
    left = jnp.cumsum(size[::-1] ** 2)[::-1]  # unless this one enters
    total = jnp.sum(k**2)
    enters = (left > (1 - energy) * total) & (size > _FLOOR * jnp.sqrt(total))
    rows = off(rows)  # the small ones have kept some rounding of K
    rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    capacity = basis.shape[1]
    at = jnp.where(enters, used + jnp.arange(size.size), capacity)
    basis = basis.at[:, at].set(rows.T, mode='drop')
    return basis, jnp.minimum(used + enters.sum(), capacity)

  return Directions(*each_layer(one, *known, keys))
