"""MEND's network: what it is to begin with, what training does, its files."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jedit import gradients, hypernetwork
from jedit.models import transformer
from jedit.types import JeditError, apply_updates, as_updates
from launch import examples, training
from tests import tiny

_SHAPE = 3, 64, 32


def network(rank=8, rate=1e-4):
  return hypernetwork.init(jax.random.key(0), _SHAPE, rank, rate)


def random_factors(seed=0, count=7):
  rng = np.random.default_rng(seed)
  draw = lambda size: jnp.asarray(rng.normal(size=(3, count, size)))
  real = jnp.asarray(rng.random((3, count)) < 0.7)
  none = jnp.zeros(count, jnp.int32)
  return gradients.Factors(draw(64), draw(32), real, none, jnp.zeros(()))


def test_untrained_it_is_the_gradient_times_the_rate():
  got = random_factors()
  key, grad = (np.where(got.real[..., None], x, 0) for x in got[:2])
  want = 1e-4 * np.einsum('emf,emd->efd', key, grad)
  delta = jax.jit(hypernetwork.apply)(network(), got)
  np.testing.assert_allclose(delta, want, atol=1e-6 * np.abs(want).max())


def moved():
  """A network in which nothing is where it began, two updates seen."""
  keys = iter(jax.random.split(jax.random.key(5), 9))
  move = lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape)
  out = network()
  out = out._replace(params=jax.tree.map(move, out.params))
  for seed in 1, 2:
    out = jax.jit(hypernetwork.observe)(out, random_factors(seed))
  return out


@pytest.mark.parametrize('double', [False, True])
def test_it_equals_plain_loops(double):
  with jax.enable_x64(double):
    equals_plain_loops(1e-10 if double else 1e-4)


def equals_plain_loops(tolerance):
  net, got = moved(), random_factors(3)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), net.params)
  b, seen = p['blocks'], [random_factors(s) for s in (1, 2)]
  both = lambda f, e: np.concatenate([f.key[e], f.grad[e]], -1).astype(float)
  want = np.zeros(_SHAPE)
  for e in range(3):
    past = np.concatenate([both(f, e)[np.asarray(f.real[e])] for f in seen])
    for x in both(got, e)[np.asarray(got.real[e])]:
      x = (x - past.mean(0)) / past.std(0, ddof=1)
      for i in range(2):
        low = b['u'][i] @ (b['v'][i] @ x) + b['bias'][i]
        x = x + np.maximum(b['scale'][i, e] * low + b['shift'][i, e], 0)
      want[e] += p['rate'][e] * np.outer(x[:64], x[64:])
  delta = jax.jit(hypernetwork.apply)(net, got)
  np.testing.assert_allclose(delta, want, atol=tolerance * np.abs(want).max())


@functools.cache
def trainer():
  """(step, measure, params, Examples [N], a fresh Carry).

  measure(params, network, examples) -> dW, loss, (NLL, KL).
  """
  model, params = tiny.model()
  tx = training.optimiser(lr=1e-3, rate_lr=1e-3)
  stack = lambda seed: tiny.stack(
    [tiny.batch(1, 1, seed=seed + n, hard=()) for n in range(3)]
  )
  data = examples.Examples(stack(0), stack(0), stack(10))
  data = examples.with_room(data, [np.arange(3)])
  start = network(rate=-1e-3)
  carry = training.Carry(start, tx.init(start.params), jnp.zeros((), jnp.int32))

  @jax.jit
  def measure(params, net, some):
    got = hypernetwork.factors(model, params, some.edit)
    return hypernetwork.apply(net, got), *hypernetwork.objective(
      net.params, net, model, params, got, *some[1:]
    )

  step = training.stepper(model, tx)
  return step, measure, tiny.split(params), data, carry


def train(carry, steps):
  """(carry after `steps` more, losses, norms)."""
  step, _, params, data, _ = trainer()
  carry, out = jax.tree.map(jnp.copy, carry), []
  for _ in range(steps):
    group = examples.order(0, 3, int(carry.cursor) + 1, 2)[-1]
    carry, *rest = step(params, carry, examples.at(data, group))
    out.append(jax.device_get(rest))
  return carry, [terms for terms, _ in out], [norms for _, norms in out]


@functools.cache
def trained():
  return train(trainer()[4], 20)


def one(data, i):
  return examples.at(data, np.array([i]))


def test_training_lowers_the_loss():
  _, measure, params, data, start = trainer()
  carry = trained()[0]

  def mean(net):
    each = [measure(params, net, one(data, i)) for i in range(3)]
    return training.means([(loss, *terms) for _, loss, terms in each])

  statistics = start.network._replace(seen=carry.network.seen)
  before, after = mean(statistics), mean(carry.network)
  assert after['nll'] < 0.8 * before['nll']
  assert after['loss'] < 0.9 * before['loss']
  assert after['loss'] == pytest.approx(0.1 * after['nll'] + after['kl'])


def test_edits_side_by_side_are_each_alone():
  _, measure, params, data, _ = trainer()
  net = trained()[0].network
  group = np.array([2, 0, 1])
  delta, *terms = measure(params, net, examples.at(data, group))
  alone = [measure(params, net, one(data, i)) for i in group]
  for n, term in enumerate(terms, 1):
    mean = np.mean([a[n] for a in alone], axis=0)
    np.testing.assert_allclose(term, mean, rtol=1e-4)
  np.testing.assert_allclose(
    delta, sum(a[0] for a in alone), atol=1e-5 * np.abs(delta).max()
  )
  apart = [float(a[2][0]) for a in alone]
  assert max(apart) > 1.01 * min(apart)


def test_the_objective_equals_plain_forward_passes():
  _, measure, params, data, _ = trainer()
  model, _ = tiny.model()
  net = trained()[0].network
  example = one(data, 1)
  delta, _, terms = measure(params, net, example)
  edited = apply_updates(params, as_updates(delta))

  def plain(params, batch):
    tokens = jnp.asarray(tiny.whole_rows(batch)[0][:, 0])
    logits = tiny.trace(model, transformer.join(params), tokens)[0][0]
    return np.asarray(logits, np.float64)

  log = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))
  rows = lambda batch: np.flatnonzero(tiny.whole_rows(batch)[2][0, 0] >= 0)
  batch = jax.tree.map(np.asarray, example.rephrased)
  label = tiny.whole_rows(batch)[2][0, 0]
  at = rows(batch)
  nll = -log(plain(edited, batch))[at, label[at]].mean()
  batch = jax.tree.map(np.asarray, example.local)
  at = rows(batch)
  before, after = (log(plain(p, batch))[at] for p in (params, edited))
  kl = (np.exp(before) * (before - after)).sum(-1).mean()
  np.testing.assert_allclose(terms, [nll, kl], rtol=1e-3)
  assert kl > 1e-4


def test_which_gradients_may_be_zero_to_begin_with():
  norms = trained()[2]
  zero = [{k for k, n in step.items() if n == 0} for step in norms]
  assert zero[0] == {'v', 'scale'} and not zero[-1]
  training.check_gradients(norms[0], started=False)
  training.check_gradients(norms[-1], started=True)
  for bad, started in (norms[0], True), ({**norms[0], 'u': 0.0}, False):
    with pytest.raises(JeditError, match='the gradient of .* is 0 or not fin'):
      training.check_gradients(bad, started)


def test_resuming_changes_no_bit(tmp_path):
  start = trainer()[4]
  training.save(tmp_path, train(start, 3)[0])
  assert [p.name for p in tmp_path.iterdir()] == ['000003']
  again = training.resume(tmp_path, start)
  assert int(again.cursor) == 3
  chex.assert_trees_all_equal(train(again, 2)[0], train(start, 5)[0])
  assert training.resume(tmp_path / 'nothing', start) is start


def test_a_network_comes_back_from_its_folder(tmp_path):
  net = moved()
  hypernetwork.save(tmp_path, net, {'model': 'tiny'})
  again, about = hypernetwork.load(tmp_path)
  chex.assert_trees_all_equal(again, net)
  assert about['model'] == 'tiny' and about['rank'] == 8
  with pytest.raises(JeditError, match='holds no trained network'):
    hypernetwork.load(tmp_path / 'network')


def test_every_example_comes_once_an_epoch():
  order = examples.order(1, 9, 6, 3)
  epochs = order.reshape(2, 9).tolist()
  assert epochs[0] != epochs[1]
  assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(9))
  np.testing.assert_array_equal(examples.order(1, 9, 4, 3), order[:4])
  assert examples.order(1, 9, 5, 2).shape == (5, 2)  # an epoch ends within


def test_there_is_room_for_every_group():
  data = trainer()[3]
  for batch in data:
    tokens = (batch.head_len + batch.tail_len)[:, 0, 0]
    assert tokens.sum() <= batch.budget[2] < tokens.sum() + 16
  few = examples.with_room(data, [np.array([0]), np.array([1, 2])])
  assert few.edit.budget[2] <= data.edit.budget[2]
