"""Requests and prompts as padded arrays of token ids.

Strings end here. Ids are joined, never decoded and encoded again; the subject
is found by character offsets.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jedit.requests import Request
from jedit.tokens import continuation, render, start_ids, target_ids
from jedit.types import EditBatch, JeditError


class Questions(NamedTuple):
  """Prompts with K candidate continuations each, as NumPy arrays.

  Attributes:
    prompt: int32 [Q, P], right-padded.
    prompt_len: int32 [Q].
    target: int32 [Q, K, S], right-padded.
    target_len: int32 [Q, K]; 0 where a candidate is absent.
  """

  prompt: np.ndarray
  prompt_len: np.ndarray
  target: np.ndarray
  target_len: np.ndarray


def _place(text: str, request: Request) -> int:
  """Where the subject starts in a rendered text; -1 if it is not there."""
  around = text.rfind(request.text)
  if around >= 0:
    return around + request.prompt.index('{}')
  return text.rfind(request.subject)  # a chat template has changed the prompt


def _prompt(
  tokenizer: Any,
  text: str,
  subject: str,
  start: int,
  after_context: bool,
  bos: list[int],
  id: str,
) -> tuple[list[int], int, int]:
  """Ids of a prompt, after a context or alone; the subject's first and last."""
  if not after_context:
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = out.input_ids, np.asarray(out.offset_mapping).reshape(-1, 2)
    before, shift = bos, 0
    if ids[: len(bos)] == bos:  # the chat template wrote it already
      before = []
  else:
    ids, spans = continuation(tokenizer, '. ' + text)
    before, shift = [], 2
  inside = spans[:, 0] < start + shift + len(subject)
  inside &= spans[:, 1] > start + shift
  inside &= spans[:, 1] > spans[:, 0]
  if start < 0 or not inside.any():
    raise JeditError(
      f'record {id}: subject "{subject}" has no token in "{text}"'
    )
  where = np.flatnonzero(inside)
  seen = tokenizer.decode(ids[where[0] : where[-1] + 1])
  if subject.split()[-1] not in seen:
    raise JeditError(
      f'record {id}: the tokens of subject "{subject}" read "{seen}"'
    )
  begin, end = len(before) + where[[0, -1]]
  return [*before, *ids], int(begin), int(end)


def located(
  tokenizer: Any, request: Request, rendering: str
) -> tuple[list[int], int, int]:
  """Ids of a request's plain prompt; the subject's first and last."""
  text, bos = render(tokenizer, request.text, rendering), start_ids(tokenizer)
  at = _place(text, request)
  return _prompt(tokenizer, text, request.subject, at, False, bos, request.id)


def _rows(tokenizer, request, contexts, rendering, bos, room):
  """(ids, lookup, target) of each row of a request, without its context.

  No row may have more than `room` tokens; None is no limit.
  """
  target = target_ids(tokenizer, request.target, rendering)
  if not target:
    raise JeditError(f'record {request.id}: the target has no token')
  text = render(tokenizer, request.text, rendering)
  start = _place(text, request)

  def row(after_context):
    ids, _, lookup = _prompt(
      tokenizer, text, request.subject, start, after_context, bos, request.id
    )
    ids = ids + target[:-1]
    if room is not None and len(ids) > room:
      raise JeditError(
        f'record {request.id}: prompt and target have {len(ids)} tokens; the '
        f'model takes {room} after a context: shorten or remove it'
      )
    return ids, lookup, target

  about = f'{request.subject} is a'
  ids, _, lookup = _prompt(
    tokenizer, about, request.subject, 0, False, bos, request.id
  )
  kl = ids[: lookup + 1], lookup, []
  return [row(False), *[row(True)] * contexts, kl]


def usable(
  tokenizer: Any, requests: Sequence[Request], rendering: str, room: int
) -> tuple[list[Request], list[str]]:
  """The requests that tokens can be made of, and why the others cannot.

  Args:
    tokenizer: a fast Hugging Face tokenizer.
    requests: to look at.
    rendering: raw, qa or chat.
    room: tokens the model takes after a context.
  """
  bos = start_ids(tokenizer)
  render(tokenizer, '', rendering)  # an error here is no record's fault
  good, reasons = [], []
  for request in requests:
    try:
      _rows(tokenizer, request, 1, rendering, bos, room)
      good.append(request)
    except JeditError as e:
      reasons.append(str(e))
  return good, reasons


