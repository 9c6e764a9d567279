"""Facts to edit, as strings: read, checked, ordered, cut into batches.

The only module besides prompts.py that sees text. Published layouts are told
apart by their keys: CounterFact, zsRE (MEND's), question and answer (UnKE,
EditEverything), and jedit's own lines, which need nothing but prompt, target
and, where it is looked up, subject.
"""

import collections
import dataclasses
import os
import random
from collections.abc import Sequence

from jedit.files import read_json
from jedit.types import JeditError


@dataclasses.dataclass(frozen=True)
class Request:
  """One fact to write. What a record lacks is None or empty, and unmeasured.

  Attributes:
    id: the record's case_id, or its line.
    prompt: text with one `{}` for the subject, ending where the target starts;
      the text itself where there is no subject.
    subject: whose fact it is, or None.
    target: what the model shall say.
    old_target: what it says now (the probability comparison needs it).
    relation: name of the relation, or None.
    paraphrases: other wordings of the filled prompt.
    neighbours: prompts whose answer is `old_target` and must stay.
    openings: prompts for free generation.
  """

  id: str
  prompt: str
  subject: str | None
  target: str
  old_target: str | None = None
  relation: str | None = None
  paraphrases: tuple[str, ...] = ()
  neighbours: tuple[str, ...] = ()
  openings: tuple[str, ...] = ()

  @property
  def text(self) -> str:
    return self.prompt.replace('{}', self.subject or '', 1)

  @property
  def fact(self) -> tuple[str, str]:
    """What two requests must share to be about the same thing."""
    if self.subject is None:  # whatever the relation, another prompt is another
      return self.prompt, self.prompt
    return self.subject, self.relation or self.prompt


def _string(record: dict, key: str, where: str) -> str:
  if key not in record:
    raise JeditError(f'{where}: no field "{key}"; add it')
  value = record[key]
  value = value['str'] if isinstance(value, dict) and 'str' in value else value
  if not isinstance(value, str) or not value.strip():
    raise JeditError(f'{where}: "{key}" is empty or not a text; fill it in')
  return value


def _strings(record: dict, key: str, where: str) -> tuple[str, ...]:
  value = record.get(key) or ()
  value = [value] if isinstance(value, str) else value
  if not isinstance(value, (list, tuple)) or not all(
    isinstance(v, str) and v.strip() for v in value
  ):
    raise JeditError(f'{where}: "{key}" is not a list of texts')
  return tuple(v.rstrip() for v in value)


def _template(text: str, subject: str | None, where: str) -> str:
  if subject is None:
    if '{}' in text:
      raise JeditError(
        f'{where}: the prompt has "{{}}" and the record no "subject"; add it, '
        'or write the prompt out'
      )
    return text.rstrip()
  if text.count('{}') > 1:
    raise JeditError(
      f'{where}: the prompt has {text.count("{}")} "{{}}"; keep one'
    )
  if '{}' not in text:
    if subject not in text:
      raise JeditError(
        f'{where}: subject "{subject}" is not in the prompt "{text}"; write it '
        'there, or put {} in its place'
      )
    text = text.replace(subject, '{}', 1)
  return text.rstrip()


def parse(record: object, where: str, id: str) -> Request:
  """Request of one record; JeditError names `where` and the field."""
  if not isinstance(record, dict):
    raise JeditError(
      f'{where}: a record is a JSON object with prompt and target'
    )
  id = str(record.get('case_id', record.get('id', id)))
  where = f'{where} (record {id})'
  if 'requested_rewrite' in record:  # CounterFact
    inner = record['requested_rewrite']
    if not isinstance(inner, dict):
      raise JeditError(f'{where}: "requested_rewrite" is not an object')
    keys = 'prompt', 'subject', 'target_new', 'target_true', 'relation_id'
    probes = 'paraphrase_prompts', 'neighborhood_prompts', 'generation_prompts'
  elif 'src' in record:  # zsRE as MEND publishes it
    answers = record.get('answers')
    if not isinstance(answers, list) or not answers:
      raise JeditError(
        f'{where}: "answers" is not a list with one answer or more'
      )
    inner = {**record, 'target': answers[0]}
    keys = 'src', 'subject', 'target', None, None
    probes = 'rephrase', None, None
  elif 'question' in record:
    inner = record
    keys = 'question', 'subject', 'answer', None, None
    probes = 'para_question', None, None
  else:
    inner = record
    keys = 'prompt', 'subject', 'target', 'old_target', 'relation'
    probes = 'paraphrases', 'neighbours', 'openings'
  prompt, subject, target, old, relation = keys
  optional = lambda key: (
    _string(inner, key, where).strip() if inner.get(key) is not None else None
  )
  subject = optional(subject)
  lists = [
    () if key is None else _strings(record, key, where) for key in probes
  ]
  return Request(
    id,
    _template(_string(inner, prompt, where), subject, where),
    subject,
    _string(inner, target, where).strip(),
    optional(old),
    optional(relation),
    *lists,
  )


