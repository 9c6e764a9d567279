"""Batched generation with a key-value cache: greedy or top-k sampling."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

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
  x = model.embed(
    params, transformer.take(prompt.ravel(), at.slot), at.positions
  )
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
    return sample(logits, key)

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


def padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
  """Token rows as a right-padded array [R, P] and their lengths."""
  sizes = np.array([len(r) for r in rows], np.int32)
  out = np.zeros((len(rows), sizes.max()), np.int32)
  for row, ids in zip(out, rows, strict=True):
    row[: len(ids)] = ids
  return out, sizes


def complete(
  model: Model,
  params: Params,
  tokenizer,
  texts: list[str],
  length: int,
  top_k: int = 1,
  seed: int = 0,
) -> list[str]:
  """Continuations of texts, as texts; cut at the end-of-text token."""
  ids = [tokenizer(t).input_ids for t in texts]
  return continued(model, params, tokenizer, ids, length, top_k, seed)


def continued(
  model: Model,
  params: Params,
  tokenizer,
  ids: list[list[int]],
  length: int,
  top_k: int = 1,
  seed: int = 0,
) -> list[str]:
  """`complete` for texts that are encoded already."""
  prompt, sizes = padded(ids)
  out = generate(
    model, params, prompt, sizes, length, jax.random.key(seed), top_k
  )
  said = []
  for row in np.asarray(out).tolist():
    if tokenizer.eos_token_id in row:
      row = row[: row.index(tokenizer.eos_token_id)]
    said.append(tokenizer.decode(row))
  return said


CONTEXT_TOKENS = 10


def contexts(
  model: Model,
  params: Params,
  tokenizer,
  seed: int,
  length: int = CONTEXT_TOKENS,
) -> list[list[int]]:
  """Five short texts by the model itself, as ids, that go before prompts.

  MEMIT's: "The", "Therefore", "Because", "I", "You", continued to `length`
  tokens (BOS counted) by top-5 sampling; here seeded, without special tokens.
  """
  starts = ['The', 'Therefore', 'Because', 'I', 'You']
  bos = tokenizer('').input_ids
  ids = [tokenizer(s, add_special_tokens=False).input_ids for s in starts]
  prompt, sizes = padded([bos + i for i in ids])
  out = generate(
    model,
    params,
    prompt,
    sizes,
    length - len(bos) - 1,
    jax.random.key(seed),
    5,
    special_ids(tokenizer),
  )
  return [
    (i + o.tolist())[: length - len(bos)]
    for i, o in zip(ids, np.asarray(out), strict=True)
  ]


def special_ids(tokenizer) -> np.ndarray:
  """Ids that are no text (BOS, EOS, chat marks)."""
  return np.array(sorted(set(tokenizer.all_special_ids)), np.int32)


def documents(
  model: Model,
  params: Params,
  tokenizer,
  tokens: int,
  length: int,
  seed: int,
  start: str = '',
  progress: Callable[[int], None] = lambda done: None,
  rows: int = 128,
) -> list[list[int]]:
  """Texts the model writes itself, as ids: a corpus without a corpus.

  Args:
    model: the network.
    params: unsplit params.
    tokenizer: its tokenizer.
    tokens: how many in all, rounded up to whole texts.
    length: tokens a text.
    seed: of the sampling (temperature 1, the whole distribution).
    start: the token a text begins after; '' is BOS, or else EOS.
    progress: called with the tokens written so far.
    rows: texts written together.
  """
  first = start or tokenizer.bos_token or tokenizer.eos_token
  begin = tokenizer.convert_tokens_to_ids(first)
  prompt, one = np.full((rows, 1), begin, np.int32), np.ones(rows, np.int32)
  count = -(-tokens // length)
  banned = special_ids(tokenizer)
  out: list[list[int]] = []
  while len(out) < count:
    key = jax.random.fold_in(jax.random.key(seed), len(out))
    text = generate(model, params, prompt, one, length, key, 0, banned)
    out += np.asarray(text).tolist()
    progress(min(len(out), count) * length)
  return out[:count]
