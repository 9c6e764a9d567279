"""EMMET (Gupta et al., A Unified Framework for Model Editing, EMNLP 2024).

    dW = C~^-1 K' (K C~^-1 K' + ridge I)^-1 R        C~ = weight C

Row "EMMET" of the table in README: prior C~^-1, noise `ridge`, which a single
fact does not get. At 0 the new values are equality constraints, as in ROME;
above it this is MEMIT at the weight `ridge weight`.
"""

import jax.numpy as jnp

from jedit import condition, values
from jedit.editors.least_squares import gaussian, least_squares
from jedit.models.transformer import Model
from jedit.types import Editor, SecondMoment


def emmet(
  model: Model,
  moment: SecondMoment,
  *,
  weight: float = 1.0,
  ridge: float = 0.1,
  penalty: float = 0.0,
  optimise: values.Optimise | None = None,
) -> Editor:
  """EMMET as an optax transformation of EditBatches.

  Args:
    model: the network; params must be split at the site.
    moment: second moments of the keys of the site layers.
    weight: of C (mom2_update_weight).
    ridge: noise of a batch of two facts or more (emmet_lambda); 0 writes every
      value exactly, which needs keys that are linearly independent.
    penalty: added to the diagonal of C~ (update_norm_lambda).
    optimise: the value engine; values.optimiser(model) by default.
  """
  return least_squares(
    model,
    condition.ridge_prior(moment, weight, penalty),
    gaussian(lambda facts: jnp.where(facts > 1, ridge, 0.0)),
    remember=False,
    optimise=optimise or values.optimiser(model),
  )
