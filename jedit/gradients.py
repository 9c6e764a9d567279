"""What one forward and one backward pass leave at the site.

The gradient of a down-projection is a sum over tokens of key x gradient at its
output. Both factors are given out, unsummed: editors that learn from gradients
(UltraEdit, MEND) work on them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jedit.models import transformer
from jedit.models.transformer import Layout, Model, Trace, take
from jedit.parts import each_part
from jedit.rows import Rows, enter, plain
from jedit.types import EditBatch, Params, kernel_of


class Wanted(NamedTuple):
  """The tokens of packed plain rows after which a target's token is wanted.

  Attributes:
    token: int32 [Q], packed index; past the end if unused.
    label: int32 [Q], the token wanted.
    request: int32 [Q], index in the batch; B if unused.
    length: int32 [B], target tokens of each request.
  """

  token: jax.Array
  label: jax.Array
  request: jax.Array
  length: jax.Array


class Factors(NamedTuple):
  """The two factors of the gradient of each site layer, a token a row.

  Attributes:
    key: float32 [E, M, F], inputs of the down-projection; zero if unused.
    grad: float32 [E, M, D], of the loss at its output; zero if unused.
    real: bool [#E, M], rows that hold a token.
    request: int32 [M], whose token it is, within its part of the batch; as many
      as the part has requests where there is none.
    loss: float32 [].
  """

  key: jax.Array
  grad: jax.Array
  real: jax.Array
  request: jax.Array
  loss: jax.Array


class Normaliser(NamedTuple):
  """Mean and sum of squared deviations a feature, [E, K]; tokens seen, [E]."""

  mean: jax.Array
  square: jax.Array
  count: jax.Array


def wanted(rows: Rows, batch: EditBatch) -> Wanted:
  """Of a batch of plain rows (rows.plain), on the grid [B, P + S]."""
  label = jnp.pad(
    batch.label[:, 0], ((0, 0), (batch.head.shape[-1], 0)), constant_values=-1
  )
  slot = jnp.nonzero(
    label.ravel() >= 0, size=batch.budget[3], fill_value=label.size
  )[0]
  token = rows.at.token.ravel()
  return Wanted(
    token.at[slot].get(mode='fill', fill_value=rows.x.shape[0]),
    take(label.ravel(), slot),
    slot // label.shape[1],
    (label >= 0).sum(1),
  )


class Task(NamedTuple):
  """A batch's plain rows at the entrance of the site, and what is scored."""

  x: jax.Array  # [M, D]
  at: Layout  # of the grid [B, P + S]
  wanted: Wanted

  @property
  def request(self) -> jax.Array:
    """int32 [M], of each token; B if unused."""
    return self.at.slot // self.at.token.shape[1]


def task_of(model: Model, params: Params, batch: EditBatch) -> Task:
  """The Task of a batch."""
  batch = plain(batch)
  rows = enter(model, params, batch)
  return Task(rows.x, rows.at, wanted(rows, batch))


def logits(
  model: Model,
  params: Params,
  task: Task,
  value: Callable[..., jax.Array] | None = None,
  keep: Callable[[Trace], Any] = lambda trace: None,
) -> tuple[jax.Array, Any]:
  """(float32 [Q, V] at the tokens that are scored, what was kept of the site).

  Args:
    model: the network.
    params: split; what is below the site is not used.
    task: what to run.
    value: what stands for model.value within the site.
    keep: what to collect of each site layer's Trace.
  """
  site = model._replace(value=value or model.value)
  x, kept = transformer.run(site, params['site'], task.x, task.at, keep=keep)
  x, _ = transformer.run(model, params['above'], x, task.at)
  return model.logits(params, take(x, task.wanted.token)), kept


def _nll(scores: jax.Array, at: Wanted) -> jax.Array:
  """-log p of the targets' tokens [Q]."""
  return optax.softmax_cross_entropy_with_integer_labels(scores, at.label)


def each_mean(x: Float[Array, ' Q'], at: Wanted) -> jax.Array:
  """Mean over the target's tokens of each request, [B]."""
  total = jax.ops.segment_sum(x, at.request, at.length.size)
  return total / jnp.maximum(at.length, 1)


def each_nll(scores: jax.Array, at: Wanted) -> jax.Array:
  """Mean -log p of the target's tokens of each request, [B]."""
  return each_mean(_nll(scores, at), at)


def factors(
  model: Model,
  params: Params,
  batch: EditBatch,
  share: Callable[[jax.Array, jax.Array], jax.Array],
  targets_alone: bool,
) -> Factors:
  """Factors of the gradient of -log p of the targets after the plain prompts.

  Args:
    model: the network; params must be split at the site.
    params: as they are now.
    batch: its plain rows (row 0) are used.
    share: from the target tokens of each request, [B], and of all, [], to the
      weight of each of them in the loss, [B] or [].
    targets_alone: keep the tokens where a target's token is predicted, not all.
  """
  part = functools.partial(_factors, model, params, share, targets_alone)
  return each_part(part, batch)


def _factors(model, params, share, targets_alone, batch, whole):
  """`factors` of a part of the batch, put together with the others."""
  task = task_of(model, params, batch)
  at, size = task.wanted, task.x.shape[0]
  kept = at.token if targets_alone else jnp.arange(size)
  request = task.request.at[kept].get(mode='fill', fill_value=at.length.size)
  real = request < at.length.size
  weight = share(at.length, whole.sum(at.length.sum()))

  def value(layer, mid, key):
    out = model.value(layer, mid, key)
    return out.at[kept].add(layer['nudge'].astype(out.dtype), mode='drop')

  def loss(nudge):
    """As it is with `nudge` [E, M, D], which is zero, added to the outputs."""
    scores, keys = logits(
      model,
      {**params, 'site': {**params['site'], 'nudge': nudge}},
      task,
      value,
      lambda trace: take(trace.key, kept).astype(jnp.float32),
    )
    weights = take(jnp.broadcast_to(weight, at.length.shape), at.request)
    return jnp.sum(weights * _nll(scores, at)), keys

  layers, _, width = kernel_of(params).shape
  zero = jnp.zeros((layers, kept.size, width))
  (total, key), grad = jax.value_and_grad(loss, has_aux=True)(zero)
  key, grad = (
    whole.gather(jnp.where(real[:, None], a, 0), 1) for a in (key, grad)
  )
  real, request = whole.gather(real)[None], whole.gather(request)
  return Factors(key, grad, real, request, whole.sum(total))


def merge(
  old: Normaliser, x: Float[Array, 'E M K'], real: Bool[Array, '#E M']
) -> Normaliser:
  """The Normaliser of all that was seen before and of the real rows of x.

  With n, m, S and those of x, n', m', S' (Chan, Golub, LeVeque 1979):

      m + (m' - m) n' / (n + n')      S + S' + (m' - m)^2 n n' / (n + n')
  """
  new = jnp.broadcast_to(real.sum(1), old.count.shape)
  mask, n = real[..., None], old.count[:, None]
  more = new[:, None] / jnp.maximum(old.count + new, 1)[:, None]
  mean = jnp.sum(x, axis=1, where=mask) / jnp.maximum(new, 1)[:, None]
  square = jnp.sum((x - mean[:, None]) ** 2, axis=1, where=mask)
  apart = mean - old.mean
  return Normaliser(
    old.mean + apart * more,
    old.square + square + apart**2 * n * more,
    old.count + new,
  )


def normalise(seen: Normaliser, x: Float[Array, 'E M K']) -> jax.Array:
  """x less its mean, over its deviation; 0 where a feature never varied."""
  variance = seen.square / jnp.maximum(seen.count - 1, 1)[:, None]
  deviation = jnp.sqrt(variance)[:, None]
  zero = deviation == 0
  return jnp.where(
    zero, 0, (x - seen.mean[:, None]) / jnp.where(zero, 1, deviation)
  )


def nothing_seen(layers: int, features: int) -> Normaliser:
  """The Normaliser before any token."""
  zero = jnp.zeros((layers, features))
  return Normaliser(zero, zero, jnp.zeros(layers, jnp.int32))
