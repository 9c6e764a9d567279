"""Null-space training (Adam-NSCL: Wang et al., CVPR 2021), eq. 6.

    dW <- U2 U2' dW

where U2 spans the small eigenvalues of C. It is fine-tuning whose every Adam
step is projected, so that what text puts into a layer meets the weights it
knows; AlphaEdit borrowed the projector. C stays as it is: the paper adds each
task's own features to it, which is what `kde` does.
"""

import optax

from jedit import condition, sharding
from jedit.editors.descent import descent, onto
from jedit.models.transformer import Model
from jedit.types import Editor, JeditError, SecondMoment, kernel_of


def null_space(
  model: Model,
  moment: SecondMoment,
  *,
  steps: int = 25,
  lr: float = 5e-4,
  stop: float = 0.01,
  threshold: float = 0.02,
  relative: bool = False,
  tokens: str = 'all',
  products: str = 'float32',
) -> Editor:
  """Null-space training as an optax transformation of EditBatches.

  Args:
    model: the network; params must be split at the site.
    moment: second moments of the keys of the site layers.
    steps: most Adam steps a batch.
    lr: Adam's rate; Adam starts afresh with every batch.
    stop: no further step once the batch's mean loss is below.
    threshold: eigenvalues of C below it span the null space (AlphaEdit's
      value); absolute, or relative to the largest.
    relative: which of the two the threshold is.
    tokens: whose gradient counts: "all", or "lookup" (see descent.py).
    products: of the descent, see values.optimiser.
  """
  basis, _ = condition.null_space_prior(moment, 1.0, threshold, relative)

  def start(params):
    shape = kernel_of(params).shape[:2]
    if basis.shape[:2] != shape:
      raise JeditError(
        f'the null space is for keys {basis.shape[:2]}, the site has {shape}: '
        'make the second moments of these layers'
      )
    return sharding.by_rows(basis, shape[1])

  return descent(
    model,
    lambda basis, _: optax.chain(optax.adam(lr), onto(basis)),
    steps=steps,
    stop=stop,
    tokens=tokens,
    products=products,
    start=start,
  )
