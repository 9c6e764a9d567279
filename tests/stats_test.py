"""Second moments against plain NumPy."""

import threading
from concurrent import futures

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jedit import sharding, stats
from jedit.types import JeditError
from tests import tiny
from tests.prompts_test import tokenizer


def rows(seed, sizes, length):
  """Random right-padded token rows; what pads them is not zero."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(1, tiny.VOCAB, (len(sizes), length)).astype(np.int32)
  return tokens, np.arange(length) < np.array(sizes)[:, None]


def summed(family, batches):
  model, params = tiny.model(family)
  params = tiny.split(params)
  sums = stats.zeros(3, model.config.mlp_width)
  for tokens, mask in batches:
    sums = stats.add(model, params, sums, tokens, mask)
  return sums


@pytest.mark.parametrize('family', ['llama', 'gpt'])
def test_moment_equals_numpy(family):
  batches = [rows(0, [9, 4, 1], 9), rows(1, [2, 9, 9], 9)]
  got = stats.mean(summed(family, batches))
  model, params = tiny.model(family)
  total, count = np.zeros((3, 64, 64)), 0
  for tokens, mask in batches:
    keys = np.asarray(tiny.trace(model, params, jnp.asarray(tokens)).key)
    for layer in range(3):
      k = keys[:, tiny.SITE[0] + layer][mask].astype(np.float64)
      total[layer] += k.T @ k
    count += mask.sum()
  assert got.count == count == 34 and got.moment.dtype == np.float32
  for a, b in zip(np.asarray(got.moment), total / count, strict=True):
    assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)


def test_short_documents_take_less_room(monkeypatch):
  batches = [
    rows(n, sizes, 9) for n, sizes in enumerate([[1, 2], [9, 4], [1, 1]])
  ]
  rooms, add = [], stats.add
  see = lambda *args: rooms.append(args[-1]) or add(*args)
  want = stats.mean(summed('llama', batches))
  monkeypatch.setattr(stats, 'add', see)
  model, params = tiny.model()
  got = stats.collect(model, tiny.split(params), batches)
  chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-7)
  assert rooms == [5, 15, 15]  # of 18 slots; it never shrinks


def test_padding_is_inert():
  tokens, mask = rows(0, [9, 4, 1], 9)
  other = np.where(mask, tokens, 7)
  a, b = summed('llama', [(tokens, mask)]), summed('llama', [(other, mask)])
  jax.tree.map(np.testing.assert_array_equal, a, b)
  wide = np.pad(tokens, ((0, 2), (0, 3))), np.pad(mask, ((0, 2), (0, 3)))
  c = summed('llama', [wide])
  assert c.count == a.count
  gap = np.linalg.norm(c.total - a.total)  # another order of summation
  assert gap < 2e-6 * np.linalg.norm(a.total)


def test_compensation_keeps_small_terms():
  tokens, mask = rows(0, [9, 9], 9)
  small = summed('llama', [(tokens, mask)])
  model, params = tiny.model()
  big, times = np.float32(3e10), 50
  assert (
    np.abs(small.total).max() < 1024
  )  # half a unit in the last place of big
  start = lambda: stats.zeros(3, 64)._replace(total=jnp.full((3, 64, 64), big))
  sums = start()
  for _ in range(times):
    sums = stats.add(model, tiny.split(params), sums, tokens, mask)
  exact = np.float64(big) + times * np.asarray(small.total, np.float64)
  kept = np.asarray(sums.total, np.float64) - np.asarray(sums.lost, np.float64)
  assert np.abs(kept - exact).max() < 0.01
  plain = big  # and float32 alone would have lost them all
  for _ in range(times):
    plain = plain + np.asarray(small.total, np.float32)
  assert (plain == big).all()


def test_the_mean_takes_back_what_was_added_too_much():
  one = jnp.ones((1, 2, 2))
  got = stats.mean(stats.Sums(8 * one, 3 * one, jnp.float32(2)))
  np.testing.assert_array_equal(got.moment, 2.5 * one)


def test_an_empty_corpus_is_refused():
  with pytest.raises(JeditError, match='the corpus has no token'):
    stats.mean(stats.zeros(1, 2))


def cut(documents, start, length, count, tokens):
  """windows as lists of rows, padding cut off."""
  out = []
  for ids, mask in stats.windows(documents, start, length, count, tokens):
    assert ids.shape == mask.shape == (count, length)
    assert not ids[~mask].any()
    assert (np.diff(mask.astype(int), axis=1) <= 0).all()  # right-padded
    out.append([i[m].tolist() for i, m in zip(ids, mask, strict=True)])
  return out


def test_windows():
  documents = [[1, 2, 3, 4, 5], [], [6, 7], [8, 9, 10, 11]]
  assert cut(documents, [], 4, 2, 0) == [
    [[1, 2, 3, 4], [5]], [[6, 7], [8, 9, 10, 11]],
  ]  # fmt: skip
  assert cut(documents, [99], 4, 3, 0) == [
    [[99, 1, 2, 3], [99, 4, 5], [99, 6, 7]], [[99, 8, 9, 10], [99, 11], []],
  ]  # fmt: skip


@pytest.mark.parametrize('tokens', range(1, 12))
def test_windows_stop_after_so_many_tokens(tokens):
  documents = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10, 11]]
  got = cut(documents, [], 4, 2, tokens)
  flat = [t for batch in got for row in batch for t in row]
  assert flat == list(range(1, tokens + 1))


def test_a_resumed_pass_is_the_same(tmp_path):
  model, params = tiny.model()
  params = tiny.split(params)
  batches = [rows(n, [9, 4], 9) for n in range(5)]
  whole = stats.collect(model, params, batches)
  partial = tmp_path / 'part.npz'

  def broken():
    yield from batches[:4]
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    stats.collect(model, params, broken(), partial, every=3)
  seen = []
  again = stats.collect(model, params, batches, partial, seen.append, every=3)
  jax.tree.map(np.testing.assert_array_equal, again, whole)
  assert seen == [52, 65]
  join = lambda *arrays: np.concatenate(arrays)
  every = join(*(b[0] for b in batches)), join(*(b[1] for b in batches))
  for size in 1, 4, 7:  # as on other devices
    cuts = range(0, len(every[0]), size)
    other = [tuple(a[i : i + size] for a in every) for i in cuts]
    again = stats.collect(model, params, other, partial, seen.append)
    chex.assert_trees_all_close(again, whole, rtol=1e-5, atol=1e-7)
  partial.write_bytes(partial.read_bytes()[:99])
  again = stats.collect(model, params, batches, partial)
  jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_files(tmp_path):
  moment = stats.mean(summed('llama', [rows(0, [9, 4], 9)]))
  path = tmp_path / 'm.npz'
  stats.save(path, moment, 'model a')
  jax.tree.map(
    np.testing.assert_array_equal, stats.load(path, 'model a'), moment
  )
  with pytest.raises(JeditError, match='(?s)model a.*model b.*make them again'):
    stats.load(path, 'model b')
  path.write_bytes(path.read_bytes()[:-99])
  with pytest.raises(JeditError, match='is no file of second moments'):
    stats.load(path, 'model a')
  with pytest.raises(JeditError, match='is no file of second moments'):
    stats.load(tmp_path / 'none.npz', 'model a')


def test_a_corpus_is_text(tmp_path):
  path = tmp_path / 'corpus'
  path.write_text('\ufeff{"text": "one"}\n', encoding='utf-8')
  assert list(stats.read_corpus(path)) == ['one']
  path.write_bytes(b'caf\xe9')
  with pytest.raises(JeditError, match='corpus: cannot be read as text'):
    list(stats.read_corpus(path))

  for text in (
    '\n\n{"text": "one"}\n',
    '[\n{"text": "one"}\n]',
    ' [{"text":"one"}]',
  ):
    path.write_text(text)
    assert list(stats.read_corpus(path)) == ['one']
  for text in '{{Infobox}}', '[[File:a]] is', '[1] A note':
    path.write_text(f'{text}\n\ntwo')
    assert list(stats.read_corpus(path)) == [f'{text}\n', 'two']


def test_published_moments(tmp_path):
  """Sums in the layout of kmeng01/rome's files; `{}` may come twice."""
  rng = np.random.default_rng(0)
  pattern = str(tmp_path / 'layers.{}' / 'layer{}_float32_mom2_100.npz')
  sums, counts = rng.normal(size=(2, 6, 6)).astype('f'), (50, 40)
  for layer, total, count in zip((3, 4), sums, counts, strict=True):
    path = tmp_path / f'layers.{layer}'
    path.mkdir()
    np.savez(
      path / f'layer{layer}_float32_mom2_100.npz',
      **{'mom2.constructor': 'SecondMoment', 'mom2.count': count},
      **{'mom2.mom2': total, 'sample_size': 100},
    )
  found = stats.published(pattern, [3, 4], 6)
  want = sums / np.array(counts)[:, None, None]
  np.testing.assert_allclose(found.moment, want, rtol=1e-6)
  assert found.count == 40
  with pytest.raises(JeditError, match='of another model: .6, 6., the keys'):
    stats.published(pattern, [3], 8)
  with pytest.raises(JeditError, match='layer5.*: no published second moment'):
    stats.published(pattern, [3, 5], 6)
  np.savez(tmp_path / 'layers.4' / 'layer4_float32_mom2_100.npz', mom2=sums[0])
  with pytest.raises(JeditError, match="layer4.*: no published .*'count'"):
    stats.published(pattern, [3, 4], 6)


@pytest.mark.parametrize('processes', [1, 2, 3])
def test_a_corpus_is_encoded_by_all_processes(monkeypatch, processes):
  bpe, rng = tokenizer('bos'), np.random.default_rng(0)
  words = 'the mother tongue of Danielle Darrieux is French', 'Ω, \N{OWL}', ''
  texts = [' '.join(rng.choice(words, n)) for n in rng.integers(0, 40, 23)]
  want = [bpe(t, add_special_tokens=False).input_ids for t in texts]
  here, told = threading.local(), [None] * processes
  together = threading.Barrier(processes, timeout=60)

  def gather(x):
    told[here.process] = x
    together.wait()
    out = np.stack(told)
    together.wait()
    return out

  def encoded(process):
    here.process = process
    return list(stats.encoded(bpe, iter(texts), 300))

  monkeypatch.setattr(jax, 'process_count', lambda: processes)
  monkeypatch.setattr(jax, 'process_index', lambda: here.process)
  monkeypatch.setattr(sharding.multihost_utils, 'process_allgather', gather)
  with futures.ThreadPoolExecutor(processes) as pool:
    found = list(pool.map(encoded, range(processes)))
  assert found == [want] * processes
