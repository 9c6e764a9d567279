"""Linen layers shared by the model families, and their configuration."""

import dataclasses
import functools
import math
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name


@dataclasses.dataclass(frozen=True)
class Config:
  """Shape and variant of a decoder; a family's file says which it uses."""

  family: Literal['llama', 'gpt']
  vocab_size: int
  width: int
  mlp_width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  context_length: int
  norm_eps: float
  tied: bool
  activation: Literal['silu', 'gelu', 'gelu_tanh'] = 'silu'
  rotary_dim: int = 0  # 0: no rotary embedding
  rope_theta: float = 10_000.0
  rope_scaling: tuple[tuple[str, float | int | str], ...] = ()
  rope_interleaved: bool = False
  positions: bool = False  # learned position embeddings
  parallel: bool = False  # attention and MLP read the same norm
  fused_qkv: bool = False
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  head_bias: bool = False
  qk_norm: bool = False


_ACTIVATIONS = {
  'silu': jax.nn.silu,
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
  'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
}


class Narrow(NamedTuple):
  """A constant kernel; the factors of its products are rounded to bfloat16.

  Sums, and what goes in and comes out, stay float32. It is kept as bits: XLA's
  CPU backend is twice as fast on bfloat16 as on float32, but not in a loop that
  carries bfloat16.

  Attributes:
    bits: uint16 [.., D, F], bfloat16.
  """

  bits: jax.Array


def narrow(kernel: jax.Array) -> Narrow:
  """Rounds a float32 kernel [.., D, F]."""
  half = kernel.astype(jnp.bfloat16)
  return Narrow(jax.lax.bitcast_convert_type(half, jnp.uint16))


def product(x: jax.Array, kernel: jax.Array | Narrow, axis=0) -> jax.Array:
  """x [.., D] @ kernel [D, F], or, with axis 1, kernel [F, D].

  A checkpoint knows it by the name "product".
  """
  if isinstance(kernel, Narrow):
    out = _rounded(x.astype(jnp.float32), kernel, axis)
  else:
    out = _dot(x, kernel, axis)
  return checkpoint_name(out, 'product')


def _dot(x, kernel, axis, **how):
  return jax.lax.dot_general(
    x, kernel, (((x.ndim - 1,), (axis,)), ((), ())), **how
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded(x, kernel, axis):
  factor = jax.lax.bitcast_convert_type(kernel.bits, jnp.bfloat16)
  x = x.astype(jnp.bfloat16)
  return _dot(x, factor, axis, preferred_element_type=jnp.float32)


_rounded.defvjp(
  lambda x, kernel, axis: (_rounded(x, kernel, axis), kernel),
  lambda axis, kernel, g: (_rounded(g, kernel, 1 - axis), None),
)
Dense = functools.partial(
  nn.Dense,
  promote_dtype=lambda *arrays, dtype: arrays,
  dot_general=lambda x, kernel, *_, **__: product(x, kernel),
)


def inverse_frequencies(config: Config) -> np.ndarray:
  """Rotary frequencies [rotary_dim / 2], float32, with Llama 3's scaling."""
  dim = config.rotary_dim
  freq = config.rope_theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
  scaling = dict(config.rope_scaling)
  kind = scaling.get('rope_type', 'default')
  if kind == 'linear':
    freq = freq / scaling['factor']
  elif kind == 'llama3':
    low, high = scaling['low_freq_factor'], scaling['high_freq_factor']
    turns = scaling['original_max_position_embeddings'] * freq / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    freq = freq * (smooth + (1 - smooth) / scaling['factor'])
  return freq.astype(np.float32)


def rotate(config: Config, x: jax.Array, positions: jax.Array) -> jax.Array:
  """Rotary embedding of x [..., heads, A] at positions [...]."""
  angle = positions[..., None].astype(jnp.float32) * inverse_frequencies(config)
  cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
  turned, kept = jnp.split(x, [config.rotary_dim], axis=-1)
  if config.rope_interleaved:
    a, b = turned[..., 0::2], turned[..., 1::2]
    out = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    out = out.reshape(turned.shape)
  else:
    a, b = jnp.split(turned, 2, axis=-1)
    out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return jnp.concatenate([out.astype(x.dtype), kept], axis=-1)


class Attention(nn.Module):
  """Projections around `attend(q, k, v) -> o`, which knows the layout."""

  config: Config

  @nn.compact
  def __call__(self, x, positions, attend):
    """Returns (output [.., D], (k, v) [.., heads, A])."""
    c = self.config
    heads, groups, width = c.num_heads, c.num_kv_heads, c.head_dim
    sizes = [heads * width, groups * width, groups * width]
    if c.fused_qkv:
      qkv = Dense(sum(sizes), use_bias=c.qkv_bias, name='qkv')(x)
      q, k, v = jnp.split(qkv, np.cumsum(sizes[:2]), axis=-1)
    else:
      q, k, v = (
        Dense(size, use_bias=c.qkv_bias, name=name)(x)
        for name, size in zip('qkv', sizes, strict=True)
      )
    q = q.reshape(*q.shape[:-1], heads, width)
    k = k.reshape(*k.shape[:-1], groups, width)
    v = v.reshape(*v.shape[:-1], groups, width)
    if c.qk_norm:
      q = nn.RMSNorm(epsilon=c.norm_eps, name='q_norm')(q)
      k = nn.RMSNorm(epsilon=c.norm_eps, name='k_norm')(k)
    if c.rotary_dim:
      q, k = rotate(c, q, positions), rotate(c, k, positions)
    out = attend(q, k, v)
    out = out.reshape(*out.shape[:-2], heads * width)
    out = Dense(c.width, use_bias=c.out_bias, name='out')(out)
    return out, (k, v)


class Mlp(nn.Module):
  """`key` is the input of the down projection, the memory that is edited."""

  config: Config
  gated: bool

  def setup(self):
    """Names the parts as the params do."""
    c = self.config
    if self.gated:
      self.gate = Dense(c.mlp_width, use_bias=c.mlp_bias)
    self.up = Dense(c.mlp_width, use_bias=c.mlp_bias)
    self.down = Dense(c.width, use_bias=c.mlp_bias)

  def key(self, x):
    """x [.., D] -> key [.., F]."""
    act = _ACTIVATIONS[self.config.activation]
    return act(self.gate(x)) * self.up(x) if self.gated else act(self.up(x))
