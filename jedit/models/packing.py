"""Packed tokens: a grid [R, T] with empty slots as a list [M] without."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Int


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
  """Cached keys [.., R, H, A, P], values [.., R, H, P, A]; which exist [R, P].

  A past of R rows serves a grid of any multiple of them: rows r, r + R, ...
  share row r.
  """

  k: jax.Array
  v: jax.Array
  mask: jax.Array

  def spread(self, rows: int) -> 'Past':
    """The past of each of `rows` grid rows."""
    times = rows // self.mask.shape[0]
    if times == 1:
      return self
    kv = lambda a: jnp.tile(a, (times, 1, 1, 1))
    return Past(kv(self.k), kv(self.v), jnp.tile(self.mask, (times, 1)))


def as_past(kv: tuple[jax.Array, jax.Array], at: Layout) -> Past:
  """The Past that packed tokens with keys and values [M, H, A] will be."""
  k, v = (to_grid(x, at).swapaxes(1, 2) for x in kv)
  return Past(k.mT, v, at.token < kv[0].shape[0])


@jax.custom_vjp
def _softmax(scores):
  """Over the last axis. A checkpoint knows it by the name "attention"."""
  return jax.nn.softmax(scores, axis=-1)


def _softmax_fwd(scores):
  out = checkpoint_name(_softmax(scores), 'attention')
  return out, out


def _softmax_bwd(out, g):
  return (out * (g - jnp.sum(g * out, axis=-1, keepdims=True)),)


_softmax.defvjp(_softmax_fwd, _softmax_bwd)


def attention(at: Layout, size: int, past: Past | None = None) -> Callable:
  """attend(q, k, v) over packed tokens: causal within a row, past first."""
  rows, width = at.token.shape
  here = at.token < size
  mask = here[:, None, :] & jnp.tril(jnp.ones((width, width), bool))
  if past is not None:
    past = past.spread(rows)
    seen = jnp.broadcast_to(past.mask[:, None], (rows, width, past.k.shape[-1]))
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
      scores = jnp.concatenate([dot(q, past.k), scores], axis=-1)
    scores = scores.reshape(rows, groups, per, width, -1)
    scores = jnp.where(mask[:, None, None], scores, -1e30)
    weights = _softmax(scores).astype(v.dtype)
    weights = weights.reshape(rows, groups, per * width, -1)
    if past is None:
      out = weights @ v
    else:
      before, after = jnp.split(weights, [past.k.shape[-1]], axis=-1)
      out = before @ past.v + after @ v
    out = out.reshape(rows, groups * per, width, depth).swapaxes(1, 2)
    return from_grid(out, at)

  return attend
