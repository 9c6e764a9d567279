"""Packing, cuts, caches and generation agree with the plain computation."""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

from jedit.models import hf, transformer
from jedit.types import JeditError

_LLAMA = {
  'model_type': 'llama',
  'vocab_size': 61,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 4,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
}
_CONFIGS = {
  'llama': _LLAMA,
  'qwen3': {**_LLAMA, 'model_type': 'qwen3', 'head_dim': 8},
  'gpt2': {
    'model_type': 'gpt2',
    'vocab_size': 61,
    'n_embd': 32,
    'n_layer': 4,
    'n_head': 4,
    'n_positions': 64,
  },
  'gptj': {
    'model_type': 'gptj',
    'vocab_size': 61,
    'n_embd': 32,
    'n_layer': 4,
    'n_head': 4,
    'n_positions': 64,
    'rotary_dim': 4,
  },
}
_LENGTH = np.array([5, 1, 9, 3])


@pytest.fixture(scope='module', params=sorted(_CONFIGS))
def network(request):
  model = transformer.build(hf.config(_CONFIGS[request.param]))
  params = model.init(jax.random.key(0))
  rng = np.random.default_rng(1)
  shake = lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32)
  return model, jax.tree.map(shake, params)  # off the ones and zeros


def _tokens(rows=4, width=12):
  return np.random.default_rng(0).integers(0, 61, (rows, width), np.int32)


def _pack(tokens, length, extra=0, first=0):
  """(ids [M], layout) of right-padded rows that start at `first` [R]."""
  slots = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
  at = transformer.layout(
    jnp.asarray(slots < length[:, None]),
    jnp.asarray(slots + np.reshape(first, (-1, 1))),
    int(length.sum()) + extra,
  )
  return transformer.take(jnp.asarray(tokens).ravel(), at.slot), at


@functools.partial(jax.jit, static_argnums=0)
def _run(model, params, ids, at):
  x = model.embed(params, ids, at.positions)
  x, _ = transformer.run(model, params['layers'], x, at)
  return transformer.to_grid(model.logits(params, x), at)


def _forward(model, params, tokens, length, extra=0):
  """Logits [R, T, V]."""
  return _run(model, params, *_pack(tokens, length, extra))


@hypothesis.settings(max_examples=8)
@hypothesis.given(
  st.integers(1, 4), st.integers(1, 6), st.integers(0, 3), st.integers(0, 99)
)
def test_packing_is_inverse_and_its_gradient_is_the_gathers(r, t, extra, seed):
  rng = np.random.default_rng(seed)
  mask = rng.random((r, t)) < 0.6
  positions = jnp.asarray(rng.integers(0, 50, (r, t)))
  real = int(mask.sum())
  extra = max(extra, 1 - real)
  at = transformer.layout(jnp.asarray(mask), positions, real + extra)
  np.testing.assert_array_equal(at.positions[:real], positions[mask])
  x = jnp.asarray(rng.normal(size=(real + extra, 2)))
  x = x.at[real:].set(0)
  grid = transformer.to_grid(x, at)
  np.testing.assert_array_equal(grid[mask], x[:real])
  np.testing.assert_array_equal(grid[~mask], 0)
  np.testing.assert_array_equal(transformer.from_grid(grid, at), x)

  def plain_grid(x):
    return transformer.take(x, at.token)

  def plain_list(y):
    return transformer.take(y.reshape(-1, 2), at.slot)

  for ours, plain, value in (
    (lambda x: transformer.to_grid(x, at), plain_grid, x),
    (lambda y: transformer.from_grid(y, at), plain_list, grid),
  ):
    out, back = jax.vjp(ours, value)
    want, want_back = jax.vjp(plain, value)
    np.testing.assert_array_equal(out, want)
    g = jnp.asarray(rng.normal(size=out.shape), out.dtype)
    chex.assert_trees_all_close(back(g), want_back(g), rtol=1e-6)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('xp', [np, jnp])
def test_join_undoes_split_at_every_cut(network, dtype, xp):
  _, params = network
  params = jax.tree.map(lambda x: xp.asarray(x).astype(dtype), params)
  kind = np.ndarray if xp is np else jax.Array
  cuts = [(lo, hi) for lo in range(4) for hi in range(lo, 4)]
  for lo, hi in cuts if xp is np else [(0, 3), (1, 2)]:
    parts = transformer.split(params, lo, hi)
    kernel = parts['site']['mlp']['down']['kernel']
    assert kernel.dtype == np.float32 and kernel.shape[0] == hi - lo + 1
    assert parts['above']['mlp']['down']['kernel'].dtype == dtype
    whole = transformer.join(parts)
    chex.assert_trees_all_equal(whole, params)
    chex.assert_trees_all_equal_dtypes(whole, params)
    assert all(isinstance(x, kind) for x in jax.tree.leaves(whole))


def test_split_leaves_its_argument_alone(network):
  _, params = network
  half = jax.tree.map(
    lambda x: np.asarray(x).astype(ml_dtypes.bfloat16), params
  )
  before = jax.tree.map(np.copy, half)
  parts = transformer.split(half, 1, 2)
  parts['site']['mlp']['down']['kernel'] += 1
  chex.assert_trees_all_equal(half, before)


