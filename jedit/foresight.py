"""What a stream of edits will meet, before anything is edited (AlphaEdit+).

Of every request, at every site layer of the unedited model, with P AlphaEdit's
projector, which splits a key: |P k|^2 = (1 - s(k, K_0)^2) |k|^2 (eq. 6):

    conflict with what is kept          s(k, K_0)
    conflict with earlier edits         s(k, K_p), eq. 3
    inconsistency                       |v* - W k|
    what AlphaEdit leaves of a residual
      of the request alone              ridge / (ridge + |P k|^2)     (Lemma 1)
      of all requests after all before  |R - K dW| a request     (Lemmas 2, 3)
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jedit import condition, values
from jedit.conflict import conflict
from jedit.models.transformer import Model
from jedit.rows import enter
from jedit.types import EditBatch, Params, SecondMoment, kernel_of
from jedit.walk import walk

_HIGHEST = jax.lax.Precision.HIGHEST


class Outlook(NamedTuple):
  """Of a stream of N batches; 0 where a batch is filled up.

  Attributes:
    preserved: [N, E, B], s(k, K_0).
    prior: [N, E, B], s(k, K_p) with the keys of all earlier batches.
    distance: [N, B], |v* - W k| at the last site layer.
    alone: [N, E, B], share of its residual that is left of a request alone.
    left: [N, E, B], share that is left in its place in the stream.
    batch_left: [N, E], |R - K dW| / |R|, EditReport's residual.
  """

  preserved: jax.Array
  prior: jax.Array
  distance: jax.Array
  alone: jax.Array
  left: jax.Array
  batch_left: jax.Array


def foresee(
  model: Model,
  params: Params,
  moment: SecondMoment,
  batches: EditBatch,
  optimise: values.Optimise,
  *,
  ridge: float = 10.0,
  threshold: float = 0.02,
  relative: bool = False,
) -> Outlook:
  """Looks at a whole stream, all of it against the unedited weights.

  Args:
    model: the network.
    params: split at the site.
    moment: second moments of the keys of the site layers.
    batches: [N, B, ...].
    optimise: the value engine.
    ridge: AlphaEdit's, as are the others.
    threshold: eigenvalues of C below it span the null space.
    relative: whether the threshold is a share of the largest eigenvalue.
  """
  root, _ = condition.null_space_prior(moment, ridge, threshold, relative)
  engine = optimise.init(params)
  layers = len(root)

  def look(params, batch):
    rows = enter(model, params, batch)
    targets = optimise.run(params, rows, batch, engine)

    def solve(prior, asked):
      keys = jnp.where(asked.valid[:, None], asked.keys, 0)
      away = jnp.where(asked.valid[:, None], asked.residuals, 0)
      zero = jnp.zeros(kernel_of(params).shape[1:])
      return zero, prior, {'keys': keys, 'away': away}

    nothing = jnp.zeros((layers, 0))
    notes = walk(
      model, params, rows, batch, targets, nothing, solve, 'full'
    )[3]  # fmt: skip
    return notes['keys'], notes['away'][0]

  def layer(away, root, keys):
    """Of one layer, keys [N, B, F]; what is missing, [N, B, D]."""
    count, size, width = keys.shape
    order = jnp.arange(count * size) // size

    def batch(root, xs):
      index, k, r = xs
      earlier = keys.reshape(-1, width) * (order < index)[:, None]
      seen = ridge * jnp.sum(jnp.matmul(k, base, precision=_HIGHEST) ** 2, -1)
      whole = jnp.maximum(jnp.sum(k * k, -1), 1e-30)
      there = jnp.any(k != 0, -1)
      delta, root = condition.condition(root, k, r, jnp.ones(size))
      rest = r - jnp.matmul(k, delta, precision=_HIGHEST)
      norm = lambda x: jnp.linalg.norm(x, axis=-1)
      return root, (
        jnp.where(there, jnp.sqrt(jnp.clip(1 - seen / whole, 0, 1)), 0),
        conflict(k, earlier),
        jnp.where(there, ridge / (ridge + seen), 0),
        norm(rest) / jnp.maximum(norm(r), 1e-30),
        jnp.linalg.norm(rest) / jnp.maximum(jnp.linalg.norm(r), 1e-30),
      )

    base = root
    return jax.lax.scan(batch, root, (jnp.arange(count), keys, away))[1]

  def run(params, root, batches):
    keys, away = jax.lax.map(functools.partial(look, params), batches)
    out = jax.lax.map(lambda xs: layer(away, *xs), (root, keys.swapaxes(0, 1)))
    preserved, prior, alone, left, total = (x.swapaxes(0, 1) for x in out)
    distance = jnp.linalg.norm(away, axis=-1)
    return Outlook(preserved, prior, distance, alone, left, total)

  return jax.jit(run)(params, root, batches)
