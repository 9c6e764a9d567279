"""AlphaEdit (Fang et al., ICLR 2025), eq. 12.

    dW = (ridge I + P (K_p' K_p + K' K))^-1 P K' R

Row "AlphaEdit" of the table in README: prior P / ridge with P the projector
onto the directions text hardly uses, noise 1, earlier edits K_p remembered.
"""

from jedit import condition, values
from jedit.editors.least_squares import gaussian, least_squares
from jedit.models.transformer import Model
from jedit.types import Editor, SecondMoment


def alphaedit(
  model: Model,
  moment: SecondMoment,
  *,
  ridge: float = 10.0,
  threshold: float = 0.02,
  relative: bool = False,
  optimise: values.Optimise | None = None,
) -> Editor:
  """AlphaEdit as an optax transformation of EditBatches.

  Args:
    model: the network; params must be split at the site.
    moment: second moments of the keys of the site layers.
    ridge: L2 of the reference code.
    threshold: eigenvalues of C below it span the null space
      (nullspace_threshold); absolute, or relative to the largest.
    relative: which of the two the threshold is.
    optimise: the value engine; values.optimiser(model) by default.
  """
  root, _ = condition.null_space_prior(moment, ridge, threshold, relative)
  return least_squares(
    model,
    root,
    gaussian(1.0),
    remember=True,
    optimise=optimise or values.optimiser(model),
  )
