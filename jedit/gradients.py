"""What one forward and one backward pass leave at the site.

The gradient of a down-projection is a sum over tokens of key x gradient at its
output. Both factors are given out, unsummed: editors that learn from gradients
(UltraEdit, MEND) work on them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jedit.models import transformer
from jedit.models.transformer import Model, take
from jedit.rows import enter, plain
from jedit.types import EditBatch, Params


class Factors(NamedTuple):
  """The two factors of the gradient of each site layer, a token a row.

  Attributes:
    key: float32 [E, M, F], inputs of the down-projection; zero if unused.
    grad: float32 [E, M, D], of the loss at its output; zero if unused.
    real: bool [M], rows that hold a token.
    loss: float32 [].
  """

  key: jax.Array
  grad: jax.Array
  real: jax.Array
  loss: jax.Array


class Normaliser(NamedTuple):
  """Mean and sum of squared deviations of each feature, [E, K], and tokens."""

  mean: jax.Array
  square: jax.Array
  count: jax.Array


def factors(
  model: Model,
  params: Params,
  batch: EditBatch,
  share: Callable[[jax.Array], jax.Array],
  targets_alone: bool,
) -> Factors:
  """Factors of the gradient of -log p of the targets after the plain prompts.

  Args:
    model: the network; params must be split at the site.
    params: as they are now.
    batch: its plain rows (row 0) are used.
    share: from the target tokens of each request, [B], to the weight of each
      of them in the loss, [B] or [].
    targets_alone: keep the tokens where a target's token is predicted, not all.
  """
  batch = plain(batch)
  rows = enter(model, params, batch)
  size = rows.x.shape[0]
  label = jnp.pad(
    batch.label[:, 0], ((0, 0), (batch.head.shape[-1], 0)), constant_values=-1
  )
  weight = jnp.broadcast_to(
    share((label >= 0).sum(1))[..., None], label.shape
  ).ravel()
  slot = jnp.nonzero(
    label.ravel() >= 0, size=batch.budget[3], fill_value=label.size
  )[0]
  token = rows.at.token.ravel()
  token = token.at[slot].get(mode='fill', fill_value=size)
  kept = token if targets_alone else jnp.arange(size)
  real = (slot if targets_alone else rows.at.slot) < label.size

  def value(layer, mid, key):
    out = model.value(layer, mid, key)
    return out.at[kept].add(layer['nudge'].astype(out.dtype), mode='drop')

  def loss(nudge):
    """As it is with `nudge` [E, M, D], which is zero, added to the outputs."""
    x, keys = transformer.run(
      model._replace(value=value),
      {**params['site'], 'nudge': nudge},
      rows.x,
      rows.at,
      keep=lambda trace: take(trace.key, kept).astype(jnp.float32),
    )
    x, _ = transformer.run(model, params['above'], x, rows.at)
    nll = optax.softmax_cross_entropy_with_integer_labels(
      model.logits(params, take(x, token)), take(label.ravel(), slot)
    )
    return jnp.sum(nll * take(weight, slot)), keys

  layers, _, width = params['site']['mlp']['down']['kernel'].shape
  zero = jnp.zeros((layers, kept.size, width))
  (mean, key), grad = jax.value_and_grad(loss, has_aux=True)(zero)
  mask = lambda a: jnp.where(real[:, None], a, 0)
  return Factors(mask(key), mask(grad), real, mean)


def merge(
  old: Normaliser, x: Float[Array, 'E M K'], real: Bool[Array, 'M']
) -> Normaliser:
  """The Normaliser of all that was seen before and of the real rows of x.

  With n, m, S and those of x, n', m', S' (Chan, Golub, LeVeque 1979):

      m + (m' - m) n' / (n + n')      S + S' + (m' - m)^2 n n' / (n + n')
  """
  new = real.sum()
  total = jnp.maximum(old.count + new, 1)
  mask = real[:, None]
  mean = jnp.sum(x, axis=1, where=mask) / jnp.maximum(new, 1)
  square = jnp.sum((x - mean[:, None]) ** 2, axis=1, where=mask)
  apart = jnp.where(new > 0, mean - old.mean, 0)
  return Normaliser(
    old.mean + apart * new / total,
    old.square + square + apart**2 * old.count * new / total,
    old.count + new,
  )


def normalise(seen: Normaliser, x: Float[Array, 'E M K']) -> jax.Array:
  """x less its mean, over its deviation; 0 where a feature never varied."""
  deviation = jnp.sqrt(seen.square / jnp.maximum(seen.count - 1, 1))[:, None]
  zero = deviation == 0
  return jnp.where(
    zero, 0, (x - seen.mean[:, None]) / jnp.where(zero, 1, deviation)
  )
