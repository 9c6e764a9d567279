"""Gradient editors against Adam in NumPy float64 over whole rows."""

import functools
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jedit import checkpoint, end_to_end, fine_tune, gradients, kde
from jedit.editors import descent
from jedit.editors.directions import Directions
from jedit.models import transformer
from jedit.types import apply_updates, as_updates
from tests import editors_test, oracle, tiny
from tests.editors_test import kernel

_LR, _STOP = 5e-3, 0.1  # those of editors_test


def batch_of(name, n):
  return jax.tree.map(lambda x: x[n], editors_test.make(name)[3])


@functools.cache
def slope():
  """Jitted ((mean, losses [B]), gradient) of whole plain rows."""
  model, _ = tiny.model()

  def losses(delta, params, tokens, position, label, weight):
    update = as_updates(delta)
    whole = transformer.join(apply_updates(params, update))

    def one(tokens, position, label, weight):
      logits = tiny.forward(model, whole, tokens).logits
      chance = jax.nn.log_softmax(logits)[position, label]
      return -jnp.sum(weight * chance)

    each = jax.vmap(one)(tokens, position, label, weight)
    return each.mean(), each

  return jax.jit(jax.value_and_grad(losses, has_aux=True))


def scored(batch, loss):
  """(tokens [B, T], position, label, weight [B, 3]) of the valid requests."""
  tokens, _, label = (
    x[np.asarray(batch.valid)] for x in tiny.whole_rows(batch)
  )
  tokens, label = tokens[:, 0], label[:, 0]
  out = np.zeros((3, len(tokens), 3))
  for b, row in enumerate(label):
    at = np.flatnonzero(row >= 0)
    where = at if loss == 'target' else at[:1]
    out[0, b, : at.size], out[1, b, : at.size] = where, row[at]
    out[2, b, : at.size] = 1 / at.size
  return tokens, *out[:2].astype(np.int32), np.float32(out[2])


def loop(
  params, batch, rates, loss='target', limit=np.inf,
  before=lambda g: g, after=lambda g: g,
):  # fmt: skip
  """(dW, steps taken, losses [B]) by Adam's paper, a rate a step."""
  data = scored(batch, loss)
  delta = np.zeros(kernel(params).shape)
  m, v = np.zeros_like(delta), np.zeros_like(delta)
  for t in range(len(rates) + 1):
    (mean, each), g = slope()(jnp.float32(delta), params, *data)
    if mean < _STOP or t == len(rates):
      return delta, t, np.asarray(each)
    g = before(np.asarray(g, np.float64))
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    scale = np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8
    step = -rates[t] * m / (1 - 0.9 ** (t + 1)) / scale
    delta = np.clip(delta + after(step), -limit, limit)


def check(updates, report, want, tolerance=1e-4):
  delta, steps, each = want
  got = kernel(updates)
  for a, b in zip(got, delta, strict=True):
    assert np.linalg.norm(a - b) < tolerance * np.linalg.norm(b)
  assert int(report.steps) == steps * each.size
  assert int(report.reached) == (each < _STOP).sum()
  np.testing.assert_allclose(report.loss, each.mean(), rtol=1e-3)


def keys_of(params, batch, family='llama'):
  """Keys [E, M, F] of all tokens of the valid plain rows, float64."""
  model, _ = tiny.model(family)
  tokens, _, _ = tiny.whole_rows(batch)
  keys = tiny.trace(model, transformer.join(params), tokens[:, 0]).key
  size = np.asarray(batch.head_len + batch.tail_len)[:, 0]  # 0: padding
  low, high = tiny.SITE
  rows = [
    k[low : high + 1, :n] for k, n in zip(np.asarray(keys), size, strict=True)
  ]
  return np.concatenate(rows, 1).astype(np.float64)


def lookup_keys(params, batch):
  """Keys [E, B, F] of the valid requests, half of them the contexts' mean."""
  model, _ = tiny.model()
  tokens, lookup, _ = tiny.whole_rows(batch)
  keys = tiny.trace(model, transformer.join(params), tokens).key
  at = lookup[:, :, None, None, None]
  keys = np.take_along_axis(np.asarray(keys, np.float64), at, 3)[:, :, :, 0]
  low, high = tiny.SITE
  keys = keys[np.asarray(batch.valid), :-1, low : high + 1]
  plain, others = keys[:, 0], keys[:, 1:]
  mean = (plain + others.mean(1)) / 2 if others.size else plain
  return mean.swapaxes(0, 1)


