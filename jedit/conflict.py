"""The parts of AlphaEdit+: what contradicts what, and what is done about it.

Conflict between keys (eq. 3), the search for directions of the spectrum that
the null space gives back (section 3.2, stage 1), the requests whose residuals
are smoothed (appendix A.3) and by how much (stage 2).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_HIGHEST = jax.lax.Precision.HIGHEST


def conflict(
  keys: Float[Array, 'A F'], others: Float[Array, 'B F']
) -> Float[Array, 'A']:
  """s(k, K) = max over k' in K of |cos(k, k')|, in [0, 1]; zero keys give 0."""
  unit = lambda x: (
    x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-30)
  )
  product = jnp.matmul(unit(keys), unit(others).T, precision=_HIGHEST)
  return jnp.clip(jnp.abs(product).max(axis=1, initial=0.0), 0, 1)


def widen(
  rows: Float[Array, 'N F'],
  goals: Float[Array, 'N D'],
  width: jax.Array,
  ridge: float,
  gain: float,
  group: int,
) -> jax.Array:
  """Greedy search along the spectrum for a larger span of dW: its width.

  With dW in the span of the first m eigenvectors (smallest eigenvalues first)
  the least of |A dW - R|^2 + ridge |dW|^2 is tr(R' S^-1 R), where

      S = I + Z_m Z_m' / ridge,    Z = A U.

  A vector more is a rank-1 update of S^-1 [N, N]. The vectors of a block are
  decided together: the Cholesky factor of their update, ridge I + Z' S^-1 Z,
  has row by row what each adds to those before it. Groups are taken as long as
  each lowers the objective by a share of more than `gain`.

  Args:
    rows: Z, observed keys in the eigenbasis, ascending; zero rows are inert.
    goals: R, zero for prior keys.
    width: m at the start, the null space.
    ridge: the regulariser.
    gain: least share by which a group lowers the objective.
    group: vectors a step of the search.
  """
  count, size = rows.shape
  many = max(1, 64 // group)  # groups a block
  block = many * group
  mm = lambda a, b: jnp.matmul(a, b, precision=_HIGHEST)
  first = rows * (jnp.arange(size) < width)
  start = jnp.eye(count) + mm(first, first.T) / ridge
  inverse = jax.scipy.linalg.cho_solve(
    (jnp.linalg.cholesky(start), True), jnp.eye(count)
  )
  rows = jnp.pad(rows, ((0, 0), (0, block)))

  def step(carry):
    z = jax.lax.dynamic_slice(rows, (0, carry['width']), (count, block))
    u = mm(carry['inverse'], z)
    lower = jnp.linalg.cholesky(ridge * jnp.eye(block) + mm(z.T, u))
    each = jax.scipy.linalg.solve_triangular(lower, u.T, lower=True)
    less = jnp.sum(mm(each, goals) ** 2, axis=1).reshape(many, group).sum(1)
    before = carry['objective'] - jnp.cumsum(less) + less
    take = less > gain * before
    take &= carry['width'] + group * jnp.arange(1, many + 1) <= size
    taken = jnp.cumprod(take).sum()
    return {
      'go': taken == many,
      'width': carry['width'] + group * taken,
      'objective': carry['objective'] - less.sum(),
      'inverse': carry['inverse'] - mm(each.T, each),
    }

  end = jax.lax.while_loop(
    lambda carry: carry['go'],
    step,
    {
      'go': jnp.array(True),
      'width': jnp.asarray(width, jnp.int32),
      'objective': jnp.sum(goals * mm(inverse, goals)),
      'inverse': inverse,
    },
  )
  return end['width']


def furthest(
  distance: Float[Array, 'B'], valid: Bool[Array, 'B'], tau: float, top: float
) -> Bool[Array, 'B']:
  """Requests further than tau from their targets, or, if 0, the `top` share."""
  distance = jnp.where(valid, distance, -1.0)
  if tau:
    return distance > tau
  count = jnp.round(top * valid.sum()).astype(int)
  limit = jnp.sort(distance)[::-1][jnp.maximum(count - 1, 0)]
  return valid & (count > 0) & (distance >= limit)


def pick_smoothing(
  score: Callable[[jax.Array], jax.Array],
  steps: int,
  exhaustive: bool,
  any_hard: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """The t in 0 .. T whose beta(t) = (T - t) / 2T scores best.

  Args:
    score: of the change smoothed by a share beta.
    steps: T.
    exhaustive: try all, of equals the least t; else go from T (nothing is
      smoothed) downwards as long as the score rises.
    any_hard: whether there is anything to smooth.

  Returns:
    (t, candidates tried); (T, 0) if there is nothing to smooth.
  """
  first, way = (0, 1) if exhaustive else (steps, -1)

  def more(c):
    return (c['tried'] <= steps) & (exhaustive | c['rose'])

  def step(c):
    t = first + way * c['tried']
    now = score((steps - t) / (2 * steps))
    rose = now > c['best']
    return {
      'tried': c['tried'] + 1,
      'rose': rose,
      'best': jnp.where(rose, now, c['best']),
      'chosen': jnp.where(rose, t, c['chosen']),
    }

  end = jax.lax.while_loop(
    more,
    step,
    {
      'tried': jnp.where(any_hard, 0, steps + 1),
      'rose': jnp.array(True),
      'best': jnp.array(-1.0),
      'chosen': jnp.array(steps),
    },
  )
  return end['chosen'], jnp.where(any_hard, end['tried'], 0)
