"""Finds the layers that facts are kept in, by causal tracing.

  python -m launch.trace --facts=20 --samples=3
  python -m launch.trace --config.requests=facts.jsonl --workdir=runs/trace

Traces facts that the model knows: every token of the true answer ("old_target")
is the most probable one after the prompt, teacher-forced. Effects are on the
probability of its first token. Writes trace.json and trace.png.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from jedit import checkpoint, evaluate, trace
from jedit.models.load import load
from jedit.types import JeditError
from launch import common, folder, picture

_CONFIG = common.config_flag()
_FACTS = flags.DEFINE_integer('facts', 40, 'Known facts.', lower_bound=1)
_SAMPLES = flags.DEFINE_integer('samples', 3, 'Noise, a fact.', lower_bound=1)
_WORKDIR = common.workdir_flag()


def main(_):
  run(_CONFIG.value, _FACTS.value, _SAMPLES.value, _WORKDIR.value)


def run(config: ConfigDict, most: int, samples: int, workdir: str) -> None:
  """Traces the first `most` of all requests that the model knows."""
  path, source = config.requests or common.FACTS, config.params or config.model
  out = pathlib.Path(workdir or folder.new_name('trace'))
  if (out / 'trace.json').exists():
    raise JeditError(f'{out} holds a trace; name another --workdir')
  loaded = load(source)
  model, tokenizer, how = loaded.model, loaded.tokenizer, config.rendering
  lo, hi = common.check_layers(config, loaded)
  params = jax.tree.map(jnp.asarray, loaded.params)
  asked, _ = common.usable_requests(config, path, loaded)
  known = evaluate.known(model, params, tokenizer, asked, how)
  common.say(f'{source} knows {len(known)} of {len(asked)} facts of {path}')
  if not known:
    raise JeditError(f'{path}: no "old_target" that the model knows')
  facts = trace.facts(tokenizer, known[:most], how)
  windows = trace.default_windows(model.config.num_layers)
  settings = {'samples': samples, 'seed': config.seed, 'windows': windows}
  settings['scale'] = trace.noise_scale(params, facts)
  with common.bar(len(facts.length), 'tracing', 'fact') as b:
    found = trace.effects(
      model, params, facts, progress=common.ticker(b), **settings
    )
  tables = {
    f'{kind}, window {window}': trace.averages(found.indirect[kind], facts)
    for kind, window in windows.items()
  }
  peak = tables[f'mlp, window {windows["mlp"]}']
  peak = peak[:, trace.ROLES.index('last subject token')]
  layers = trace.suggested(peak, hi - lo + 1)
  chances = {n: float(getattr(found, n).mean()) for n in ('clean', 'corrupted')}
  common.say(f'{len(facts.length)} facts, mean probability {chances}')
  _show(tables)
  common.say(
    f'\n--config.layers="{layers}": as many as config.layers, around the peak '
    f'of the MLPs at the last subject token, layer {np.argmax(peak)}'
  )
  out.mkdir(parents=True, exist_ok=True)
  ids = [r.id for r in known[:most]]
  written = {'model': source, 'requests': str(path), 'facts': ids, **settings}
  written |= {'probability': chances, 'roles': trace.ROLES, 'layers': layers}
  blank = lambda table: np.where(np.isnan(table), None, table).tolist()
  written['effect'] = {title: blank(table) for title, table in tables.items()}
  text = json.dumps(written, indent=2)
  checkpoint.write_text(out / 'trace.json', text + '\n')
  picture.heat(out / 'trace.png', tables, trace.ROLES)
  common.say(f'written: {out}/trace.json, {out}/trace.png')


def _show(tables) -> None:
  for title, table in tables.items():
    common.say(f'\naverage indirect effect, percent: {title}')
    common.say(f'{"layer":>5}' + ''.join(f'{r:>23}' for r in trace.ROLES))
    for layer, row in enumerate(table):
      cells = [f'{"-" if np.isnan(v) else f"{100 * v:.2f}":>23}' for v in row]
      common.say(f'{layer:>5}' + ''.join(cells))


if __name__ == '__main__':
  common.run(main)
