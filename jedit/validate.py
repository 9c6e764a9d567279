"""How likely a change would make the targets of held-out rows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jedit.models import transformer
from jedit.models.transformer import Model
from jedit.parts import Whole
from jedit.rows import Rows, advance, enter
from jedit.types import EditBatch, Params


class Score(NamedTuple):
  """Means over target tokens, then rows, then facts; 0 to 1.

  A fact's first row counts as much as its others together: in the code that
  AlphaEdit+ released they are the prompt and its paraphrases.

  Attributes:
    probability: of the target's tokens.
    accuracy: share of them that are the most probable.
  """

  probability: jax.Array
  accuracy: jax.Array


class Held(NamedTuple):
  """Where validation rows are scored.

  Attributes:
    token: [Q], packed index of the scored tokens.
    label: [Q].
    weight: [Q], sums to 1; 0 where nothing is scored.
  """

  token: jax.Array
  label: jax.Array
  weight: jax.Array


def enter_held(
  model: Model, params: Params, batch: EditBatch, whole: Whole
) -> tuple[Rows, Held]:
  """Validation rows at the site's entrance; the params are split."""
  rows = enter(model, params, batch)
  target = batch.label >= 0
  tokens = target.sum(-1, keepdims=True)  # of a row
  first, others = tokens[:, :1] > 0, tokens[:, 1:] > 0
  others = others / jnp.maximum(others.sum(1, keepdims=True), 1)
  share = jnp.concatenate([first, others], axis=1)
  some = share.sum(1, keepdims=True)
  facts = whole.sum((some > 0).sum())
  share = share / jnp.maximum(some * facts, 1)
  weight = target * share / jnp.maximum(tokens, 1)
  heads = [(0, 0), (0, 0), (batch.head.shape[-1], 0)]
  grid = lambda x, fill: jnp.pad(x, heads, constant_values=fill).ravel()
  label, weight = grid(batch.label, -1), grid(weight, 0)
  slot = jnp.nonzero(
    label >= 0, size=batch.budget[3], fill_value=label.size
  )[0]  # fmt: skip
  token = rows.at.token.ravel()
  token = token.at[slot].get(mode='fill', fill_value=len(rows.x))
  take = lambda x: transformer.take(x, slot)
  return rows, Held(token, take(label), take(weight))


def score(
  model: Model, params: Params, rows: Rows, held: Held, whole: Whole
) -> Score:
  """Of rows at the entrance of the layers above the site."""
  x = advance(model, params['above'], rows)[0].x
  logits = model.logits(params, transformer.take(x, held.token))
  chosen = jnp.take_along_axis(logits, held.label[:, None], -1)[:, 0]
  chance = jnp.exp(chosen - jax.nn.logsumexp(logits, axis=-1))
  right = logits.max(-1) <= chosen
  total = lambda x: whole.sum(jnp.sum(x * held.weight))
  return Score(total(chance), total(right))
