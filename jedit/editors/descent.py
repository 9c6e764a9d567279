"""The body shared by the gradient editors: Adam on the down-projections.

    min over dW of  mean_b  mean_i  -log p(t_i | prompt_b, t_<i)

over the plain prompt alone (row 0). What lies below the site runs once a batch;
a step runs the site and what is above it, and reads logits at scored positions.
dW acts at every token. What it learns from may be the lookup tokens alone: ROME
found facts there, and what is written there is found in other words, too.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jedit.gradients import Task, each_nll, logits, task_of
from jedit.models import transformer
from jedit.models.transformer import Model, take
from jedit.parts import Whole, each_part
from jedit.rows import advance, context_weights, enter
from jedit.types import (
  EditBatch,
  Editor,
  EditReport,
  JeditError,
  Params,
  apply_updates,
  as_updates,
  kernel_of,
)
from jedit.values import rounding

_HIGHEST = jax.lax.Precision.HIGHEST


class DescentState(NamedTuple):
  """State of a gradient editor.

  Attributes:
    memory: what the method carries from batch to batch.
    count: int32 [], requests seen.
    report: EditReport of the last batch, with no residual: nothing is solved.
  """

  memory: Any
  count: jax.Array
  report: EditReport


def at_prompts(task: Task, batch: EditBatch) -> Task:
  """The Task with every target token scored where its prompt ends."""
  first = jnp.argmax(batch.label[:, 0] >= 0, axis=1, keepdims=True)
  token = task.at.token[:, batch.head.shape[-1] :]
  token = jnp.take_along_axis(token, first, axis=1)[:, 0]
  want = task.wanted
  here = want.request < first.size
  token = jnp.where(here, take(token, want.request), task.x.shape[0])
  return task._replace(wanted=want._replace(token=token))


def at_lookup(
  model: Model, task: Task, batch: EditBatch
) -> Callable[..., jax.Array]:
  """model.value whose weights get no gradient but that of lookup tokens."""
  where = task.at.token[:, batch.head.shape[-1]]
  still = jax.lax.stop_gradient

  def value(layer, mid, key):
    out = model.value(still(layer), mid, key)
    here = still((take(mid, where), take(key, where)))
    learns = model.value(layer, *here)
    return out.at[where].add(learns - still(learns), mode='drop')  # adds 0

  return value


def keys(
  model: Model, params: Params, task: Task, delta: Float[Array, 'E F D']
) -> Float[Array, 'E M F']:
  """What the site's down-projections see of a task; zero for no token."""
  site = apply_updates(params, as_updates(delta))['site']
  keep = lambda trace: trace.key.astype(jnp.float32)
  _, out = transformer.run(model, site, task.x, task.at, keep=keep)
  return out * (task.request < task.wanted.length.size)[:, None]


def lookup_keys(
  model: Model, params: Params, batch: EditBatch
) -> Float[Array, 'E B F']:
  """Keys of the lookup tokens, averaged over contexts; zero for padding."""
  count, per, wide = batch.head.shape
  rows = enter(model, params, batch)
  token = rows.at.token[:, wide]
  keep = lambda trace: take(trace.key, token).astype(jnp.float32)
  _, key = advance(model, params['site'], rows, keep)
  key = key.reshape(len(key), count, per, -1)[:, :, : per - 1]  # no KL row
  mean = jnp.einsum('ebrf,r->ebf', key, context_weights(per - 1))
  return mean * batch.valid[:, None]


def onto(basis: Float[Array, 'E F r']) -> optax.GradientTransformation:
  """g <- B B' g of every layer, B with orthonormal (or zero) columns."""

  def project(g, params=None):
    del params
    inside = jnp.einsum('efr,efd->erd', basis, g, precision=_HIGHEST)
    return jnp.einsum('efr,erd->efd', basis, inside, precision=_HIGHEST)

  return optax.stateless(project)


def off(basis: Float[Array, 'E F r']) -> optax.GradientTransformation:
  """g <- g - B B' g of every layer."""
  inside = onto(basis).update
  return optax.stateless(lambda g, params: g - inside(g, None)[0])


