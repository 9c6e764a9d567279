"""The value engine: hidden states that would make the targets likely.

For each request, delta is added at the last site layer, at the lookup token,
and minimises (MEMIT, eq. 4, as its code weighs the terms)

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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jedit.models import transformer
from jedit.models.layers import narrow
from jedit.models.transformer import Model
from jedit.rows import Rows
from jedit.suffix import (
  POINTS,
  Point,
  Suffix,
  enter_above,
  moved,
  stage_sizes,
  suffix,
  value_before,
  values_of,
)
from jedit.types import EditBatch, JeditError, Params, Targets, kernel_of


class Optimise(NamedTuple):
  """A value engine.

  Attributes:
    init: split params before any edit -> what `run` has to know of them.
    run: (params, rows, batch, what init returned) -> Targets.
  """

  init: Callable[[Params], Any]
  run: Callable[[Params, Rows, EditBatch, Any], Targets]


def safe_norm(x: Float[Array, '*B D']) -> Float[Array, '*B']:
  """Norm over the last axis, with gradient 0 (not NaN) at 0."""
  square = jnp.sum(x * x, axis=-1)
  zero = square == 0
  return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


@jax.custom_vjp
def picked(
  scores: Float[Array, 'Q V'], label: Int[Array, ' Q']
) -> Float[Array, ' Q']:
  """The score of each label; its gradient joins others without a scatter."""
  return jnp.take_along_axis(scores, label[:, None], axis=-1)[:, 0]


def _picked_fwd(scores, label):
  return picked(scores, label), (label, scores)


def _picked_bwd(saved, g):
  label, scores = saved
  wanted = jnp.arange(scores.shape[-1]) == label[:, None]
  return jnp.where(wanted, g[:, None], 0), None


picked.defvjp(_picked_fwd, _picked_bwd)


def rounding(products: str) -> Callable[[Params], Params]:
  """What rounds the factors of products above the site: see narrowed."""
  if products not in ('float32', 'bfloat16'):
    raise JeditError(f'products={products!r}: float32 or bfloat16')
  return narrowed if products == 'bfloat16' else lambda params: params


def narrowed(params: Params) -> Params:
  """Split params, with float32 kernels above the site and the head rounded.

  A tied head is the table of embeddings: such params cannot embed any more.
  """

  def half(path, x):
    factor = path[-1].key in ('kernel', 'tokens') and x.dtype == jnp.float32
    return narrow(x) if factor else x

  head = 'head' if 'kernel' in params.get('head', {}) else 'embed'
  new = {part: params[part] for part in ('above', head)}
  return params | jax.tree_util.tree_map_with_path(half, new)


def optimiser(
  model: Model,
  *,
  steps: int = 25,
  lr: float = 0.5,
  weight_decay: float = 0.5,
  kl_factor: float = 0.0625,
  clamp: float = 0.75,
  stop: float = 0.05,
  early_stop: float = 0.0,
  relaxed: float = 1.0,
  point: Point = 'block',
  anchor_norm: bool = False,
  stages: tuple[float, ...] = (1.0, 0.5, 0.2),
  products: str = 'float32',
) -> Optimise:
  """The value engine with these settings.

  Args:
    model: the network; params must be split at the site.
    steps: evaluations of the objective; at most steps - 1 updates, as in the
      reference code (the value returned is the last one evaluated).
    lr: Adam's rate (v_lr).
    weight_decay: of |delta| / |v0|^2 (v_weight_decay).
    kl_factor: weight of the KL term at the subject's last token.
    clamp: largest |delta| / |v0| (clamp_norm_factor).
    stop: a request is done once its objective is below; 0 forces all steps.
    early_stop: a request is also done once its target's tokens are the most
      probable ones in every context and its KL is below this: inf is ENCORE's
      most-probable early stopping, 0.01 PMET's; 0 never.
    relaxed: factor of the likelihood term in the step after one at which they
      were the most probable ones (0.1 in PMET).
    point: where delta enters and what v* is a value of: the output of the last
      site layer (MEMIT) or of its MLP (ROME); 'mlp+attention' adds a second
      delta to the attention's output, clamped and decayed by itself, which the
      MLP reads and nothing else uses (PMET, AdaEdit).
    anchor_norm: v* is scaled to the norm of the value that the site had before
      any edit (NAS); under BLUE, that its one layer had. Read off the abstract:
      the paper was not at hand.
    stages: shares of the batch to which the work is cut down; exact.
    products: float32 or bfloat16, to which the factors of products with float32
      weights above the site are rounded; sums and all else stay float32.
      bfloat16 takes half the time where the hardware has it.

  References:
    Meng et al., Mass-Editing Memory in a Transformer, ICLR 2023, section 4.2.
    Li et al., PMET: Precise Model Editing in a Transformer, AAAI 2024.
  """
  if point not in POINTS:
    raise JeditError(f'point={point!r}: choose one of {", ".join(POINTS)}')
  rounded = rounding(products)
  if steps < 1 or not stages or stages[0] != 1:
    raise JeditError(
      f'steps={steps}, stages={stages}: at least one step, and the first stage '
      'is all of the batch (1.0)'
    )
  if clamp < 0:
    raise JeditError(f'clamp={clamp}: a share of |v0|, not below 0')
  adam = optax.adam(lr)

  def objective(delta, params, s: Suffix, start, v0, first, factor):
    count = delta.shape[0]
    x = s.x + transformer.take(moved(model, params, s.lookup, delta), s.row)
    x, _ = transformer.run(model, params['above'], x, s.at, s.past)
    logits = model.logits(params, transformer.take(x, s.token))
    sum_of = lambda x: jax.ops.segment_sum(x[:-count] * s.weight, s.fact, count)
    chosen = picked(logits, jnp.pad(s.label, (0, count)))
    total = jax.nn.logsumexp(logits, axis=-1)
    nll = sum_of(total - chosen)
    sure = sum_of(logits.max(axis=-1) > chosen) == 0
    now = logits[-count:] - total[-count:, None]
    start = jnp.where(first, jax.lax.stop_gradient(now), start)
    kl = jnp.sum(jnp.exp(now) * (now - start), axis=-1)
    decay = safe_norm(delta) / jnp.sum(v0 * v0, axis=-1)
    loss = factor * nll + kl_factor * kl + weight_decay * decay.sum(-1)
    return loss.sum(), (loss, start, sure, kl)

  def init(params: Params):
    kernel = kernel_of(params)
    return jnp.array(kernel) if anchor_norm else ()

  def run(params: Params, rows: Rows, batch: EditBatch, before: Any) -> Targets:
    count, per, long = batch.tail.shape
    params = rounded(params)
    tails, past, lookup = enter_above(model, params, rows, batch, point)
    wide = batch.head.shape[-1]
    positions = rows.positions[:, wide:].reshape(count, per, long)
    v0 = values_of(lookup)[:, 0].astype(jnp.float32)
    radius = clamp * safe_norm(v0)
    tokens = batch.tail_len.sum(-1)
    scored = (batch.label >= 0).sum((-1, -2))
    sizes = stage_sizes(count, *batch.budget[1:4:2], stages)

    def stage(carry, size, smaller):
      pick = None  # at first all, as they are
      if size != sizes[0]:
        pick = jnp.nonzero(~carry['done'], size=size[0], fill_value=count)[0]
      s = suffix(batch, tails, past, positions, lookup, pick, *size[1:])
      cut = lambda x: pick is not None and jnp.ndim(x)
      some = lambda x: transformer.take(x, pick) if cut(x) else x
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
        factor = jnp.where(c['sure'], relaxed, 1.0)
        grads, (loss, start, sure, kl) = jax.grad(objective, has_aux=True)(
          c['delta'], params, s, c['start'], base, c['it'] == 0, factor
        )
        done = c['done'] | (loss < stop) | (c['it'] == steps - 1)
        if early_stop:
          done |= sure & (kl < early_stop)
        updates, adam_state = adam.update(grads, c['adam'])
        delta = c['delta'] + updates
        norm = safe_norm(delta)
        shrink = jnp.where(norm > limit, limit / jnp.maximum(norm, 1e-30), 1.0)
        delta = delta * shrink[..., None]
        return {
          'delta': jnp.where(done[:, None, None], c['delta'], delta),
          'adam': adam_state,
          'start': start,
          'sure': jnp.where(c['done'], c['sure'], sure),
          'loss': jnp.where(c['done'], c['loss'], loss),
          'steps': c['steps'] + ~done,
          'done': done,
          'it': c['it'] + 1,
        }

      inner = jax.tree.map(some, carry)
      if pick is not None:
        inner['done'] |= pick >= count
      inner = jax.lax.while_loop(more, step, inner)
      put = lambda x, new: x.at[pick].set(new, mode='drop') if cut(x) else new
      return jax.tree.map(put, carry, inner)

    delta = jnp.zeros_like(v0)
    carry = {
      'delta': delta,
      'adam': adam.init(delta),
      'start': jnp.zeros((count, model.config.vocab_size)),
      'sure': jnp.zeros(count, bool),
      'loss': jnp.zeros(count),
      'steps': jnp.zeros(count, jnp.int32),
      'done': ~batch.valid,
      'it': jnp.zeros((), jnp.int32),
    }
    for size, smaller in zip(sizes, [*sizes[1:], None], strict=True):
      carry = stage(carry, size, smaller)
    value = (v0 + carry['delta'])[:, 0]
    if anchor_norm:
      old = value_before(model, params, rows, batch, before, point)
      old = old.astype(jnp.float32)
      size = safe_norm(old) / jnp.maximum(safe_norm(value), 1e-30)
      value *= size[:, None]
    reached = carry['loss'] < stop
    if early_stop:
      reached |= carry['sure']
    return Targets(
      value,
      carry['loss'],
      carry['steps'],
      batch.valid & reached,
      'block' if point == 'block' else 'mlp',
    )

  return Optimise(init, run)
