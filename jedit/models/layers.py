"""Linen layers shared by the model families, and their configuration."""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


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
      qkv = nn.Dense(sum(sizes), use_bias=c.qkv_bias, name='qkv')(x)
      q, k, v = jnp.split(qkv, np.cumsum(sizes[:2]), axis=-1)
    else:
      q, k, v = (
        nn.Dense(size, use_bias=c.qkv_bias, name=name)(x)
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
    out = nn.Dense(c.width, use_bias=c.out_bias, name='out')(out)
    return out, (k, v)


class Mlp(nn.Module):
  """`key` is the input of the down projection, the memory that is edited."""

  config: Config
  gated: bool

  def setup(self):
    """Names the parts as the params do."""
    c = self.config
    if self.gated:
      self.gate = nn.Dense(c.mlp_width, use_bias=c.mlp_bias)
    self.up = nn.Dense(c.mlp_width, use_bias=c.mlp_bias)
    self.down = nn.Dense(c.width, use_bias=c.mlp_bias)

  def key(self, x):
    """x [.., D] -> key [.., F]."""
    act = _ACTIVATIONS[self.config.activation]
    return act(self.gate(x)) * self.up(x) if self.gated else act(self.up(x))
