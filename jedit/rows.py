"""A batch's token rows at the entrance of a segment, all of them or a part."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jedit import sharding
from jedit.models import transformer
from jedit.models.transformer import Layout, Model, Trace
from jedit.types import EditBatch, Params


class Rows(NamedTuple):
  """Hidden states of a batch at the entrance of a segment.

  Attributes:
    prefix: [R * C, D], the contexts, packed.
    prefix_at: their layout on the grid [R, C].
    x: [M, D], all that follows them, packed: heads and tails.
    at: their layout on the grid [B * R, P + S].
    mask: bool [B * R, P + S], slots that hold a token.
    positions: int32 [B * R, P + S].
  """

  prefix: jax.Array
  prefix_at: Layout
  x: jax.Array
  at: Layout
  mask: jax.Array
  positions: jax.Array


def plain(batch: EditBatch) -> EditBatch:
  """The batch's plain rows (row 0) alone, with room for them alone."""
  per = batch.tail.shape[1]
  plains, scored = batch.budget[2:]
  # Every row but the KL row scores the same target.
  budget = plains, 0, plains, -(-scored // (per - 1))
  first = lambda a: a[:, :1]
  return EditBatch(
    batch.prefix[:1, :1],
    batch.prefix_len[:1],
    *map(first, (batch.head, batch.head_len, batch.tail, batch.tail_len)),
    first(batch.label),
    batch.valid,
    budget,
  )


def context_weights(
  contexts: int, plain_weight: float | None = 0.5
) -> Float[Array, ' contexts']:
  """Share of each context in a request's key; the first, plain, is none.

  They sum to 1; plain_weight None: all are alike.
  """
  if plain_weight is None:
    plain_weight = 1 / contexts
  other = (1 - plain_weight) / max(contexts - 1, 1)
  share = jnp.full(contexts, other).at[0].set(plain_weight)
  return share / share.sum()


def enter(model: Model, params: Params, batch: EditBatch) -> Rows:
  """Runs up to the site, once a batch: nothing there is ever edited."""

  def embed(tokens, mask, positions, size):
    at = transformer.layout(mask, positions, size)
    tokens = transformer.take(tokens.ravel(), at.slot)
    x = model.embed(params, tokens, at.positions)
    return sharding.constrain(x, None, None), at

  count, per, wide = batch.head.shape
  slots = jnp.arange(batch.prefix.shape[-1])[None]
  prefix, prefix_at = embed(
    batch.prefix,
    slots < batch.prefix_len[:, None],
    jnp.broadcast_to(slots, batch.prefix.shape),
    batch.prefix.size,
  )
  begin = jnp.tile(batch.prefix_len, count)[:, None]
  head_len = batch.head_len.reshape(-1, 1)
  before, after = jnp.arange(wide)[None], jnp.arange(batch.tail.shape[-1])[None]
  join = lambda a, b: jnp.concatenate([a, b], axis=-1)
  mask = join(before < head_len, after < batch.tail_len.reshape(-1, 1))
  positions = begin + join(
    jnp.broadcast_to(before, (count * per, wide)), head_len + after
  )
  tokens = join(batch.head, batch.tail)
  size = batch.budget[0] + batch.budget[1]
  x, at = embed(tokens, mask, positions, size)
  rows = Rows(prefix, prefix_at, x, at, mask, positions)
  return advance(model, params['below'], rows)[0]


def advance(
  model: Model,
  layers: Params | tuple[Params, ...],
  rows: Rows,
  keep: Callable[[Trace], Any] = lambda trace: None,
) -> tuple[Rows, Any]:
  """Runs a segment: the contexts, then what follows them.

  Args:
    model: the network.
    layers: params of the segment, or of several, one after the other.
    rows: at its entrance.
    keep: what to collect of each layer's Trace of the tokens of `rows.x`.

  Returns:
    (rows at its exit, the collected leaves stacked over layers).
  """
  prefix, past = transformer.cache(model, layers, rows.prefix, rows.prefix_at)
  x, kept = transformer.run(model, layers, rows.x, rows.at, past, keep)
  return rows._replace(prefix=prefix, x=x), kept


def crop(
  rows: Rows, batch: EditBatch, row: slice, slot: slice, size: int
) -> tuple[jax.Array, Layout]:
  """Packs part of the grid [B, R, P + S] anew into `size` tokens."""
  count, per = batch.tail.shape[:2]
  part = lambda a: a.reshape(count, per, *a.shape[1:])[:, row, slot].reshape(
    -1, *a[:1, slot].shape[1:]
  )
  at = transformer.layout(part(rows.mask), part(rows.positions), size)
  return transformer.from_grid(
    part(transformer.to_grid(rows.x, rows.at)), at
  ), at
