"""The run folder: config.json, results.json, log.jsonl, edits, checkpoint."""

import fcntl
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import statistics
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from jedit import checkpoint, metrics, requests, sharding
from jedit.types import JeditError
from launch import common, devices

SCHEMA = 1
_HELD: dict[str, int] = {}  # folders that this process writes to, and its locks
# A run may go on on other devices, or with other limits.
_FREE = (
  'data_parallel', 'model_parallel', 'fsdp', 'memory', 'max_perplexity',
  'max_norm',
)  # fmt: skip
# What a run writes before its first edit.
_FIRST = 'config.json', 'contexts.json', 'held_out.json'
_ALWAYS = 'memit-2022', 'jedit', 'wild-2025', 'jedit-spoken', 'jedit-long'


def inputs(config: ConfigDict, path) -> dict[str, str]:
  """Hashes of the files a run reads; `path` has its requests."""
  named = {
    'requests': path, 'corpus': config.corpus, 'references': config.references,
    'network': config.network,
  }  # fmt: skip
  return {name: common.file_hash(p) for name, p in named.items() if p}


def open_folder(workdir: str, config: ConfigDict, facts: dict) -> pathlib.Path:
  """The folder of a run: new, or one that goes on with the same config.

  One that was refused before its first edit may be of another config.

  Args:
    workdir: its name; '' makes a new one, named by the time.
    config: what was asked for.
    facts: what else must agree to go on (hashes of inputs).
  """
  resolved = json.loads(config.to_json_best_effort()) | {'inputs': facts}
  if not workdir and jax.process_count() > 1:
    raise JeditError('name a --workdir that all processes share')
  path = pathlib.Path(workdir or new_name(config.method))
  path.mkdir(parents=True, exist_ok=True)
  _lock(path)
  known, there = path / 'config.json', list(path.iterdir())
  begun = any(p.suffix != '.part' and p.name not in _FIRST for p in there)
  stale = False
  if known.is_file():
    old = stored(known, 'name another --workdir')
    wrong = [
      k
      for k in old | resolved
      if old.get(k) != resolved.get(k) and k not in _FREE
    ]
    # What was refused then is asked for afresh.
    stale = bool(wrong) and not begun and 'inputs' in old
    if wrong and not stale:
      listed = '; '.join(
        f'{k} was {old.get(k)!r}, is {resolved.get(k)!r}' for k in wrong
      )
      raise JeditError(
        f'{path} is of a run with another config ({listed}); name another '
        '--workdir'
      )
  elif begun:
    raise JeditError(f'{path} holds something else; name another --workdir')
  devices.wait('folder')  # all have looked before one writes
  if stale and sharding.writes():
    common.say(f'{path}: nothing was edited there; begun afresh')
    for name in _FIRST:
      (path / name).unlink(missing_ok=True)
  checkpoint.write_text(known, json.dumps(resolved, indent=2) + '\n')
  return path


def release() -> None:
  """Lets other processes into the folders that this one was at work in."""
  while _HELD:
    os.close(_HELD.popitem()[1])


def _lock(path: pathlib.Path) -> None:
  """Keeps other processes out of a folder until release, or until this ends."""
  name = str(path.resolve())
  if not sharding.writes() or name in _HELD:
    return
  handle = os.open(path, os.O_RDONLY)
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as e:
    os.close(handle)
    raise JeditError(
      f'{path}: another process is at work there; wait for it, or name another '
      '--workdir'
    ) from e
  except OSError:  # a file system without locks
    os.close(handle)
  else:
    _HELD[name] = handle


def stored(path: pathlib.Path, remedy: str):
  """What a JSON file holds."""
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as e:
    raise JeditError(f'{path} is damaged ({e}); {remedy}') from e


def new_name(what: str) -> str:
  """Of a folder for a run that is not told one."""
  return f'runs/{time.strftime("%Y%m%d-%H%M%S")}-{what}'


class Log:
  """log.jsonl: a line a chunk; a resumed run keeps those before its cursor."""

  def __init__(self, folder: pathlib.Path, cursor: int):
    self.path = folder / 'log.jsonl'
    self.lines = []
    if self.path.is_file():
      for line in self.path.read_text().splitlines():
        try:
          entry = json.loads(line)
        except ValueError:
          break  # cut short by a kill
        if entry['cursor'] <= cursor:
          self.lines.append(entry)
    checkpoint.write_text(
      self.path, ''.join(json.dumps(e) + '\n' for e in self.lines)
    )

  def add(self, **entry) -> None:
    self.lines.append(entry)
    if not sharding.writes():
      return
    with self.path.open('a') as f:
      f.write(json.dumps(entry) + '\n')


def remembered(path: pathlib.Path, make):
  """What a JSON file holds; made and written first if it is not there."""
  if not devices.agreed(path.is_file()):
    checkpoint.write_text(path, json.dumps(make()) + '\n')
    devices.wait(path.name)
  return stored(path, 'remove it and run the same command again')


