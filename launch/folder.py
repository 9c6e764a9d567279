"""The run folder: config.json, results.json, log.jsonl, edits, checkpoint."""

import importlib.metadata
import json
import pathlib
import platform
import statistics
import time

from ml_collections import ConfigDict

from jedit import checkpoint, metrics, requests
from jedit.types import JeditError
from launch import common

SCHEMA = 1


def open_folder(workdir: str, config: ConfigDict, facts: dict) -> pathlib.Path:
  """The folder of a run: new, or one that goes on with the same config.

  Args:
    workdir: its name; '' makes a new one, named by the time.
    config: what was asked for.
    facts: what else must agree to go on (hashes of inputs).
  """
  resolved = json.loads(config.to_json_best_effort()) | {'inputs': facts}
  path = pathlib.Path(workdir or _new_name(config))
  known = path / 'config.json'
  if known.is_file():
    try:
      old = json.loads(known.read_text())
    except ValueError as e:
      raise JeditError(
        f'{known} is damaged ({e}); name another --workdir'
      ) from e
    wrong = [k for k in old | resolved if old.get(k) != resolved.get(k)]
    if wrong:
      listed = '; '.join(
        f'{k} was {old.get(k)!r}, is {resolved.get(k)!r}' for k in wrong
      )
      raise JeditError(
        f'{path} is of a run with another config ({listed}); name another '
        '--workdir'
      )
  elif path.exists() and any(p.suffix != '.part' for p in path.iterdir()):
    raise JeditError(f'{path} holds something else; name another --workdir')
  path.mkdir(parents=True, exist_ok=True)
  checkpoint.write_text(known, json.dumps(resolved, indent=2) + '\n')
  return path


def _new_name(config: ConfigDict) -> str:
  stamp = time.strftime('%Y%m%d-%H%M%S')
  return f'runs/{stamp}-{config.method}'


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
    with self.path.open('a') as f:
      f.write(json.dumps(entry) + '\n')


def remembered(path: pathlib.Path, make):
  """What a JSON file holds; made and written first if it is not there."""
  if not path.is_file():
    checkpoint.write_text(path, json.dumps(make()) + '\n')
  return json.loads(path.read_text())


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
  said = zip(judge.shown(), before['said'], after['said'], strict=True)
  return {
    'schema_version': SCHEMA,
    'model': config.model,
    'method': config.method,
    'num_edits': len(judge.asked),
    'batch_size': config.batch_size,
    'metrics': {'before': before['metrics'], 'after': after['metrics']},
    'timing': {
      'edit_seconds_per_fact': statistics.median(rates),
      'compile_seconds': out.compile_seconds,
      'stats_seconds': stats_seconds,
      'evaluate_seconds': before['seconds'] + after['seconds'],
      'per_batch_seconds': [e['seconds'] for e in out.log],
    },
    'schedule': 'final',
    'curve': [
      {k: e[k] for k in ('num_edits', 'metrics')} | {'schedule': 'final'}
      for e in out.log
      if 'metrics' in e
    ],
    'compat': 'memit-2022',
    'command': common.command(),
    'versions': versions(),
    'overwritten': len(requests.overwritten(judge.asked)),
    'continuations': [
      {'prompt': p, 'before': b, 'after': a} for p, b, a in said
    ],
  }


def write_records(path: pathlib.Path, judge, before, after) -> None:
  """records.jsonl: each record's measures before and after.

  "says" is the most probable token after the prompt.
  """
  lines = []
  for number, request in enumerate(judge.asked):
    line = {'id': request.id, 'prompt': request.text, 'target': request.target}
    for when, found in (('before', before), ('after', after)):
      line[when] = {'says': found['says'][number]} | {
        protocol: dict(zip(metrics.KINDS, rows[number], strict=True))
        for protocol, rows in found['records'].items()
      }
    lines.append(json.dumps(line) + '\n')
  checkpoint.write_text(path, ''.join(lines))


def show(results: dict) -> None:
  """The table before/after, the protocol beside every number."""
  measured = results['metrics']
  common.say(f'\n{results["num_edits"]} facts, {results["method"]}, percent:')
  names = *metrics.KINDS, 'score'
  common.say(f'{"CounterFact":<28}' + ''.join(f'{n:>16}' for n in names))
  show_row = lambda name, row, write: common.say(
    f'{name:<28}'
    + ''.join(f'{"-" if row[n] is None else write(row[n]):>16}' for n in names)
  )
  means = {'probability': 'harmonic', 'argmax': 'arithmetic'}
  for protocol, mean in means.items():
    for when in 'before', 'after':
      row, ends = (
        measured[when][k][protocol] for k in ('counterfact', 'intervals')
      )
      show_row(f'{protocol}, {when}', row, lambda v: f'{v:.2f}')
      show_row('  95 % interval', ends, lambda v: f'{v[0]:.1f}-{v[1]:.1f}')
    common.say(f'{"":<28}score: {mean} mean of the three')
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
