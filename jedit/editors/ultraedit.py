"""UltraEdit (Gu et al., 2025): gradients where others optimise values.

    v_t = -eta |h^_t|^2 g^_t      dW = (H'H + I)^-1 H'V

A row of H is a key at a token where the target is predicted, g the gradient of
the mean -log p of the targets' tokens at the output; h^, g^ are both less their
mean and over their deviation, in each feature, over all tokens of the stream.
README's formula with prior I and noise 1, an observation a token, solved in the
space of tokens: dW = H' (H H' + I)^-1 V.

The paper edits gate and up projections of some models; here, as everywhere in
jedit, the site's down-projections.

The authors' running variance adds up each batch's unbiased variance times its
size; here deviations are merged exactly, so that cutting a batch in two leaves
the same statistics.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jedit import gradients
from jedit.gradients import Normaliser
from jedit.models.transformer import Model
from jedit.parts import each_layer
from jedit.types import Editor, EditReport, as_updates, kernel_of

_HIGHEST = jax.lax.Precision.HIGHEST


class UltraEditState(NamedTuple):
  """Statistics of [H, G] over the stream, requests seen, the last report."""

  normaliser: Normaliser
  count: jax.Array
  report: EditReport


def ultraedit(model: Model, *, lr: float = 1e-6) -> Editor:
  """UltraEdit as an optax transformation of EditBatches.

  No target is optimised: a report's `reached` is 0, its `residual` empty, its
  `steps` the gradients taken and its `loss` that before the edit. Of a stream's
  very first token, alone in its batch, nothing is learned.

  Args:
    model: the network; params must be split at the site.
    lr: eta.
  """

  def init(params):
    layers, wide, width = kernel_of(params).shape
    zero, none = jnp.zeros((), jnp.int32), jnp.zeros(())
    report = EditReport(zero, zero, zero, none, jnp.zeros(0))
    seen = gradients.nothing_seen(layers, wide + width)
    return UltraEditState(seen, zero, report)

  def update(batch, state, params):
    mean = lambda tokens, total: 1 / jnp.maximum(total, 1)
    h, g, real, _, loss = gradients.factors(model, params, batch, mean, True)
    both = jnp.concatenate([h, g], axis=-1)
    seen = gradients.merge(state.normaliser, both, real)
    h_hat, g_hat = jnp.split(
      gradients.normalise(seen, both), [h.shape[-1]], axis=-1
    )
    v = -lr * jnp.sum(h_hat**2, axis=-1, keepdims=True) * g_hat
    v = jnp.where(real[..., None], v, 0)
    gram = jnp.matmul(h, h.mT, precision=_HIGHEST) + jnp.eye(real.shape[1])
    solve = functools.partial(jax.scipy.linalg.solve, assume_a='pos')
    out = each_layer(solve, gram, v)
    delta = jnp.matmul(h.mT, out, precision=_HIGHEST)
    facts = batch.valid.sum()
    report = state.report._replace(facts=facts, steps=facts, loss=loss)
    new = UltraEditState(seen, state.count + facts, report)
    return as_updates(delta), new

  return optax.GradientTransformation(init, update)
