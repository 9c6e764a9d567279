"""General ability, which edits must leave as it was: tasks as tables of items.

A task either offers options, of which the one with the highest per-token
probability is the model's answer (no text is generated, no answer invalid), or
has the model continue greedily and looks at what it says. Prompts are those of
the evaluation in AlphaEdit's code where it has the task; labels are read the
right way round, which that code does not for RTE (`rte/alphaedit-2025` does as
it does).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn import metrics as scores

from jedit import evaluate, metrics, speech
from jedit.answers import contains, last_number, settled
from jedit.models.transformer import Model
from jedit.questions import Questions, questions
from jedit.tokens import encoded, start_ids
from jedit.types import JeditError, Params


class Item(NamedTuple):
  """A question of a task.

  Attributes:
    prompt: text, ending where the answer starts.
    options: the answers to choose from; none where the model speaks freely.
    answer: index of the right option, or all that would be right.
  """

  prompt: str
  options: tuple[str, ...]
  answer: int | tuple[str, ...]


class Task(NamedTuple):
  """How a data set is asked.

  Attributes:
    item: a record of its published file -> Item.
    length: tokens the model may say where it speaks freely.
    right: (what it said, what would be right) -> whether it is.
  """

  item: Callable[[dict], Item]
  length: int = 0
  right: Callable[[str, tuple[str, ...]], bool] = lambda said, answers: False


_LETTERS = 'A', 'B', 'C', 'D', 'E'
_TRUTH = 'False', 'True'
_YES = 'No', 'Yes'


def _mood(r: dict) -> Item:
  text = f'Review :{r["sentence"]}\nSentiment :'
  return Item(text, ('negative', 'positive'), int(r['label']))


def _choice(question: str, choices: Sequence[str], answer: int) -> Item:
  lines = [f'({a}) {c}' for a, c in zip(_LETTERS, choices, strict=False)]
  text = '\n'.join([f'Question: {question}', *lines, 'Answer:'])
  return Item(text, _LETTERS[: len(choices)], answer)


def _csqa(r: dict) -> Item:
  q = r['question']
  options = tuple(c['text'] for c in q['choices'])
  return Item(
    f'Question: {q["stem"]}\nAnswer:', options, _LETTERS.index(r['answerKey'])
  )


def _rte(r: dict, answers: dict[int, int]) -> Item:
  text = f'{r["sentence1"]}\nquestion: {r["sentence2"]} True or False?\nanswer:'
  return Item(text, _TRUTH, answers[r['label']])


def _gsm8k(r: dict) -> Item:
  answer = r['answer'].rpartition('####')[2].strip()
  float(answer.replace(',', ''))  # a ValueError names the record
  return Item(f'Question: {r["question"]}\nAnswer:', (), (answer,))


def _open(r: dict) -> Item:
  answers = r['golden_answers']
  if not isinstance(answers, list):
    raise TypeError('"golden_answers" is no list')
  return Item(f'Question: {r["question"]}\nAnswer:', (), tuple(answers))


TASKS = {
  'sst2': Task(_mood),
  'sentiment': Task(_mood),
  'mrpc': Task(
    lambda r: Item(
      'Are the sentences paraphrases of each other.\nSentence 1: '
      f'{r["sentence1"]}\nSentence 2: {r["sentence2"]}\nAnswer:',
      _YES,
      r['label'],
    )
  ),
  'cola': Task(
    lambda r: Item(
      'Is this sentence linguistically acceptable?\nSentence: '
      f'{r["sentence"]}\nAnswer:',
      _YES,
      r['label'],
    )
  ),
  'rte': Task(lambda r: _rte(r, {0: 1, 1: 0})),  # 0 is entailment
  'rte/alphaedit-2025': Task(lambda r: _rte(r, {0: 0, 1: 1})),
  'nli': Task(
    lambda r: Item(
      f'{r["sentence1"]} entails the {r["sentence2"]} True or False? Answer:',
      _TRUTH,
      ('not_entailment', 'entailment').index(r['label']),
    )
  ),
  'mmlu': Task(lambda r: _choice(r['question'], r['choices'], r['answer'])),
  'dialogue': Task(
    lambda r: Item(
      r['article'], tuple(r['options']), _LETTERS.index(r['answers'])
    )
  ),
  'boolq': Task(
    lambda r: Item(
      f'{r["passage"]}\nQuestion: {r["question"]}?\nAnswer:', _YES, r['answer']
    )
  ),
  'csqa': Task(_csqa),
  'triviaqa': Task(_open, 32, contains),
  'nq': Task(_open, 32, contains),
  'gsm8k': Task(_gsm8k, 200, last_number),
  'bbh': Task(
    lambda r: Item(f'Q: {r["input"]}\nA:', (), (r['target'],)), 128, settled
  ),
}


def items(name: str, records: Sequence[tuple[str, Any]]) -> list[Item]:
  """Items of a task's (place, record) pairs, as files.read_json gives them."""
  if name not in TASKS:
    raise JeditError(f'task {name!r}: choose one of {", ".join(TASKS)}')
  out = []
  for where, record in records:
    if isinstance(record, JeditError):
      raise record
    try:
      item = TASKS[name].item(record)
      if item.options and not 0 <= item.answer < len(item.options):
        raise ValueError('no label')  # as in a test set whose labels are kept
      if not item.options and not _answered(item):
        raise ValueError('no answer, or one that is no text')
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
      raise JeditError(
        f'{where}: not a record of {name} ({type(e).__name__}: {e}); name the '
        'file of that task'
      ) from e
    out.append(item)
  return out


