"""One page that compares finished runs, with nothing outside it.

  python -m launch.report --runs=runs/a,runs/b --out=report.html

A run is the folder that launch.edit wrote (a sweep's hold one each). Every
number stands with its protocol and its 95 % interval; runs that were scored
under different compat ids are in different tables. Runs that edited the same
requests as the first one are compared with it record by record.
"""

import base64
import json
import pathlib
from typing import NamedTuple

import jinja2
import numpy as np
from absl import flags

from jedit import checkpoint, metrics
from jedit.types import JeditError
from launch import common, folder, measure, picture

_RUNS = flags.DEFINE_list('runs', None, 'Run folders.', required=True)
_OUT = flags.DEFINE_string('out', 'report.html', 'The page.')
_PAGE = pathlib.Path(__file__).with_name('report.html')
_SCHEDULES = {
  'so_far': 'the facts written so far',
  'immediate': 'facts just written',
  'first': 'the first facts',
}
_PICTURES = {
  'alike.png': 'cosines of the edited facts, those of a relation together',
  'drift.png': 'hidden states, before and after',
}
_FAILED = 20  # facts listed a run


class Run(NamedTuple):
  """What a run folder holds."""

  name: str
  config: dict
  results: dict
  log: list[dict]
  records: list[dict]
  inside: dict | None  # what launch.inside found
  pictures: dict[str, str]  # and its pictures, base64, by what they show


def read(where: str) -> Run:
  """A finished run."""
  path, found = pathlib.Path(where), {}
  for name in 'config.json', 'results.json', 'log.jsonl', 'records.jsonl':
    try:
      text = (path / name).read_text()
      lines = text.splitlines() if name.endswith('l') else [text]
      found[name] = [json.loads(line) for line in lines]
    except (OSError, ValueError) as e:
      raise JeditError(
        f'--runs: {path} is not a finished run ({name}: {type(e).__name__}); '
        'run launch.edit with this --workdir to its end'
      ) from e
  (config,), (results,) = found['config.json'], found['results.json']
  if not {'rendering', 'perplexity'} <= set(results):
    raise JeditError(f'--runs: {path} is of an earlier jedit: make it again')
  rest = found['log.jsonl'], found['records.jsonl']
  more = path / 'inside.json'
  inside = json.loads(more.read_text()) if more.is_file() else None
  pictures = {
    words: base64.b64encode((path / name).read_bytes()).decode()
    for name, words in _PICTURES.items()
    if (path / name).is_file()
  }
  return Run(path.name, config, results, *rest, inside, pictures)


def headline(runs: list[Run]) -> list[dict]:
  """Tables of a compat id and a rendering; cells are (value, low, high)."""
  tables = {}
  for run, when in [(r, w) for r in runs for w in ('before', 'after')]:
    measured = run.results['metrics'][when]['tables']
    plain = run.name if when == 'after' else f'{run.config["model"]}, before'
    for key in folder.tables(run.results['metrics']['after']):
      table = tables.setdefault((key, run.results['rendering']), {})
      row = measured.get(key, {})
      cells = [row.get(n) for n in metrics.TABLES[key].names]
      name = plain
      if when == 'before' and name in table:
        known = [r['cells'] for n, r in table.items() if n.startswith(plain)]
        if cells in known:
          continue
        name = f'{name} ({run.name})'  # of other requests
      table[name] = {'name': name, 'cells': cells}
  against = paired(runs)
  return [
    {
      'compat': compat,
      'rendering': rendering,
      'table': metrics.TABLES[compat],
      'rows': list(rows.values()),
      'paired': against.get((compat, rendering), []),
    }
    for (compat, rendering), rows in sorted(
      tables.items(), key=lambda item: list(metrics.TABLES).index(item[0][0])
    )
  ]