def descent(
  model: Model,
  optimiser: Callable[..., optax.GradientTransformation],
  *,
  steps: int,
  stop: float,
  limit: float = 0.0,
  loss: str = 'target',
  tokens: str = 'all',
  products: str = 'float32',
  start: Callable[[Params], Any] = lambda params: (),
  learn: Callable[[Any, jax.Array, jax.Array], Any] | None = None,
) -> Editor:
  """Editor that descends the targets' loss, afresh for every batch.

  Args:
    model: the network; params must be split at the site.
    optimiser: (memory, what gives the batch's `lookup_keys` before the edit)
      -> what makes a step [E, F, D] of a gradient.
    steps: most steps a batch.
    stop: no further step once the batch's mean loss is below.
    limit: largest change of an entry within a batch; 0 is no limit.
    loss: "target" scores every target token after the ones before it;
      "prompt_last" all of them where the prompt ends.
    tokens: "all", or "lookup": only those give dW a gradient.
    products: to what the factors of products above the site are rounded (as
      the value engine does it).
    start: params -> memory before the first batch.
    learn: (memory, keys, lookup) -> memory after a batch, given the `keys`
      [E, M, F] of all its tokens at the edited weights; lookup: bool [M].

  Returns:
    optax transformation: update(batch, state, params) gives
    {'site': {'mlp': {'down': {'kernel': dW [E, F, D]}}}} and a DescentState.
    In its report `steps` counts each step once for every request of the batch;
    `loss` and `reached` are those of the weights that are handed out.
  """

  if loss not in ('target', 'prompt_last'):
    raise JeditError(f'loss={loss!r}: target or prompt_last')
  if tokens not in ('all', 'lookup'):
    raise JeditError(f'tokens={tokens!r}: all or lookup')
  if steps < 0 or limit < 0:
    raise JeditError(f'steps={steps}, limit={limit}: neither is below 0')
  rounded = rounding(products)

  def init(params):
    zero = jnp.zeros((), jnp.int32)
    report = EditReport(zero, zero, zero, jnp.zeros(()), jnp.zeros(0))
    return DescentState(start(params), zero, report)

  def losses(delta, params, task: Task, facts, value):
    """(loss / facts, loss of each request [b]), the kernels moved by delta."""
    moved = apply_updates(params, as_updates(delta))
    each = each_nll(logits(model, moved, task, value)[0], task.wanted)
    return each.sum() / jnp.maximum(facts, 1), each

  def descend(params, memory, batch: EditBatch, whole: Whole):
    """(dW, what is to be learned or None, EditReport)."""
    task = task_of(model, params, batch)
    if loss == 'prompt_last':
      task = at_prompts(task, batch)
    value = at_lookup(model, task, batch) if tokens == 'lookup' else None
    delta = jnp.zeros_like(kernel_of(params))
    wide = batch.head.shape[-1]

    def lookups():
      return whole.gather(lookup_keys(model, params, batch), 1)

    step_of = optimiser(memory, lookups)
    params = rounded(params)
    facts = whole.sum(batch.valid.sum())

    def step(c):
      (mean, each), gradient = jax.value_and_grad(losses, has_aux=True)(
        c['delta'], params, task, facts, value
      )
      mean, gradient = whole.sum((mean, gradient))
      done = (mean < stop) | (c['steps'] == steps)
      moved, inner = step_of.update(gradient, c['inner'], c['delta'])
      moved = c['delta'] + moved
      if limit:
        moved = jnp.clip(moved, -limit, limit)
      return {
        'delta': jnp.where(done, c['delta'], moved),
        'inner': inner,
        'each': each,
        'steps': c['steps'] + ~done,
        'done': done,
      }

    carry = {
      'delta': delta,
      'inner': step_of.init(delta),
      'each': jnp.zeros(batch.valid.size),
      'steps': jnp.zeros((), jnp.int32),
      'done': facts == 0,
    }
    out = jax.lax.while_loop(lambda c: ~c['done'], step, carry)
    report = EditReport(
      facts,
      whole.sum(jnp.sum(batch.valid & (out['each'] < stop))),
      out['steps'] * facts,
      whole.sum(out['each'].sum()) / jnp.maximum(facts, 1),
      jnp.zeros(0),
    )
    delta, seen = out['delta'], None
    if learn:
      lookup = task.at.slot % task.at.token.shape[1] == wide
      found = keys(model, params, task, delta)
      seen = whole.gather(found, 1), whole.gather(lookup)
    return delta, seen, report

  def update(batch: EditBatch, state: DescentState, params: Params):
    part = functools.partial(descend, params, state.memory)
    delta, seen, report = each_part(part, batch)
    memory = learn(state.memory, *seen) if learn else state.memory
    new = DescentState(memory, state.count + report.facts, report)
    return as_updates(delta), new

  return optax.GradientTransformation(init, update)
