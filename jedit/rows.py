"""A batch's token rows at the entrance of the site, all of them or a part."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jedit.models import transformer
from jedit.models.transformer import Layout, Model
from jedit.types import EditBatch, Params


class Rows(NamedTuple):
  """Hidden states of a batch at the entrance of the site.

  Attributes:
    x: [M, D], all rows packed: heads and tails.
    at: their layout on the grid [B * R, P + S].
    mask: bool [B * R, P + S], slots that hold a token.
    positions: int32 [B * R, P + S].
  """

  x: jax.Array
  at: Layout
  mask: jax.Array
  positions: jax.Array


def enter(model: Model, params: Params, batch: EditBatch) -> Rows:
  """Runs `below`, once a batch: nothing there is ever edited."""
  wide, long = batch.head.shape[-1], batch.tail.shape[-1]
  head_len, tail_len = batch.head_len.ravel(), batch.tail_len.ravel()
  tokens = jnp.concatenate([batch.head, batch.tail], axis=-1).ravel()
  before = jnp.arange(wide)[None]
  after = jnp.arange(long)[None]
  mask = jnp.concatenate(
    [before < head_len[:, None], after < tail_len[:, None]], axis=-1
  )
  positions = jnp.concatenate(
    [
      jnp.broadcast_to(before, (head_len.size, wide)),
      head_len[:, None] + after,
    ],
    axis=-1,
  )
  at = transformer.layout(mask, positions, batch.budget[0] + batch.budget[1])
  x = model.embed(params, transformer.take(tokens, at.slot), at.positions)
  x, _ = transformer.run(model, params['below'], x, at)
  return Rows(x, at, mask, positions)


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
