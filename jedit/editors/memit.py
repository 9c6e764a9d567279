"""MEMIT (Meng et al., ICLR 2023), eq. 14, and MEMIT with history.

    dW = (lambda C + K' K)^-1 K' R

Row "MEMIT" of the table in README: prior (lambda C)^-1, noise 1. Without
history the prior is the same for every batch; with it (`remember`) earlier
batches' K' K stay in the normal equations.
"""

from jedit import condition, values
from jedit.editors.least_squares import gaussian, least_squares
from jedit.models.transformer import Model
from jedit.types import Editor, SecondMoment


def memit(
  model: Model,
  moment: SecondMoment,
  *,
  weight: float = 15_000.0,
  remember: bool = False,
  penalty: float = 0.0,
  optimise: values.Optimise | None = None,
) -> Editor:
  """MEMIT as an optax transformation of EditBatches.

  Args:
    model: the network; params must be split at the site.
    moment: second moments of the keys of the site layers.
    weight: lambda (mom2_update_weight).
    remember: keep earlier edits' keys (MEMIT with history).
    penalty: lambda_n, of |dW|^2: the prior becomes (lambda C + lambda_n I)^-1.
      With it, history and values.optimiser(early_stop=inf) this is ENCORE, read
      off its abstract: the paper was not at hand.
    optimise: the value engine; values.optimiser(model) by default.
  """
  return least_squares(
    model,
    condition.ridge_prior(moment, weight, penalty),
    gaussian(1.0),
    remember=remember,
    optimise=optimise or values.optimiser(model),
  )
