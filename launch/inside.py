"""What a run did inside its model.

  python -m launch.inside --folder=runs/a --prompts=1000

Prints the edited matrices before and after (largest and smallest entry, mean,
median, norm, condition number, rank of the change), how alike the edited facts
are and how far hidden states of prompts about other facts (the records'
neighbours, or else the edited prompts) have moved; writes inside.json,
alike.png and drift.png into the run folder, where launch.report finds them.
"""

import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

import jedit
from jedit import checkpoint, inside, prompts, requests
from jedit.models.load import Loaded, load
from jedit.questions import questions
from jedit.records import Request
from jedit.types import JeditError
from launch import common, picture

_FOLDER = flags.DEFINE_string(
  'folder', None, 'Finished run folder.', required=True
)
_PROMPTS = flags.DEFINE_integer(
  'prompts', 1000, 'Prompts looked at, at most.', lower_bound=1
)
_ALIKE = 200  # edited facts that are compared


def main(_):
  run(_FOLDER.value, _PROMPTS.value)


def run(folder: str, most: int) -> None:
  """From run folder to pictures."""
  home = pathlib.Path(folder)
  if not (home / 'results.json').is_file():
    raise JeditError(f'--folder={folder}: no results.json; name a finished run')
  config = ConfigDict(json.loads((home / 'config.json').read_text()))
  if 'target' not in config:
    raise JeditError(f'{home} is of an earlier jedit: make the run again')
  base = load(config.model)
  _, deltas = checkpoint.read_edit(home / 'edits')
  edited = checkpoint.apply_edit(base.params, home / 'edits')
  kernel = base.params['layers']['mlp']['down']['kernel']
  found = {
    layer: inside.weights(np.asarray(kernel[layer]), delta)
    for layer, delta in sorted(deltas.items())
  }
  _show(found)
  asked = _asked(config, base)
  alike = _alike(config, base, deltas, asked)
  picture.squares(home / 'alike.png', alike)
  listed = ', '.join(f'{k} {_beside(v):.2f}' for k, v in alike.items())
  common.say(f'\ncosine of two edited facts, mean of its size: {listed}')
  texts, beside = _prompts(asked, most)
  about = 'other' if beside else 'the edited'
  q = questions(base.tokenizer, texts, [(None,)] * len(texts), config.rendering)
  before, after = (
    inside.states(base.model, jax.tree.map(jnp.asarray, p), q)
    for p in (base.params, edited)
  )
  moved = inside.drift(before, after)
  listed = ', '.join(f'{k} {v:.4f}' for k, v in moved.items())
  common.say(
    f'\nhidden states of {len(texts)} prompts about {about} facts: {listed}'
  )
  clouds = {how: inside.plane(before, after, how) for how in ('pca', 't-sne')}
  picture.clouds(home / 'drift.png', clouds, ('before', 'after'))
  text = json.dumps(
    {'weights': found, 'prompts': len(texts), 'about': about, 'drift': moved,
     'alike': {k: _beside(v) for k, v in alike.items()}},
    indent=2,
  )  # fmt: skip
  checkpoint.write_text(home / 'inside.json', text + '\n')
  common.say(f'written: {home}/inside.json, alike.png, drift.png')


def _asked(config: ConfigDict, base: Loaded) -> list[Request]:
  path = config.requests or common.FACTS
  if common.file_hash(path) != config.inputs.requests:
    raise JeditError(f'{path} is not what it was when the run was made')
  asked, _ = common.read_requests(config, path, base)
  return requests.as_edited(asked, config.batch_size, config.on_collision)


def _alike(
  config: ConfigDict,
  base: Loaded,
  deltas: dict[int, np.ndarray],
  asked: Sequence[Request],
) -> dict[str, np.ndarray]:
  """{what: [N, N] cosines} of edited facts, those of a relation together."""
  few = np.linspace(0, len(asked), min(_ALIKE, len(asked)), endpoint=False)
  some = sorted((asked[int(i)] for i in few), key=lambda r: r.relation or '')
  batch = prompts.edit_batches(
    base.tokenizer, [some], [], len(some), config.rendering,
    base.model.config.context_length, config.lookup, parts=1,
  )  # fmt: skip
  batch = jax.tree.map(lambda a: a[0], batch)
  params = jax.tree.map(jnp.asarray, base.params)
  split = jedit.split(params, min(deltas), max(deltas))
  keys = inside.keys(base.model, split, batch)
  written = sum(
    key @ np.asarray(deltas[layer], np.float32)
    for layer, key in zip(sorted(deltas), keys, strict=True)
  )
  last = max(deltas)
  return {
    f'keys of layer {last}': inside.cosines(keys[-1]),
    'what the edits add to their values': inside.cosines(written),
  }


def _beside(cosines: np.ndarray) -> float:
  """The mean size off the diagonal; 0 of a single fact."""
  count = len(cosines)
  rest = np.abs(cosines).sum() - np.abs(np.trace(cosines))
  return float(rest / max(count * (count - 1), 1))


def _prompts(asked: Sequence[Request], most: int):
  """(prompts, whether they are of other facts than the edited ones)."""
  beside = [text for r in asked for text in r.neighbours]
  beside += [p.prompt for r in asked for p in r.probes if p.kind == 'locality']
  texts = list(dict.fromkeys(beside or [r.text for r in asked]))
  few = np.linspace(0, len(texts), min(most, len(texts)), endpoint=False)
  return [texts[int(i)] for i in few], bool(beside)


def _show(found: dict[int, dict]) -> None:
  names = 'max', 'min', 'mean', 'median', 'norm', 'condition'
  common.say(f'{"layer":<14}' + ''.join(f'{n:>12}' for n in names))
  for layer, row in found.items():
    for when in 'before', 'after', 'change':
      name = f'{layer} {when}' + ' %' * (when == 'change')
      cells = (
        '-' if row[when][n] is None else f'{row[when][n]:.5g}' for n in names
      )
      common.say(f'{name:<14}' + ''.join(f'{c:>12}' for c in cells))
    common.say(
      f'{"":<14}largest singular value of the change '
      f'{row["singular"][0]:.3g}; {row["rank"]} hold 99 % of its square'
    )


if __name__ == '__main__':
  common.run(main)
