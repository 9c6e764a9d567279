"""The value engine: hidden states that would make the targets likely.

For each request, delta is added to the last site layer's output at the lookup
token and minimises (MEMIT, eq. 4, as its code weighs the terms)

    mean_c -log p(target | context_c) / tokens
      + kl_factor KL(p_now || p_start) + weight_decay |delta| / |v0|^2

by Adam, held to |delta| <= clamp |v0|. The model is causal, so what precedes
the lookup token is run once and cached, the contexts once for all requests; a
step runs only the tokens from the lookup on, through the layers above the site,
and reads logits at the scored positions alone. All requests of a batch go
together and do not interact: each stops by itself, exactly as if it ran alone,
and the batch is cut down to those still running as soon as they fit the next
smaller stage.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jedit.models import transformer
from jedit.models.transformer import Layout, Model, Past
from jedit.prompts import round_up
from jedit.rows import Rows, advance, crop
from jedit.types import EditBatch, Params


class Targets(NamedTuple):
  """v* of each request, [B, D], and how it was reached (see EditReport)."""

  value: jax.Array
  loss: jax.Array
  steps: jax.Array
  reached: jax.Array


# optimise(params, rows, batch) -> Targets
Optimise = Callable[[Params, Rows, EditBatch], Targets]


def safe_norm(x: Float[Array, '*B D']) -> Float[Array, '*B']:
  """Norm over the last axis, with gradient 0 (not NaN) at 0."""
  square = jnp.sum(x * x, axis=-1)
  zero = square == 0
  return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


class _Suffix(NamedTuple):
  """The tails of W requests, packed, with all a step needs."""

  x: jax.Array  # [M, D] without delta
  at: Layout
  past: Past  # [layers, W * R, H, C + P, A]
  owner: jax.Array  # [M], request whose delta the token takes; W for none
  token: jax.Array  # [Q + W], packed index of the scored tokens, KL rows last
  label: jax.Array  # [Q]
  weight: jax.Array  # [Q], 1 / (contexts x target tokens)
  fact: jax.Array  # [Q]


def _suffix(
  batch: EditBatch, tails, past: Past, positions, pick, tokens: int, scored: int
) -> _Suffix:
  """Cuts a batch down to the requests `pick` [W] (B or more: none)."""
  count, (rows, long) = pick.size, batch.tail.shape[1:]
  some = lambda x: transformer.take(x, pick)
  here = jnp.arange(long) < some(batch.tail_len)[..., None]
  at = transformer.layout(
    here.reshape(-1, long), some(positions).reshape(-1, long), tokens
  )
  first = at.slot % long == 0
  owner = jnp.where(first, at.slot // (rows * long), count)
  label = jnp.where(here, some(batch.label), -1)
  slot = jnp.nonzero(label.ravel() >= 0, size=scored, fill_value=label.size)[0]
  each = 1 / jnp.maximum((label >= 0).sum(-1, keepdims=True), 1) / (rows - 1)
  weight = jnp.broadcast_to(each, label.shape).ravel()
  last = at.token.reshape(count, rows, long)[:, -1, 0]
  token = at.token.ravel().at[slot].get(mode='fill', fill_value=tokens)
  cached = lambda x: (
    x.reshape(x.shape[0], -1, rows, *x.shape[2:])
    .at[:, pick]
    .get(mode='fill', fill_value=0)
    .reshape(x.shape[0], -1, *x.shape[2:])
  )
  mask = some(past.mask.reshape(-1, rows, past.mask.shape[-1]))
  return _Suffix(
    transformer.from_grid(some(tails).reshape(-1, long, tails.shape[-1]), at),
    at,
    Past(cached(past.k), cached(past.v), mask.reshape(-1, mask.shape[-1])),
    owner,
    jnp.concatenate([token, last]),
    transformer.take(label.ravel(), slot),
    transformer.take(weight, slot),
    slot // (rows * long),
  )


def _stages(count: int, tokens: int, scored: int, fractions):
  """(requests, tail tokens, scored tokens) of each stage, shrinking."""
  cut = lambda n, f, step: min(n, round_up(int(n * f), step))
  return [
    (cut(count, f, 1), cut(tokens, f, 64), cut(scored, f, 32))
    for f in fractions
  ]


def optimiser(
  model: Model,
  *,
  steps: int = 25,
  lr: float = 0.5,
  weight_decay: float = 0.5,
  kl_factor: float = 0.0625,
  clamp: float = 0.75,
  stop: float = 0.05,
  stages: tuple[float, ...] = (1.0, 0.5, 0.2),
) -> Optimise:
  """Returns optimise(params, rows, batch) -> Targets.

  Args:
    model: the network; params must be split at the site.
    steps: evaluations of the objective; at most steps - 1 updates, as in the
      reference code (the value returned is the last one evaluated).
    lr: Adam's rate (v_lr).
    weight_decay: of |delta| / |v0|^2 (v_weight_decay).
    kl_factor: weight of the KL term at the subject's last token.
    clamp: largest |delta| / |v0| (clamp_norm_factor).
    stop: a request is done once its objective is below; 0 forces all steps.
    stages: shares of the batch to which the work is cut down; exact.

  References:
    Meng et al., Mass-Editing Memory in a Transformer, ICLR 2023, section 4.2.
  """
  adam = optax.adam(lr)

  def objective(delta, params, s: _Suffix, start, v0, first):
    count = delta.shape[0]
    x = s.x + transformer.take(delta, s.owner).astype(s.x.dtype)
    x, _ = transformer.run(model, params['above'], x, s.at, s.past)
    logits = model.logits(params, transformer.take(x, s.token))
    hits, kl_logits = logits[:-count], logits[-count:]
    wanted = jax.nn.one_hot(s.label, logits.shape[-1], dtype=bool)
    chosen = jnp.sum(jnp.where(wanted, hits, 0), axis=-1)
    nll = jax.nn.logsumexp(hits, axis=-1) - chosen
    nll = jax.ops.segment_sum(nll * s.weight, s.fact, count)
    now = jax.nn.log_softmax(kl_logits)
    start = jnp.where(first, jax.lax.stop_gradient(now), start)
    kl = jnp.sum(jnp.exp(now) * (now - start), axis=-1)
    decay = safe_norm(delta) / jnp.sum(v0 * v0, axis=-1)
    loss = nll + kl_factor * kl + weight_decay * decay
    return loss.sum(), (loss, start)

  def optimise(params: Params, rows: Rows, batch: EditBatch) -> Targets:
    count, per, long = batch.tail.shape
    wide = batch.head.shape[-1]
    rows, _ = advance(model, params['site'], rows)
    _, past = transformer.cache(
      model, params['above'], rows.prefix, rows.prefix_at
    )
    every = slice(None)
    x, at = crop(rows, batch, every, slice(0, wide), batch.budget[0])
    _, past = transformer.cache(model, params['above'], x, at, past)
    tails = transformer.to_grid(rows.x, rows.at)[:, wide:]
    tails = tails.reshape(count, per, long, -1)
    positions = rows.positions[:, wide:].reshape(count, per, long)
    v0 = tails[:, 0, 0].astype(jnp.float32)
    radius = clamp * safe_norm(v0)
    tokens = batch.tail_len.sum(-1)
    scored = (batch.label >= 0).sum((-1, -2))
    sizes = _stages(count, *batch.budget[1:4:2], stages)

    def stage(carry, size, smaller):
      pick = jnp.nonzero(~carry['done'], size=size[0], fill_value=count)[0]
      suffix = _suffix(batch, tails, past, positions, pick, *size[1:])
      some = lambda x: transformer.take(x, pick) if jnp.ndim(x) else x
      base, limit = some(v0), some(radius)

      def fits(done):
        left = ~done
        ask = (
          left.sum(),
          (left * some(tokens)).sum(),
          (left * some(scored)).sum(),
        )
        return jnp.all(jnp.stack(ask) <= jnp.asarray(smaller))

      def more(c):
        return ~c['done'].all() & (~fits(c['done']) if smaller else True)

      def step(c):
        grads, (loss, start) = jax.grad(objective, has_aux=True)(
          c['delta'], params, suffix, c['start'], base, c['it'] == 0
        )
        done = c['done'] | (loss < stop) | (c['it'] == steps - 1)
        updates, adam_state = adam.update(grads, c['adam'])
        delta = c['delta'] + updates
        norm = safe_norm(delta)
        shrink = jnp.where(norm > limit, limit / jnp.maximum(norm, 1e-30), 1.0)
        delta = jnp.where(done[:, None], c['delta'], delta * shrink[:, None])
        return {
          'delta': delta,
          'adam': adam_state,
          'start': start,
          'loss': jnp.where(c['done'], c['loss'], loss),
          'steps': c['steps'] + ~done,
          'done': done,
          'it': c['it'] + 1,
        }

      inner = jax.tree.map(some, carry)
      inner['done'] |= pick >= count
      inner = jax.lax.while_loop(more, step, inner)
      put = lambda x, new: (
        x.at[pick].set(new, mode='drop') if jnp.ndim(x) else new
      )
      return jax.tree.map(put, carry, inner)

    delta = jnp.zeros_like(v0)
    carry = {
      'delta': delta,
      'adam': adam.init(delta),
      'start': jnp.zeros((count, model.config.vocab_size)),
      'loss': jnp.zeros(count),
      'steps': jnp.zeros(count, jnp.int32),
      'done': ~batch.valid,
      'it': jnp.zeros((), jnp.int32),
    }
    for size, smaller in zip(sizes, [*sizes[1:], None], strict=True):
      carry = stage(carry, size, smaller)
    reached = batch.valid & (carry['loss'] < stop)
    return Targets(v0 + carry['delta'], carry['loss'], carry['steps'], reached)

  return optimise
