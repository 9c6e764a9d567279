"""Scores a model on tasks of lm-evaluation-harness (the extra `harness`).

  uv run --extra harness python -m launch.harness --model=runs/a \\
    --tasks=arc_easy,piqa --items=200

A model is what launch.evaluate takes. Its tasks fetch their data from the
Hugging Face hub; --include names a folder of task files of your own.
"""

import importlib.util
import json

from absl import flags

from jedit.types import JeditError
from launch import common

_MODEL = flags.DEFINE_string('model', None, 'The model.', required=True)
_TASKS = flags.DEFINE_list('tasks', None, 'Task names.', required=True)
_ITEMS = flags.DEFINE_integer(
  'items', 0, 'The first so many; 0: all.', lower_bound=0
)
_SHOTS = flags.DEFINE_integer('shots', None, "Examples; the task's own number.")
_INCLUDE = flags.DEFINE_string('include', None, 'Folder of task files.')
_CHAT = flags.DEFINE_bool('chat', False, "In the model's chat template.")


def main(_):
  if importlib.util.find_spec('lm_eval') is None:
    raise JeditError('lm-eval is not installed: uv run --extra harness ...')
  import lm_eval
  from lm_eval.tasks import TaskManager
  from lm_eval.utils import make_table

  from jedit.harness import Harness

  manager = TaskManager(include_path=_INCLUDE.value)
  for name in _TASKS.value:
    if not manager.match_tasks([name]):
      raise JeditError(f'--tasks: the harness has no {name!r}')
  found = lm_eval.simple_evaluate(
    Harness(_MODEL.value),
    tasks=manager.match_tasks(_TASKS.value),
    task_manager=manager,
    limit=_ITEMS.value or None,
    num_fewshot=_SHOTS.value,
    apply_chat_template=_CHAT.value,
  )
  common.say(make_table(found))
  common.say(json.dumps({'model': _MODEL.value, 'results': found['results']}))


if __name__ == '__main__':
  common.run(main)
