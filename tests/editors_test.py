"""One contract for every editor, on a tiny model."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jedit
from jedit import hypernetwork, values
from jedit.models import transformer
from jedit.rows import enter
from jedit.sequence import edit_sequence, report_of
from jedit.types import EditReport, SecondMoment, Targets, apply_updates
from tests import oracle, tiny

_WEIGHT, _RIDGE, _THRESHOLD = 1e-3, 1e-5, 0.05
_ALPHAEDIT = functools.partial(
  jedit.alphaedit, ridge=_RIDGE, threshold=_THRESHOLD, relative=True
)


def _blue(model, moment, optimise):
  host = lambda moment: _ALPHAEDIT(model, moment, optimise=optimise)
  return jedit.blue(host, moment)


# name -> editor(model, moment, optimise=...)
EDITORS = {
  'memit': functools.partial(jedit.memit, weight=_WEIGHT),
  'memit with history': functools.partial(
    jedit.memit, weight=_WEIGHT, remember=True
  ),
  'alphaedit': _ALPHAEDIT,
  'emmet': functools.partial(jedit.emmet, weight=2.0, ridge=_WEIGHT),
  'rome': jedit.rome,
  'rome mixed': functools.partial(jedit.rome, mixed_keys=True),
  'pmet': functools.partial(jedit.pmet, weight=_WEIGHT),
  'adaedit': functools.partial(jedit.adaedit, weight=_WEIGHT, keep=0.5),
  'blue': _blue,
  'alphaedit_plus': functools.partial(
    jedit.alphaedit_plus, ridge=_RIDGE, threshold=_THRESHOLD, relative=True,
    capacity=12, smooth=False,
  ),
}  # fmt: skip
_DESCENT = dict(lr=5e-3, stop=0.1)
# name -> editor(model, moment), of gradients: no values.
GRADIENT = {
  'ultraedit': lambda model, _: jedit.ultraedit(model, lr=0.1),
  'mend': lambda model, _: jedit.mend(model, network()),
  'fine_tune': lambda model, _: jedit.fine_tune(model, **_DESCENT),
  'null_space': functools.partial(
    jedit.null_space, threshold=_THRESHOLD, relative=True, **_DESCENT
  ),
  'end_to_end': lambda model, moment: jedit.end_to_end(
    model,
    moment,
    steps=9,
    settle=4,
    lr=0.3,
    stop=0.1,
    weight=_WEIGHT,
    cost=30.0,
  ),
  'kde': lambda model, _: jedit.kde(
    model, steps=9, settle=4, energy=1.0, capacity=48, **_DESCENT
  ),
}
_REMEMBER = (
  'memit with history', 'alphaedit', 'blue', 'alphaedit_plus', 'kde',
  'ultraedit', 'end_to_end',
)  # fmt: skip
_OF_MLP = 'rome', 'rome mixed', 'pmet', 'adaedit'
_BATCHES = 3
every = pytest.mark.parametrize('name', [*EDITORS, *GRADIENT])


def network():
  """MEND's, untrained, for the site of the tiny model."""
  return hypernetwork.init(jax.random.key(0), (3, 64, 32), rank=8)


def engine(**settings):
  """The value engine; every fact of `batches` reaches its target."""
  return values.optimiser(
    tiny.model()[0], steps=12, clamp=4.0, stop=0.3, weight_decay=0.05,
    kl_factor=0.01, stages=(1.0,), **settings,
  )  # fmt: skip


@functools.cache
def batches():
  """[N, B, ...]; the second has an empty request."""
  return tiny.stack(
    [
      tiny.batch(4, seed=n, invalid=[3] * (n == 1), hard=())
      for n in range(_BATCHES)
    ]
  )


def batch_of(n):
  return jax.tree.map(lambda x: x[n], batches())


@functools.cache
def goals(name):
  """What an editor's engine finds for the first batch."""
  model, params = tiny.model()
  point = 'mlp+attention' if name in _OF_MLP else 'block'
  go = lambda p, b: engine(point=point).run(p, enter(model, p, b), b, ())
  found = jax.jit(go)(tiny.split(params), batch_of(0))
  return jax.tree.map(np.asarray, found)


def fixed_kind(name):
  return _OF_MLP[0] if name in _OF_MLP else 'memit'


