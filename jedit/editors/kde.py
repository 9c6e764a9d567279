"""KDE, knowledge decoupling (Xu et al., ACL 2025), in our reading.

    g <- g - B B' g        B: what earlier edits put into the layer

No code and no formula but this is public; the rest is ours. The cache B takes
the keys of all tokens of the plain rows, at the edited weights, so that earlier
prompts run as they did: what B holds of K_old meets no dW. Of what B does not
explain, the largest singular directions enter until B holds the share `energy`
of the batch's keys (GPM's rule: Saha et al., ICLR 2021). A full cache takes no
more: later edits still avoid it, but are not protected themselves.

The step that Adam makes of g is projected once more: Adam divides entry by
entry, which leads out of the complement. The two stages of training are taken
to be `steps` at `lr`, then, if the loss is not below `stop`, `settle` more at a
tenth of it: Adam's steps do not become shorter as the room gets narrower.
"""

import optax

from jedit.editors import directions
from jedit.editors.descent import descent, off
from jedit.models.transformer import Model
from jedit.types import Editor, JeditError, kernel_of


def kde(
  model: Model,
  *,
  steps: int = 25,
  settle: int = 10,
  lr: float = 5e-4,
  stop: float = 0.01,
  energy: float = 0.95,
  capacity: int = 512,
  tokens: str = 'all',
  products: str = 'float32',
) -> Editor:
  """KDE as an optax transformation of EditBatches.

  Args:
    model: the network; params must be split at the site.
    steps: most Adam steps a batch in the first stage.
    settle: most Adam steps a batch in the second.
    lr: Adam's rate; Adam starts afresh with every batch.
    stop: no further step once the batch's mean loss is below.
    energy: share of the squared norm of a batch's keys that the cache is to
      explain, at each layer.
    capacity: most directions a layer.
    tokens: whose gradient counts: "all", or "lookup" (see descent.py).
    products: of the descent, see values.optimiser.
  """
  if not 0 < energy <= 1 or capacity < 1:
    raise JeditError(
      f'energy={energy}: above 0, at most 1; capacity={capacity}: at least 1'
    )

  def start(params):
    layers, width, _ = kernel_of(params).shape
    return directions.none(layers, width, capacity)

  def learn(known, keys, _):
    return directions.extend(known, keys, energy)

  def optimiser(known, _):
    rate = optax.piecewise_constant_schedule(lr, {steps: 0.1})
    aside = off(known.basis)
    return optax.chain(aside, optax.adam(rate), aside)

  return descent(
    model,
    optimiser,
    steps=steps + settle,
    stop=stop,
    tokens=tokens,
    products=products,
    start=start,
    learn=learn,
  )
