"""The page that compares runs: what stands on it, and nothing from outside."""

import copy
import html.parser
import json
import re

import numpy as np
import pytest

from jedit import metrics
from jedit.types import JeditError
from launch import measure, report


def _table(seed):
  """Metrics of random answers; nothing of locality and what follows it."""
  rows = np.random.default_rng(seed).integers(0, 2, (30, 3)) * 100.0
  more = len(metrics.TABLES['jedit'].metrics) - 3
  nothing = np.full((30, more), np.nan)
  ours = np.concatenate([rows, nothing], axis=1)
  found = {'memit-2022': rows, 'jedit': ours, 'alphaedit-plus-2026': rows / 2}
  return measure.Measured(found, [], [], None, 0.0).metrics


def _entry(number, **more):
  return {
    'num_edits': 10 * number, 'facts': 10, 'reached': number,
    'norm_ratio': [1.0, 1.25 + number], 'perplexity': 20.0 + number, **more,
  }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
  """Writes a run folder: folder(name, seed, rendering)."""

  def write(name, seed=1, rendering='raw'):
    path = tmp_path / name
    path.mkdir()
    record = {
      'id': 'r0', 'prompt': 'Is <b>Ann</b> in', 'target': 'Oslo',
      'after': {'says': ' & Rome', 'jedit': {'efficacy': 0.0}},
    }  # fmt: skip
    learnt = copy.deepcopy(record) | {'id': 'r1'}
    learnt['after']['jedit']['efficacy'] = 100.0
    results = {
      'rendering': rendering, 'num_edits': 30,
      'perplexity': {'before': 20.0, 'after': 21.5},
      'command': f'launch.edit --{name}',
      'metrics': {'before': _table(0), 'after': _table(seed)},
      'timing': {'edit_seconds_per_fact': 1.5}, 'versions': {'jax': '0.9'},
      'continuations': [{'prompt': 'P', 'before': 'B', 'after': '<A>'}],
    }  # fmt: skip
    curve = lambda n: {'so_far': _table(seed + n), 'first': _table(n)}
    log = [_entry(1), *(_entry(n, curve=curve(n)) for n in (2, 3))]
    lines = lambda rows: ''.join(json.dumps(r) + '\n' for r in rows)
    (path / 'config.json').write_text('{"model": "tiny", "method": "memit"}')
    (path / 'results.json').write_text(json.dumps(results))
    (path / 'log.jsonl').write_text(lines(log))
    (path / 'records.jsonl').write_text(lines([record, learnt]))
    return report.read(str(path))

  return write


class _Balance(html.parser.HTMLParser):
  """Every tag is closed, in order."""

  open: list[str]

  def __init__(self):
    super().__init__()
    self.open = []

  def handle_starttag(self, tag, attrs):
    if tag not in ('meta', 'br'):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    pass

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def test_the_page_is_whole_and_alone(folder):
  runs = [folder('first'), folder('second', seed=2)]
  page = report.render(runs)
  parser = _Balance()
  parser.feed(page)
  assert not parser.open
  names = r'xmlns(:\w+)?="[^"]*"'
  assert not re.search(
    r'https?:|<script|@import|<link', re.sub(names, '', page)
  )
  assert not re.search(r'src="(?!data:)', page)
  for run in runs:
    for table in run.results['metrics']['after']['tables'].values():
      for cell in filter(None, table.values()):
        assert f'{cell[0]:.2f}' in page
        assert '{:.1f}&ndash;{:.1f}'.format(*cell[1:]) in page
    assert run.results['command'] in page
  assert '4.250' in page and '21.50' in page  # at the end
  assert 'Is &lt;b&gt;Ann&lt;/b&gt; in' in page and '&amp; Rome' in page
  assert '&lt;A&gt;' in page and 'r1</td>' not in page
  assert page.count('tiny, before') == 3  # once a table
  titles = [title for title in report.curves(runs) if 'percent' in title]
  assert (
    'memit-2022: specificity of the facts written so far, percent' in titles
  )
  assert 'jedit: efficacy of the first facts, percent' in titles
  assert len(titles) == 8 and page.count('<figure>') == 3 + 8


def test_unlike_evaluations_share_no_table(folder):
  runs = [folder('first'), folder('second', rendering='qa')]
  found = [(t['compat'], t['rendering']) for t in report.headline(runs)]
  assert len(found) == len(set(found)) == 6
  assert all(len(t['rows']) == 2 for t in report.headline(runs))


def test_the_same_scores_before_stand_once(folder):
  runs = [folder(name) for name in ('first', 'second', 'third')]
  runs[1].results['metrics']['before'] = _table(7)  # of other requests
  runs[2].results['metrics']['before'] = _table(7)
  names = [row['name'] for row in report.headline(runs)[0]['rows']]
  assert [n for n in names if 'before' in n] == [
    'tiny, before', 'tiny, before (second)'
  ]  # fmt: skip


def test_runs_of_the_same_requests_are_compared_by_record(folder):
  runs = [folder('first'), folder('second'), folder('third', rendering='qa')]
  after = [0, 100, 100, 0], [50, 100, 150, 50], [0] * 4
  for run, values in zip(runs, after, strict=True):
    run.records[:] = [
      dict(run.records[0], after={'says': '', 'jedit': {'efficacy': v}}, id=i)
      for i, v in enumerate(values)
    ]
  (table,) = [t for t in report.headline(runs) if t['paired']]
  assert (table['compat'], table['rendering']) == ('jedit', 'raw')
  (row,) = table['paired']
  (value, low, high), *unmeasured = row['cells']
  assert row['name'] == 'second − first' and set(unmeasured) == {None}
  assert value == 37.5 and 0 < low < value < high <= 50
  assert '+37.50' in report.render(runs)
  runs[1].records[0]['target'] = 'another'
  assert not any(t['paired'] for t in report.headline(runs))


def test_a_folder_that_is_no_run(tmp_path, folder):
  run = folder('first')
  (tmp_path / 'first' / 'results.json').unlink()
  with pytest.raises(JeditError, match='first is not a finished run .results'):
    report.read(str(tmp_path / run.name))
