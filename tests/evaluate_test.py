"""Scores of prompts and candidates against whole rows, one at a time."""

import numpy as np
import pytest

from jedit import evaluate, metrics
from jedit.questions import Questions
from tests import tiny


def logits_of(model, params, row):
  """Of one row [T, V]; what is put behind it changes nothing."""
  padded = np.zeros(12, np.int32)
  padded[: len(row)] = row
  return np.asarray(tiny.trace(model, params, padded).logits)[: len(row)]


def questions(model, params, seed=0, count=7):
  """Random ones; some candidates are what the model says, some are absent."""
  rng = np.random.default_rng(seed)
  prompt_len = rng.integers(1, 9, count)
  target_len = rng.integers(0, 5, (count, 2))
  target_len[0] = 1, 4
  prompt = rng.integers(1, tiny.VOCAB, (count, 8))
  target = rng.integers(1, tiny.VOCAB, (count, 2, 4))
  for q in range(0, count, 2):  # half of the first tokens, right
    row = prompt[q, : prompt_len[q]]
    target[q, :, 0] = logits_of(model, params, row)[-1].argmax()
  prompt *= np.arange(8) < prompt_len[:, None]
  target *= np.arange(4) < target_len[..., None]
  arrays = prompt, prompt_len, target, target_len
  return Questions(*(a.astype(np.int32) for a in arrays))


@pytest.mark.parametrize('family', ['llama', 'gpt'])
def test_scores_are_those_of_whole_rows(family):
  model, params = tiny.model(family)
  asked = questions(model, params)
  found = evaluate.score(model, params, asked, rows=3)
  for q, size in enumerate(asked.prompt_len):
    row = asked.prompt[q, :size]
    says = logits_of(model, params, row)[-1].argmax()
    assert (found.guess[q, :, 0] == says).all()
  for q, k in np.ndindex(*asked.target_len.shape):
    size = asked.target_len[q, k]
    if not size:
      assert np.isnan(found.nll[q, k]) and np.isnan(found.correct[q, k])
      continue
    target = asked.target[q, k, :size]
    row = np.concatenate([asked.prompt[q, : asked.prompt_len[q]], target[:-1]])
    logits = np.float64(logits_of(model, params, row)[-size:])
    chosen = logits[np.arange(size), target]
    nll = np.mean(np.log(np.exp(logits).sum(-1)) - chosen)
    right = np.mean(logits.argmax(-1) == target)
    np.testing.assert_array_equal(found.guess[q, k, :size], logits.argmax(-1))
    np.testing.assert_allclose(found.nll[q, k], nll, rtol=1e-5)
    assert found.correct[q, k] == right
  assert {0, 1} < set(found.correct[~np.isnan(found.correct)])


def test_what_a_question_counts():
  """A neighbour's wanted answer is the other one; NaN is unmeasured."""
  nan = np.nan
  rewrite, neighbour, own = (
    metrics.ASKED.index(k) for k in ('rewrite', 'neighbour', 'locality')
  )
  kind = [rewrite, rewrite, neighbour, neighbour, own, rewrite]
  correct = np.array(
    [[1, 0], [0.75, 1], [0.5, 1], [0, 0.9], [0.25, nan], [0, 0]]
  )
  # The last is of a broken model: wrong, not without an answer.
  nll = np.array([[1, 2], [2, 2], [1, 2], [2, 1], [1, nan], [nan, nan]])
  got = metrics.values(kind, nll, correct, correct / 2)
  want = {
    'probability': [1, 0, 0, 1, nan, 0],
    'strict': [1, 0, 1, 0, 0, 0],
    'token': [1, 0.75, 1, 0.9, 0.25, 0],
    'unchanged': [0.5, 0.375, 0.5, 0.45, 0.125, 0],
    'withheld': [0, 1, 1, 1, 1, 1],
  }
  assert got.keys() == want.keys()
  for name, row in want.items():
    np.testing.assert_array_equal(got[name], row)


_THREE = 'memit-2022', 'alphaedit-plus-2026'  # tables of three metrics


def found(count=40, seed=0):
  """{table: [N, 3]} with holes; a record of which nothing is known."""
  x = np.random.default_rng(seed).integers(0, 3, (count, 3)) * 50.0
  x[3] = np.nan
  x[7, 1] = np.nan
  return {'memit-2022': x, 'alphaedit-plus-2026': x / 2}


