"""What editing did inside: against NumPy, and of a whole run."""

import json

import numpy as np
import pytest

from jedit import inside
from jedit.questions import pack
from jedit.types import JeditError
from launch import inside as program
from launch import report
from tests import tiny


def test_weights_before_and_after():
  rng = np.random.default_rng(0)
  before = np.float32(rng.normal(size=(8, 5)))
  change = np.float32(np.outer(rng.normal(size=8), rng.normal(size=5)))
  found = inside.weights(before, change)
  after = np.float64(before) + change
  want = {
    'max': after.max(), 'min': after.min(), 'mean': after.mean(),
    'median': np.median(after), 'norm': np.sqrt((after**2).sum()),
    'condition': np.linalg.cond(after),
  }  # fmt: skip
  assert found['after'] == pytest.approx(want)
  assert found['before']['norm'] == pytest.approx(np.linalg.norm(before))
  ratio = found['after']['norm'] / found['before']['norm']
  assert found['change']['norm'] == pytest.approx(100 * (ratio - 1))
  assert found['rank'] == 1
  assert found['singular'][0] == pytest.approx(np.linalg.norm(change))
  nothing = inside.weights(before, 0 * change)
  assert nothing['rank'] == 0
  assert set(nothing['change'].values()) == {0.0}


def test_states_are_those_behind_the_last_layer():
  model, params = tiny.model()
  rng = np.random.default_rng(0)
  rows = [rng.integers(1, tiny.VOCAB, n).tolist() for n in (3, 9, 1, 7, 5)]
  got = inside.states(model, params, pack(rows, [[[]]] * 5), rows=2)
  for row, state in zip(rows, got, strict=True):
    whole = tiny.trace(model, params, np.int32(row))
    np.testing.assert_allclose(state, whole.out[-1, -1], atol=1e-5)


def test_keys_are_those_of_the_lookup_token():
  model, params = tiny.model()
  batch = tiny.batch(4)
  got = inside.keys(model, tiny.split(params), batch)
  assert got.shape == (tiny.SITE[1] - tiny.SITE[0] + 1, 4, 64)
  for b in range(4):
    size, after = int(batch.head_len[b, 0]), int(batch.tail_len[b, 0])
    ids = np.concatenate([batch.head[b, 0, :size], batch.tail[b, 0, :after]])
    whole = tiny.trace(model, params, ids)
    lo, hi = tiny.SITE
    np.testing.assert_allclose(
      got[:, b], whole.key[lo : hi + 1, size], atol=1e-5
    )


def test_cosines():
  x = np.float32([[3, 0], [0, 2], [1, 1], [0, 0]])
  half = np.sqrt(0.5)
  want = [[1, 0, half, 0], [0, 1, half, 0], [half, half, 1, 0], [0] * 4]
  np.testing.assert_allclose(inside.cosines(x), want, atol=1e-6)


def test_drift():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(200, 6))
  assert inside.drift(x, x) == pytest.approx(
    {'moved': 0, 'cosine': 1, 'shift': 0}
  )
  aside = inside.drift(x, x + np.eye(6)[0])
  spread = np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean())
  assert aside['shift'] == pytest.approx(1 / spread)
  assert aside['moved'] == pytest.approx(1 / np.linalg.norm(x, axis=1).mean())
  for how in 'pca', 't-sne':
    a, b = inside.plane(x[:40], x[:40] + 9, how)
    assert a.shape == b.shape == (40, 2)
    centres = np.linalg.norm(a.mean(0) - b.mean(0))
    assert centres > a.std() + b.std()  # clouds apart stay apart


def test_the_program_looks_into_a_run(run, tmp_path, capsys):
  work = tmp_path / 'a'
  with pytest.raises(JeditError, match='no results.json'):
    program.run(str(work), 5)
  run(work, 'memit')
  program.run(str(work), 5)
  out = capsys.readouterr().out
  found = json.loads((work / 'inside.json').read_text())
  assert set(found['weights']) == {'1', '2'} and found['prompts'] == 5
  assert found['drift']['moved'] > 0
  assert f'{found["drift"]["moved"]:.4f}' in out
  page = report.render([report.read(str(work))])
  assert page.count('data:image/png;base64,iVBOR') == 2
  assert 0 < found['alike']['keys of layer 2'] <= 1
