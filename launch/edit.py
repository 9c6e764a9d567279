"""Edits facts into a model and measures it before and after.

  python -m launch.edit
  python -m launch.edit --config=configs/smollm2_135m.py:memit \\
    --config.requests=facts.jsonl --config.batch_size=100 --workdir=runs/a
  python -m launch.edit --config=configs/smollm2_135m.py:memit \\
    --config.requests=more.jsonl --config.model=runs/a --workdir=runs/b
"""

import functools
import json
import pathlib

import numpy as np
from ml_collections import ConfigDict

import jedit
from jedit import checkpoint, prompts, requests, sharding, writing
from jedit.models.load import Loaded
from jedit.types import kernel_of
from launch import (
  common,
  devices,
  earlier,
  folder,
  measure,
  method,
  moments,
  preflight,
  stream,
)

_CONFIG = common.config_flag()
_WORKDIR = common.workdir_flag()


def main(_):
  run(_CONFIG.value, _WORKDIR.value)


def run(
  config: ConfigDict,
  workdir: str = '',
  loaded: Loaded | None = None,
) -> None:
  """The whole job, from config to run folder.

  Args:
    config: of the run; `model` may be a finished run, to go on from it.
    workdir: its folder; '' makes a new one.
    loaded: config.model, where it is open already.
  """
  method.check(config)
  origin = earlier.find(config)
  try:
    with devices.use(config):
      _run(config, workdir, loaded, origin)
  finally:
    folder.release()


def _run(config, workdir, loaded, origin):
  path = config.requests or common.FACTS
  inputs = folder.inputs(config, path)
  loaded = loaded or devices.load(config, config.model)
  base_hash = checkpoint.fingerprint(loaded.params)
  params = devices.put(config, loaded)
  loaded = loaded._replace(params=None)  # two copies are not held for long
  model, tokenizer = loaded.model, loaded.tokenizer
  asked, skipped = common.read_requests(config, path, loaded)
  size = config.batch_size
  groups, warnings = requests.batched(asked, size, config.on_collision)
  asked = requests.as_edited(asked, size, config.on_collision)
  judge = measure.measurer(config, loaded, asked)
  lo, hi = common.check_layers(config, loaded)
  editor = method.rehearse(config, loaded)
  if not origin:  # a run that goes on has the network that it began with
    method.check_network(config, base_hash)
  home = folder.open_folder(workdir, config, inputs | {'model': base_hash})
  common.say(
    f'{config.model}: {config.method}, layers {lo}-{hi}, {len(asked)} facts in '
    f'{len(groups)} batches; run folder {home}'
  )
  for line in [f'skipped: {s}' for s in skipped] + warnings:
    common.say(line)
  done = home / 'results.json'
  if devices.agreed(done.is_file()):
    common.say('this run is finished; its results:')
    remedy = 'remove it and run the same command again'
    folder.show(folder.stored(done, remedy))
    return

  def remembered(name, make):
    known = lambda: earlier.read(origin, name)
    return folder.remembered(home / name, known if origin else make)

  write = lambda seed: writing.contexts(model, params, tokenizer, seed)
  texts = remembered('contexts.json', lambda: write(config.seed))
  held = ()
  if method.needs_validation(config):
    held = config.validation
  if held == 'contexts':
    held = remembered('held_out.json', lambda: write(config.seed + 1)[:1])
  batches = prompts.edit_batches(
    tokenizer,
    groups,
    texts,
    size,
    config.rendering,
    model.config.context_length,
    config.lookup,
    held,
  )
  preflight.check(config, model, params, batches)
  moment, stats_seconds = None, 0.0
  if not origin:
    if method.needs_moment(config):
      moment, stats_seconds = moments.get(config, loaded, params, base_hash)
    editor = method.build(config, loaded, moment)
  before = judge.before(params, base_hash)

  split = jedit.split(params, lo, hi)
  del params
  base = np.array(sharding.fetch(kernel_of(split)))  # it is given away
  begin = editor.init
  if origin:
    common.say(f'going on from {origin}, with what it remembers of its facts')
    begin = functools.partial(earlier.state, origin, config, editor)
  out = stream.run(
    config, loaded, editor, split, begin, batches, judge, before, home
  )
  del split
  edited = jedit.join(out.params)
  # In the model's own dtype, or undoing would not give back its bits.
  site = edited['layers']['mlp']['down']['kernel'][lo : hi + 1]
  out = out._replace(params=None)
  after = judge.after(edited, before)
  here = origin or pathlib.Path(config.model)
  checkpoint.write_edit(
    home / 'edits',
    base,
    sharding.fetch(site),
    {
      'model': str(here.resolve() if here.exists() else config.model),
      'layers': list(range(lo, hi + 1)),
      'method': config.method,
      'num_edits': len(asked),
      'base_hash': base_hash,
      'edited_hash': checkpoint.fingerprint(edited),
    },
    sharding.fetch(out.state),
  )
  folder.write_records(home / 'records.jsonl', judge, before, after)
  results = folder.results(config, judge, before, after, out, stats_seconds)
  results['skipped'] = skipped
  checkpoint.write_text(done, json.dumps(results, indent=2) + '\n')
  devices.wait('results')  # all processes may read them now
  folder.show(results)
  common.say(f'run folder: {home}')


if __name__ == '__main__':
  common.run(main)
