"""What a stream of edits will meet, before anything is edited.

  python -m launch.foresee --config.requests=facts.jsonl --workdir=runs/look

Prints, by layer, the conflicts of AlphaEdit+'s paper and what AlphaEdit would
leave of the residuals; with --run=FOLDER, of a finished run of the same facts,
the residuals measured there beside them. foresight.json has every request.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

import jedit
from jedit import checkpoint, prompts, requests, values, writing
from jedit.foresight import foresee
from jedit.models.load import load
from jedit.types import JeditError
from launch import common, folder, method, moments

_CONFIG = common.config_flag()
_HOME = common.workdir_flag()
_RUN = flags.DEFINE_string('run', '', 'A finished run, to compare with.')
_SHOWN = 5


def main(_):
  run(_CONFIG.value, _HOME.value, _RUN.value)


def run(config: ConfigDict, workdir: str, finished: str = '') -> None:
  """From config to table; `finished` is a run folder to compare with, or ''."""
  method.check(config)
  if config.method not in ('alphaedit', 'alphaedit_plus'):
    raise JeditError(
      f'config.method={config.method}: what AlphaEdit leaves is foreseen; '
      'choose alphaedit or alphaedit_plus'
    )
  path = config.requests or common.FACTS
  loaded = load(config.model)
  model, tokenizer = loaded.model, loaded.tokenizer
  asked, _ = common.read_requests(config, path, loaded)
  groups, _ = requests.batched(asked, config.batch_size, config.on_collision)
  lo, hi = common.check_layers(config, loaded)
  base_hash = checkpoint.fingerprint(loaded.params)
  inputs = folder.inputs(config, path) | {'model': base_hash}
  measured = _measured(finished, config, inputs) if finished else None
  home = folder.open_folder(workdir, config, inputs)
  params = jax.tree.map(jnp.asarray, loaded.params)
  contexts = writing.contexts(model, params, tokenizer, config.seed)
  batches = prompts.edit_batches(
    tokenizer, groups, contexts, config.batch_size, config.rendering,
    model.config.context_length, config.lookup,
  )  # fmt: skip
  split = jedit.split(params, lo, hi)
  moment, _ = moments.get(config, loaded, params, base_hash)
  common.say(f'looking at {len(asked)} facts, layers {lo}-{hi}')
  kept = {k: config.editor[k] for k in ('ridge', 'threshold', 'relative')}
  out = foresee(
    model,
    split,
    moment,
    jax.tree.map(jnp.asarray, batches),
    values.optimiser(model, **config.optimiser),
    **kept,
  )
  out = jax.device_get(out)
  valid = np.asarray(batches.valid)
  common.say(_table(out, valid, lo, measured))
  worst = _worst(out, groups)
  common.say('least of their residuals is expected to go at these facts:')
  for line in worst[:_SHOWN]:
    common.say(f'  {line["left"]:.2f} left  {line["text"]} {line["target"]}')
  text = json.dumps({'method': config.method, 'requests': worst}, indent=2)
  checkpoint.write_text(home / 'foresight.json', text + '\n')
  common.say(f'written to {home}')


def _measured(finished: str, config: ConfigDict, inputs: dict) -> np.ndarray:
  """[E]: mean over a finished run's batches of |R - K dW| / |R|."""
  path = pathlib.Path(finished)
  if not (path / 'results.json').is_file():
    raise JeditError(f'--run={finished}: no results.json; name a finished run')
  run = json.loads((path / 'config.json').read_text())
  here = json.loads(config.to_json_best_effort()) | {'inputs': inputs}
  must = (
    'inputs', 'layers', 'batch_size', 'num_edits', 'order', 'seed', 'target',
    'lookup', 'rendering', 'on_bad_request', 'on_collision',
  )  # fmt: skip
  wrong = [k for k in must if run.get(k) != here[k]]
  lines = (path / 'log.jsonl').read_text().splitlines()
  found = [r for line in lines for r in json.loads(line)['residual']]
  layers = config.layers[1] - config.layers[0] + 1
  if wrong or {len(r) for r in found} != {layers}:
    raise JeditError(
      f'--run={finished} is not of these facts and layers '
      f'({", ".join(wrong) or run["method"]} differs)'
    )
  return np.mean(found, axis=0)


def _table(out, valid, lo: int, measured) -> str:
  """A line a layer."""
  of = lambda x, e: x[:, e][valid]
  head = (
    f'{"layer":>5} {"s(k, K0)":>16} {"s(k, Kp)":>16} {"left alone":>11} '
    f'{"left":>6} {"of a batch":>11}'
    + ' {:>9}'.format('measured')
    * (measured is not None)
  )
  lines = [head]
  for e in range(out.preserved.shape[1]):
    pair = lambda x, e=e: (
      f'{np.median(of(x, e)):.2f}, {of(x, e).max():.2f} most'
    )
    line = (
      f'{lo + e:>5} {pair(out.preserved):>16} {pair(out.prior):>16} '
      f'{of(out.alone, e).mean():>11.3f} {of(out.left, e).mean():>6.3f} '
      f'{out.batch_left[:, e].mean():>11.3f}'
    )
    lines.append(
      line + (f' {measured[e]:>9.3f}' if measured is not None else '')
    )
  far = out.distance[valid]
  lines.append(f'|v* - W k|: median {np.median(far):.2f}, most {far.max():.2f}')
  return '\n'.join(lines)


def _worst(out, groups) -> list[dict]:
  """Every request, those of which most is left first.

  A layer of which share l is left takes (1 - l) / left off what is missing.
  """
  layers = out.left.shape[1]
  still = 1 - (1 - out.left) / (layers - np.arange(layers))[:, None]
  still, found = still.prod(1), []
  for n, group in enumerate(groups):
    for b, request in enumerate(group):
      found.append(
        {
          'id': request.id,
          'text': request.text,
          'target': request.target,
          'preserved': out.preserved[n, :, b].tolist(),
          'prior': out.prior[n, :, b].tolist(),
          'distance': float(out.distance[n, b]),
          'alone': out.alone[n, :, b].tolist(),
          'left': float(still[n, b]),
        }
      )
  return sorted(found, key=lambda line: -line['left'])


if __name__ == '__main__':
  common.run(main)
