"""Edits with a grid of settings: a run folder each, one table, one picture.

  python -m launch.sweep --workdir=runs/ridge --config.num_edits=20 \\
    --grid=editor.ridge=1,10,100 --grid='layers=(4,8),(3,7)'

  python -m launch.sweep --workdir=runs/methods --grid=method=memit,alphaedit

A field is any of configs/base.py; a method brings the fields of its editor. The
same command goes on where a killed one left off; a larger grid runs what is
new. Writes table.md and table.png.
"""

import functools
import json
import pathlib

from absl import flags
from ml_collections import ConfigDict

from jedit import (
  checkpoint,
  metrics,
  references,
  requests,
  sharding,
  tokens,
)
from jedit.models.load import load
from jedit.types import JeditError
from launch import (
  common,
  earlier,
  edit,
  folder,
  grid,
  measure,
  method,
  picture,
)

_CONFIG = common.config_flag()
_WORKDIR = common.workdir_flag()
_GRID = flags.DEFINE_multi_string(
  'grid', None, 'FIELD=VALUE,VALUE,...; may be given again.', required=True
)
_KINDS = *metrics.KINDS, 'score'


def main(_):
  run(_CONFIG.value, _GRID.value, _WORKDIR.value, common.remade)


def run(config: ConfigDict, axes: list[str], workdir: str, of=None) -> None:
  """Checks all runs of the grid, then makes them one after the other."""
  if not workdir:
    raise JeditError('a sweep has no default folder: name a --workdir')
  points = grid.points(config, axes, of)
  opened = functools.cache(load)
  for name, one in points.items():
    _check(name, one, opened)
  home, rows = pathlib.Path(workdir), {}
  for number, (name, one) in enumerate(points.items(), 1):
    common.say(f'\nrun {number} of {len(points)}: {name}')
    try:
      edit.run(one, str(home / name), opened(one.model))
      rows[name] = _row(home / name)
    except JeditError as e:
      common.say(f'failed: {e}')
      rows[name] = str(e)
  table = _table(rows)
  home.mkdir(parents=True, exist_ok=True)
  checkpoint.write_text(home / 'table.md', table)
  if sharding.writes():
    _draw(home / 'table.png', rows)
  common.say(f'\n{table}\nwritten to {home}')
  failed = [name for name, row in rows.items() if isinstance(row, str)]
  if failed:
    raise JeditError(
      f'{len(failed)} of {len(rows)} runs failed ({failed[0]}: '
      f'{rows[failed[0]]}); the same command makes those that are missing'
    )


def _check(name: str, config: ConfigDict, opened) -> None:
  """Refuses a bad run."""
  try:
    method.check(config)
    earlier.find(config)
    folder.inputs(config, config.requests or common.FACTS)  # are they there?
    if config.references:
      references.read(config.references)
    loaded, path = opened(config.model), config.requests or common.FACTS
    tokens.render(loaded.tokenizer, '', config.rendering)
    common.check_layers(config, loaded)
    method.rehearse(config, loaded)
    asked, _ = common.read_requests(config, path, loaded)
    requests.batched(asked, config.batch_size, config.on_collision)
  except (TypeError, ValueError) as e:
    raise JeditError(f'--grid, {name}: {e}') from e


def _row(made: pathlib.Path) -> dict:
  """Of a finished run: percent by protocol and kind, seconds, norm ratio."""
  results = json.loads((made / 'results.json').read_text())
  last = (made / 'log.jsonl').read_text().splitlines()[-1]
  after = results['metrics']['after']['counterfact']
  cells = {(p, k): after[p][k] for p in measure.COUNTERFACT for k in _KINDS}
  seconds = results['timing']['edit_seconds_per_fact']
  norm = max(json.loads(last)['norm_ratio'])
  return cells | {('seconds', 'a fact'): seconds, ('largest', 'norm'): norm}


def _table(rows: dict[str, dict | str]) -> str:
  """Markdown; a run that failed has its reason instead of numbers."""
  head = [(p, k) for p in measure.COUNTERFACT for k in _KINDS]
  head += [('seconds', 'a fact'), ('largest', 'norm')]
  lines = [['run', *(f'{a} {b}' for a, b in head)], ['---'] * (len(head) + 1)]
  for name, row in rows.items():
    if isinstance(row, str):
      reason = 'failed: ' + ' '.join(row.replace('|', '/').split())
      lines.append([name, reason, *[''] * (len(head) - 1)])
    else:
      shown = ['-' if row[h] is None else f'{row[h]:.2f}' for h in head]
      lines.append([name, *shown])
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _draw(path: pathlib.Path, rows: dict[str, dict | str]) -> None:
  good = {name: row for name, row in rows.items() if isinstance(row, dict)}
  panels = {
    p: {k: [row[p, k] for row in good.values()] for k in _KINDS}
    for p in measure.COUNTERFACT
  }
  if good:
    picture.lines(path, list(good), panels)


if __name__ == '__main__':
  common.run(main)
