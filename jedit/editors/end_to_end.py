"""MEMIT's closed form, its values learned end to end. Ours; no paper.

    dW = Sigma K' (K Sigma K' + I)^-1 V

is what MEMIT with history makes of K (keys of the lookup tokens, averaged over
the contexts) and of the values V that a layer is to add. MEMIT finds one
target a fact with the weights at rest, spreads it over the layers and takes
what each of them leaves. Here the V of all site layers are descended together
through the edited weights themselves, by Adam, a step a batch: what a layer
leaves, what it does to other tokens and to the other facts, the loss sees. dW
stays in the span of Sigma K', where it costs the text that C describes, and
earlier facts, least.
What it costs them joins the loss, for B facts:

    1/B sum_b -log p(t_b | prompt_b)  +  cost / 2B sum_layers tr dW' Sigma^-1 dW

Sigma is conditioned on what a batch's plain prompts read once they are edited:
on the keys of lookup tokens with noise 1, as MEMIT's, and on those of all other
tokens with noise `aside`, so that earlier prompts run as they did.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from jedit import condition
from jedit.editors.descent import descent
from jedit.models.transformer import Model
from jedit.parts import each_layer
from jedit.sharding import by_rows
from jedit.types import Editor, JeditError, SecondMoment, kernel_of

_HIGHEST = jax.lax.Precision.HIGHEST


def end_to_end(
  model: Model,
  moment: SecondMoment,
  *,
  steps: int = 25,
  settle: int = 10,
  lr: float = 0.2,
  stop: float = 0.01,
  weight: float = 15_000.0,
  aside: float = 10.0,
  cost: float = 3e-3,
  products: str = 'float32',
) -> Editor:
  """MEMIT, end to end, as an optax transformation of EditBatches.

  Args:
    model: the network; params must be split at the site.
    moment: second moments of the keys of the site layers.
    steps: most Adam steps a batch at `lr`.
    settle: most Adam steps a batch after them, at a tenth of it.
    lr: Adam's rate, in units of a value; Adam starts afresh with every batch.
    stop: no further step once the batch's mean loss is below.
    weight: lambda of Sigma = (lambda C)^-1 (mom2_update_weight).
    aside: noise of the keys of tokens that are no lookup tokens.
    cost: price of dW, see above; the more, the less is said in other words, and
      the less is forgotten. 0: none.
    products: of the descent, see values.optimiser.
  """
  if aside <= 0:
    raise JeditError(f'aside={aside}: a variance, above 0')
  if cost < 0:
    raise JeditError(f'cost={cost}: not below 0')
  prior = condition.ridge_prior(moment, weight)
  rate = optax.piecewise_constant_schedule(lr, {steps: 0.1})

  def start(params):
    return by_rows(prior, kernel_of(params).shape[1])

  def learn(root, keys, lookup):
    noise = jnp.where(lookup, 1.0, aside)

    def one(root, keys):
      none = jnp.zeros((len(keys), 1))
      return condition.condition(root, keys, none, noise)[1]

    return by_rows(each_layer(one, root, keys), keys.shape[-1])

  def optimiser(root, lookups):
    keys = lookups()
    facts = jnp.maximum(keys[0].any(-1).sum(), 1)
    gain, price = each_layer(_gain, root, keys)
    return _spanned(gain, price * (cost / facts), optax.adam(rate))

  return descent(
    model,
    optimiser,
    steps=steps + settle,
    stop=stop,
    tokens='lookup',
    products=products,
    start=start,
    learn=learn,
  )


def _gain(root, keys):
  """G [F, B] of one layer, dW = G V; H [B, B], dW' Sigma^-1 dW = V' H V."""
  z = jnp.matmul(keys, root, precision=_HIGHEST)
  one = jnp.eye(len(keys))
  gram = jnp.matmul(z, z.T, precision=_HIGHEST) + one
  inverse = jax.scipy.linalg.solve(gram, one, assume_a='pos')
  out = jnp.matmul(z.T, inverse, precision=_HIGHEST)
  gain = jnp.matmul(root, out, precision=_HIGHEST)
  return gain, jnp.matmul(out.T, out, precision=_HIGHEST)


def _spanned(gain, price, inner):
  """`inner` as an optimiser of V where dW = G V, to whose loss V' H V / 2 adds.

  gain: G [E, F, B]; price: H [E, B, B].
  """
  dot = functools.partial(jnp.matmul, precision=_HIGHEST)

  def init(delta):
    values = jnp.zeros((*price.shape[:2], delta.shape[-1]))
    return values, inner.init(values)

  def update(gradient, state, params=None):
    del params
    values, state = state
    slope = dot(gain.mT, gradient) + dot(price, values)
    step, state = inner.update(slope, state)
    return dot(gain, step), (values + step, state)

  return optax.GradientTransformation(init, update)