@pytest.mark.parametrize('contexts', [1, 3])  # 1: the plain prompt alone
def test_lookup_keys(contexts):
  model, params = tiny.model()
  params = tiny.split(params)
  batch = tiny.batch(4, contexts, invalid=[2])
  found = jax.jit(functools.partial(descent.lookup_keys, model))(params, batch)
  want = lookup_keys(params, batch)
  np.testing.assert_allclose(found[:, [0, 1, 3]], want, atol=1e-5)
  assert not found[:, 2].any()


@pytest.mark.parametrize('n', [0, 1])  # 1: a request is padding
def test_fine_tune(n):
  _, params, state, _ = editors_test.make('fine_tune')
  batch = batch_of('fine_tune', n)
  updates, state = editors_test.step('fine_tune')(batch, state, params)
  want = loop(params, batch, 25 * [_LR])
  assert 5 < want[1] < 25
  check(updates, state.report, want)
  edited = apply_updates(params, updates)
  again, state = editors_test.step('fine_tune')(batch, state, edited)
  assert not kernel(again).any() and int(state.report.steps) == 0


def test_rounded_products_move_little():
  model, params = tiny.model()
  params, batch = tiny.split(params), tiny.batch(4, seed=3)

  def change(products):
    editor = fine_tune(model, lr=_LR, steps=2, products=products)
    updates, state = jax.jit(editor.update)(batch, editor.init(params), params)
    return kernel(updates), state.report.loss

  (exact, loss), (rounded, near) = map(change, ('float32', 'bfloat16'))
  assert loss != near
  np.testing.assert_allclose(near, loss, rtol=5e-3)
  # Adam's first steps are signs: few entries take the other one.
  assert (np.sign(exact) == np.sign(rounded)).mean() > 0.97


def test_where_the_prompt_ends_and_within_a_limit():
  """The published FT-L: all of a target's tokens at one position."""
  model, params = tiny.model()
  params = tiny.split(params)
  batch = tiny.batch(3, seed=5)
  assert (scored(batch, 'target')[2][:, 1] > 0).any()  # long targets
  editor = fine_tune(model, lr=_LR, steps=5, limit=0.012, loss='prompt_last')
  step = jax.jit(editor.update)
  updates, state = step(batch, editor.init(params), params)
  want = loop(params, batch, 5 * [_LR], 'prompt_last', 0.012)
  check(updates, state.report, want)
  assert want[1] == 5
  size = np.abs(kernel(updates))
  assert size.max() <= 0.012 and 0.1 < (size >= 0.0119).mean() < 0.9
  # The limit counts from where a batch starts.
  more, _ = step(batch, state, apply_updates(params, updates))
  assert np.abs(kernel(updates) + kernel(more)).max() > 0.015


def by_tokens(params, batch):
  """(delta, everywhere) -> key x gradient, at lookup tokens or at all."""
  model, _ = tiny.model()

  @jax.jit
  def factors(delta, batch):
    moved = apply_updates(params, as_updates(delta))
    mean = lambda tokens, _: 1 / jnp.maximum(tokens, 1) / batch.valid.sum()
    h, g, *_ = gradients.factors(model, moved, batch, mean, False)
    at = gradients.task_of(model, params, batch).at.token
    return h, g, at[:, batch.head.shape[-1]]

  def gradient(delta, everywhere):
    h, g, lookup = map(np.asarray, factors(jnp.float32(delta), batch))
    keep = np.zeros(h.shape[1], bool)
    keep[lookup[batch.valid]] = True
    return np.einsum('emf,emd,m->efd', h, g, keep | everywhere)

  return gradient


def test_what_lookup_tokens_teach():
  """Against key x gradient at those tokens; dW acts at all of them."""
  model, params = tiny.model()
  params, batch = tiny.split(params), tiny.batch(4, seed=3, invalid=[2])
  rate = 0.5
  learn = lambda steps, tokens: jax.jit(
    descent.descent(
      model, lambda *_: optax.sgd(rate), steps=steps, stop=0.0, tokens=tokens
    ).update
  )(batch, descent.DescentState((), 0, None), params)

  gradient = by_tokens(params, batch)
  for tokens in 'lookup', 'all':
    want = np.zeros_like(kernel(params))
    for _ in range(3):
      want = want - rate * gradient(want, tokens == 'all')
    got, _ = learn(3, tokens)
    far = np.linalg.norm(kernel(got) - want)
    assert far < 1e-4 * np.linalg.norm(want)