def fixed(name):
  """An engine that compiles fast: v* is the same for every batch."""

  found = goals(fixed_kind(name))

  def run(params, rows, batch, state):
    return Targets(
      found.value * batch.valid[:, None],
      jnp.zeros(4),
      jnp.ones(4, jnp.int32),
      batch.valid,
      found.point,
    )

  return values.Optimise(lambda params: (), run)


@functools.cache
def make(name):
  """(editor, split params, its state, batches [N, B, ...])."""
  model, params = tiny.model()
  if name in GRADIENT:
    editor = GRADIENT[name](model, tiny.moment())
  else:
    editor = EDITORS[name](model, tiny.moment(), optimise=fixed(name))
  params = tiny.split(params)
  return editor, params, editor.init(params), batches()


@functools.cache
def step(name):
  return jax.jit(make(name)[0].update)


@functools.cache
def first(name):
  """(updates, state) of the first batch."""
  _, params, state, _ = make(name)
  return step(name)(batch_of(0), state, params)


def carried(state):
  """The arrays in a state, without its reports and counts."""
  here = lambda x: isinstance(x, EditReport)
  kept = [x for x in jax.tree.leaves(state, is_leaf=here) if not here(x)]
  return [np.asarray(x) for x in kept if np.ndim(x)]


def kernel(updates):
  return np.asarray(updates['site']['mlp']['down']['kernel'])


@every
def test_init_without_arrays(name):
  editor, params, state, _ = make(name)
  abstract = jax.eval_shape(editor.init, params)
  chex.assert_trees_all_equal_shapes_and_dtypes(abstract, state)


@pytest.mark.parametrize('name', [*EDITORS, 'null_space'])
def test_init_refuses_the_moments_of_other_layers(name):
  editor, _, _, _ = make(name)
  params = transformer.split(tiny.model()[1], 1, 2)
  with pytest.raises(ValueError, match='second moments of these layers'):
    editor.init(params)


@every
def test_state_keeps_its_type(name):
  _, _, state, _ = make(name)
  new = first(name)[1]
  chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
  assert int(report_of(new).facts) == 4
  same = map(np.array_equal, carried(new), carried(state))
  assert all(same) == (name not in _REMEMBER)


@every
def test_updates_are_a_float32_subtree(name):
  _, params, _, _ = make(name)
  updates = first(name)[0]
  assert list(updates) == ['site'] and list(updates['site']) == ['mlp']
  part = {'site': {'mlp': {'down': {
    'kernel': params['site']['mlp']['down']['kernel']}}}}  # fmt: skip
  chex.assert_trees_all_equal_shapes_and_dtypes(updates, part)
  assert kernel(updates).dtype == np.float32 and kernel(updates).any()


def test_jit_changes_nothing(name='alphaedit'):  # slow: compiles op by op
  editor, params, state, _ = make(name)
  updates, new = editor.update(batch_of(0), state, params)
  got, other = step(name)(batch_of(0), state, params)
  size = np.abs(kernel(updates)).max()
  np.testing.assert_allclose(kernel(got), kernel(updates), atol=1e-4 * size)
  assert int(new.report.steps) == int(other.report.steps)


@pytest.mark.parametrize(
  'name', ['blue', 'alphaedit_plus', 'kde', 'end_to_end']
)
def test_scan_equals_a_loop(name):
  """To the last bit; updates_test.py scans every editor."""
  editor, params, state, batches = make(name)
  scanned = jax.jit(functools.partial(edit_sequence, editor))(
    params, state, batches
  )
  reports = []
  for n in range(_BATCHES):
    updates, state = step(name)(batch_of(n), state, params)
    params = jax.jit(apply_updates)(params, updates)
    reports.append(report_of(state))
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *reports)
  chex.assert_trees_all_equal(scanned, (params, state, stacked))
  assert stacked.facts.tolist() == [4, 3, 4]


@every
def test_an_empty_batch_changes_nothing(name):
  _, params, state, batches = make(name)
  empty = jax.tree.map(jnp.asarray, tiny.batch(4, invalid=range(4)))
  batch = dataclasses.replace(empty, budget=batches.budget)
  updates, new = step(name)(batch, state, params)
  assert not kernel(updates).any()
  report = report_of(new)
  assert not any(map(np.any, (report.facts, report.reached, report.residual)))
  chex.assert_trees_all_equal(carried(new), carried(state))