def test_means_are_those_of_records():
  record = [0, 0, 0, 2, 2, 1, 2, 2]
  kind = [0, 2, 2, 0, 1, 0, 3, 4]
  flags = np.array([1, 0, 1, 0, 1, 1, 0.5, 1.0])
  success = {
    'probability': flags, 'token': flags, 'unchanged': flags,
    'strict': np.where(flags, np.nan, flags), 'exact': flags,
    'contains': flags, 'entropy': flags, 'tf-idf': flags, 'withheld': flags,
    'rouge-l': flags,
  }  # fmt: skip
  rows = metrics.by_record(record, kind, success, exclude={1})
  nan = np.nan
  np.testing.assert_array_equal(
    rows['memit-2022'], [[100, nan, 50], [nan] * 3, [0, 100, nan]]
  )
  np.testing.assert_array_equal(
    rows['easyedit-token'],
    [[100, nan, 50, nan], [nan] * 4, [0, 100, 50, 100]],
  )
  table = metrics.summary(rows)
  row = table['memit-2022']
  assert row['efficacy'] == 50 and row['generalization'] == 100
  assert row['specificity'] == 50 and row['score'] == pytest.approx(60)
  assert table['jedit']['generalization'] is None
  assert table['jedit']['score'] is None
  assert 'score' not in table['alphaedit-2025']


@pytest.mark.parametrize('count, low', [(1, 2.5), (40, 91.19), (200, 98.17)])
def test_the_interval_of_what_is_always_right_is_exact(count, low):
  """Clopper and Pearson's, as tables have it."""
  right = {'memit-2022': np.full((count, 3), 100.0)}
  wrong = {'memit-2022': np.zeros((count, 3))}
  for name in 'efficacy', 'score':
    ends = metrics.intervals(right)['memit-2022'][name]
    assert ends == pytest.approx((low, 100), abs=0.005)
    ends = metrics.intervals(wrong)['memit-2022'][name]
    assert ends == pytest.approx((0, 100 - low), abs=0.005)


def test_a_single_record_says_nothing_of_the_rest():
  one = {'memit-2022': np.array([[30.0, np.nan, 100.0]])}
  ends = metrics.intervals(one)['memit-2022']
  assert ends['efficacy'] == (0, 100) and ends['generalization'] is None
  assert ends['specificity'] == pytest.approx((2.5, 100))


def test_intervals_hold_the_mean_and_shrink_with_more_records():
  table, ends = metrics.summary(found()), metrics.intervals(found())
  more = metrics.intervals(found(count=400))
  width = lambda ends: ends[1] - ends[0]
  for key, row in table.items():
    for name, value in row.items():
      low, high = ends[key][name]
      assert low < value < high
      ratio = width(ends[key][name]) / width(more[key][name])
      assert 2 < ratio < 5  # about the root of ten
  x = found()['memit-2022']
  x = x[~np.isnan(x[:, 0]), 0]
  spread = x.std() / np.sqrt(len(x))  # what a bootstrap of a mean tends to
  low, high = ends['memit-2022']['efficacy']
  assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_a_difference_is_paired():
  base = found()
  better = {t: x + 5 for t, x in base.items()}  # each record
  paired = metrics.differences(better, base)
  for key, row in metrics.summary(base).items():
    for name in [m.name for m in metrics.TABLES[key].metrics]:
      value, low, high = paired[key][name]
      assert value == pytest.approx(5) and low < 5 < high  # of 39 pairs
    assert row.keys() == paired[key].keys()
  other = {t: np.random.default_rng(1).permutation(x) for t, x in base.items()}
  value, low, high = metrics.differences(other, base)['memit-2022']['efficacy']
  x = (other['memit-2022'] - base['memit-2022'])[:, 0]
  x = x[~np.isnan(x)]
  assert low < value < high and value == pytest.approx(x.mean())
  spread = x.std() / np.sqrt(len(x))
  assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)
  all_, none = ({'memit-2022': np.full((3, 3), x)} for x in (100.0, 0.0))
  share = 100 * 0.025 ** (1 / 3)  # Clopper and Pearson's, of three of three
  for row in metrics.differences(all_, none)['memit-2022'].values():
    assert row == pytest.approx((100, share - (100 - share), 100))
  for row in metrics.differences(all_, all_)['memit-2022'].values():
    assert row == pytest.approx((0, share - 100, 100 - share))
  nothing = {t: np.full(x.shape, np.nan) for t, x in base.items()}
  row = metrics.differences(nothing, base)['memit-2022']
  assert set(row.values()) == {None}


def test_what_was_not_measured_has_no_interval():
  nothing = {t: np.full((4, 3), np.nan) for t in _THREE}
  assert metrics.summary(nothing)['memit-2022']['efficacy'] is None
  assert set(metrics.intervals(nothing)['memit-2022'].values()) == {None}
  none = {t: np.zeros((0, 3)) for t in _THREE}
  assert metrics.summary(none)['memit-2022']['score'] is None