def paired(runs: list[Run]) -> dict[tuple[str, str], list[dict]]:
  """Rows (a run less the first one) of a compat id and a rendering.

  Of the runs that edited the same requests, in this order, as the first one.
  """
  asked = lambda run: (
    run.config.get('inputs', {}).get('requests'),
    run.results['rendering'],
    [(r['id'], r['prompt'], r['target']) for r in run.records],
  )
  first, *others = runs
  base, rows = rows_of(first), {}
  for run in others:
    if asked(run) != asked(first):
      continue
    for key, row in metrics.differences(rows_of(run), base).items():
      if any(row.values()):
        rows.setdefault((key, first.results['rendering']), []).append(
          {'name': f'{run.name} − {first.name}', 'cells': list(row.values())}
        )
  return rows


def rows_of(run: Run) -> dict[str, np.ndarray]:
  """{table: [N, metrics]} after the edit; NaN unmeasured."""
  cell = lambda record, key, metric: (
    record['after'].get(key, {}).get(metric.name)
  )
  return {
    key: np.array(
      [[cell(r, key, m) for m in table.metrics] for r in run.records], float
    ).reshape(-1, len(table.metrics))
    for key, table in metrics.TABLES.items()
  }


def costs(runs: list[Run]) -> list[dict]:
  """What each run took and what it did to the model."""
  return [
    {
      'name': run.name,
      'method': run.config['method'],
      'facts': run.results['num_edits'],
      'measured': len(run.records),
      'seconds': run.results['timing']['edit_seconds_per_fact'],
      'norm': max(run.log[-1]['norm_ratio']),
      'perplexity': run.results['perplexity'],
    }
    for run in runs
  ]


def curves(runs: list[Run]) -> dict:
  """{title: {run: (edits, heights)}} of what is known along the stream."""
  heights = {
    'perplexity of a fixed text': lambda e: e['perplexity'],
    'largest norm of an edited matrix, times its own': lambda e: max(
      e['norm_ratio']
    ),
    'share of value targets reached': lambda e: e['reached'] / e['facts'],
  }
  scored = lambda schedule, table, name: (
    lambda e: e['curve'][schedule]['tables'][table][name][0]
  )
  for key in measure.COUNTERFACT.values():
    for metric in metrics.TABLES[key].metrics:
      for schedule, words in _SCHEDULES.items():
        if schedule == 'so_far' or metric.name == 'efficacy':
          title = f'{key}: {metric.name} of {words}, percent'
          heights[title] = scored(schedule, key, metric.name)
  out = {}
  for title, height in heights.items():
    lines = {}
    for run in runs:
      points = []
      for entry in run.log:
        try:
          points.append((entry['num_edits'], height(entry)))
        except (KeyError, TypeError, ZeroDivisionError):
          continue  # not measured there
      if points:
        lines[run.name] = tuple(zip(*points, strict=True))
    if any(len(edits) > 1 for edits, _ in lines.values()):
      out[title] = lines
  return out


def failed(run: Run) -> tuple[list[dict], int, int]:
  """(the first records not learnt, how many there are, of how many)."""
  found = [r['after']['jedit']['efficacy'] for r in run.records]
  pairs = zip(run.records, found, strict=True)
  lost = [record for record, value in pairs if value == 0]
  asked = sum(value is not None for value in found)
  return lost[:_FAILED], len(lost), asked


def render(runs: list[Run]) -> str:
  """The page."""
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
  )
  return environment.from_string(_PAGE.read_text(encoding='utf-8')).render(
    runs=runs,
    tables=headline(runs),
    costs=costs(runs),
    pictures={
      title: picture.curve(lines, title.endswith('percent'))
      for title, lines in curves(runs).items()
    },
    failed={run.name: failed(run) for run in runs},
    pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
  )


def main(_):
  names = [pathlib.Path(run).name for run in _RUNS.value if run]
  if not names:
    raise JeditError('--runs: name a run folder, or several with commas')
  twice = {name for name in names if names.count(name) > 1}
  if twice:
    raise JeditError(f'--runs: two are called {sorted(twice)[0]}; rename one')
  page = render([read(run) for run in _RUNS.value])
  checkpoint.write_text(pathlib.Path(_OUT.value), page)
  common.say(f'written: {_OUT.value}')


if __name__ == '__main__':
  common.run(main)
