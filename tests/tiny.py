"""Tiny random models and batches, and a plain forward pass to check against.

The forward here shares nothing with jedit's but the blocks: whole rows, right
padding, one layer after another, a causal mask written out.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jedit.models import transformer
from jedit.models.layers import Config
from jedit.types import EditBatch, SecondMoment

VOCAB, LAYERS, SITE = 96, 6, (1, 3)
# The leaves of an EditBatch that have an axis of requests.
OF_REQUESTS = 'head', 'head_len', 'tail', 'tail_len', 'label', 'valid'
_SHARED = dict(
  vocab_size=VOCAB, width=32, mlp_width=64, num_layers=LAYERS, num_heads=4,
  head_dim=8, context_length=64, norm_eps=1e-5, tied=False,
)  # fmt: skip
CONFIGS = {
  'llama': Config('llama', num_kv_heads=2, rotary_dim=8, **_SHARED),
  'gpt': Config(
    'gpt', num_kv_heads=4, activation='gelu_tanh', positions=True,
    fused_qkv=True, qkv_bias=True, out_bias=True, mlp_bias=True, **_SHARED,
  ),
}  # fmt: skip
CONFIGS['parallel'] = dataclasses.replace(CONFIGS['gpt'], parallel=True)


@functools.cache
def model(family='llama', seed=0):
  """(model, unsplit params) ; a head sharp enough to be sure of a token."""
  built = transformer.build(CONFIGS[family])
  params = built.init(jax.random.key(seed))
  keys = iter(jax.random.split(jax.random.key(seed + 1), 99))
  move = lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape)
  params = jax.tree.map(move, params)  # biases and scales move too
  params['head']['kernel'] = 4 * params['head']['kernel']
  return built, params


def split(params):
  return transformer.split(params, *SITE)


def batch(count=6, contexts=3, seed=0, invalid=(), hard=range(99)):
  """EditBatch [B, ...] of random rows.

  Requests in `invalid` are padding; those in `hard` have targets of up to 3
  tokens, which a random network cannot be made to say; the others say one.
  """
  rng = np.random.default_rng(seed)
  rows, wide, long = contexts + 1, 8, 8
  shape = count, rows
  prefix_len = np.array([0, *rng.integers(1, 6, contexts - 1), 0])
  prefix = rng.integers(1, VOCAB, (rows, 6)) * (
    np.arange(6) < prefix_len[:, None]
  )
  head, tail = np.zeros((*shape, wide)), np.zeros((*shape, long))
  head_len, tail_len = np.zeros(shape), np.zeros(shape)
  label = np.full((*shape, long), -1)
  valid = np.array([b not in invalid for b in range(count)])
  for b in range(count):
    draw = lambda n: rng.integers(1, VOCAB, n)
    tokens = 3 if b in hard else 1
    subject, rest = draw(2), draw(rng.integers(0, tokens))
    target = draw(rng.integers(1 + (tokens > 1), tokens + 1))
    for r in range(rows):
      before = draw(rng.integers(0, 4))
      ids = np.concatenate([before, subject, rest, target[:-1]])
      if r == contexts:
        ids = subject
        before = ids[:0]
      at = len(before) + 1
      if not valid[b]:
        continue
      size = len(ids) - at
      head[b, r, :at], head_len[b, r] = ids[:at], at
      tail[b, r, :size], tail_len[b, r] = ids[at:], size
      if r < contexts:
        label[b, r, size - len(target) : size] = target
  ints = lambda *x: [np.asarray(a, np.int32) for a in x]
  plain = (head_len + tail_len)[:, 0].sum()
  up = lambda n: int(n) + 3
  budget = tuple(
    map(up, (head_len.sum(), tail_len.sum(), plain, (label >= 0).sum()))
  )
  arrays = ints(prefix, prefix_len, head, head_len, tail, tail_len, label)
  return EditBatch(*arrays, valid, budget)


def stack(batches):
  """Batches of one shape as one, [N, B, ...]."""
  budget = tuple(map(max, zip(*(b.budget for b in batches), strict=True)))
  one = [jax.tree.map(jnp.asarray, b) for b in batches]
  leaves = [jax.tree.leaves(b) for b in one]
  return EditBatch(*map(jnp.stack, zip(*leaves, strict=True)), budget)


def pick(batch, index):
  """Some requests of a batch [B, ...]; prefix and budget stay."""
  take = lambda x: np.asarray(x)[np.asarray(index)]
  picked = jax.tree.map(take, {n: getattr(batch, n) for n in OF_REQUESTS})
  return dataclasses.replace(batch, **picked)


def whole_rows(batch):
  """(tokens [B, R, T], lookup [B, R], label [B, R, T]) of uncut rows."""
  parts = batch.prefix, batch.head, batch.tail
  shape = *batch.head_len.shape, sum(x.shape[-1] for x in parts)
  tokens, label = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
  lookup = np.asarray(batch.prefix_len + batch.head_len)
  for at in np.ndindex(*shape[:2]):
    b, r = at
    n, m = int(batch.prefix_len[r]), int(batch.tail_len[at])
    tokens[at][:n] = batch.prefix[r][:n]
    tokens[at][n : lookup[at]] = batch.head[at][: batch.head_len[at]]
    tokens[at][lookup[at] : lookup[at] + m] = batch.tail[at][:m]
    label[at][lookup[at] : lookup[at] + m] = batch.label[at][:m]
  return tokens, lookup, label


def attend(q, k, v):
  per = q.shape[-2] // k.shape[-2]
  k, v = jnp.repeat(k, per, axis=-2), jnp.repeat(v, per, axis=-2)
  scores = jnp.einsum('qhd,khd->hqk', q, k) / q.shape[-1] ** 0.5
  causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
  weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
  return jnp.einsum('hqk,khd->qhd', weights, v)


class Whole(NamedTuple):
  """Of one row: logits [T, V]; out, mid [L, T, D] and key [L, T, F]."""

  logits: jax.Array
  out: jax.Array
  key: jax.Array
  mid: jax.Array


def forward(model, params, tokens, lookup=0, delta=None, layer=None):
  """Runs one row [T] whole, with delta added at `layer`, `lookup`.

  delta [1 or 2, D]: added to the layer's output, and the second to its
  attention's, which its MLP reads too.
  """
  positions = jnp.arange(len(tokens))
  x = model.embed(params, tokens, positions)
  outs, keys, mids = [], [], []
  for i in range(model.config.num_layers):
    one = jax.tree.map(lambda a, i=i: a[i], params['layers'])
    mid, key, _ = model.address(one, x, positions, attend)
    if i == layer and len(delta) == 2:
      mid = mid.at[lookup].add(delta[1])
      key = model.key(one, x, mid)
    x = model.value(one, mid, key)
    if i == layer:
      x = x.at[lookup].add(delta[0])
    outs.append(x)
    keys.append(key)
    mids.append(mid)
  return Whole(model.logits(params, x), *map(jnp.stack, (outs, keys, mids)))


@functools.partial(jax.jit, static_argnums=0)
def trace(model, params, tokens):
  """Whole of rows [..., T]."""
  run = lambda t: forward(model, params, t)
  flat = tokens.reshape(-1, tokens.shape[-1])
  out = jax.vmap(run)(flat)
  return jax.tree.map(
    lambda x: x.reshape(*tokens.shape[:-1], *x.shape[1:]), out
  )


def target_probability(model, params, batch):
  """Mean probability of the target's tokens after the plain prompt, [B]."""
  tokens, _, label = whole_rows(batch)
  logits = trace(model, params, jnp.asarray(tokens[:, 0])).logits
  chance = np.asarray(jax.nn.softmax(logits))
  at = label[:, 0]
  chosen = np.take_along_axis(chance, np.maximum(at, 0)[..., None], 2)[..., 0]
  return (chosen * (at >= 0)).sum(1) / (at >= 0).sum(1)


@functools.cache
def moment(family='llama'):
  """SecondMoment of the site's keys over random tokens, in plain NumPy."""
  built, params = model(family)
  rng = np.random.default_rng(7)
  tokens = jnp.asarray(rng.integers(1, VOCAB, (20, 30)))
  keys = np.asarray(trace(built, params, tokens).key, np.float64)
  keys = keys[:, SITE[0] : SITE[1] + 1]
  keys = keys.transpose(1, 0, 2, 3).reshape(keys.shape[1], -1, keys.shape[-1])
  mean = np.einsum('etf,etg->efg', keys, keys) / keys.shape[1]
  return SecondMoment(np.float32(mean), np.float32(keys.shape[1]))
