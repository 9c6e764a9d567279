"""ROME (Meng et al., NeurIPS 2022), eq. 2, with consistent keys (r-ROME).

    dW = C^-1 k r' / (k' C^-1 k)

Row "ROME" of the table in README: prior C^-1, noise 0, one site layer. k is the
plain mean over the contexts in both places, as in Gupta et al., Rebuilding
ROME, EMNLP 2024; the published code divides by the plain prompt's key
(mixed_keys). v* is the MLP's output, and the residual that of the plain prompt.

Other than there, the contexts are the six of the MEMIT family, not 21. Several
facts of a batch are written together, each exactly (EMMET's constraint), so
their keys must be linearly independent: not two of the same subject with the
same words before it.
"""

import functools

import jax
import jax.numpy as jnp

from jedit import condition, values
from jedit.editors.least_squares import gaussian, least_squares
from jedit.models.transformer import Model
from jedit.types import Editor, SecondMoment

ENGINE = {'point': 'mlp', 'clamp': 4.0}


def rome(
  model: Model,
  moment: SecondMoment,
  *,
  mixed_keys: bool = False,
  optimise: values.Optimise | None = None,
) -> Editor:
  """ROME as an optax transformation of EditBatches.

  Args:
    model: the network; params must be split at the site.
    moment: second moments of the keys of the site layers.
    mixed_keys: k in front, the plain prompt's key in the divisor, as published
      (dW = C^-1 k r' / (k_plain' C^-1 k)); in a batch, each fact by itself.
    optimise: the value engine; values.optimiser(model, **ENGINE) by default.
  """
  consistent = gaussian(0.0)

  def mixed(root, asked):
    mm = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    mean, plain = mm(asked.keys, root), mm(asked.plain_keys, root)
    ratio = jnp.sum(mean * mean, -1) / jnp.sum(mean * plain, -1)
    ratio = jnp.where(asked.valid, ratio, 0.0)[:, None]
    asked = asked._replace(residuals=ratio * asked.residuals)
    return consistent(root, asked)

  return least_squares(
    model,
    condition.ridge_prior(moment, 1.0),
    mixed if mixed_keys else consistent,
    remember=False,
    optimise=optimise or values.optimiser(model, **ENGINE),
    plain_weight=None,
  )