def round_up(n: int, step: int) -> int:
  """The least multiple of `step` that is at least n, and above 0."""
  return -(-max(int(n), 1) // step) * step


def edit_batches(
  tokenizer: Any,
  batches: Sequence[Sequence[Request]],
  contexts: Sequence[Sequence[int]],
  batch_size: int,
  rendering: str = 'raw',
  max_length: int | None = None,
) -> EditBatch:
  """All batches of a stream as one stacked EditBatch [N, B, ...] (NumPy).

  Args:
    tokenizer: a fast Hugging Face tokenizer.
    batches: requests that are solved together, in order.
    contexts: token ids of the texts put before the prompt (the plain prompt
      is always row 0).
    batch_size: B; smaller batches are filled up with inert requests.
    rendering: raw, qa or chat.
    max_length: the model's context length in tokens.

  Raises:
    JeditError: naming the record whose subject or target has no token, or that
      is too long.
  """
  bos = start_ids(tokenizer)
  prefixes = [[], *([*bos, *c] for c in contexts), []]
  room = max_length and max_length - max(map(len, prefixes))
  make = lambda r: _rows(tokenizer, r, len(contexts), rendering, bos, room)
  rows = [[make(r) for r in batch] for batch in batches]
  flat = [row for batch in rows for request in batch for row in request]
  shape = len(batches), batch_size, len(contexts) + 2
  wide = round_up(max(lookup for _, lookup, _ in flat), 8)
  long = round_up(max(len(ids) - lookup for ids, lookup, _ in flat), 4)
  head, head_len = np.zeros((*shape, wide), np.int32), np.zeros(shape, np.int32)
  tail, tail_len = np.zeros((*shape, long), np.int32), np.zeros(shape, np.int32)
  label = np.full((*shape, long), -1, np.int32)
  valid = np.zeros(shape[:2], bool)
  prefix_len = np.array([len(ids) for ids in prefixes], np.int32)
  prefix = np.zeros((len(prefixes), max(1, *prefix_len)), np.int32)
  for row, ids in zip(prefix, prefixes, strict=True):
    row[: len(ids)] = ids
  for n, batch in enumerate(rows):
    for b, request in enumerate(batch):
      valid[n, b] = True
      for r, (ids, lookup, target) in enumerate(request):
        at = n, b, r
        rest = ids[lookup:]
        head[at][:lookup], head_len[at] = ids[:lookup], lookup
        tail[at][: len(rest)], tail_len[at] = rest, len(rest)
        if target:
          label[at][len(rest) - len(target) : len(rest)] = target
  most = lambda a: int(a.reshape(len(batches), -1).sum(1).max())
  plain = np.where(valid, head_len[:, :, 0] + 1, 0)
  budget = (
    round_up(most(head_len), 256),
    round_up(most(tail_len), 64),
    round_up(most(plain), 64),
    round_up(most(label >= 0), 32),
  )
  every = lambda a: np.broadcast_to(a, (len(batches), *a.shape))
  return EditBatch(
    every(prefix),
    every(prefix_len),
    head,
    head_len,
    tail,
    tail_len,
    label,
    valid,
    budget,
  )


def questions(
  tokenizer: Any,
  texts: Sequence[str],
  targets: Sequence[Sequence[str | None]],
  rendering: str = 'raw',
) -> Questions:
  """Prompts [Q] and their K candidate targets as padded arrays."""
  bos = start_ids(tokenizer)
  prompts, answers = [], []
  for text, candidates in zip(texts, targets, strict=True):
    text = render(tokenizer, text, rendering)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    prompts.append(ids if ids[: len(bos)] == bos and bos else bos + ids)
    answers.append(
      [
        [] if c is None else target_ids(tokenizer, c, rendering)
        for c in candidates
      ]
    )
  wide = round_up(max(map(len, prompts)), 8)
  long = round_up(max(len(a) for row in answers for a in row), 4)
  count = len(answers[0])
  prompt = np.zeros((len(prompts), wide), np.int32)
  target = np.zeros((len(prompts), count, long), np.int32)
  for q, (ids, row) in enumerate(zip(prompts, answers, strict=True)):
    prompt[q, : len(ids)] = ids
    for k, a in enumerate(row):
      target[q, k, : len(a)] = a
  return Questions(
    prompt,
    np.array([len(p) for p in prompts], np.int32),
    target,
    np.array([[len(a) for a in row] for row in answers], np.int32),
  )
