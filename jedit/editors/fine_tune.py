"""Fine-tuning (FT, FT-L, FT-M): the baselines of every paper of the field.

    min over dW of  mean_b  mean_i  -log p(t_i | prompt_b, t_<i),
    FT-L: every |dW_ij| <= epsilon

Adam on the down-projections, all requests of a batch in one step. FT-M is the
default; FT and FT-L, as published with ROME and MEMIT, score all target tokens
where the prompt ends (`loss='prompt_last'`), so that those of a long target
compete for one place. Their code stops on the mean loss of an epoch of
minibatches of 64; here the batch is the epoch.
"""

import optax

from jedit.editors.descent import descent
from jedit.models.transformer import Model
from jedit.types import Editor


def fine_tune(
  model: Model,
  *,
  steps: int = 25,
  lr: float = 5e-4,
  stop: float = 0.01,
  limit: float = 0.0,
  loss: str = 'target',
  tokens: str = 'all',
  products: str = 'float32',
) -> Editor:
  """Fine-tuning as an optax transformation of EditBatches.

  Args:
    model: the network; params must be split at the site.
    steps: most Adam steps a batch (num_steps).
    lr: Adam's rate; Adam starts afresh with every batch.
    stop: no further step once the batch's mean loss is below.
    limit: FT-L's epsilon (norm_constraint): each entry stays this close to
      what it was before the batch; 0 is no limit.
    loss: "target" scores every target token after the ones before it;
      "prompt_last" all of them where the prompt ends.
    tokens: whose gradient counts: "all", or "lookup" (see descent.py).
    products: of the descent, see values.optimiser.

  References:
    Zhu et al., Modifying Memories in Transformer Models, 2020 (FT-L).
    Zhang et al., A Comprehensive Study of Knowledge Editing for Large Language
    Models, 2024 (FT-M).
  """
  return descent(
    model,
    lambda *_: optax.adam(lr),
    steps=steps,
    stop=stop,
    limit=limit,
    loss=loss,
    tokens=tokens,
    products=products,
  )