@pytest.mark.parametrize(
  'name', ['alphaedit', 'emmet', 'rome mixed', 'pmet', 'blue', 'alphaedit_plus']
)
def test_the_same_batch_again_has_little_to_do(name):
  """Once written, v* is where the value is: the residual is gone.

  With the plain prompt alone, whose key is the one that is solved for; other
  contexts' values move by less than v* asks, and would be pushed on.
  """
  _, params, state, _ = make(name)
  batch = jax.tree.map(jnp.asarray, tiny.batch(4, 1, hard=()))
  update = jax.jit(make(name)[0].update)
  once, state = update(batch, state, params)
  again, state = update(batch, state, apply_updates(params, once))
  small = np.linalg.norm(kernel(again)) / np.linalg.norm(kernel(once))
  assert small < 1e-3


def test_with_the_real_engine():
  """Facts that were written are found done at once, their residual gone."""
  model, params = tiny.model()
  params = tiny.split(params)
  editor = EDITORS['memit'](model, tiny.moment(), optimise=engine())
  batch = jax.tree.map(jnp.asarray, tiny.batch(4, 1, hard=()))
  update = jax.jit(editor.update)
  once, state = update(batch, editor.init(params), params)
  assert int(state.report.reached) == 4 and int(state.report.steps) > 4
  again, state = update(batch, state, apply_updates(params, once))
  assert int(state.report.reached) == 4 and int(state.report.steps) == 0
  small = np.linalg.norm(kernel(again)) / np.linalg.norm(kernel(once))
  assert small < 1e-3


def test_chain_with_a_clip(name='alphaedit'):
  editor, params, _, batches = make(name)
  one = jax.tree.map(lambda x: x[:1], batches)
  run = lambda e: jax.jit(functools.partial(edit_sequence, e))(
    params, e.init(params), one
  )
  free = kernel(run(editor)[0]) - kernel(params)
  largest = 0.1 * np.linalg.norm(free)
  edited, new, report = run(
    optax.chain(editor, optax.clip_by_global_norm(largest))
  )
  moved = kernel(edited) - kernel(params)
  np.testing.assert_allclose(moved, 0.1 * free, atol=1e-3 * np.abs(moved).max())
  assert report.facts.tolist() == [4] and len(new) == 2


def solve(name, moment, keys, plain, residuals, past):
  """One layer's dW [F, D] by the paper's equation."""
  if name == 'alphaedit':
    limit = _THRESHOLD * np.linalg.eigvalsh(moment).max()
    p = oracle.projector(moment, limit)
    return oracle.alphaedit(p, keys, residuals, _RIDGE, past)
  if name == 'emmet':
    return oracle.emmet(moment, keys, residuals, 2.0, _WEIGHT)
  if name == 'rome':
    return oracle.emmet(moment, keys, residuals, 1.0, 0.0)
  if name == 'rome mixed':
    inverse = np.linalg.inv(moment)
    own = np.einsum('bf,fg,bg->b', keys, inverse, keys)
    mixed = np.einsum('bf,fg,bg->b', plain, inverse, keys)
    residuals = residuals * (own / mixed)[:, None]
    return oracle.emmet(moment, keys, residuals, 1.0, 0.0)
  history = past if name in _REMEMBER else None
  delta = oracle.memit(moment, keys, residuals, _WEIGHT, history)
  return delta


def walk(name, params, batches, goal):
  """dW [E, F, D] of two batches by the oracle, keys read off whole rows."""
  model, _ = tiny.model()
  low, high = tiny.SITE
  moment = tiny.moment().moment.astype(np.float64)
  past, out = np.zeros_like(moment), []
  for n in range(2):
    batch = jax.tree.map(lambda x, n=n: np.asarray(x[n]), batches)
    tokens, lookup, _ = tiny.whole_rows(batch)
    deltas = []
    for layer in range(low, high + 1):
      e, left = layer - low, high + 1 - layer
      whole = tiny.trace(model, transformer.join(params), tokens)
      index = lookup[:, :, None, None]
      at = lambda x, i, index=index: np.take_along_axis(
        np.asarray(x)[:, :, i], index, 2
      )[:, :, 0].astype(np.float64)
      key = at(whole.key, layer)[:, :-1]
      plain = key[:, 0]
      mean = (
        key.mean(1) if 'rome' in name else 0.5 * (plain + key[:, 1:].mean(1))
      )
      now = at(whole.out, high)[:, 0]
      if name in _OF_MLP:
        now = now - at(whole.mid, high)[:, 0]
      valid = batch.valid
      residual = (goal - now)[valid] / (left**0.5 if name == 'pmet' else left)
      delta = solve(
        name, moment[e], mean[valid], plain[valid], residual, past[e]
      )
      past[e] += mean[valid].T @ mean[valid]
      if name == 'adaedit':
        deltas.append(oracle.srfusion(delta, min(4, *delta.shape), 0.5))
      else:
        deltas.append(delta)
      full = np.zeros_like(kernel(params))
      full[e] = delta  # the walk goes on from what was solved
      update = {'site': {'mlp': {'down': {'kernel': jnp.asarray(full)}}}}
      params = apply_updates(params, update)
    out.append(np.stack(deltas))
  return out


