"""Causal tracing against a plain loop of whole passes, one at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jedit import restore, trace
from jedit.models import llama
from jedit.records import Request
from jedit.restore import Facts
from jedit.types import JeditError
from tests import tiny
from tests.prompts_test import tokenizer

_WIDE, _SAMPLES = 8, 2
_WINDOWS = {'block': 1, 'mlp': 3, 'attention': 2}


@functools.cache
def some():
  """Facts whose subjects have 1, 2, 3 tokens; the last one ends the prompt."""
  rng = np.random.default_rng(1)
  ints = lambda *x: [np.array(a, np.int32) for a in x]
  tokens = rng.integers(1, tiny.VOCAB, (3, _WIDE))
  length, first, last = (7, 6, 4), (2, 0, 1), (2, 1, 3)
  answer = rng.integers(1, tiny.VOCAB, 3)
  return Facts(*ints(tokens, length, first, last, answer))


@functools.cache
def ran():
  """(facts, noise, their Runs)."""
  model, params = tiny.model()
  shape = 3, _SAMPLES, _WIDE, model.config.width
  noise = np.float32(np.random.default_rng(2).normal(size=shape))
  return some(), noise, restore.runs(model, params, some(), jnp.asarray(noise))


@functools.cache
def restored(kind):
  facts, _, runs = ran()
  size = tuple(n + 3 for n in restore.budget(facts))
  args = facts, runs, kind, _WINDOWS[kind], size
  return np.asarray(restore.restored(*tiny.model(), *args))


@functools.partial(jax.jit, static_argnums=0)
def plain(model, params, x, clean, put, length, answer):
  """One whole pass over embeddings x [T, D], one layer after the other.

  Args:
    put: kind -> bool [L, T], where its state in `clean` takes the place of the
      one here; the attention's is taken behind its output projection.

  Returns:
    (probability of the answer, kind -> states [L, T, D]).
  """
  positions = jnp.arange(len(x))
  block = llama.Block(model.config)
  seen = {kind: [] for kind in restore.KINDS}

  def state(kind, i, new):
    new = jnp.where(put[kind][i][:, None], clean[kind][i], new)
    seen[kind].append(new)
    return new

  for i in range(model.config.num_layers):
    layer = jax.tree.map(lambda a, i=i: a[i], params['layers'])
    mid, _, _ = model.address(layer, x, positions, tiny.attend)
    mid = x + state('attention', i, mid - x)
    key = block.apply(
      {'params': layer}, mid, method=lambda b, m: b.mlp.key(b.mlp_norm(m))
    )
    x = mid + state('mlp', i, model.value(layer, mid, key) - mid)
    x = state('block', i, x)
  chance = jax.nn.softmax(model.logits(params, x)[length - 1])[answer]
  return chance, {kind: jnp.stack(states) for kind, states in seen.items()}


def loop():
  """(P[o] [N], P*[o] [N], kind -> P*[o | clean h] [N, L, T]) by the loop."""
  model, params = tiny.model()
  facts, noise, _ = ran()
  depth = model.config.num_layers
  nothing = {k: np.zeros((depth, _WIDE), bool) for k in restore.KINDS}
  zeros = jnp.zeros((depth, _WIDE, model.config.width))
  high, low = np.zeros(3), np.zeros(3)
  out = {k: np.full((3, depth, _WIDE), np.nan) for k in restore.KINDS}
  for n in range(3):
    one = Facts(*(a[n] for a in facts))
    go = lambda x, clean, put, one=one: plain(
      model, params, x, clean, put, one.length, one.answer
    )
    x = model.embed(params, one.tokens, jnp.arange(_WIDE))
    high[n], clean = go(x, {k: zeros for k in restore.KINDS}, nothing)
    inside = np.arange(_WIDE)
    inside = (one.first <= inside) & (inside <= one.last)
    noisy = [x + inside[:, None] * noise[n, s] for s in range(_SAMPLES)]
    low[n] = np.mean([go(y, clean, nothing)[0] for y in noisy])
    for kind in restore.KINDS:
      for layer in range(depth):
        for token in range(one.first, one.length):
          put = nothing | {kind: np.zeros((depth, _WIDE), bool)}
          begin = layer - _WINDOWS[kind] // 2
          end = begin + _WINDOWS[kind]
          put[kind][max(begin, 0) : end, token] = True
          chances = [go(y, clean, put)[0] for y in noisy]
          out[kind][n, layer, token] = np.mean(chances)
  return high, low, out


def test_the_grid_equals_a_loop_of_single_interventions():
  high, low, want = loop()
  _, _, runs = ran()
  np.testing.assert_allclose(runs.high, high, atol=1e-5)
  np.testing.assert_allclose(runs.low, low, atol=1e-5)
  assert np.abs(high - low).max() > 1e-2
  for kind in restore.KINDS:
    got = restored(kind)
    np.testing.assert_allclose(got, want[kind], atol=1e-5)
    assert np.nanmax(np.abs(got - low[:, None, None])) > 1e-3


def test_restoring_all_gives_the_clean_run_and_nothing_the_corrupted():
  """The last layer's output at the last token is all that logits depend on."""
  facts, _, runs = ran()
  got = restored('block')[:, -1]
  for n, (length, first) in enumerate(zip(*facts[1:3], strict=True)):
    np.testing.assert_allclose(got[n, length - 1], runs.high[n], rtol=1e-5)
    others = got[n, first : length - 1]
    np.testing.assert_allclose(others, runs.low[n], rtol=1e-5)
    assert np.isnan(got[n, :first]).all() and np.isnan(got[n, length:]).all()


