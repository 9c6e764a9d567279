"""PMET (Li et al., AAAI 2024).

    dW = R / sqrt(left) K' (K' K + lambda C)^-1

Row "PMET" of the table in README: prior (lambda C)^-1, noise 1. What is new is
the target: one delta at the MLP's output and one at the attention's are
optimised together, and only the MLP's becomes a value to write.
"""

from jedit import condition, values
from jedit.editors.least_squares import gaussian, least_squares
from jedit.models.transformer import Model
from jedit.types import Editor, SecondMoment

ENGINE = {
  'point': 'mlp+attention',
  'steps': 30,
  'lr': 0.2,
  'kl_factor': 1.0,
  'early_stop': 0.01,
  'relaxed': 0.1,
}


def pmet(
  model: Model,
  moment: SecondMoment,
  *,
  weight: float = 15_000.0,
  optimise: values.Optimise | None = None,
) -> Editor:
  """PMET as an optax transformation of EditBatches.

  Args:
    model: the network; params must be split at the site.
    moment: second moments of the keys of the site layers.
    weight: lambda (mom2_update_weight); 6,000 for GPT-J on CounterFact.
    optimise: the value engine; values.optimiser(model, **ENGINE) by default.
  """
  return least_squares(
    model,
    condition.ridge_prior(moment, weight),
    gaussian(1.0),
    remember=False,
    optimise=optimise or values.optimiser(model, **ENGINE),
    spread='sqrt',
  )
