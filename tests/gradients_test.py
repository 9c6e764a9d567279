"""Editors of gradients: their factors, and each method in NumPy float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jedit import gradients, ultraedit
from jedit.models import transformer
from jedit.types import apply_updates
from tests import tiny

_LR = 0.1


@functools.partial(jax.jit, static_argnums=0)
def plain(model, params, tokens, label, weight):
  """(loss, keys [L, B, T, F], gradients at the outputs [L, B, T, D])."""
  nudged = model._replace(
    value=lambda layer, *args: model.value(layer, *args) + layer['nudge']
  )

  def loss(nudge):
    def one(tokens, label, nudge):
      layers = {**params['layers'], 'nudge': nudge}
      given = {**params, 'layers': layers}
      whole = tiny.forward(nudged, given, tokens)
      logits, keys = whole.logits, whole.key
      chance = jax.nn.log_softmax(logits)
      wanted = jnp.take_along_axis(chance, label[:, None], axis=1)[:, 0]
      return -jnp.where(label >= 0, wanted, 0).sum(), keys

    each, keys = jax.vmap(one, (0, 0, 1), (0, 1))(tokens, label, nudge)
    return jnp.sum(each * weight), keys

  zero = jnp.zeros((tiny.LAYERS, *tokens.shape, model.config.width))
  (total, keys), grads = jax.value_and_grad(loss, has_aux=True)(zero)
  return total, keys, grads


def oracle(model, params, batch, whole):
  """(loss, keys, gradients) of the target tokens, or of all, a row each."""
  tokens, _, label = tiny.whole_rows(batch)
  tokens, label = tokens[:, 0], label[:, 0]
  scored = (label >= 0).sum(1)
  weight = 1 / np.maximum(scored, 1) if whole else 1 / scored.sum()
  weight = np.broadcast_to(weight, scored.shape)
  out = plain(model, transformer.join(params), tokens, label, weight)
  loss, keys, grads = (np.asarray(x, np.float64) for x in out)
  length = (batch.head_len + batch.tail_len)[:, :1]
  pick = np.arange(tokens.shape[1]) < length if whole else label >= 0
  low, high = tiny.SITE
  return loss, *(x[low : high + 1, pick] for x in (keys, grads))


_SHARES = {
  True: lambda n, total: 1 / jnp.maximum(n, 1),
  False: lambda n, total: 1 / jnp.maximum(total, 1),
}


@pytest.mark.parametrize('whole', [False, True])
def test_factors(whole):
  model, params = tiny.model()
  params, batch = tiny.split(params), tiny.batch(4, seed=2, invalid=[3])
  go = jax.jit(
    lambda p, b: gradients.factors(model, p, b, _SHARES[whole], not whole)
  )
  got = go(params, batch)
  loss, keys, grads = oracle(model, params, batch, whole)
  real = np.asarray(got.real)[0]
  assert real.sum() == keys.shape[1] < real.size
  np.testing.assert_allclose(got.loss, loss, rtol=1e-5)
  for a, b in (got.key, keys), (got.grad, grads):
    a = np.asarray(a)
    assert not a[:, ~real].any()
    np.testing.assert_allclose(a[:, real], b, atol=1e-5 * np.abs(b).max())


def test_statistics_of_a_stream_are_those_of_all_its_tokens():
  rng = np.random.default_rng(0)
  x = rng.normal(3, 2, (2, 12, 5)).astype(np.float32)
  x[1, :, 4] = 0.5  # never varies
  x = jnp.asarray(x)
  seen = gradients.nothing_seen(2, 5)
  real = np.ones(7, bool)
  for cut, mask in (slice(0, 7), real), (slice(5, 12), real & False):
    seen = gradients.merge(seen, x[:, cut], jnp.asarray(mask)[None])
  seen = gradients.merge(seen, x[:, 5:], jnp.arange(7)[None] > 1)
  exact = np.asarray(x, np.float64)
  mean, std = exact.mean(1), exact.std(1, ddof=1)
  assert seen.count.tolist() == [12, 12]
  np.testing.assert_allclose(seen.mean, mean, rtol=1e-5)
  np.testing.assert_allclose(seen.square, std**2 * 11, rtol=1e-4, atol=1e-9)
  want = (x - mean[:, None]) / np.where(std == 0, 1, std)[:, None]
  got = gradients.normalise(seen, x)
  np.testing.assert_allclose(got[:, :, :4], want[:, :, :4], atol=1e-4)
  assert not got[1, :, 4].any() and got[0, :, 4].any()


@functools.cache
def stream():
  """(step, split params, state, two batches) of UltraEdit."""
  model, params = tiny.model()
  editor = ultraedit(model, lr=_LR)
  params = tiny.split(params)
  batches = tiny.batch(4, seed=0), tiny.batch(4, seed=1, invalid=[3])
  stacked = tiny.stack(batches)
  batches = [jax.tree.map(lambda x, n=n: x[n], stacked) for n in range(2)]
  return jax.jit(editor.update), params, editor.init(params), batches


def ultraedit_paper(past, h, g):
  """dW of a layer from the factors of a batch and of all so far."""
  mean, std = past.mean(0), past.std(0, ddof=1)
  both = np.concatenate([h, g], axis=1)
  h_hat, g_hat = np.split((both - mean) / std, [h.shape[1]], axis=1)
  v = -_LR * (h_hat**2).sum(1, keepdims=True) * g_hat
  return np.linalg.inv(h.T @ h + np.eye(h.shape[1])) @ h.T @ v


def test_ultraedit_equals_the_paper():
  step, params, state, batches = stream()
  model, _ = tiny.model()
  past = np.zeros((3, 0, 64 + 32))
  for batch in batches:
    loss, h, g = oracle(
      model, params, jax.tree.map(np.asarray, batch), whole=False
    )
    past = np.concatenate([past, np.concatenate([h, g], -1)], axis=1)
    updates, state = step(batch, state, params)
    got = np.asarray(updates['site']['mlp']['down']['kernel'])
    np.testing.assert_allclose(state.report.loss, loss, rtol=1e-4)
    for layer in range(3):
      want = ultraedit_paper(past[layer], h[layer], g[layer])
      gap = np.linalg.norm(got[layer] - want) / np.linalg.norm(want)
      assert gap < 1e-3, (layer, gap)
    params = apply_updates(params, updates)


def test_ultraedit_in_float64(monkeypatch, x64):
  """Given keys and gradients; the walk is that of the test above."""
  rng = np.random.default_rng(0)
  editor = ultraedit(tiny.model()[0], lr=_LR)
  params = {'site': {'mlp': {'down': {'kernel': jnp.zeros((2, 9, 5))}}}}
  state, past = editor.init(params), np.zeros((2, 0, 14))
  for _ in range(3):
    h, g = rng.normal(size=(2, 6, 9)), rng.normal(size=(2, 6, 5))
    past = np.concatenate([past, np.concatenate([h, g], -1)], axis=1)
    real, request = np.ones((1, 6), bool), np.zeros(6, np.int32)
    found = map(jnp.asarray, (h, g, real, request, 0.0))
    found = gradients.Factors(*found)
    monkeypatch.setattr(gradients, 'factors', lambda *_, found=found: found)
    updates, state = editor.update(tiny.batch(2), state, params)
    got = np.asarray(updates['site']['mlp']['down']['kernel'])
    want = [ultraedit_paper(*x) for x in zip(past, h, g, strict=True)]
    np.testing.assert_allclose(got, want, atol=1e-10)


def test_ultraedit_lowers_the_loss_of_its_batch():
  step, params, state, batches = stream()
  losses = []
  for _ in range(4):
    updates, state = step(batches[0], state, params)
    losses.append(float(state.report.loss))
    params = apply_updates(params, updates)
  assert losses[3] < losses[2] < losses[1] < losses[0]
