"""The walk of the site: keys, residual and dW, layer after layer.

For each site layer, in order, with the earlier ones already edited: keys of
all requests, residual R = (v* - h) / left with h the current value at the last
site layer, and dW from a solver. A layer's keys depend only on the layers
before it, so each is taken once, when it is final.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jedit import sharding
from jedit.models import transformer
from jedit.models.transformer import Model
from jedit.parts import Whole
from jedit.rows import Rows, advance, context_weights, crop
from jedit.types import EditBatch, Params, Targets, apply_updates
from jedit.validate import enter_held, score

_DIVISOR = {
  'left': lambda left: left,
  'sqrt': jnp.sqrt,
  'full': jnp.ones_like,
}


class Asked(NamedTuple):
  """What is asked of one site layer.

  Attributes:
    keys: [B, F], averaged over the contexts; zero for padding.
    plain_keys: [B, F], of the prompts without context.
    residuals: [B, D], what this layer is to add to the values.
    distance: [B], |v* - h|, all that is still missing.
    valid: [B].
    layer: int32 [], counted from 0 at the first site layer.
    score: dW [F, D] -> validate.Score of the model with it; None if the batch
      has no rows to validate with.
  """

  keys: Float[Array, 'B F']
  plain_keys: Float[Array, 'B F']
  residuals: Float[Array, 'B D']
  distance: Float[Array, 'B']
  valid: Bool[Array, 'B']
  layer: jax.Array
  score: Callable | None


def _changed(layer: Params, delta: jax.Array) -> Params:
  """A layer whose down-projection has got dW."""
  return apply_updates(layer, {'mlp': {'down': {'kernel': delta}}})


# solve(prior of the layer, Asked) -> (dW, posterior, {name: what it did})
Solve = Callable[[Any, Asked], tuple[jax.Array, Any, dict[str, jax.Array]]]


def walk(
  model: Model,
  params: Params,
  rows: Rows,
  batch: EditBatch,
  targets: Targets,
  prior: Any,
  solve: Solve,
  spread: str = 'left',
  plain_weight: float | None = 0.5,
  whole: Whole = Whole(),
):
  """Layer after layer: (dW [E, F, D], posterior, residuals [E], notes).

  `batch`, `rows` and `targets` may be a part of what is solved together; what a
  layer is asked for, and all that comes out, is of the whole.
  """
  divisor = _DIVISOR[spread]
  site, wide = params['site'], batch.head.shape[-1]
  count, per = batch.tail.shape[:2]
  contexts = per - 1
  layers = site['mlp']['down']['kernel'].shape[0]
  heads, plains = batch.budget[0] + count * contexts, batch.budget[2]
  to_lookup = slice(0, wide + 1)
  x, walk = crop(rows, batch, slice(0, contexts), to_lookup, heads)
  _, plain = crop(rows, batch, slice(0, 1), to_lookup, plains)
  lookup = walk.token[:, wide].reshape(count, contexts)
  plain_lookup = plain.token[:, wide]
  share = context_weights(contexts, plain_weight)
  unseen, held = None, None
  if batch.validation is not None:
    unseen, held = enter_held(model, params, batch.validation, whole)

  def block(layer, x, at, past=None):
    attend = transformer.attention(at, x.shape[0], past)
    return model.address(layer, x, at.positions, attend)

  def rest(first, x, at):
    """(x after the site, after its last attention) from layer `first` on."""

    def body(i, xs):
      layer = jax.tree.map(lambda a: a[i], site)
      mid, key, _ = block(layer, xs[0], at)
      return model.value(layer, mid, key), mid

    return jax.lax.fori_loop(first, layers, body, (x, x))

  def current(index, x):
    """The plain rows' value, with x at the entrance of layer `index`."""
    grid = transformer.to_grid(x, walk)
    x = transformer.from_grid(grid[::contexts], plain)
    x, mid = rest(index, x, plain)
    value = x if targets.point == 'block' else x - mid
    return transformer.take(value, plain_lookup).astype(jnp.float32)

  def validator(layer, index, unseen):
    """dW -> validation rows behind the layer; dW -> their Score."""

    def through(layer, rows):
      return advance(model, jax.tree.map(lambda a: a[None], layer), rows)[0]

    def onward(i, rows):
      return through(jax.tree.map(lambda a: a[i], site), rows)

    behind = lambda delta: through(_changed(layer, delta), unseen)
    end = lambda delta: jax.lax.fori_loop(
      index + 1, layers, onward, behind(delta)
    )
    return behind, lambda delta: score(model, params, end(delta), held, whole)

  def step(carry, xs):
    x, before, unseen = carry
    layer, prior, index = xs
    missing = targets.value - current(index, x)
    wrong = missing / divisor((layers - index).astype(jnp.float32))
    before_mid, before_key, kv = block(layer, before, rows.prefix_at)
    past = transformer.as_past(kv, rows.prefix_at)
    past = jax.tree.map(lambda a: a[:contexts], past)
    mid, key, _ = block(layer, x, walk, past)
    every = transformer.take(key, lookup).astype(jnp.float32)
    keys = jnp.einsum('bcf,c->bf', every, share)
    behind, scored = None, None
    if held is not None:
      behind, scored = validator(layer, index, unseen)
    distance = jnp.linalg.norm(missing, axis=-1)
    of_all = keys, every[:, 0], wrong, distance, batch.valid
    asked = Asked(*map(whole.gather, of_all), index, scored)
    by_rows = lambda prior: sharding.by_rows(prior, keys.shape[1])
    delta, prior, notes = solve(by_rows(prior), asked)
    delta, prior = sharding.constrain(delta, 'model', None), by_rows(prior)
    layer = _changed(layer, delta)
    wrote = sharding.constrain(asked.keys, None, 'model') @ delta
    missed = jnp.linalg.norm(asked.residuals - wrote)
    residual = missed / jnp.maximum(jnp.linalg.norm(asked.residuals), 1e-30)
    before = model.value(layer, before_mid, before_key)
    unseen = behind(delta) if behind else None
    carry = model.value(layer, mid, key), before, unseen
    return carry, (delta, prior, residual, notes)

  xs = (site, prior, jnp.arange(layers))
  _, out = jax.lax.scan(step, (x, rows.prefix, unseen), xs)
  return out