def _answered(item: Item) -> bool:
  texts = [isinstance(a, str) and a.strip() for a in item.answer]
  return bool(texts) and all(texts)


def _prompts(tokenizer, asked: Sequence[Item]) -> list[list[int]]:
  bos = start_ids(tokenizer)
  return [encoded(tokenizer, i.prompt, bos) for i in asked]


def check(name: str, asked: Sequence[Item], model: Model, tokenizer) -> None:
  """JeditError naming an item that is too long for the model."""
  length = TASKS[name].length
  if length:
    ids = _prompts(tokenizer, asked)
    tokens = np.array([len(i) + length for i in ids])
  else:
    q = _options(tokenizer, asked)
    tokens = q.prompt_len + q.target_len.max(-1)
  worst, room = int(tokens.argmax()), model.config.context_length
  if tokens[worst] > room:
    raise JeditError(
      f'item {worst} ("{asked[worst].prompt[:40]}...") takes {tokens[worst]} '
      f'tokens with its answer, the model {room}: leave it out'
    )


def _options(tokenizer, asked: Sequence[Item]) -> Questions:
  most = max(len(i.options) for i in asked)
  pad = lambda options: (*options, *[None] * (most - len(options)))
  return questions(
    tokenizer, [i.prompt for i in asked], [pad(i.options) for i in asked]
  )


def choose(
  model: Model, params: Params, tokenizer, asked: Sequence[Item], **kwargs
) -> np.ndarray:
  """int [N], the option that the model finds likeliest, a mean over tokens.

  Of a broken model, whose every score is NaN, none: -1, which is never right.
  """
  q = _options(tokenizer, asked)
  nll = evaluate.score(model, params, q, **kwargs).nll
  best = np.where(np.isnan(nll), np.inf, nll).argmin(axis=1)
  return np.where(np.isnan(nll).all(axis=1), -1, best)


def table(
  asked: Sequence[Item], right: np.ndarray, chosen: np.ndarray | None
) -> dict[str, tuple[float, float, float]]:
  """{measure: (value, low, high)} in percent, 95 % bootstrap over items.

  Of an accuracy of 0 or 100, metrics.sure.

  Args:
    asked: the items.
    right: bool [N].
    chosen: the options taken; None where the model spoke freely.

  Returns:
    accuracy; with options also "majority", the accuracy of always giving the
    most frequent answer, weighted F1, and MCC (0 is chance).
  """
  count = len(asked)
  if chosen is None:
    pairs = np.stack([np.ones(count, int), right.astype(int)])
  else:
    pairs = np.stack([[int(i.answer) for i in asked], chosen])
  kinds, times = np.unique(pairs, axis=1, return_counts=True)

  def measure(weight):
    some = weight > 0
    (truth, taken), weight = kinds[:, some], weight[some]
    out = {'accuracy': weight[truth == taken].sum() / weight.sum()}
    if chosen is not None:
      of = lambda label: weight[truth == label].sum() / weight.sum()
      out['majority'] = max(map(of, set(truth)))
      how = dict(sample_weight=weight)
      out['f1'] = scores.f1_score(truth, taken, average='weighted', **how)
      out['mcc'] = scores.matthews_corrcoef(truth, taken, **how)
    return {k: 100 * float(v) for k, v in out.items()}

  draws = np.random.default_rng(0).multinomial(count, times / count, size=1000)
  rows = [measure(d) for d in draws]
  ends = {k: np.percentile([r[k] for r in rows], [2.5, 97.5]) for k in rows[0]}
  ends['accuracy'] = metrics.sure(100.0 * right) or ends['accuracy']
  return {k: (v, *map(float, ends[k])) for k, v in measure(times).items()}


def run(
  name: str,
  asked: Sequence[Item],
  model: Model,
  params: Params,
  tokenizer,
  progress: Callable[[int], None] = lambda done: None,
) -> dict[str, tuple[float, float, float]]:
  """The table of a task's items for a model."""
  task = TASKS[name]
  check(name, asked, model, tokenizer)
  if not task.length:
    chosen = choose(model, params, tokenizer, asked, rows=32, progress=progress)
    right = chosen == [i.answer for i in asked]
    return table(asked, right, chosen)
  ids = _prompts(tokenizer, asked)
  said = speech.speak(
    model, params, tokenizer, ids, task.length, progress=progress
  )
  right = [task.right(s, i.answer) for s, i in zip(said, asked, strict=True)]
  return table(asked, np.array(right), None)