def test_chunks_and_padding_change_nothing():
  """Chunks of 2, and wider, against all at once, by the same noise."""
  model, params = tiny.model()
  facts, done = some(), []
  noise = trace._noise(
    jax.random.key(0), np.arange(3), _SAMPLES, _WIDE, model.config.width
  )
  runs = restore.runs(model, params, facts, 0.5 * noise)
  size = tuple(n + 3 for n in restore.budget(facts))
  want = restore.restored(
    model, params, facts, runs, 'mlp', _WINDOWS['mlp'], size
  )
  want = np.asarray(want - runs.low[:, None, None])
  wider = facts._replace(tokens=np.pad(facts.tokens, ((0, 0), (0, 3))))
  got = trace.effects(
    model, params, wider, scale=0.5, samples=_SAMPLES, rows=2,
    windows={'mlp': _WINDOWS['mlp']}, progress=done.append,
  )  # fmt: skip
  assert done == [1, 3]
  np.testing.assert_allclose(got.clean, runs.high, atol=1e-6)
  np.testing.assert_allclose(got.corrupted, runs.low, atol=1e-6)
  np.testing.assert_allclose(got.indirect['mlp'][..., :_WIDE], want, atol=1e-6)
  assert np.nanmax(np.abs(want)) > 1e-3


@pytest.mark.parametrize('windows', [{'mpl': 1}, {'mlp': 0}])
def test_windows_are_checked(windows):
  with pytest.raises(JeditError, match='windows.*: 1 or more, for block, mlp'):
    trace.effects(*tiny.model(), some(), scale=1.0, windows=windows)


def test_facts_know_where_the_subject_is():
  make = lambda **kw: Request('7', 'The chemist {} is in', target='a', **kw)
  asked = make(subject='Marie Curie', old_target='Rome, Italy')
  for kind in 'plain', 'bos':
    tok = tokenizer(kind)
    facts = trace.facts(tok, [asked])
    ids = facts.tokens[0, : facts.length[0]]
    subject = ids[facts.first[0] : facts.last[0] + 1]
    assert tok.decode(subject) == ' Marie Curie'
    assert (kind == 'bos') == (ids[0] == tok.bos_token_id)
    assert tok.decode(ids[kind == 'bos' :]) == asked.text
    assert facts.answer == tok(' Rome').input_ids[kind == 'bos']
  with pytest.raises(JeditError, match='record 7 has no true answer'):
    trace.facts(tokenizer('plain'), [make(subject='Marie')])


def test_roles_and_their_averages():
  facts = Facts(
    np.zeros((3, 9)), *np.array([[9, 4, 3], [1, 1, 0], [4, 1, 2], [0, 0, 0]])
  )
  want = [
    [-1, 0, 1, 1, 2, 3, 4, 4, 5],
    [-1, 2, 3, 5, -1, -1, -1, -1, -1],
    [0, 1, 2, -1, -1, -1, -1, -1, -1],
  ]
  np.testing.assert_array_equal(trace.roles(facts), want)
  effect = np.arange(3 * 2 * 9.0).reshape(3, 2, 9)
  effect[trace.roles(facts)[:, None].repeat(2, 1) < 0] = np.nan
  got = trace.averages(effect, facts)
  first = [np.mean([1, 36]), np.mean([2.5, 37]), np.mean([4, 19, 38])]
  rest = [np.mean([5, 20]), 6.5, np.mean([8, 21])]
  np.testing.assert_allclose(got, [first + rest, np.add(first + rest, 9)])
  alone = trace.averages(effect[2:], Facts(*(a[2:] for a in facts)))
  assert np.isnan(alone[:, 3:]).all() and not np.isnan(alone[:, :3]).any()


def test_noise_is_three_deviations_of_the_subjects():
  params, facts = tiny.model()[1], some()
  ids = [facts.tokens[n, i] for n, i in [(0, 2), (1, 0), (1, 1)]]
  ids += list(facts.tokens[2, 1:4])
  want = 3 * np.std(np.asarray(params['embed']['tokens'])[ids])
  np.testing.assert_allclose(trace.noise_scale(params, facts), want, rtol=1e-6)


@pytest.mark.parametrize(
  'peak, count, want', [(4, 3, (3, 5)), (4, 4, (2, 5)), (0, 2, (0, 1)),
                        (9, 3, (6, 8)), (5, 9, (0, 8))],
)  # fmt: skip
def test_the_suggested_layers_surround_the_peak(peak, count, want):
  assert trace.suggested(np.eye(10)[peak], count) == want


def test_more_layers_than_can_be_edited_are_refused():
  with pytest.raises(JeditError, match='10 layers to edit: .* 9 that can'):
    trace.suggested(np.zeros(10), 10)


def test_windows_are_a_share_of_the_network():
  got = [trace.default_windows(n)['mlp'] for n in (48, 30, 2)]
  assert got == [10, 6, 1]
