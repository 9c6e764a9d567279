"""One fact, and how published layouts write it down.

They are told apart by their keys: CounterFact (PEAK's and MQuAKE's edits,
EasyEdit's short form), zsRE (MEND's), KnowEdit and WISE (EasyEdit's),
question and answer (UnKE, EditEverything), and jedit's own lines, which need
nothing but prompt, target and, where it is looked up, subject. What asks for
several edits, or says them in another way, is made into these (published.py).
"""

import dataclasses
import json
import re
from typing import NamedTuple

from jedit.probes import Probe, probes
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
    probes: questions with answers of their own.
    target_id: of the target, in the knowledge base it was taken from.
    part_of: the record it comes from, where that asks for several edits.
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
  probes: tuple[Probe, ...] = ()
  target_id: str | None = None
  part_of: str | None = None

  @property
  def text(self) -> str:
    return self.prompt.replace('{}', self.subject or '', 1)

  @property
  def denial(self) -> str | None:
    """The prompt of the negated fact; None if it makes no statement."""
    text = self.text
    if self.subject is None or '?' in text:
      return None
    if not text.startswith(self.subject) and text[1:2].islower():
      text = text[0].lower() + text[1:]
    return f'It is not true that {text}'

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
    # "tandoor" is not the first half of "tandoori".
    alone = re.search(rf'(?<!\w){re.escape(subject)}(?!\w)', text)
    start = alone.start() if alone else text.index(subject)
    text = f'{text[:start]}{{}}{text[start + len(subject) :]}'
  return text.rstrip()


class _Layout(NamedTuple):
  """Where a layout keeps the parts of a Request; "a|b": the one it has."""

  prompt: str
  subject: str
  target: str
  old_target: str = ''
  relation: str = ''
  paraphrases: str = ''
  neighbours: str = ''
  openings: str = ''


# By the key that tells a layout; a record's is the first that it has, if it has
# not both prompt and target, which are jedit's own.
_LAYOUTS = {
  'requested_rewrite': _Layout(  # CounterFact, PEAK, MQuAKE
    'prompt', 'subject', 'target_new', 'target_true', 'relation_id',
    'paraphrase_prompts|para_add_prompts', 'neighborhood_prompts',
    'generation_prompts',
  ),
  'src': _Layout(  # zsRE
    'src', 'subject', 'answers', 'answers', paraphrases='rephrase'
  ),
  'question': _Layout(
    'question', 'subject', 'answer', paraphrases='para_question'
  ),
  'concept': _Layout('text', 'concept', 'labels'),  # KnowEdit's WikiBio
  'edited_knowledge': _Layout(  # one-hop lists made of CounterFact
    'prompt', 'subject', 'edited_knowledge', 'fact_knowledge', 'relation_id',
    'rephrased_prompt', 'locality_prompt',
  ),
  'target_new': _Layout(  # EasyEdit's: KnowEdit, WISE, CounterFact's short form
    'template|prompt', 'subject', 'target_new', 'target_true|ground_truth',
    'relation_id', 'rephrase_prompt|rephrase', 'locality_prompt',
  ),
}  # fmt: skip
_OWN = _Layout(
  'prompt', 'subject', 'target', 'old_target', 'relation',
  'paraphrases|rephrase', 'neighbours', 'openings',
)  # fmt: skip


def _present(record: dict, names: str) -> str:
  """The first of the names "a|b" that a record has; a, if it has none."""
  known = names.split('|')
  return next((n for n in known if n in record), known[0])


def _first(value: object) -> object:
  """The first text of a list of answers, or of lists of their aliases."""
  while isinstance(value, list):
    value = value[0] if value else None
  return value


def _neighbours(record: dict, key: str, old: str | None, where: str):
  """Prompts that share the old target; those with another answer are none."""
  given, answer = record.get(key), record.get('locality_ground_truth', old)
  if isinstance(given, list) and all(isinstance(g, list) for g in given):
    given = [g[0] for g in given if g[1:] == [old]]  # PEAK's have their answers
  if _first(answer) != old:
    return ()
  return _strings({key: given}, key, where)


def nested(value: object, *names: str) -> object:
  """value[name][name]...; None where there is none."""
  for name in names:
    value = value.get(name) if isinstance(value, dict) else None
  return value


def parse(record: object, where: str, id: str, target: str = '') -> Request:
  """Request of one record.

  Args:
    record: what JSON gave.
    where: named by errors, with the field.
    id: if it has none of its own.
    target: the field that is written, of a layout that offers several (zsRE:
      alt, with answers as the old target); '' is its usual one.
  """
  if not isinstance(record, dict):
    raise JeditError(
      f'{where}: a record is a JSON object with prompt and target'
    )
  id = str(record.get('case_id', record.get('id', id)))
  plain = lambda text: text.encode(errors='backslashreplace').decode()
  where = f'{where} (record {plain(id)})'
  for key, value in record.items():
    try:
      json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as e:  # no tokenizer takes it
      raise JeditError(
        f'{where}: "{plain(key)}" holds half of a character ({e.reason}): '
        'write the file as UTF-8 again'
      ) from e
  own = 'prompt' in record and 'target' in record
  sign = None if own else next((k for k in _LAYOUTS if k in record), None)
  layout = _LAYOUTS.get(sign, _OWN)
  layout = layout._replace(target=target or layout.target)
  if layout.target == layout.old_target:
    layout = layout._replace(old_target='')
  inner = record
  if sign == 'requested_rewrite':
    inner = record['requested_rewrite']
    if not isinstance(inner, dict):
      raise JeditError(f'{where}: "requested_rewrite" is not an object')
  for key in ('answers', 'ground_truth'):  # the first of several
    if isinstance(record.get(key), list):
      inner = {**inner, key: _first(record[key])}
  if sign == 'src' and inner.get('answers') is None:
    raise JeditError(
      f'{where}: "answers" is not a list with one answer or more'
    )
  prompt, subject, new, old, relation = (
    _present(inner, names) for names in layout[:5]
  )
  rest = (_present(record, names) for names in layout[5:])
  optional = lambda key: (
    _string(inner, key, where).strip() if inner.get(key) is not None else None
  )
  subject = optional(subject)
  old = optional(old)
  wordings, beside, opening = rest
  wordings, opening = (_strings(record, k, where) for k in (wordings, opening))
  beside = _neighbours(record, beside, old, where)
  if record.get('rephrase_kind') == 'generation':  # in CounterFact's short form
    wordings, opening = (), wordings
  return Request(
    id,
    _template(_string(inner, prompt, where), subject, where),
    subject,
    _string(inner, new, where).strip(),
    old,
    optional(relation),
    wordings,
    beside,
    opening,
    probes(record, beside, sign == 'src' and target != 'alt', where),
    id_ if isinstance(id_ := nested(inner, new, 'id'), str) else None,
  )
