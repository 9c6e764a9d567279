"""MEND (Mitchell et al., ICLR 2022): a network makes edits of gradients.

    dW = a sum_t u'_t d'_t      (u'_t, d'_t) = network(u_t, d_t)

u_t is the key of a token of the plain prompt and its target, d_t the gradient
of the target's -log p at the down-projection's output; see hypernetwork.py.
Not in README's table: no prior, nothing is solved.

The paper edits both matrices of the MLPs of the last three blocks; here, as
everywhere in jedit, the site's down-projections.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jedit import hypernetwork, sharding
from jedit.hypernetwork import Network
from jedit.models.transformer import Model
from jedit.types import Editor, EditReport, JeditError, as_updates, kernel_of


class MendState(NamedTuple):
  """The trained network, which stays; requests seen; the last report."""

  network: Network
  count: jax.Array
  report: EditReport


def mend(model: Model, network: Network, *, scale: float = 1.0) -> Editor:
  """MEND as an optax transformation of EditBatches.

  Of a batch, the sum over its requests' tokens. No target is optimised: a
  report's `reached` is 0, its `residual` empty, its `steps` the gradients
  taken and its `loss` that before the edit, a mean over requests.

  Args:
    model: the network that is edited; params must be split at the site.
    network: trained for these layers (launch.train_mend).
    scale: of the update (lr_scale).
  """

  def init(params):
    layers, wide, width = kernel_of(params).shape
    seen = network.seen.mean.shape
    if seen != (layers, wide + width):
      raise JeditError(
        f'the MEND network is for {seen[0]} layers and {seen[1]} features, the '
        f'site has {layers} and {wide + width}: train one for these layers'
      )
    zero = jnp.zeros((), jnp.int32)
    report = EditReport(zero, zero, zero, jnp.zeros(()), jnp.zeros(0))
    whole = sharding.by_rows(network, 0)  # on every device
    return MendState(whole, zero, report)

  def update(batch, state, params):
    got = hypernetwork.factors(model, params, batch)
    delta = hypernetwork.apply(state.network, got)
    facts = batch.valid.sum()
    loss = got.loss / jnp.maximum(facts, 1)
    report = state.report._replace(facts=facts, steps=facts, loss=loss)
    new = MendState(state.network, state.count + facts, report)
    return as_updates(scale * delta), new

  return optax.GradientTransformation(init, update)
