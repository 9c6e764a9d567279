"""The body shared by the closed-form editors: targets, then a walk of the site.

For each site layer, in order, with the earlier ones already edited: keys of
all requests, residual R = (v* - h) / left with h the current value at the last
site layer, and dW from condition.py. A layer's keys depend only on the layers
before it, so each is taken once, when it is final.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jedit import values
from jedit.condition import condition
from jedit.models import transformer
from jedit.models.transformer import Model
from jedit.rows import crop, enter
from jedit.types import (
  EditBatch,
  Editor,
  EditReport,
  EditState,
  Params,
  apply_updates,
)

_DIVISOR = {
  'left': lambda left: left,
  'sqrt': jnp.sqrt,
  'full': jnp.ones_like,
}


def least_squares(
  model: Model,
  root: Float[Array | np.ndarray, 'E F r'],
  *,
  noise: float | Callable[[jax.Array], jax.Array],
  remember: bool,
  optimise: values.Optimise,
  spread: Literal['left', 'sqrt', 'full'] = 'left',
  plain_weight: float | None = 0.5,
  mixed_keys: bool = False,
) -> Editor:
  """Editor that conditions a Gaussian prior on each batch's keys and residuals.

  Args:
    model: the network; params must be split at the site.
    root: square root of the prior covariance of each site layer.
    noise: variance nu of every observation, or a function of the number of
      facts in the batch.
    remember: keep the posterior as the prior of the next batch.
    optimise: the value engine (values.optimiser).
    spread: the residual of a layer is R / left, R / sqrt(left) or all of R,
      "left" counting the site layers still to come, this one included.
    plain_weight: weight of the plain prompt in a key; the other contexts share
      the rest (1/2 in all published code of the MEMIT family). None weighs all
      alike.
    mixed_keys: scale each residual so that the plain prompt's key, not the
      mean, is what the fact's own update gives all of it (ROME as published).

  Returns:
    optax transformation: update(batch, state, params) gives
    {'site': {'mlp': {'down': {'kernel': dW [E, F, D]}}}} and an EditState.
  """

  def init(params):
    layers = root.shape[0]
    kernel = params['site']['mlp']['down']['kernel']
    if root.shape[:2] != kernel.shape[:2]:
      raise ValueError(
        f'the prior is for keys {root.shape[:2]}, the site has '
        f'{kernel.shape[:2]}: make the second moments of these layers'
      )
    zero = jnp.zeros((), jnp.int32)
    report = EditReport(zero, zero, zero, jnp.zeros(()), jnp.zeros(layers))
    engine = optimise.init(params)
    return EditState(jnp.asarray(root, jnp.float32), zero, engine, report)

  def update(batch: EditBatch, state: EditState, params: Params):
    rows = enter(model, params, batch)
    targets = optimise.run(params, rows, batch, state.engine)
    delta, posterior, residual = _walk(
      model,
      params['site'],
      rows,
      batch,
      targets,
      state.root,
      noise(batch.valid.sum()) if callable(noise) else noise,
      _DIVISOR[spread],
      plain_weight,
      mixed_keys,
    )
    facts = batch.valid.sum()
    report = EditReport(
      facts,
      targets.reached.sum(),
      targets.steps.sum(),
      jnp.sum(targets.loss * batch.valid) / jnp.maximum(facts, 1),
      residual,
    )
    new = state._replace(
      root=posterior if remember else state.root,
      count=state.count + facts,
      report=report,
    )
    return {'site': {'mlp': {'down': {'kernel': delta}}}}, new

  return optax.GradientTransformation(init, update)


def _walk(
  model, site, rows, batch, targets, roots, noise, divisor, plain_weight, mixed
):
  """Edits layer after layer; returns (dW [E, F, D], roots, residuals [E])."""
  wide = batch.head.shape[-1]
  count, per = batch.tail.shape[:2]
  contexts = per - 1
  layers = roots.shape[0]
  heads, plains = batch.budget[0] + count * contexts, batch.budget[2]
  to_lookup = slice(0, wide + 1)
  x, walk = crop(rows, batch, slice(0, contexts), to_lookup, heads)
  _, plain = crop(rows, batch, slice(0, 1), to_lookup, plains)
  lookup = walk.token[:, wide].reshape(count, contexts)
  plain_lookup = plain.token[:, wide]
  if plain_weight is None:
    plain_weight = 1 / contexts
  other = (1 - plain_weight) / max(contexts - 1, 1)
  share = jnp.full(contexts, other).at[0].set(plain_weight)
  share = share / share.sum()
  noises = jnp.where(batch.valid, noise, 1.0)

  def block(layer, x, at, past=None):
    attend = transformer.attention(at, x.shape[0], past)
    return model.address(layer, x, at.positions, attend)

  def rest(first, x):
    """The plain rows' value at the last site layer, from layer `first` on."""

    def body(i, xs):
      layer = jax.tree.map(lambda a: a[i], site)
      mid, key, _ = block(layer, xs[0], plain)
      return model.value(layer, mid, key), mid

    x, mid = jax.lax.fori_loop(first, layers, body, (x, x))
    value = x if targets.point == 'block' else x - mid
    return transformer.take(value, plain_lookup)

  def step(carry, xs):
    x, before = carry
    layer, root, index = xs
    grid = transformer.to_grid(x, walk)
    start = transformer.from_grid(grid[::contexts], plain)
    wrong = targets.value - rest(index, start).astype(jnp.float32)
    wrong = wrong / divisor((layers - index).astype(jnp.float32))
    before_mid, before_key, kv = block(layer, before, rows.prefix_at)
    past = transformer.as_past(kv, rows.prefix_at)
    past = jax.tree.map(lambda a: a[:contexts], past)
    mid, key, _ = block(layer, x, walk, past)
    every = transformer.take(key, lookup).astype(jnp.float32)
    keys = jnp.einsum('bcf,c->bf', every, share)
    if mixed:
      mean, plain_key = keys @ root, every[:, 0] @ root
      ratio = jnp.sum(mean * mean, -1) / jnp.sum(mean * plain_key, -1)
      wrong *= jnp.where(batch.valid, ratio, 0.0)[:, None]
    delta, root = condition(root, keys, wrong, noises)
    layer = apply_updates(layer, {'mlp': {'down': {'kernel': delta}}})
    missed = jnp.linalg.norm(wrong - keys @ delta)
    residual = missed / jnp.maximum(jnp.linalg.norm(wrong), 1e-30)
    before = model.value(layer, before_mid, before_key)
    return (model.value(layer, mid, key), before), (delta, root, residual)

  xs = (site, roots, jnp.arange(layers))
  _, out = jax.lax.scan(step, (x, rows.prefix), xs)
  return out
