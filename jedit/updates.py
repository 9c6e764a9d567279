"""Transformations of dW for optax.chain, each working with every editor.

  optax.chain(jedit.alphaedit(model, moment), updates.keep_largest(0.4))

They see the change that an editor proposes, leaves [E, F, D], and the params it
is meant for; every edited matrix is treated by itself.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jedit.parts import each_layer
from jedit.types import JeditError, Params, as_updates, kernel_of

__all__ = [
  'clamp_singular',
  'drop_random',
  'fuse',
  'keep_largest',
  'keep_top',
]
_HIGHEST = jax.lax.Precision.HIGHEST


def _matched(updates: Params, params: Params) -> Params:
  """The params that `updates`, a sub-tree of them, changes."""
  return {
    name: _matched(update, params[name])
    if isinstance(update, dict)
    else params[name]
    for name, update in updates.items()
  }


def _largest(size: Float[Array, 'N'], keep: float) -> Bool[Array, 'N']:
  """Where the largest share `keep` of the entries is, ties included."""
  cut = size.size - max(round(keep * size.size), 1)
  return size >= jnp.sort(size)[cut]


def _check(keep: float) -> None:
  if not 0 < keep <= 1:
    raise JeditError(f'keep={keep}: a share above 0, at most 1')


def _keep(keep: float, measure) -> optax.GradientTransformation:
  """Keeps the entries of each matrix with the largest measure(dW, W)."""
  _check(keep)

  def one(delta, weight):
    mask = _largest(measure(delta, weight).ravel(), keep)
    return jnp.where(mask.reshape(delta.shape), delta, 0)

  def update(updates, state, params):
    return jax.tree.map(
      jax.vmap(one), updates, _matched(updates, params)
    ), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def keep_largest(
  keep: float = 0.4, epsilon: float = 1e-8
) -> optax.GradientTransformation:
  """Keeps the entries that change most relative to the weight: |dW / W|.

  Args:
    keep: share of the entries of each matrix that stay; 0.4 in AlphaEdit's
      repository, 0.2 in RECT's own.
    epsilon: added to W.

  References:
    RECT: Gu et al., Model Editing Harms General Abilities of Large Language
    Models: Regularization to the Rescue, EMNLP 2024.
  """
  return _keep(keep, lambda d, w: jnp.abs(d / (w + epsilon)))


def keep_top(keep: float = 0.2) -> optax.GradientTransformation:
  """Keeps the largest entries of dW: Top-k%, a baseline of AdaEdit's."""
  return _keep(keep, lambda d, _: jnp.abs(d))


class DropState(NamedTuple):
  """The PRNG key of the next draw."""

  key: jax.Array


def drop_random(
  keep: float = 0.2, seed: int = 0
) -> optax.GradientTransformation:
  """Keeps each entry with probability `keep` (DR, a baseline of AdaEdit's).

  What stays is not scaled up.
  """
  _check(keep)

  def init(params):
    del params
    return DropState(jax.random.PRNGKey(seed))

  def update(updates, state, params=None):
    del params
    key, new = jax.random.split(state.key)
    leaves, tree = jax.tree.flatten(updates)
    keys = jax.random.split(key, len(leaves))
    stay = lambda k, x: jnp.where(jax.random.bernoulli(k, keep, x.shape), x, 0)
    leaves = [stay(k, x) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, leaves), DropState(new)

  return optax.GradientTransformation(init, update)


class ClampState(NamedTuple):
  """The limit of each matrix, and its changes since init.

  Attributes:
    limit: [E], largest singular value of the base weights.
    asked: [E, F, D], sum of the changes that came in.
    given: [E, F, D], sum of those that went out.
  """

  limit: jax.Array
  asked: jax.Array
  given: jax.Array


def _right(x: Float[Array, 'F D']) -> tuple[jax.Array, jax.Array]:
  """Squared singular values [D] of x, ascending, and right vectors [D, D]."""
  gram = jnp.matmul(x.T, x, precision=_HIGHEST)
  return jnp.linalg.eigh(gram)