@pytest.mark.parametrize('lo, hi', [(-1, 2), (2, 1), (2, 4)])
def test_split_refuses_layers_that_are_not_there(network, lo, hi):
  with pytest.raises(JeditError, match='layers 0-3'):
    transformer.split(network[1], lo, hi)


def test_segments_make_the_whole(network):
  model, params = network
  tokens = _tokens()
  ids, at = _pack(tokens, _LENGTH)
  start = model.embed(params, ids, at.positions)
  want, _ = transformer.run(model, params['layers'], start, at)
  for lo, hi in ((0, 0), (1, 2), (0, 3), (3, 3)):
    x, parts = start, transformer.split(params, lo, hi)
    for name in ('below', 'site', 'above'):
      x, _ = transformer.run(model, parts[name], x, at)
    chex.assert_trees_all_close(x, want, rtol=1e-5, atol=1e-6)


def test_float32_masters_keep_the_hidden_states_dtype(network):
  model, params = network
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  parts = transformer.split(half, 1, 2)
  ids, at = _pack(_tokens(), _LENGTH)
  x = model.embed(parts, ids, at.positions)
  for name in ('below', 'site', 'above'):
    x, _ = transformer.run(model, parts[name], x, at)
    assert x.dtype == jnp.bfloat16
  whole = _forward(model, half, _tokens(), _LENGTH)
  got = transformer.to_grid(model.logits(parts, x), at)
  assert jnp.abs(got - whole).max() < 0.1 * jnp.abs(whole).max()


def test_padding_and_company_change_nothing(network):
  model, params = network
  tokens = _tokens()
  want = _forward(model, params, tokens, _LENGTH)
  tiny = 1e-6 * float(jnp.abs(want).max())  # a few units in the last place
  wide = np.pad(tokens, ((0, 0), (0, 7)), constant_values=3)
  got = _forward(model, params, wide, _LENGTH, extra=13)[:, :12]
  chex.assert_trees_all_close(got, want, atol=tiny)
  for r, n in enumerate(_LENGTH):
    alone = _forward(model, params, tokens[r : r + 1, :n], np.array([n]))
    chex.assert_trees_all_close(alone[0], want[r, :n], atol=tiny)
  turned = _forward(model, params, tokens[::-1].copy(), _LENGTH[::-1])
  chex.assert_trees_all_close(turned[::-1], want, atol=tiny)


def test_the_future_changes_nothing(network):
  model, params = network
  tokens = _tokens()
  other = tokens.copy()
  other[2, 6:] = (other[2, 6:] + 1) % 61
  a = _forward(model, params, tokens, _LENGTH)
  b = _forward(model, params, other, _LENGTH)
  chex.assert_trees_all_close(a[2, :6], b[2, :6], atol=1e-6)
  assert jnp.abs(a[2, 6:9] - b[2, 6:9]).max() > 1e-3


def test_trace_is_what_the_layers_compute(network):
  model, params = network
  ids, at = _pack(_tokens(), _LENGTH, extra=2)
  x = model.embed(params, ids, at.positions)
  out, trace = transformer.run(
    model, params['layers'], x, at, keep=lambda trace: trace
  )
  down = params['layers']['mlp']['down']
  for i in range(4):
    layer = jax.tree.map(lambda a, i=i: a[i], params['layers'])
    attend = transformer.attention(at, ids.size)
    mid, key, kv = model.address(layer, x, at.positions, attend)
    chex.assert_trees_all_close(trace.key[i], key, rtol=1e-5, atol=2e-6)
    chex.assert_trees_all_close(trace.mid[i], mid, rtol=1e-5, atol=2e-6)
    chex.assert_trees_all_close(
      (trace.kv[0][i], trace.kv[1][i]), kv, rtol=1e-5, atol=2e-6
    )
    x = mid + key @ down['kernel'][i]
    if 'bias' in down:
      x = x + down['bias'][i]
  chex.assert_trees_all_close(out, x, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize('cut', [1, 3, 5])
def test_a_cached_prefix_is_the_full_forward(network, cut):
  model, params = network
  tokens = _tokens()
  head = np.minimum(_LENGTH, cut) - (_LENGTH <= cut)  # a tail is never empty
  tail = _LENGTH - head
  after = np.zeros_like(tokens)
  for r in range(4):
    after[r, : tail[r]] = tokens[r, head[r] : _LENGTH[r]]
  ids, at = _pack(tokens[:, :cut], head, extra=2)
  x = model.embed(params, ids, at.positions)
  _, past = transformer.cache(model, params['layers'], x, at)
  ids, at = _pack(after, tail, extra=1, first=head)
  x = model.embed(params, ids, at.positions)
  x, _ = transformer.run(model, params['layers'], x, at, past)
  got = transformer.to_grid(model.logits(params, x), at)
  want = _forward(model, params, tokens, _LENGTH)
  for r in range(4):
    chex.assert_trees_all_close(
      got[r, : tail[r]], want[r, head[r] : _LENGTH[r]], atol=1e-5
    )
