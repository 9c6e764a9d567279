"""Batched generation with a key-value cache: greedy or top-k sampling."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jedit.models import transformer
from jedit.models.transformer import Model, Past
from jedit.types import Params


def _step_attention(past: Past, layer, index, q, k, v):
  """One new token a row against the cache of a layer, itself included."""
  rows = jnp.arange(index.size)
  groups, per = k.shape[-2], q.shape[-2] // k.shape[-2]
  keys = past.k.at[layer, rows, :, index].set(k)
  values = past.v.at[layer, rows, :, index].set(v)
  q = q.reshape(*q.shape[:-2], groups, per, q.shape[-1])
  scores = jnp.einsum(
    'rhgd,rhtd->rhgt', q, keys[layer], preferred_element_type=jnp.float32
  ) / math.sqrt(q.shape[-1])
  seen = jnp.arange(past.k.shape[3]) <= index[:, None]
  scores = jnp.where(seen[:, None, None], scores, -1e30)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  out = jnp.einsum('rhgt,rhtd->rhgd', weights, values[layer])
  return out.reshape(index.size, groups * per, -1), past._replace(
    k=keys, v=values
  )


@functools.partial(jax.jit, static_argnums=(0, 4, 6))
def generate(
  model: Model,
  params: Params,
  prompt: Int[Array, 'R P'],
  prompt_len: Int[Array, 'R'],
  length: int,
  key: jax.Array,
  top_k: int = 1,
  banned: Int[Array, 'K'] | None = None,
) -> Int[Array, 'R length']:
  """Continues each prompt by `length` tokens.

  Args:
    model: the network.
    params: unsplit params.
    prompt: token ids, right-padded.
    prompt_len: tokens of each row, at least 1.
    length: tokens to add.
    key: PRNG key (unused when greedy).
    top_k: sample among the k most probable at temperature 1; 1 is greedy, 0
      samples from the whole distribution.
    banned: ids that are never produced.
  """
  rows, wide = prompt.shape
  layers = params['layers']
  slots = jnp.arange(wide)
  at = transformer.layout(
    slots < prompt_len[:, None],
    jnp.broadcast_to(slots, prompt.shape),
    rows * wide,
  )
  x = model.embed(params, transformer.take(prompt.ravel(), at.slot), at.positions)
  x, past = transformer.cache(model, layers, x, at)
  grow = ((0, 0), (0, 0), (0, 0), (0, length), (0, 0))
  past = past._replace(k=jnp.pad(past.k, grow), v=jnp.pad(past.v, grow))
  last = transformer.take(x, at.token[jnp.arange(rows), prompt_len - 1])

  def choose(x, key):
    logits = model.logits(params, x)
    if banned is not None:
      logits = logits.at[:, banned].set(-jnp.inf)
    if top_k == 1:
      return jnp.argmax(logits, axis=-1)
    if top_k:
      best, ids = jax.lax.top_k(logits, top_k)
      pick = jax.random.categorical(key, best)
      return jnp.take_along_axis(ids, pick[:, None], axis=1)[:, 0]
    return jax.random.categorical(key, logits)

  def step(carry, xs):
    x, past = carry
    key, offset = xs
    token = choose(x, key)
    index = prompt_len + offset
    x = model.embed(params, token, index)

    def layer(i, carry):
      x, past = carry
      new = []

      def attend(q, k, v):
        out, grown = _step_attention(past, i, index, q, k, v)
        new.append(grown)
        return out

      one = jax.tree.map(lambda a: a[i], layers)
      mid, hidden, _ = model.address(one, x, index, attend)
      return model.value(one, mid, hidden), new[0]

    x, past = jax.lax.fori_loop(0, past.k.shape[0], layer, (x, past))
    return (x, past), token

  xs = jax.random.split(key, length), jnp.arange(length)
  _, tokens = jax.lax.scan(step, (last, past), xs)
  return tokens.T


def contexts(
  model: Model, params: Params, tokenizer, seed: int, length: int = 10
) -> list[list[int]]:
  """Five short texts by the model itself, as ids, that go before prompts.

  MEMIT's: "The", "Therefore", "Because", "I", "You", continued to `length`
  tokens (BOS counted) by top-5 sampling; here seeded, without special tokens.
  """
  starts = ['The', 'Therefore', 'Because', 'I', 'You']
  bos = tokenizer('').input_ids
  ids = [tokenizer(s, add_special_tokens=False).input_ids for s in starts]
  width = max(map(len, ids)) + len(bos)
  prompt = np.zeros((len(ids), width), np.int32)
  sizes = np.array([len(bos) + len(i) for i in ids], np.int32)
  for row, i in zip(prompt, ids, strict=True):
    row[: len(bos) + len(i)] = bos + i
  out = generate(
    model, params, prompt, sizes, length - len(bos) - 1,
    jax.random.key(seed), 5, special_ids(tokenizer),
  )
  return [
    (i + o.tolist())[: length - len(bos)]
    for i, o in zip(ids, np.asarray(out), strict=True)
  ]


def special_ids(tokenizer) -> np.ndarray:
  """Ids that are no text (BOS, EOS, chat marks)."""
  return np.array(sorted(set(tokenizer.all_special_ids)), np.int32)
