"""What the value engine runs: the tails of unfinished requests, packed."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jedit.models import transformer
from jedit.models.transformer import Layout, Model, Past
from jedit.room import round_up
from jedit.rows import Rows, advance, crop
from jedit.types import EditBatch, Params, with_kernel

Point = Literal['block', 'mlp', 'mlp+attention']
POINTS = 'block', 'mlp', 'mlp+attention'


class Lookup(NamedTuple):
  """Lookup tokens at the last site layer, [.., D]; None if not needed.

  Attributes:
    out: its output.
    mid: after its attention, where delta is added to the MLP's output.
    into: its input, where a second delta is added to the attention's.
  """

  out: jax.Array
  mid: jax.Array | None = None
  into: jax.Array | None = None


def enter_above(
  model: Model, params: Params, rows: Rows, batch: EditBatch, point: Point
) -> tuple[jax.Array, Past | tuple[Past, ...], Lookup]:
  """Runs all that no delta reaches, from the site's entrance to the top.

  Returns:
    (tails at the entrance of the layers above [B, R, S, D]; what precedes them
    there, of every row; the lookup tokens, [B, R, D] each).
  """
  count, per, long = batch.tail.shape
  wide = batch.head.shape[-1]
  keep = {
    'block': lambda t: (),
    'mlp': lambda t: (t.mid,),
    'mlp+attention': lambda t: (t.mid, t.x),
  }
  rows, kept = advance(model, params['site'], rows, keep[point])
  above = params['above']
  _, past = transformer.cache(model, above, rows.prefix, rows.prefix_at)
  x, at = crop(rows, batch, slice(None), slice(0, wide), batch.budget[0])
  _, past = transformer.cache(model, above, x, at, past)
  tails = transformer.to_grid(rows.x, rows.at)[:, wide:]
  pick = lambda x: transformer.take(x, rows.at.token[:, wide])
  parts = [rows.x, *(x[-1] for x in kept)]
  lookup = Lookup(*(pick(x).reshape(count, per, -1) for x in parts))
  return tails.reshape(count, per, long, -1), past, lookup


def values_of(lookup: Lookup) -> jax.Array:
  """What delta is added to, [.., 1 or 2, D]; the value v* comes first."""
  if lookup.mid is None:
    return lookup.out[..., None, :]
  parts = [lookup.out - lookup.mid]
  if lookup.into is not None:
    parts.append(lookup.mid - lookup.into)
  return jnp.stack(parts, axis=-2)


def moved(
  model: Model, params: Params, lookup: Lookup, delta: jax.Array
) -> jax.Array:
  """How the last site layer's output moves at the lookup tokens [W * R, D].

  Args:
    model: the network.
    params: split.
    lookup: [W * R, D].
    delta: [W, 1 or 2, D], as in values_of.
  """
  rows = lookup.out.shape[0] // delta.shape[0]
  delta = jnp.repeat(delta, rows, axis=0).astype(lookup.out.dtype)
  if lookup.into is None:
    return delta[:, 0]
  layer = jax.tree.map(lambda x: x[-1], params['site'])
  mid = lookup.mid + delta[:, 1]
  out = model.value(layer, mid, model.key(layer, lookup.into, mid))
  return out - lookup.out + delta[:, 0]


def value_before(
  model: Model,
  params: Params,
  rows: Rows,
  batch: EditBatch,
  kernel: jax.Array,
  point: Point,
) -> jax.Array:
  """The plain prompts' values [B, D], were the site's kernels `kernel`."""
  site, wide = with_kernel(params, kernel)['site'], batch.head.shape[-1]
  whole = slice(0, 1), slice(0, wide + 1)
  x, at = crop(rows, batch, *whole, batch.budget[2])
  x, mid = transformer.run(model, site, x, at, None, lambda t: t.mid)
  value = x if point == 'block' else x - mid[-1]
  return transformer.take(value, at.token[:, wide])


class Suffix(NamedTuple):
  """The tails of W requests, packed, with all a step needs.

  Attributes:
    x: [M, D], without delta, at the entrance of the layers above the site.
    at: their layout on the grid [W * R, S].
    past: leaves [layers, W * R, H, ..], of each segment above.
    row: [M], the row whose lookup token this is; W * R for the others.
    token: [Q + W], packed index of the scored tokens, the KL rows' last.
    label: [Q].
    weight: [Q], 1 / (contexts x target tokens); 0 where nothing is scored.
    fact: [Q].
    lookup: [W * R, D].
  """

  x: jax.Array
  at: Layout
  past: Past | tuple[Past, ...]
  row: jax.Array
  token: jax.Array
  label: jax.Array
  weight: jax.Array
  fact: jax.Array
  lookup: Lookup


def suffix(
  batch: EditBatch,
  tails: jax.Array,
  past: Past | tuple[Past, ...],
  positions: jax.Array,
  lookup: Lookup,
  pick: jax.Array | None,
  tokens: int,
  scored: int,
) -> Suffix:
  """Cuts a batch down to the requests `pick` [W].

  Args:
    batch: the whole batch.
    tails: [B, R, S, D].
    past: of all rows, leaves [layers, B * R, H, ..].
    positions: [B, R, S].
    lookup: [B, R, D].
    pick: the requests (B or more: none); None: all, which takes no copies.
    tokens: M.
    scored: Q.
  """
  count, rows, long = batch.tail.shape
  if pick is not None:
    count = pick.size
  some = lambda x: x if pick is None else transformer.take(x, pick)
  here = jnp.arange(long) < some(batch.tail_len)[..., None]
  at = transformer.layout(
    here.reshape(-1, long), some(positions).reshape(-1, long), tokens
  )
  first = at.slot % long == 0
  row = jnp.where(first, at.slot // long, count * rows)
  label = jnp.where(here, some(batch.label), -1)
  slot = jnp.nonzero(label.ravel() >= 0, size=scored, fill_value=label.size)[0]
  each = 1 / jnp.maximum((label >= 0).sum(-1, keepdims=True), 1) / (rows - 1)
  weight = jnp.broadcast_to(each, label.shape).ravel()
  last = at.token.reshape(count, rows, long)[:, -1, 0]
  token = at.token.ravel().at[slot].get(mode='fill', fill_value=tokens)

  def seen(past):
    if pick is None:
      return past
    kv = lambda x: (
      x.reshape(x.shape[0], -1, rows, *x.shape[2:])
      .at[:, pick]
      .get(mode='fill', fill_value=0)
      .reshape(x.shape[0], -1, *x.shape[2:])
    )
    mask = some(past.mask.reshape(-1, rows, past.mask.shape[-1]))
    return Past(kv(past.k), kv(past.v), mask.reshape(-1, mask.shape[-1]))

  return Suffix(
    transformer.from_grid(some(tails).reshape(-1, long, tails.shape[-1]), at),
    at,
    jax.tree.map(seen, past, is_leaf=lambda x: isinstance(x, Past)),
    row,
    jnp.concatenate([token, last]),
    transformer.take(label.ravel(), slot),
    transformer.take(weight, slot),
    slot // (rows * long),
    jax.tree.map(lambda x: some(x).reshape(-1, *x.shape[2:]), lookup),
  )


def stage_sizes(
  count: int, tokens: int, scored: int, shares: tuple[float, ...]
) -> list[tuple[int, int, int]]:
  """(requests, tail tokens, scored tokens) of each stage, shrinking."""
  cut = lambda n, f, step: min(n, round_up(int(n * f), step))
  sizes = (
    (cut(count, f, 1), cut(tokens, f, 64), cut(scored, f, 32)) for f in shares
  )
  return list(dict.fromkeys(sizes))  # a small batch has but one
