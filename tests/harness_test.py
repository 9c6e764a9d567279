"""lm-evaluation-harness on our model and on transformers' own, task by task."""

import json

import numpy as np
import pytest

lm_eval = pytest.importorskip('lm_eval')
torch = pytest.importorskip('torch')

from lm_eval.models import huggingface  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from jedit import harness  # noqa: E402
from jedit.harness import Harness  # noqa: E402
from jedit.models.load import load  # noqa: E402

_CITIES = 'Oslo', 'Rome', 'Paris', 'Cairo', 'Lima', 'Tokyo'
_TASKS = {
  'choose': """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
""",
  'whole': """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - metric: word_perplexity
""",
  'speak': """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs:
  until: ["city"]
  max_gen_toks: 12
metric_list:
  - metric: exact_match
""",
}


@pytest.fixture(scope='module')
def tasks(tmp_path_factory):
  """A folder of task files with their data."""
  folder = tmp_path_factory.mktemp('tasks')
  rows = [
    {
      'question': f'{city} is a city in ' * (i + 1) + 'the city of',
      'choices': [_CITIES[i - 1], f'{_CITIES[i - 2]} {city}', 'a'],
      'answer': i % 3,
    }
    for i, city in enumerate(_CITIES)
  ]
  (folder / 'rows.jsonl').write_text(
    ''.join(json.dumps(r) + '\n' for r in rows)
  )
  for name, text in _TASKS.items():
    (folder / f'{name}.yaml').write_text(
      f'task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n'
      f'    test: {folder}/rows.jsonl\ntest_split: test\n{text}'
    )
  return folder


def evaluate(lm, folder, name):
  return lm_eval.simple_evaluate(
    lm, tasks=[name], task_manager=TaskManager(include_path=str(folder)),
    log_samples=True, bootstrap_iters=0,
  )  # fmt: skip


@pytest.mark.parametrize('long', [256, 40])
@pytest.mark.parametrize('name', _TASKS)
def test_results_are_those_of_transformers(
  home, tasks, name, long, monkeypatch
):
  """To 1e-4 a token; texts longer than `long` are cut or windowed alike."""
  monkeypatch.setattr(harness, '_TOGETHER', long)  # candidates share few rows
  if long == 40 and name == 'speak':
    pytest.skip('the harness cuts prompts by its own rule')
  ours = Harness(load(str(home / 'model')), rows=4, max_length=long)
  theirs = huggingface.HFLM(
    pretrained=str(home / 'model'), dtype='float32', device='cpu',
    batch_size=2, max_length=long,
  )  # fmt: skip
  got, want = (evaluate(lm, tasks, name) for lm in (ours, theirs))
  pairs = zip(got['samples'][name], want['samples'][name], strict=True)
  for a, b in pairs:
    for x, y in zip(a['resps'], b['resps'], strict=True):
      if name == 'speak':
        assert x == y
        continue
      tokens = len(a['arguments'][0][-1])  # at most one a character
      x, y = (np.ravel(v).astype(float) for v in (x, y))
      np.testing.assert_allclose(x, y, atol=1e-5 * tokens)
  for metric, value in want['results'][name].items():
    if isinstance(value, float):
      assert got['results'][name][metric] == pytest.approx(value, rel=1e-4)
