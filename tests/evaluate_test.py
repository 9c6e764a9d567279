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
    assert found.says[q] == logits_of(model, params, row)[-1].argmax()
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
    np.testing.assert_allclose(found.nll[q, k], nll, rtol=1e-5)
    assert found.correct[q, k] == right
  assert {0, 1} < set(found.correct[~np.isnan(found.correct)])


def test_argmax_counts_answers_of_which_all_tokens_are_right():
  correct = np.array([[1, 0], [0.75, 1], [0.5, 1], [0, 0.9], [np.nan, np.nan]])
  hits = metrics.hits([0, 1, 2, 2, 0], np.zeros((5, 2)), correct)
  np.testing.assert_array_equal(hits['argmax'], [1, 0, 1, 0, np.nan])


def found(count=40, seed=0):
  """{protocol: [N, KINDS]} with holes; a record of which nothing is known."""
  x = np.random.default_rng(seed).integers(0, 3, (count, 3)) * 50.0
  x[3] = np.nan
  x[7, 1] = np.nan
  return {'probability': x, 'argmax': x / 2}


def test_means_are_those_of_records():
  record = [0, 0, 0, 2, 2, 1]
  kind = [0, 2, 2, 0, 1, 0]
  flags = np.array([1, 0, 1, 0, 1, 1.0])
  success = {'probability': flags, 'argmax': np.where(flags, np.nan, flags)}
  rows = metrics.by_record(record, kind, success, exclude={1})
  nan = np.nan
  np.testing.assert_array_equal(
    rows['probability'], [[100, nan, 50], [nan] * 3, [0, 100, nan]]
  )
  table = metrics.counterfact(rows)
  row = table['probability']
  assert row['efficacy'] == 50 and row['generalization'] == 100
  assert row['specificity'] == 50 and row['score'] == pytest.approx(60)
  assert table['argmax']['generalization'] is None
  assert table['argmax']['score'] is None


def test_intervals_hold_the_mean_and_shrink_with_more_records():
  table, ends = metrics.counterfact(found()), metrics.intervals(found())
  more = metrics.intervals(found(count=400))
  width = lambda ends: ends[1] - ends[0]
  for protocol, row in table.items():
    for name, value in row.items():
      low, high = ends[protocol][name]
      assert low < value < high
      ratio = width(ends[protocol][name]) / width(more[protocol][name])
      assert 2 < ratio < 5  # about the root of ten
  x = found()['probability']
  x = x[~np.isnan(x[:, 0]), 0]
  spread = x.std() / np.sqrt(len(x))  # what a bootstrap of a mean tends to
  low, high = ends['probability']['efficacy']
  assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_what_was_not_measured_has_no_interval():
  nothing = {p: np.full((4, 3), np.nan) for p in metrics.PROTOCOLS}
  assert metrics.counterfact(nothing)['argmax']['efficacy'] is None
  assert set(metrics.intervals(nothing)['argmax'].values()) == {None}
  none = {p: np.zeros((0, 3)) for p in metrics.PROTOCOLS}
  assert metrics.counterfact(none)['probability']['score'] is None