def test_null_space():
  _, params, _, _ = editors_test.make('null_space')
  moment = tiny.moment().moment.astype(np.float64)
  limit = editors_test._THRESHOLD
  p = np.stack(
    [oracle.projector(c, limit * np.linalg.eigvalsh(c).max()) for c in moment]
  )
  updates, state = editors_test.first('null_space')
  batch = batch_of('null_space', 0)
  want = loop(params, batch, 25 * [_LR], after=lambda g: p @ g)
  check(updates, state.report, want, 1e-3)
  delta = kernel(updates)
  assert np.linalg.norm(p @ delta - delta) < 1e-5 * np.linalg.norm(delta)


def test_kde_with_an_empty_cache_is_fine_tuning():
  updates, state = editors_test.first('kde')
  free, other = editors_test.first('fine_tune')
  assert int(state.report.steps) == int(other.report.steps) > 0
  np.testing.assert_allclose(kernel(updates), kernel(free), atol=1e-6)


def test_kde_leaves_earlier_prompts_alone():
  model, _ = tiny.model()
  _, params, _, _ = editors_test.make('kde')
  updates, state = editors_test.first('kde')
  params = apply_updates(params, updates)
  past = keys_of(params, batch_of('kde', 0))
  batch = batch_of('kde', 1)
  again, state = editors_test.step('kde')(batch, state, params)
  delta = kernel(again)
  scale = np.linalg.norm(past) * np.linalg.norm(delta)
  assert np.linalg.norm(past @ delta) < 1e-5 * scale
  tokens, _, label = (x[:, 0] for x in tiny.whole_rows(batch_of('kde', 0)))
  said = lambda p: tiny.trace(model, transformer.join(p), tokens)[0]
  now, then = said(apply_updates(params, again))[label >= 0], said(params)
  np.testing.assert_allclose(now, then[label >= 0], atol=1e-3)

  _, size, rows = np.linalg.svd(past, full_matrices=False)
  rows = rows * (size > 1e-6 * size[:, :1])[:, :, None]
  aside = lambda g: g - rows.mT @ (rows @ g)
  rates = 9 * [_LR] + 4 * [_LR / 10]
  want = loop(params, batch, rates, before=aside, after=aside)
  assert want[1] > 9  # the second stage
  check(again, state.report, want, 1e-3)


def test_end_to_end():
  """Against Adam on V in float64, dW = G V; and what it then remembers."""
  _, params, state, _ = editors_test.make('end_to_end')
  batch = batch_of('end_to_end', 1)  # a request is padding
  weight, valid = editors_test._WEIGHT, np.asarray(batch.valid)
  prior = np.linalg.inv(weight * tiny.moment().moment.astype(np.float64))
  place = np.cumsum((batch.head_len + batch.tail_len)[valid, 0])
  place = np.r_[0, place[:-1]] + batch.head_len[valid, 0]  # lookup tokens
  k = lookup_keys(params, batch)
  gain = prior @ k.mT @ np.linalg.inv(k @ prior @ k.mT + np.eye(k.shape[1]))
  price = 30.0 / valid.sum() * gain.mT @ np.linalg.inv(prior) @ gain
  gradient, data = by_tokens(params, batch), scored(batch, 'target')
  delta, m, v = np.zeros(kernel(params).shape), 0.0, 0.0
  values = np.zeros((*k.shape[:2], delta.shape[2]))
  for t in range(14):
    (mean, each), _ = slope()(jnp.float32(delta), params, *data)
    if mean < 0.1 or t == 13:
      break
    g = gain.mT @ gradient(delta, False) + price @ values
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    scale = np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8
    rate = 0.3 if t < 9 else 0.03
    values -= rate * m / (1 - 0.9 ** (t + 1)) / scale
    delta = gain @ values
  updates, state = editors_test.step('end_to_end')(batch, state, params)
  check(updates, state.report, (delta, t, np.asarray(each)), 1e-3)
  assert 3 < t
  seen = keys_of(apply_updates(params, updates), batch)
  noise = np.full(seen.shape[1], 10.0)
  noise[place] = 1
  for root, p, keys in zip(state.memory, prior, seen, strict=True):
    want = oracle.posterior(p, keys, noise)
    far = np.linalg.norm(root @ root.T - want)
    assert far < 1e-4 * np.linalg.norm(want)


