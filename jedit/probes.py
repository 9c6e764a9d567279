"""Questions beside an edit, with answers of their own, in published layouts."""

from collections.abc import Iterator
from typing import NamedTuple

from jedit.types import JeditError


class Probe(NamedTuple):
  """A question beside an edit, with answers of its own.

  Attributes:
    kind: locality (must stay as it is) or portability (follows from the edit).
    prompt: text, ending where the answer starts.
    answers: what is right; the first one is scored teacher-forced.
  """

  kind: str
  prompt: str
  answers: tuple[str, ...]


# Questions of their own and their answers, by the names of published layouts.
_PAIRS = (
  ('locality', 'loc', 'loc_ans'),  # zsRE
  ('locality', 'locality_prompt', 'locality_ground_truth'),  # EasyEdit
  ('locality', 'locality', ''),
  ('portability', 'portability', ''),
  ('portability', 'questions', 'new_answer'),  # MQuAKE
  ('portability', 'sub_question', 'sub_answer'),  # UnKE
)
_ASKS = 'prompt', 'loc', 'New Question'
_TELLS = 'ground_truth', 'answer', 'answers', 'loc_ans', 'New Answer'


def _texts(value: object) -> Iterator[str]:
  """The texts in nested lists that say something."""
  if isinstance(value, str):
    yield from [value.strip()] if value.strip() else []
  elif isinstance(value, list):
    for v in value:
      yield from _texts(v)
  elif value is not None:
    raise ValueError(value)


def _pairs(value: object, answer: object) -> Iterator[tuple[object, object]]:
  """(question, answers) of KnowEdit's {name: [...]}, of lists, of one."""
  if isinstance(value, dict):
    asks = next((value[k] for k in _ASKS if k in value), None)
    tells = next((value[k] for k in _TELLS if k in value), None)
    if asks is not None:
      yield from (
        _pairs(asks, tells) if isinstance(asks, list) else ([(asks, tells)])
      )
      return
    for part in value.values():
      yield from _pairs(part, None)
  elif isinstance(value, list):
    if isinstance(answer, list) and len(answer) != len(value):
      raise ValueError(f'{len(value)} questions, {len(answer)} answers')
    for i, part in enumerate(value):
      told = answer[i] if isinstance(answer, list) else answer
      if isinstance(part, list) and len(part) == 2:
        yield part[0], part[1]
      else:
        yield from _pairs(part, told)
  elif value is not None:
    yield value, answer


def probes(
  record: dict, neighbours: tuple[str, ...], follow_alt: bool, where: str
) -> tuple[Probe, ...]:
  """Questions with answers of their own; those without an answer are none.

  Args:
    record: what JSON gave.
    neighbours: prompts that are asked already.
    follow_alt: what follows, follows from zsRE's alt, which is not written.
    where: named by errors, with the field.
  """
  found = []
  sources = [(kind, ask, record.get(tell)) for kind, ask, tell in _PAIRS]
  if follow_alt:
    sources = [s for s in sources if s[0] != 'portability']
  if isinstance(record.get('neighborhood_prompts'), list):  # PEAK's pairs
    own = [p for p in record['neighborhood_prompts'] if isinstance(p, list)]
    record = {**record, 'neighborhood_prompts': own}
    sources.append(('locality', 'neighborhood_prompts', None))
  for kind, ask, tell in sources:
    try:
      for question, answers in _pairs(record.get(ask), tell):
        prompt, told = ' '.join(_texts(question)), tuple(_texts(answers))
        if ask == 'questions' and told:
          told += tuple(_texts(record.get('new_answer_alias')))
        if ask == 'loc' and prompt:
          prompt += '?'  # as MEMIT's loader asks it
        if prompt and told and prompt not in neighbours:
          found.append(Probe(kind, prompt, told))
    except ValueError as e:
      raise JeditError(
        f'{where}: "{ask}" is not made of questions and answers: {e}'
      ) from e
  return tuple(dict.fromkeys(found))