def versions() -> dict[str, str]:
  names = 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'transformers'
  found = {n: importlib.metadata.version(n) for n in names}
  return {'python': platform.python_version(), **found}


def results(config, judge, before, after, out, stats_seconds: float) -> dict:
  """results.json of a finished run; the schema is README's.

  Args:
    config: of the run.
    judge: the Measurer.
    before: what it measured of the base model.
    after: and of the edited one.
    out: the Stream.
    stats_seconds: what the second moments took.
  """
  rates = [e['seconds'] / e['facts'] for e in out.log if e['facts']]
  ends = [0, *(e['cursor'] for e in out.log)]
  sizes = [b - a for a, b in itertools.pairwise(ends)]  # batches of a chunk
  said = zip(judge.shown(), before.said, after.said, strict=True)
  gone = requests.overwritten(judge.asked)
  left = {r for i, r in enumerate(judge.asked) if i not in gone}  # or merged
  return {
    'schema_version': SCHEMA,
    'model': config.model,
    'method': config.method,
    'num_edits': len(judge.asked),
    'num_measured': len(set(judge.sample.tolist()) - gone),
    'batch_size': config.batch_size,
    'metrics': {'before': before.metrics, 'after': after.metrics},
    'perplexity': {
      'before': out.log[-1]['base_perplexity'],
      'after': out.log[-1]['perplexity'],
    },
    'rendering': config.rendering,
    'timing': {
      'edit_seconds_per_fact': statistics.median(rates),
      'compile_seconds': out.compile_seconds,
      'stats_seconds': stats_seconds,
      'evaluate_seconds': before.seconds + after.seconds,
      'per_batch_seconds': [
        e['seconds'] / n
        for e, n in zip(out.log, sizes, strict=True)
        for _ in range(n)
      ],
    },
    'schedule': 'final',
    'curve': [
      {'num_edits': e['num_edits'], 'schedule': name, 'metrics': found}
      for e in out.log
      for name, found in e.get('curve', {}).items()
    ],
    'compat': 'memit-2022',
    'command': common.command(),
    'versions': versions(),
    'overwritten': sum(judge.asked[i] not in left for i in gone),
    'continuations': [
      {'prompt': p, 'before': b, 'after': a} for p, b, a in said
    ],
  }


def write_records(path: pathlib.Path, judge, before, after) -> None:
  """records.jsonl: metrics before and after of what is measured, by table.

  "says" is the most probable token after the prompt.
  """
  lines = []
  for number in judge.sample.tolist():
    request = judge.asked[number]
    line = {'id': request.id, 'prompt': request.text, 'target': request.target}
    for when, measured in (('before', before), ('after', after)):
      line[when] = {'says': measured.says[number]}
      for name, rows in measured.found.items():
        row = zip(metrics.TABLES[name].metrics, rows[number], strict=True)
        line[when][name] = {
          m.name: None if np.isnan(v) else float(v) for m, v in row
        }
    lines.append(json.dumps(line) + '\n')
  checkpoint.write_text(path, ''.join(lines))


def tables(measured: dict) -> dict[str, dict]:
  """The tables of metrics["before"] or ["after"] that are worth a look.

  MEMIT's, ours and free answers, if anything was measured; others, if all was.
  """
  if 'tables' not in measured:
    raise JeditError('this run is of an earlier jedit: make it again')
  return {
    name: row
    for name, row in measured['tables'].items()
    if name in _ALWAYS or None not in row.values()
  }


def show_metrics(found: dict[str, dict]) -> None:
  """Tables of {when: metrics}, the id of the evaluation above each."""
  last = tables(list(found.values())[-1])
  for table, row in last.items():
    names = [n for n, cell in row.items() if cell]
    common.say(f'\n{table:<20}' + ''.join(f'{n:>22}' for n in names))
    for when, measured in found.items():
      cells = (measured['tables'].get(table, {}).get(n) for n in names)
      shown = (
        '{:.2f} ({:.1f}-{:.1f})'.format(*cell) if cell else '-'
        for cell in cells
      )
      common.say(f'  {when:<18}' + ''.join(f'{text:>22}' for text in shown))


def show(results: dict) -> None:
  """The tables before and after, and what the model says."""
  measured = results.get('num_measured', results['num_edits'])
  of = f', {measured} measured' if measured < results['num_edits'] else ''
  common.say(
    f'\n{results["num_edits"]} facts, {results["method"]}'
    f'{of}: percent, and their 95 % intervals, by the evaluation that is named'
  )
  show_metrics(results['metrics'])
  left = results.get('overwritten')
  if left:
    common.say(f'{left} facts were overwritten by later ones; not scored')
  for row in results.get('continuations', []):
    common.say(
      f'\n{row["prompt"]}\n  before:{row["before"]}\n  after: {row["after"]}'
    )
  t = results['timing']
  common.say(
    f'\n{t["edit_seconds_per_fact"]:.2f} s a fact; compiling '
    f'{t["compile_seconds"]:.1f} s, statistics {t["stats_seconds"]:.1f} s, '
    f'evaluation {t["evaluate_seconds"]:.1f} s'
  )