def read(
  path: str | os.PathLike, on_bad_request: str = 'error'
) -> tuple[list[Request], list[str]]:
  """Requests of a file, and the reasons for those that were left out.

  Args:
    path: JSON lines or a JSON list, gzip or not.
    on_bad_request: 'error' stops at the first bad record, 'skip' lists it.

  Raises:
    JeditError: naming file, line, record and field.
  """
  if on_bad_request not in ('error', 'skip'):
    raise JeditError(f'on_bad_request={on_bad_request!r}: choose error or skip')
  out, skipped = [], []
  for number, (where, record) in enumerate(read_json(path)):
    try:
      if isinstance(record, JeditError):
        raise record
      out.append(parse(record, where, str(number)))
    except JeditError as e:
      if on_bad_request != 'skip':
        raise
      skipped.append(str(e))
  return out, skipped


def select(
  requests: Sequence[Request], num_edits: int, order: str, seed: int
) -> list[Request]:
  """The first `num_edits` (0: all), as given or shuffled by the seed."""
  if order not in ('given', 'shuffled'):
    raise JeditError(f'order={order!r}: choose given or shuffled')
  if not requests:
    raise JeditError('requests: the file holds no usable record')
  if num_edits < 0 or num_edits > len(requests):
    raise JeditError(
      f'num_edits={num_edits}: the requests hold {len(requests)} usable '
      f'records; choose 0 (all) to {len(requests)}'
    )
  out = list(requests)
  if order == 'shuffled':
    random.Random(seed).shuffle(out)
  return out[: num_edits or len(out)]


def batched(
  requests: Sequence[Request], batch_size: int, on_collision: str = 'error'
) -> tuple[list[list[Request]], list[str]]:
  """Batches in order, with collisions inside a batch settled.

  Two requests collide when subject and relation agree. 'error' refuses them,
  'last' keeps the last, 'merge' makes one request of those with one target
  (and refuses contradictions). Another relation of the same subject warns.

  Returns:
    (batches, warnings).
  """
  if on_collision not in ('error', 'last', 'merge'):
    raise JeditError(
      f'on_collision={on_collision!r}: choose error, last or merge'
    )
  if batch_size < 1:
    raise JeditError(f'batch_size={batch_size}: at least 1')
  batches, warnings = [], []
  for start in range(0, len(requests), batch_size):
    chosen: dict[tuple[str, str], Request] = {}
    for new in requests[start : start + batch_size]:
      old = chosen.pop(new.fact, None)
      if old is None:
        chosen[new.fact] = new
        continue
      if on_collision == 'last':
        warnings.append(f'record {old.id} is overwritten by record {new.id}')
        chosen[new.fact] = new
      elif on_collision == 'merge' and old.target == new.target:
        warnings.append(f'record {new.id} is merged into record {old.id}')
        chosen[new.fact] = dataclasses.replace(
          old,
          paraphrases=tuple(dict.fromkeys(old.paraphrases + new.paraphrases)),
          neighbours=tuple(dict.fromkeys(old.neighbours + new.neighbours)),
        )
      else:
        raise JeditError(
          f'records {old.id} and {new.id} are in one batch and both edit '
          f'"{new.text}" (to "{old.target}" and "{new.target}"); remove one, '
          'or set on_collision=last'
        )
    subjects = collections.Counter(subject for subject, _ in chosen)
    for subject, count in subjects.items():
      if count > 1:
        warnings.append(f'{count} facts of subject "{subject}" share a batch')
    batches.append(list(chosen.values()))
  return batches, warnings


def overwritten(requests: Sequence[Request]) -> set[int]:
  """Indices of requests that a later one of the same fact replaces."""
  last = {r.fact: i for i, r in enumerate(requests)}
  return {i for i, r in enumerate(requests) if last[r.fact] != i}
