"""AdaEdit, from the paper: there is no public code.

    dW = R K' (C* + K' K)^-1                    then, dW = sum_i s_i u_i v_i',
    dW <- sum_i s_i T_k(u_i) T_k(v_i)'

Row "AdaEdit" of the table in README: MEMIT's solve on targets taken from the
MLP's stream alone ("disentangled": one delta at its output, one at the
attention's, and only the first is written, as in PMET), then SRFusion
(updates.fuse) of each layer's dW. The paper states neither how the residual is
spread over the layers nor how many vectors and entries SRFusion keeps.
"""

from typing import Literal

import optax

from jedit import condition, updates, values
from jedit.editors.least_squares import gaussian, least_squares
from jedit.models.transformer import Model
from jedit.types import Editor, SecondMoment

ENGINE = {'point': 'mlp+attention'}


def adaedit(
  model: Model,
  moment: SecondMoment,
  *,
  weight: float = 15_000.0,
  spread: Literal['left', 'sqrt', 'full'] = 'left',
  rank: int = 0,
  keep: float = 0.2,
  optimise: values.Optimise | None = None,
) -> Editor:
  """AdaEdit as an optax transformation of EditBatches.

  Args:
    model: the network; params must be split at the site.
    moment: second moments of the keys of the site layers.
    weight: C* = weight C.
    spread: the residual of a layer (see least_squares).
    rank: singular vectors kept; 0 is all, the facts in a batch.
    keep: share of the entries kept in each; 1, of all vectors, fuses nothing.
    optimise: the value engine; values.optimiser(model, **ENGINE) by default.
  """
  body = least_squares(
    model,
    condition.ridge_prior(moment, weight),
    gaussian(1.0),
    remember=False,
    optimise=optimise or values.optimiser(model, **ENGINE),
    spread=spread,
  )

  updates.fuse(rank or 1, keep)  # refuses what cannot be
  if keep == 1 and not rank:
    return body

  def update(batch, state, params):
    delta, state = body.update(batch, state, params)
    size = batch.valid.shape[0]
    fuse = updates.fuse(min(rank or size, size), keep, size)
    return fuse.update(delta, optax.EmptyState())[0], state

  return optax.GradientTransformation(body.init, update)