_OWN_TEST = 'blue', 'alphaedit_plus'


@pytest.mark.parametrize('name', [n for n in EDITORS if n not in _OWN_TEST])
def test_the_update_equals_the_paper(name):
  """Two batches: whole forward passes, float64 normal equations."""
  _, params, state, batches = make(name)
  now, got = params, []
  for n in range(2 if name != 'adaedit' else 1):
    updates, state = step(name)(batch_of(n), state, now)
    now = apply_updates(now, updates)
    got.append(kernel(updates))
  want = walk(name, params, batches, np.asarray(goals(fixed_kind(name)).value))
  for a, b in zip(got, want, strict=False):
    for layer in range(len(a)):
      gap = np.linalg.norm(a[layer] - b[layer]) / np.linalg.norm(b[layer])
      assert gap < 1e-4, (layer, gap)


def test_alphaedit_plus_without_its_parts_is_alphaedit():
  model, _ = tiny.model()
  _, params, state, batches = make('alphaedit')
  plus = jedit.alphaedit_plus(
    model, tiny.moment(), ridge=_RIDGE, threshold=_THRESHOLD, relative=True,
    capacity=12, perturb=False, reweigh=False, smooth=False,
    optimise=fixed('alphaedit'),
  )  # fmt: skip
  run = lambda e, s: jax.jit(functools.partial(edit_sequence, e))(
    params, s, batches
  )[0]
  want = kernel(run(make('alphaedit')[0], state)) - kernel(params)
  got = kernel(run(plus, plus.init(params))) - kernel(params)
  assert np.linalg.norm(got - want) < 1e-3 * np.linalg.norm(want)


def test_blue_is_its_host_at_both_ends():
  """Each solve by the host of a site of that one layer; the rest stays."""
  model, params = tiny.model()
  low, high = tiny.SITE
  whole, got = tiny.moment(), kernel(first('blue')[0])
  now = params
  for layer in (low, high):
    e = layer - low
    one = SecondMoment(whole.moment[e : e + 1], whole.count)
    editor = _ALPHAEDIT(model, one, optimise=fixed('blue'))
    split = transformer.split(now, layer, layer)
    delta, _ = jax.jit(editor.update)(batch_of(0), editor.init(split), split)
    size = np.abs(got[e]).max()
    np.testing.assert_allclose(got[e], kernel(delta)[0], atol=1e-5 * size)
    now = transformer.join(apply_updates(split, delta))
  assert not got[1 : high - low].any()


def test_blue_of_one_layer_is_its_host():
  model, params = tiny.model()
  one = SecondMoment(tiny.moment().moment[:1], tiny.moment().count)
  split = transformer.split(params, tiny.SITE[0], tiny.SITE[0])
  out = []
  for make_it in (_blue, _ALPHAEDIT):
    editor = make_it(model, one, optimise=fixed('blue'))
    update = jax.jit(editor.update)
    out.append(kernel(update(batch_of(0), editor.init(split), split)[0]))
  gap = np.linalg.norm(out[0] - out[1]) / np.linalg.norm(out[1])
  assert gap < 1e-6 and out[1].any()


@pytest.mark.parametrize('name', [n for n in EDITORS if n != 'blue'])
def test_facts_are_learned(name):
  _, params, _, _ = make(name)
  model, _ = tiny.model()
  batch = jax.tree.map(np.asarray, batch_of(0))
  edited = apply_updates(params, first(name)[0])
  chance = lambda p: tiny.target_probability(model, transformer.join(p), batch)
  before, after = chance(params), chance(edited)
  assert before.mean() < 0.1 and after.mean() > 0.5
