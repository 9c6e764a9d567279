"""How likely a change would make the targets of held-out rows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jedit.models import transformer
from jedit.models.transformer import Layout, Model
from jedit.rows import crop, enter
from jedit.types import EditBatch, Params


class Score(NamedTuple):
  """Means over target tokens, then rows, then facts; 0 to 1.

  Attributes:
    probability: of the target's tokens.
    accuracy: share of them that are the most probable.
  """

  probability: jax.Array
  accuracy: jax.Array


class Held(NamedTuple):
  """Whole validation rows, packed, and where they are scored.

  Attributes:
    at: layout on the grid [B * R, P + S].
    token: [Q], packed index of the scored tokens.
    label: [Q].
    weight: [Q], sums to 1; 0 where nothing is scored.
  """

  at: Layout
  token: jax.Array
  label: jax.Array
  weight: jax.Array


def enter_held(
  model: Model, params: Params, held: EditBatch
) -> tuple[jax.Array, Held]:
  """(hidden states at the site's entrance [M, D], Held) of the rows.

  Args:
    model: the network.
    params: split.
    held: rows without shared contexts (prefix_len 0), the last one unused.
  """
  count, per, wide = held.head.shape
  rows = enter(model, params, held)
  size = held.budget[0] + held.budget[1]
  x, at = crop(rows, held, slice(0, per - 1), slice(None), size)
  label = held.label[:, :-1]
  share = (label >= 0).sum(-1, keepdims=True)  # target tokens of a row
  some = (share > 0).sum(1, keepdims=True)  # rows of a fact with any
  facts = (some > 0).sum()
  weight = 1 / jnp.maximum(share * some * facts, 1) * (label >= 0)
  grid = lambda x, fill: jnp.concatenate(
    [jnp.full((count, per - 1, wide), fill, x.dtype), x], axis=-1
  ).ravel()
  label, weight = grid(label, -1), grid(weight, 0)
  slot = jnp.nonzero(
    label >= 0, size=held.budget[3], fill_value=label.size
  )[0]  # fmt: skip
  token = at.token.ravel().at[slot].get(mode='fill', fill_value=size)
  take = lambda x: transformer.take(x, slot)
  return x, Held(at, token, take(label), take(weight))


def score(model: Model, params: Params, x: jax.Array, held: Held) -> Score:
  """Of rows [M, D] at the entrance of the layers above the site."""
  x, _ = transformer.run(model, params['above'], x, held.at)
  logits = model.logits(params, transformer.take(x, held.token))
  chosen = jnp.take_along_axis(logits, held.label[:, None], -1)[:, 0]
  chance = jnp.exp(chosen - jax.nn.logsumexp(logits, axis=-1))
  right = logits.max(-1) <= chosen
  total = lambda x: jnp.sum(x * held.weight)
  return Score(total(chance), total(right))
