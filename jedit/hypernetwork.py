"""MEND's network: from the two factors of a gradient to an edit, and its loss.

    x = [u, d]    x <- x + relu(s (U V x + b) + t), twice    dW = a sum u' d'

u is a key and d the gradient at the output, of a token, both less their mean
and over their deviation; u', d' are the two parts of the last x. U, V, b are
shared by the edited matrices, which are of one shape; s, t, and the rate a are
each matrix's own. U starts at 0, so that u' = u and d' = d.
"""

import json
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jedit import checkpoint, gradients
from jedit.gradients import Factors, Normaliser
from jedit.models.transformer import Model
from jedit.types import EditBatch, JeditError, Params

DEPTH = 2


class Network(NamedTuple):
  """What is trained, and the statistics of the factors while it was.

  Attributes:
    params: 'blocks' of u [2, F + D, r], v [2, r, F + D], bias [2, F + D],
      scale and shift [2, E, F + D]; 'rate' [E].
    seen: of [u, d], [E, F + D].
  """

  params: Params
  seen: Normaliser


def init(
  key: jax.Array,
  shape: tuple[int, int, int],
  rank: int = 1920,
  rate: float = 1e-4,
) -> Network:
  """An untrained Network for kernels of shape [E, F, D].

  Args:
    key: V is drawn from the unit normal distribution.
    shape: of the edited kernels.
    rank: r, at most F + D.
    rate: a to begin with.
  """
  layers, size = shape[0], sum(shape[1:])
  rank = min(rank, size)
  blocks = {
    'u': jnp.zeros((DEPTH, size, rank)),
    'v': jax.random.normal(key, (DEPTH, rank, size)),
    'bias': jnp.zeros((DEPTH, size)),
    'scale': jnp.ones((DEPTH, layers, size)),
    'shift': jnp.zeros((DEPTH, layers, size)),
  }
  params = {'blocks': blocks, 'rate': jnp.full(layers, rate, jnp.float32)}
  return Network(params, gradients.nothing_seen(layers, size))


def apply(network: Network, got: Factors) -> Float[Array, 'E F D']:
  """dW of all requests together."""
  u, d = pieces(network, got)
  return u.mT @ d


def pieces(
  network: Network, got: Factors
) -> tuple[Float[Array, 'E M F'], Float[Array, 'E M D']]:
  """(u', a d') of each token, 0 where it is not real.

  Factors are taken as they are while nothing was seen.
  """
  x = jnp.concatenate([got.key, got.grad], axis=-1)
  started = network.seen.count[:, None, None] > 0
  x = jnp.where(started, gradients.normalise(network.seen, x), x)

  def block(x, p):
    low = x @ p['v'].T @ p['u'].T + p['bias']
    low = p['scale'][:, None] * low + p['shift'][:, None]
    # With the gradient 1 at 0, where U leaves everything to begin with.
    return x + jnp.where(low >= 0, low, 0), None

  x, _ = jax.lax.scan(block, x, network.params['blocks'])
  x = jnp.where(got.real[..., None], x, 0)
  u, d = jnp.split(x, [got.key.shape[-1]], axis=-1)
  return u, network.params['rate'][:, None, None] * d


def factors(model: Model, params: Params, batch: EditBatch) -> Factors:
  """Of the plain rows' tokens; those without key or gradient are not real.

  The loss is the sum over requests of their targets' mean -log p a token.
  """
  each = lambda tokens, total: 1 / jnp.maximum(tokens, 1)
  got = gradients.factors(model, params, batch, each, False)
  some = lambda x: (x != 0).any(-1)
  return got._replace(real=got.real & some(got.key) & some(got.grad))


def observe(network: Network, got: Factors) -> Network:
  """The network with more tokens in its statistics."""
  x = jnp.concatenate([got.key, got.grad], axis=-1)
  return network._replace(seen=gradients.merge(network.seen, x, got.real))


def side_by_side(model: Model, own: Bool[Array, 'M T']) -> Callable:
  """model.value, where every token sees the edit of its own request alone.

    key (W + sum_t u_t d_t) = key W + sum_t (key . u_t) d_t

  Layers hold 'u' [T, F] and 'd' [T, D], too; no dW is ever made.

  Args:
    model: the network.
    own: whether a piece is of the token's request.
  """

  def value(layer, mid, key):
    inner = jnp.where(own, key.astype(jnp.float32) @ layer['u'].T, 0)
    more = inner @ layer['d']
    return model.value(layer, mid, key) + more.astype(mid.dtype)

  return value


def objective(
  trained: Params,
  network: Network,
  model: Model,
  params: Params,
  got: Factors,
  rephrased: EditBatch,
  local: EditBatch,
  nll_weight: float = 0.1,
  kl_weight: float = 1.0,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """nll_weight NLL + kl_weight KL(base || edited), and both terms.

  A mean over requests, each edited alone, of means over an answer's tokens.

  Args:
    trained: network.params, to differentiate by.
    network: its statistics are used.
    model: the network that is edited.
    params: its params, split at the site.
    got: factors of the edits, a batch in one part, none of them padding; see
      `factors`.
    rephrased: the same facts in other words.
    local: prompts whose answers must stay, one for each.
    nll_weight: of how unlikely the answer is in other words.
    kl_weight: of what the edit does to the others.
  """
  u, d = pieces(network._replace(params=trained), got)
  moved = {**params, 'site': {**params['site'], 'u': u, 'd': d}}

  def edited(task):
    value = side_by_side(model, task.request[:, None] == got.request)
    return gradients.logits(model, moved, task, value)[0]

  task = gradients.task_of(model, params, rephrased)
  nll = gradients.each_nll(edited(task), task.wanted).mean()
  task = gradients.task_of(model, params, local)
  before = jax.nn.log_softmax(gradients.logits(model, params, task)[0])
  after = jax.nn.log_softmax(edited(task))
  kl = jnp.sum(jnp.exp(before) * (before - after), axis=-1)
  kl = gradients.each_mean(kl, task.wanted).mean()
  return nll_weight * nll + kl_weight * kl, (nll, kl)


def save(folder: str | os.PathLike, network: Network, about: dict) -> None:
  """Writes a network, and `about` with its sizes as manifest.json."""
  folder = pathlib.Path(folder)
  _, layers, size = network.params['blocks']['scale'].shape
  rank = network.params['blocks']['u'].shape[-1]
  checkpoint.save(folder / 'network', network._asdict())
  about = {**about, 'layers_edited': layers, 'features': size, 'rank': rank}
  checkpoint.write_text(
    folder / 'manifest.json', json.dumps(about, indent=2) + '\n'
  )


def load(folder: str | os.PathLike) -> tuple[Network, dict]:
  """The network that `save` wrote to a folder, and what is known about it."""
  path = pathlib.Path(folder) / 'manifest.json'
  try:
    about = json.loads(path.read_text())
    shape = about['layers_edited'], about['features'], 0
    rank = about['rank']
  except (OSError, ValueError, KeyError) as e:
    raise JeditError(
      f'{folder} holds no trained network ({type(e).__name__}); name a folder '
      'that launch.train_mend has finished'
    ) from e
  like = jax.eval_shape(lambda: init(jax.random.key(0), shape, rank))
  saved = checkpoint.load(path.parent / 'network', like._asdict())
  return Network(**saved), about
