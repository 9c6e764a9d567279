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

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jedit.models import gpt, llama
from jedit.models.layers import Config, product
from jedit.models.packing import (
  Layout,
  Past,
  as_past,
  attention,
  from_grid,
  layout,
  take,
  to_grid,
)
from jedit.models.segments import join, narrow, split, strung
from jedit.types import Params

# Callers find packing and segments here too: it is how `run` is called.
__all__ = [
  'Layout',
  'Model',
  'Past',
  'Trace',
  'as_past',
  'attention',
  'build',
  'cache',
  'from_grid',
  'join',
  'layout',
  'narrow',
  'run',
  'split',
  'strung',
  'take',
  'to_grid',
]
_FAMILIES = {'llama': llama, 'gpt': gpt}


class Trace(NamedTuple):
  """What a layer read, x [M, D], and computed: key [M, F], mid [M, D], kv."""

  x: jax.Array
  key: jax.Array
  mid: jax.Array
  kv: tuple[jax.Array, jax.Array]


class Model(NamedTuple):
  """A decoder as pure functions of its params.

  Attributes:
    config: shapes.
    embed: (params, tokens [M], positions [M]) -> x [M, D].
    address: (layer, x, positions, attend) -> (mid, key, kv).
    key: (layer, x, mid) -> key, that of `address`.
    value: (layer, mid, key) -> x.
    logits: (params, x [M, D]) -> float32 [M, V].
    init: PRNG key -> params, float32.
  """

  config: Config
  embed: Callable[..., jax.Array]
  address: Callable[..., Any]
  key: Callable[..., jax.Array]
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

  def key_of(layer, x, mid):
    return block.apply({'params': layer}, x, mid, method='key')

  def value(layer, mid, key):
    out = block.apply({'params': layer}, mid, key, method='value')
    return out.astype(mid.dtype)

  def logits(params, x):
    x = norm.apply({'params': params['final_norm']}, x)
    head = params.get('head', {})
    if 'kernel' in head:
      out = product(x, head['kernel'])
    else:
      out = product(x, params['embed']['tokens'], axis=1)
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
      bias = {'bias': jnp.zeros(config.vocab_size)}
      params['head'] = params.get('head', {}) | bias
    return params

  return Model(config, embed, address, key_of, value, logits, init)


def _attend_self(config, q, k, v):
  """Each token sees itself alone (shapes for init)."""
  return jnp.repeat(v, config.num_heads // config.num_kv_heads, axis=-2)


def run(
  model: Model,
  layers: Params | tuple[Params, ...],
  x: Float[Array, 'M D'],
  at: Layout,
  past: Past | tuple[Past, ...] | None = None,
  keep: Callable[[Trace], Any] = lambda trace: None,
) -> tuple[Float[Array, 'M D'], Any]:
  """Runs a segment's stacked layers over packed tokens.

  Args:
    model: the network.
    layers: params of the segment, leaves [layers, ...]; of a tuple of segments
      one is run after the other, and past and what is collected are tuples.
    x: hidden states entering it.
    at: where the tokens are.
    past: what precedes, leaves [layers, R, H, ..].
    keep: what to collect of each layer's Trace.

  Returns:
    (x leaving the segment, the collected leaves stacked over layers).
  """
  if isinstance(layers, tuple):
    kept = []
    for part, seen in zip(layers, past or (None,) * len(layers), strict=True):
      x, found = run(model, part, x, at, seen, keep)
      kept.append(found)
    return x, tuple(kept)

  def body(x, xs):
    layer, kv = xs
    here = None if kv is None else Past(*kv, past.mask)
    attend = attention(at, x.shape[0], here)
    mid, key, kv = model.address(layer, x, at.positions, attend)
    return model.value(layer, mid, key), keep(Trace(x, key, mid, kv))

  # A gradient keeps the outputs of the products with weights, and where tokens
  # look; to recompute the rest costs less than its way to memory and back.
  policy = jax.checkpoint_policies.save_only_these_names('product', 'attention')
  body = jax.checkpoint(body, prevent_cse=False, policy=policy)
  kv = None if past is None else (past.k, past.v)
  return jax.lax.scan(body, x, (layers, kv))


def cache(
  model: Model,
  layers: Params | tuple[Params, ...],
  x: jax.Array,
  at: Layout,
  past: Past | tuple[Past, ...] | None = None,
) -> tuple[jax.Array, Past | tuple[Past, ...]]:
  """Runs a segment or several; the Past, after `past`, on the grid of `at`."""
  if isinstance(layers, tuple):
    new = []
    for part, seen in zip(layers, past or (None,) * len(layers), strict=True):
      x, found = cache(model, part, x, at, seen)
      new.append(found)
    return x, tuple(new)
  keep = lambda trace: as_past(trace.kv, at)[:2]
  out, (k, v) = run(model, layers, x, at, past, keep)
  new = Past(k, v, at.token < x.shape[0])
  if past is None:
    return out, new
  past = past.spread(at.token.shape[0])
  slots = lambda a, b, axis: jnp.concatenate([a, b], axis=axis)
  return out, Past(
    slots(past.k, new.k, -1),
    slots(past.v, new.v, -2),
    slots(past.mask, new.mask, -1),
  )