def clamp_singular() -> optax.GradientTransformation:
  """Restrains the singular values of the whole change since init.

  Singular values s of the sum of all changes that are above the largest one t
  of the base weights become log s - log t + t (PRUNE; for t below 1 this raises
  those just above t). What goes out at each step is what brings the weights
  there, so it must be the last of a chain. init(params) takes params as the
  base weights; to restrain the change once, at the end, give it in one update.

  Only values above t move, so D x D eigenvectors are enough.

  References:
    Ma et al., Perturbation-Restrained Sequential Model Editing, ICLR 2025.
  """

  def one(x, limit):
    squares, vectors = _right(x)
    size = jnp.sqrt(jnp.maximum(squares, limit**2))
    share = (jnp.log(size) - jnp.log(limit) + limit) / size - 1
    share = jnp.where(squares > limit**2, share, 0.0)
    mm = lambda a, b: jnp.matmul(a, b, precision=_HIGHEST)
    return x + mm(mm(x, vectors * share), vectors.T)

  def init(params):
    kernel = kernel_of(params)
    largest = each_layer(lambda w: jnp.sqrt(_right(w)[0][-1]), kernel)
    zeros = jnp.zeros_like(kernel)
    return ClampState(largest, zeros, zeros)

  def update(updates, state, params=None):
    del params
    change = kernel_of(updates)
    asked = state.asked + change
    total = each_layer(one, asked, state.limit)
    total = jnp.where(jnp.any(change != 0), total, state.given)
    updates = as_updates(total - state.given)
    return updates, ClampState(state.limit, asked, total)

  return optax.GradientTransformation(init, update)


def fuse(
  rank: int = 100, keep: float = 0.2, size: int = 0
) -> optax.GradientTransformation:
  """Structured representation fusion: sparse singular vectors of dW.

  dW = sum_i s_i u_i v_i'; the `rank` largest stay; in each u_i and v_i the
  share `keep` of the entries largest in magnitude stays, scaled to the former
  norm. The paper states neither number; of the entries it finds 80 % redundant.

  Args:
    rank: singular vectors that stay; more than there are do no harm.
    keep: share of entries that stay in each.
    size: an upper bound of the rank of dW: the facts in a batch; 0 is `rank`.
      The singular vectors come from two thin QRs of that many columns and eight
      more (a random range, exact for a matrix of at most this rank). Behind a
      transformation that masks entries there is no such bound.

  References:
    AdaEdit, eqs. 2-4 (SRFusion).
  """
  _check(keep)
  size = size or rank
  if not 1 <= rank <= size:
    raise JeditError(f'rank={rank}: from 1 to size={size}')

  def sparse(x):
    """x [n, r], each column thinned out and scaled back."""
    mask = jax.vmap(lambda c: _largest(c, keep), 1, 1)(jnp.abs(x))
    kept = jnp.where(mask, x, 0)
    norm = lambda y: jnp.linalg.norm(y, axis=0)
    return kept * (norm(x) / jnp.maximum(norm(kept), 1e-30))

  def one(x):
    mm = lambda a, b: jnp.matmul(a, b, precision=_HIGHEST)
    probe = jax.random.normal(
      jax.random.PRNGKey(0), (x.shape[1], min(size + 8, *x.shape)), x.dtype
    )
    left, _ = jnp.linalg.qr(mm(x, probe))
    right, core = jnp.linalg.qr(mm(x.T, left))  # x = left core' right'
    u, s, vt = jnp.linalg.svd(core.T, full_matrices=False)
    u, v = mm(left, u)[:, :rank], mm(right, vt.T)[:, :rank]
    return mm(sparse(u) * s[:rank], sparse(v).T)

  def update(updates, state, params=None):
    del params
    return jax.tree.map(lambda x: each_layer(one, x), updates), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