@pytest.mark.parametrize('name', ['fine_tune', 'null_space', 'kde'])
def test_steps_in_float64(monkeypatch, x64, name):
  """For given gradients and bases, against Adam's paper to 1e-10."""
  module = importlib.import_module(f'jedit.editors.{name}')
  caught = []

  def catch(model, optimiser, **_):
    caught.append(optimiser)
    return optax.GradientTransformation(None, None)

  monkeypatch.setattr(module, 'descent', catch)
  rng, settle = np.random.default_rng(0), 12
  basis = np.linalg.qr(rng.normal(size=(2, 16, 4)))[0]
  onto = lambda g: basis @ (basis.mT @ g)
  off = lambda g: g - onto(g)
  same = lambda g: g
  given, settings, memory, before, after = {
    'fine_tune': ((), {}, (), same, same),
    'null_space': (
      (tiny.moment(),), {'threshold': 0.05, 'relative': True},
      jnp.asarray(basis), same, onto,
    ),
    'kde': (
      (), {'steps': settle}, Directions(jnp.asarray(basis), np.full(2, 4)),
      off, off,
    ),
  }[name]  # fmt: skip
  getattr(module, name)(tiny.model()[0], *given, lr=_LR, **settings)
  step_of = caught[0](memory, None)
  state = step_of.init(jnp.zeros((2, 16, 5)))
  m = v = np.zeros((2, 16, 5))
  for t in range(1, 21):
    g = rng.normal(size=m.shape)
    got, state = step_of.update(jnp.asarray(g), state)
    g = before(g)
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    rate = _LR / 10 if name == 'kde' and t > settle else _LR
    scale = np.sqrt(v / (1 - 0.999**t)) + 1e-8
    want = after(-rate * m / (1 - 0.9**t) / scale)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, atol=1e-10 * np.abs(want).max())


def test_keys_of_a_model_with_biases():
  """There an empty place of the packed rows would have a key too."""
  model, params = tiny.model('gpt')
  params = tiny.split(params)
  batch = tiny.batch(3, seed=5, invalid=[1])
  delta = jnp.asarray(0.1 * kernel(params))

  def run(params, batch):
    task = gradients.task_of(model, params, batch)
    return descent.keys(model, params, task, delta)

  got = np.asarray(jax.jit(run)(params, batch))
  update = as_updates(delta)
  want = keys_of(apply_updates(params, update), batch, 'gpt')
  real = want.shape[1]
  assert real < got.shape[1] and not got[:, real:].any()
  np.testing.assert_allclose(got[:, :real], want, atol=1e-4)


@pytest.mark.parametrize('make, words', [
  (lambda model: fine_tune(model, loss='first'), "loss='first': target or"),
  (lambda model: fine_tune(model, products='half'), "products='half': float32"),
  (lambda model: fine_tune(model, limit=-1e-4), 'limit=-0.0001: neither'),
  (lambda model: fine_tune(model, tokens='last'), "tokens='last': all or"),
  (lambda model: fine_tune(model, steps=-1), 'steps=-1, limit=0.0: neither'),
  (lambda model: kde(model, products='half'), "products='half': float32"),
  (lambda model: kde(model, energy=0.0), 'energy=0.0: above 0'),
  (lambda model: kde(model, capacity=0), 'capacity=0: at least 1'),
  (lambda m: end_to_end(m, tiny.moment(), aside=0.0), 'aside=0.0: a vari'),
  (lambda m: end_to_end(m, tiny.moment(), cost=-1.0), 'cost=-1.0: not b'),
])  # fmt: skip
def test_bad_arguments(make, words):
  with pytest.raises(ValueError, match=words):
    make(tiny.model()[0])


def test_a_checkpoint_keeps_a_report_without_residual(tmp_path):
  _, state = editors_test.first('kde')
  checkpoint.save(tmp_path / 'a', state)
  found = checkpoint.load(tmp_path / 'a', state)
  chex.assert_trees_all_equal(found, state)
  assert found.report.residual.shape == (0,)
