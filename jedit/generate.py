"""Batched generation with a key-value cache, greedy or sampled."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jedit import sharding
from jedit.models import transformer
from jedit.models.transformer import Model
from jedit.room import round_up
from jedit.types import JeditError, Params


def sample(
  logits: Float[Array, 'R V'], key: jax.Array, block: int = 128
) -> Int[Array, 'R']:
  """Draws from softmax(logits) by the inverse of its distribution function.

  One random number a row and a search in two steps (block, then token): a
  Gumbel draw a token, as in jax.random.categorical, takes longer on a CPU than
  the model itself.
  """
  rows, size = logits.shape
  fill = ((0, 0), (0, -size % block))
  weight = jnp.pad(jnp.exp(logits - logits.max(-1, keepdims=True)), fill)
  weight = weight.reshape(rows, -1, block)
  upto = jnp.cumsum(weight.sum(-1), axis=-1)
  aim = jax.random.uniform(key, (rows, 1)) * upto[:, -1:]
  where = jnp.minimum((upto <= aim).sum(-1), upto.shape[1] - 1)
  pick = lambda a, i: jnp.take_along_axis(a, i[:, None], axis=1)
  rest = (
    aim
    - jnp.where(where > 0, pick(upto, jnp.maximum(where - 1, 0))[:, 0], 0)[
      :, None
    ]
  )
  inside = jnp.take_along_axis(weight, where[:, None, None], axis=1)[:, 0]
  token = (jnp.cumsum(inside, axis=-1) <= rest).sum(-1)
  return where * block + jnp.minimum(token, block - 1)


class Sampling(NamedTuple):
  """How a token is drawn.

  Attributes:
    top_k: among the k most probable; 1 is greedy, 0 all.
    top_p: among the most probable that together have this probability.
    temperature: divides the logits.
  """

  top_k: int = 1
  top_p: float = 1.0
  temperature: float = 1.0


def draw(
  logits: Float[Array, 'R V'], key: jax.Array, how: Sampling
) -> Int[Array, 'R']:
  """A token a row."""
  if how.top_k == 1:
    return jnp.argmax(logits, axis=-1)
  logits = logits / how.temperature
  if not how.top_k and how.top_p >= 1:
    return sample(logits, key)
  every = logits.shape[-1]
  best, ids = jax.lax.top_k(logits, min(how.top_k or every, every))
  if how.top_p < 1:
    chance = jax.nn.softmax(best, axis=-1)
    before = jnp.cumsum(chance, axis=-1) - chance
    best = jnp.where(before < how.top_p, best, -jnp.inf)
  pick = jax.random.categorical(key, best)
  return jnp.take_along_axis(ids, pick[:, None], axis=1)[:, 0]


def generate(
  model: Model,
  params: Params,
  prompt: Int[Array, 'R P'] | Int[np.ndarray, 'R P'],
  prompt_len: Int[np.ndarray, 'R'],
  length: int,
  key: jax.Array,
  how: Sampling = Sampling(),
  banned: Int[np.ndarray, 'K'] | None = None,
  stop: int = -1,
) -> Int[Array, 'R length']:
  """Continues each prompt by `length` tokens.

  Args:
    model: the network.
    params: unsplit params.
    prompt: token ids, right-padded.
    prompt_len: tokens of each row, at least 1.
    length: tokens to add.
    key: PRNG key (unused when greedy).
    how: greedy, or how to sample.
    banned: ids that are never produced.
    stop: the id after which a row says nothing but it; when all have said it,
      the work ends.
  """
  if prompt_len.min() < 1:
    raise JeditError('a prompt without a token: nothing to continue')
  long, room = int(prompt_len.max()) + length, model.config.context_length
  if long > room + 1:  # nothing follows the last one
    raise JeditError(
      f'a prompt and {length} tokens after it have {long}, the model takes '
      f'{room}: ask for fewer'
    )
  size = round_up(int(prompt_len.sum()), 64)
  return _generate(
    model, params, prompt, prompt_len, key, banned, stop, length, how, size
  )


@functools.partial(jax.jit, static_argnums=(0, 7, 8, 9))
def _generate(
  model, params, prompt, prompt_len, key, banned, stop, length, how, size
):
  """`generate`, the prompts packed into `size` tokens.

  What is new has its own slots behind the prompts', the same for all rows.
  """
  rows, wide = prompt.shape
  layers, slots = params['layers'], jnp.arange(wide + length)
  mask = slots[:wide] < prompt_len[:, None]
  at = transformer.layout(
    mask, jnp.broadcast_to(slots[:wide], prompt.shape), size
  )
  tokens = transformer.take(prompt.ravel(), at.slot)
  x = model.embed(params, tokens, at.positions)
  x, past = transformer.cache(model, layers, x, at)
  mask = jnp.pad(mask, ((0, 0), (0, length)))
  last = transformer.take(x, at.token[jnp.arange(rows), prompt_len - 1])
  keys = jax.random.split(key, length)

  def choose(c):
    logits = model.logits(params, c['x'])
    if banned is not None:
      logits = logits.at[:, banned].set(-jnp.inf)
    token = jnp.where(c['done'], stop, draw(logits, keys[c['step']], how))
    out = jax.lax.dynamic_update_slice(
      c['out'], token.astype(jnp.int32)[:, None], (0, c['step'])
    )
    return token, c | {'out': out, 'done': c['done'] | (token == stop)}

  def step(c):
    token, c = choose(c)
    slot, index = wide + c['step'], prompt_len + c['step']
    seen = mask | ((slots >= wide) & (slots <= slot))

    def layer(i, carry):
      x, *cache = carry
      grown = []

      def attend(q, k, v):
        # Keys are kept as columns: a CPU multiplies by them faster.
        news = k[None, ..., None], v[None, :, :, None]
        places = (i, 0, 0, 0, slot), (i, 0, 0, slot, 0)
        for old, new, place in zip(cache, news, places, strict=True):
          new = new.astype(old.dtype)
          grown.append(jax.lax.dynamic_update_slice(old, new, place))
        return _attend(q, *(a[i] for a in grown), seen)

      one = jax.tree.map(lambda a: a[i], layers)
      mid, hidden, _ = model.address(one, x, index, attend)
      return model.value(one, mid, hidden), *grown

    x = model.embed(params, token, index)
    x, k, v = jax.lax.fori_loop(0, len(c['k']), layer, (x, c['k'], c['v']))
    return c | {'x': x, 'k': k, 'v': v, 'step': c['step'] + 1}

  def kept(a, axis):
    # Rows over 'data', heads over 'model', where there is a mesh.
    room = [(0, 0)] * a.ndim
    room[axis] = 0, length
    return sharding.constrain(
      jnp.pad(a, room), sharding.DATA, sharding.MODEL, None, None
    )

  carry = {
    'x': sharding.constrain(last, sharding.DATA, None),
    'k': kept(past.k, -1),
    'v': kept(past.v, -2),
    'step': jnp.zeros((), jnp.int32),
    'done': jnp.zeros(rows, bool),
    'out': jnp.full((rows, length), stop, jnp.int32),
  }
  more = lambda c: (c['step'] < length - 1) & ~c['done'].all()
  return choose(jax.lax.while_loop(more, step, carry))[1]['out']


def _attend(q, k, v, seen):
  """One token a row: q [R, H', A] against k [R, H, A, P] and v [R, H, P, A]."""
  rows, groups = k.shape[:2]
  q = q.reshape(rows, groups, -1, q.shape[-1])
  scores = jnp.einsum(
    'rhgd,rhdt->rhgt', q, k, preferred_element_type=jnp.float32
  ) / math.sqrt(q.shape[-1])
  scores = jnp.where(seen[:, None, None], scores, -1e30)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  out = jnp.einsum('rhgt,rhtd->rhgd', weights, v)
  return out.reshape(rows, -1, q.shape[-1])


def padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
  """Token rows as a right-padded array [R, P] and their lengths."""
  sizes = np.array([len(r) for r in rows], np.int32)
  out = np.zeros((len(rows), round_up(int(sizes.max()), 8)), np.int32)
  for row, ids in zip(out, rows, strict=True):
    row[: len(ids)] = ids
  return out, sizes
