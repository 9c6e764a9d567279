"""ROME (Meng et al., NeurIPS 2022), eq. 2, with consistent keys (r-ROME).

    dW = C^-1 k r' / (k' C^-1 k)

Row "ROME" of the table in README: prior C^-1, noise 0, one site layer. k is the
plain mean over the contexts in both places, as in Gupta et al., Rebuilding
ROME, EMNLP 2024; the published code divides by the plain prompt's key.

Other than there, values and their clamp are those of the block's output, not of
the MLP's; the residual is that of the plain prompt; and contexts are the six of
the MEMIT family, not 21. Several facts of a batch are written together, each
exactly (EMMET's constraint), so their keys must be linearly independent: not
two of the same subject with the same words before it.
"""

from jedit import condition, values
from jedit.editors.least_squares import least_squares
from jedit.models.transformer import Model
from jedit.types import Editor, SecondMoment


def rome(
  model: Model,
  moment: SecondMoment,
  *,
  optimise: values.Optimise | None = None,
) -> Editor:
  """ROME as an optax transformation of EditBatches.

  Args:
    model: the network; params must be split at the site.
    moment: second moments of the keys of the site layers.
    optimise: the value engine; values.optimiser(model) by default.
  """
  return least_squares(
    model,
    condition.ridge_prior(moment, 1.0),
    noise=0.0,
    remember=False,
    optimise=optimise or values.optimiser(model),
    plain_weight=None,
  )
