"""The network: below | site | above, each one scan of one block.

Tokens run packed: a grid of rows [R, T] with empty slots is laid out as one
list [M] of its real tokens, and only attention goes back to the grid. The cost
is that of the real tokens, whatever the rows' lengths, and padding can change
no result.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jedit.models import gpt, llama
from jedit.models.layers import Config
from jedit.types import Params

_FAMILIES = {'llama': llama, 'gpt': gpt}


class Layout(NamedTuple):
  """Where the real tokens of a grid [R, T] are in a packed list [M].

  Attributes:
    slot: int32 [M], flat grid slot of each packed token; R * T if unused.
    token: int32 [R, T], packed index of each slot; M where empty.
    positions: int32 [M].
  """

  slot: jax.Array
  token: jax.Array
  positions: jax.Array


class Trace(NamedTuple):
  """What a layer computed for its tokens [M]: key [M, F], mid [M, D], kv."""

  key: jax.Array
  mid: jax.Array
  kv: tuple[jax.Array, jax.Array]


class Model(NamedTuple):
  """A decoder as pure functions of its params.

  Attributes:
    config: shapes.
    embed: (params, tokens [M], positions [M]) -> x [M, D].
    address: (layer, x, positions, attend) -> (mid, key, kv).
    value: (layer, mid, key) -> x.
    logits: (params, x [M, D]) -> float32 [M, V].
    init: key -> params, float32.
  """

  config: Config
  embed: Callable[..., jax.Array]
  address: Callable[..., Any]
  value: Callable[..., jax.Array]
  logits: Callable[..., jax.Array]
  init: Callable[[jax.Array], Params]


def build(config: Config) -> Model:
  """The Model of a config."""
  family = _FAMILIES[config.family]
  block = family.Block(config)
  norm = family.final_norm(epsilon=config.norm_eps)

  def embed(params, tokens, positions):
    x = params['embed']['tokens'][tokens]
    if config.positions:
      x = x + params['embed']['positions'][positions]
    return x

  def address(layer, x, positions, attend):
    return block.apply(
      {'params': layer}, x, positions, attend, method='address'
    )

  def value(layer, mid, key):
    out = block.apply({'params': layer}, mid, key, method='value')
    return out.astype(mid.dtype)

  def logits(params, x):
    x = norm.apply({'params': params['final_norm']}, x)
    if config.tied:
      out = x @ params['embed']['tokens'].T
    else:
      out = x @ params['head']['kernel']
    if config.head_bias:
      out = out + params['head']['bias']
    return out.astype(jnp.float32)

  def init(key):
    keys = jax.random.split(key, 4)
    x = jnp.zeros((1, config.width))
    attend = functools.partial(_attend_self, config)

    def layer(key):
      positions = jnp.zeros(1, jnp.int32)
      return block.init(key, x, positions, attend)['params']

    normal = jax.nn.initializers.normal(1 / math.sqrt(config.width))
    params = {
      'embed': {'tokens': normal(keys[0], (config.vocab_size, config.width))},
      'layers': jax.vmap(layer)(jax.random.split(keys[1], config.num_layers)),
      'final_norm': norm.init(key, x)['params'],
    }
    if config.positions:
      shape = config.context_length, config.width
      params['embed']['positions'] = normal(keys[2], shape)
    if not config.tied:
      head = normal(keys[3], (config.width, config.vocab_size))
      params['head'] = {'kernel': head}
      if config.head_bias:
        params['head']['bias'] = jnp.zeros(config.vocab_size)
    return params

  return Model(config, embed, address, value, logits, init)


def _attend_self(config, q, k, v):
  """Each token sees itself alone (shapes for init)."""
  return jnp.repeat(v, config.num_heads // config.num_kv_heads, axis=-2)


def split(params: Params, lo: int, hi: int) -> Params:
  """Cuts 'layers' into 'below' [0, lo), 'site' [lo, hi] and 'above'.

  `lo` and `hi` are the first and the last edited layer, counted from 0, as in
  the papers' "layers 4-8".
  """
  params = dict(params)
  layers = params.pop('layers')
  cut = lambda a, b: jax.tree.map(lambda x: x[a:b], layers)
  return {
    **params,
    'below': cut(None, lo),
    'site': cut(lo, hi + 1),
    'above': cut(hi + 1, None),
  }


def join(params: Params) -> Params:
  """Undoes split."""
  params = dict(params)
  segments = [params.pop(name) for name in ('below', 'site', 'above')]
  cat = lambda *x: jnp.concatenate(x, axis=0)
  return {**params, 'layers': jax.tree.map(cat, *segments)}


def layout(
  mask: Bool[Array, 'R T'], positions: Int[Array, 'R T'], size: int
) -> Layout:
  """Packs the slots where mask is True, in order, into `size` tokens."""
  flat = mask.ravel()
  slot = jnp.nonzero(flat, size=size, fill_value=flat.size)[0]
  token = jnp.where(flat, jnp.cumsum(flat) - 1, size).reshape(mask.shape)
  taken = positions.ravel().at[slot].get(mode='fill', fill_value=0)
  return Layout(slot.astype(jnp.int32), token.astype(jnp.int32), taken)


def take(x: jax.Array, index: jax.Array) -> jax.Array:
  """x[index] over axis 0; zeros where index is past the end."""
  return x.at[index].get(mode='fill', fill_value=0)


@jax.custom_vjp
def _exchange(x, index, inverse):
  """x[index], when index is one-to-one on its real entries.

  Then the transpose is a gather too, by `inverse` (a scatter is slow).
  """
  del inverse
  return take(x, index.ravel()).reshape(*index.shape, *x.shape[1:])


def _exchange_fwd(x, index, inverse):
  return _exchange(x, index, inverse), (index, inverse)


def _exchange_bwd(saved, g):
  index, inverse = saved
  flat = g.reshape(index.size, *g.shape[index.ndim :])
  back = take(flat, inverse.ravel())
  return back.reshape(*inverse.shape, *back.shape[1:]), None, None


_exchange.defvjp(_exchange_fwd, _exchange_bwd)


def to_grid(x: jax.Array, at: Layout) -> jax.Array:
  """[M, ...] -> [R, T, ...], zeros in empty slots."""
  return _exchange(x, at.token, at.slot)


def from_grid(x: jax.Array, at: Layout) -> jax.Array:
  """[R, T, ...] -> [M, ...]."""
  flat = x.reshape(-1, *x.shape[2:])
  return _exchange(flat, at.slot, at.token.ravel())


class Past(NamedTuple):
  """Cached keys and values [.., R, H, P, A] and which of them exist [R, P]."""

  k: jax.Array
  v: jax.Array
  mask: jax.Array


def attention(at: Layout, size: int, past: Past | None = None) -> Callable:
  """attend(q, k, v) over packed tokens: causal within a row, past first."""
  rows, width = at.token.shape
  here = at.token < size
  mask = here[:, None, :] & jnp.tril(jnp.ones((width, width), bool))
  if past is not None:
    seen = jnp.broadcast_to(past.mask[:, None], (rows, width, past.k.shape[2]))
    mask = jnp.concatenate([seen, mask], axis=-1)

  def heads_first(x):
    return to_grid(x, at).swapaxes(1, 2)  # [R, H, T, A]

  def attend(q, k, v):
    groups, depth = k.shape[-2:]
    per = q.shape[-2] // groups
    q, k, v = heads_first(q), heads_first(k), heads_first(v)
    q = q.reshape(rows, groups, per * width, depth) / math.sqrt(depth)
    dot = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    scores = dot(q, k.mT)
    if past is not None:
      scores = jnp.concatenate([dot(q, past.k.mT), scores], axis=-1)
    scores = scores.reshape(rows, groups, per, width, -1)
    scores = jnp.where(mask[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    weights = weights.reshape(rows, groups, per * width, -1)
    if past is None:
      out = weights @ v
    else:
      before, after = jnp.split(weights, [past.k.shape[2]], axis=-1)
      out = before @ past.v + after @ v
    out = out.reshape(rows, groups * per, width, depth).swapaxes(1, 2)
    return from_grid(out, at)

  return attend


def run(
  model: Model,
  layers: Params,
  x: Float[Array, 'M D'],
  at: Layout,
  past: Past | None = None,
  keep: Callable[[Trace], Any] = lambda trace: None,
) -> tuple[Float[Array, 'M D'], Any]:
  """Runs a segment's stacked layers over packed tokens.

  Args:
    model: the network.
    layers: params of the segment, leaves [layers, ...].
    x: hidden states entering it.
    at: where the tokens are.
    past: cached keys and values [layers, R, H, P, A] of what precedes.
    keep: what to collect of each layer's Trace.

  Returns:
    (x leaving the segment, the collected leaves stacked over layers).
  """

  def body(x, xs):
    layer, kv = xs
    here = None if kv is None else Past(*kv, past.mask)
    attend = attention(at, x.shape[0], here)
    mid, key, kv = model.address(layer, x, at.positions, attend)
    return model.value(layer, mid, key), keep(Trace(key, mid, kv))

  kv = None if past is None else (past.k, past.v)
  return jax.lax.scan(body, x, (layers, kv))


def cache(
  model: Model, layers: Params, x: jax.Array, at: Layout
) -> tuple[jax.Array, Past]:
  """Runs a segment and keeps its keys and values on the grid of `at`."""
  heads_first = lambda a: to_grid(a, at).swapaxes(1, 2)
  keep = lambda trace: jax.tree.map(heads_first, trace.kv)
  out, (k, v) = run(model, layers, x, at, keep=keep)
  return out, Past(k, v, at.token < x.shape[0])

