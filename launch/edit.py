"""Edits facts into a model and measures it before and after.

  python -m launch.edit
  python -m launch.edit --config=configs/smollm2_135m.py:memit \\
    --config.requests=facts.jsonl --config.batch_size=100 --workdir=runs/a
"""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

import jedit
from jedit import checkpoint, evaluate, generate, prompts, requests
from jedit.models.load import load
from launch import common, folder, moments, preflight, stream

_CONFIG = common.config_flag()
_WORKDIR = flags.DEFINE_string('workdir', '', 'Run folder; "" makes a new one.')


def main(_):
  run(_CONFIG.value, _WORKDIR.value)


def run(config: ConfigDict, workdir: str = '') -> None:
  """The whole job, from config to run folder."""
  common.check_method(config)
  path = config.requests or common.FACTS
  asked, skipped = requests.read(path, config.on_bad_request)
  asked = requests.select(asked, config.num_edits, config.order, config.seed)
  groups, warnings = requests.batched(
    asked, config.batch_size, config.on_collision
  )
  loaded = load(config.model)
  model, tokenizer = loaded.model, loaded.tokenizer
  lo, hi = common.check_layers(config, loaded)
  base_hash = checkpoint.fingerprint(loaded.params)
  home = folder.open_folder(
    workdir,
    config,
    {'model': base_hash, 'requests': common.file_hash(path)},
  )
  common.say(
    f'{config.model}: {config.method}, layers {lo}-{hi}, {len(asked)} facts in '
    f'{len(groups)} batches; run folder {home}'
  )
  for line in [f'skipped: {s}' for s in skipped] + warnings:
    common.say(line)
  done = home / 'results.json'
  if done.is_file():
    common.say('this run is finished; its results:')
    folder.show(json.loads(done.read_text()))
    return

  params = jax.tree.map(jnp.asarray, loaded.params)
  texts = folder.remembered(
    home / 'contexts.json',
    lambda: generate.contexts(model, params, tokenizer, config.seed),
  )
  batches = prompts.edit_batches(
    tokenizer,
    groups,
    texts,
    config.batch_size,
    config.rendering,
    model.config.context_length,
  )
  preflight.check(config, loaded, batches)
  split = jedit.split(params, lo, hi)
  moment, stats_seconds = moments.get(config, loaded, split, base_hash)
  editor = common.build_editor(config, loaded, moment)

  probe = evaluate.probe(tokenizer, asked, config.rendering)
  shown = [r.text for r in asked[:3]]

  def measure(params, name, exclude=frozenset()):
    start = time.perf_counter()
    with common.bar(len(probe.kind), f'evaluation {name}', 'prompt') as b:
      scores = evaluate.score(
        model, params, probe.questions, progress=common.ticker(b)
      )
    metrics = evaluate.counterfact(scores, probe, exclude)
    said = generate.complete(model, params, tokenizer, shown, 16)
    seconds = time.perf_counter() - start
    return {'metrics': metrics, 'said': said, 'seconds': seconds}

  before = folder.remembered(
    home / 'before.json', lambda: measure(params, 'before')
  )
  gone = requests.overwritten(asked)
  base_kernel = np.asarray(split['site']['mlp']['down']['kernel'])
  del params
  curve = []

  def point(split, count):
    curve.append(
      {
        'num_edits': count,
        'schedule': 'final',
        'metrics': measure(jedit.join(split), f'at {count}', gone)['metrics'],
      }
    )

  prose = jnp.asarray(tokenizer(common.PROSE.read_text()).input_ids, jnp.int32)[
    None
  ]
  out = stream.run(config, model, editor, split, batches, prose, home, point)
  edited = jax.device_get(jedit.join(out.params))
  after = measure(edited, 'after', gone)
  checkpoint.write_edit(
    home / 'edits',
    base_kernel,
    np.asarray(out.params['site']['mlp']['down']['kernel']),
    {
      'model': config.model,
      'layers': list(range(lo, hi + 1)),
      'method': config.method,
      'num_edits': len(asked),
      'base_hash': base_hash,
      'edited_hash': checkpoint.fingerprint(edited),
    },
    out.state,
  )
  per_batch = [e['seconds'] for e in out.log]
  rates = [e['seconds'] / e['facts'] for e in out.log if e['facts']]
  results = {
    'schema_version': folder.SCHEMA,
    'model': config.model,
    'method': config.method,
    'num_edits': len(asked),
    'batch_size': config.batch_size,
    'metrics': {'before': before['metrics'], 'after': after['metrics']},
    'timing': {
      'edit_seconds_per_fact': float(np.median(rates)),
      'compile_seconds': out.compile_seconds,
      'stats_seconds': stats_seconds,
      'evaluate_seconds': before['seconds'] + after['seconds'],
      'per_batch_seconds': per_batch,
    },
    'schedule': 'final',
    'curve': curve,
    'compat': 'memit-2022',
    'versions': folder.versions(),
    'overwritten': len(gone),
    'skipped': skipped,
    'continuations': [
      {'prompt': p, 'before': b, 'after': a}
      for p, b, a in zip(shown, before['said'], after['said'], strict=True)
    ],
  }
  checkpoint.write_text(done, json.dumps(results, indent=2) + '\n')
  folder.show(results)
  common.say(f'run folder: {home}')


if __name__ == '__main__':
  common.run(main)
