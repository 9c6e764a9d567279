"""Requests and prompts as padded arrays of token ids.

Strings end here. Ids are joined, never decoded and encoded again; the subject
is found by character offsets.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jedit import sharding
from jedit.records import Request
from jedit.room import room_of, round_up, with_room
from jedit.tokens import continuation, render, start_ids, target_ids
from jedit.types import EditBatch, JeditError


def _place(text: str, request: Request) -> int:
  """Where the subject starts in a rendered text; -1 if it is not there."""
  around = text.rfind(request.text)
  if around >= 0:
    return around + request.prompt.index('{}')
  return text.rfind(request.subject)  # a chat template has changed the prompt


def _encode(tokenizer, text: str, after_context: bool, bos: list[int]):
  """Ids of a prompt, after a context or alone, and their spans of it [n, 2]."""
  if after_context:
    mark = tokenizer.bos_token if bos else None
    cut = len(mark) if mark and text.startswith(mark) else 0  # by a template
    ids, spans = continuation(tokenizer, '. ' + text[cut:])
    return ids, spans - 2 + cut
  out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
  ids, spans = out.input_ids, np.asarray(out.offset_mapping).reshape(-1, 2)
  if ids[: len(bos)] == bos:  # the chat template wrote it already
    return ids, spans
  return bos + ids, np.concatenate([np.zeros((len(bos), 2), int), spans])


def _subject(tokenizer, text: str, ids, spans, start: int, request):
  """The subject's first and last token; it starts at `start` of a text."""
  subject = request.subject
  inside = spans[:, 0] < start + len(subject)
  inside &= spans[:, 1] > start
  inside &= spans[:, 1] > spans[:, 0]
  if start < 0 or not inside.any():
    raise JeditError(
      f'record {request.id}: subject "{subject}" has no token in "{text}"'
    )
  where = np.flatnonzero(inside)
  seen = tokenizer.decode(ids[where[0] : where[-1] + 1])
  if subject.split()[-1] not in seen:
    raise JeditError(
      f'record {request.id}: the tokens of subject "{subject}" read "{seen}"'
    )
  return int(where[0]), int(where[-1])


def located(
  tokenizer: Any, request: Request, rendering: str
) -> tuple[list[int], int, int]:
  """Ids of a request's plain prompt; the subject's first and last."""
  if request.subject is None:
    raise JeditError(f'record {request.id}: no subject; leave it out')
  text, bos = render(tokenizer, request.text, rendering), start_ids(tokenizer)
  ids, spans = _encode(tokenizer, text, False, bos)
  at = _place(text, request)
  return ids, *_subject(tokenizer, text, ids, spans, at, request)


def _rows(tokenizer, request, contexts, rendering, bos, room, lookup):
  """(ids, lookup, target) of each row of a request, without its context.

  No row may have more than `room` tokens; None is no limit.
  """
  if lookup != 'last' and request.subject is None:
    raise JeditError(
      f"record {request.id}: no subject; add one, or set lookup='last'"
    )
  target = target_ids(tokenizer, request.target, rendering)
  if not target:
    raise JeditError(f'record {request.id}: the target has no token')

  def encode(text, start, after_context=False):
    ids, spans = _encode(tokenizer, text, after_context, bos)
    if not ids:
      raise JeditError(f'record {request.id}: the prompt has no token')
    if lookup == 'last':
      return ids, len(ids) - 1
    return ids, _subject(tokenizer, text, ids, spans, start, request)[1]

  text = render(tokenizer, request.text, rendering)
  start = -1 if request.subject is None else _place(text, request)

  def row(after_context):
    ids, at = encode(text, start, after_context)
    ids = ids + target[:-1]
    if room is not None and len(ids) > room:
      raise JeditError(
        f'record {request.id}: prompt and target have {len(ids)} tokens; the '
        f'model takes {room} after a context: shorten or remove it'
      )
    return ids, at, target

  rows = [row(False), *[row(True)] * contexts]
  if request.subject is None:
    return [*rows, ([], 0, [])]
  ids, at = encode(f'{request.subject} is a', 0)
  return [*rows, (ids[: at + 1], at, [])]


def usable(
  tokenizer: Any,
  requests: Sequence[Request],
  rendering: str,
  room: int,
  lookup: str = 'subject',
) -> tuple[list[Request], list[str]]:
  """The requests that tokens can be made of, and why the others cannot.

  Args are those of edit_batches; `room` is for the tokens after a context.
  """
  bos = start_ids(tokenizer)
  render(tokenizer, '', rendering)  # an error here is no record's fault
  good, reasons = [], []
  for request in requests:
    try:
      _rows(tokenizer, request, 1, rendering, bos, room, lookup)
      good.append(request)
    except JeditError as e:
      reasons.append(str(e))
  return good, reasons


def edit_batches(
  tokenizer: Any,
  batches: Sequence[Sequence[Request]],
  contexts: Sequence[Sequence[int]],
  batch_size: int,
  rendering: str = 'raw',
  max_length: int | None = None,
  lookup: str = 'subject',
  validation: Sequence[Sequence[int]] | Literal['test_prompts'] = (),
  parts: int = 0,
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
    lookup: the token whose value is edited, the last one of the subject or of
      the prompt; with 'last' records need no subject. The KL row "SUBJECT is a"
      ends at its own lookup token; without a subject it is empty, so that
      nothing is held: the prompt itself would hold the very answer.
    validation: contexts of rows to choose by (alphaedit_plus), other than
      `contexts`. 'test_prompts': the plain prompt and the paraphrases that the
      edit is evaluated on, which leaks the test and is there to reproduce
      AlphaEdit+'s released code.
    parts: what a batch is split into; 0: as the mesh in use splits it. B is
      rounded up to a multiple, and requests are dealt out so that every part
      has about as many tokens.

  Raises:
    JeditError: naming the record whose subject or target has no token, or that
      is too long.
  """
  if lookup not in ('subject', 'last'):
    raise JeditError(f'lookup={lookup!r}: choose subject or last')
  most = max(map(len, batches), default=0)
  if most > batch_size:
    raise JeditError(f'batch_size={batch_size}: a batch has {most} requests')
  bos = start_ids(tokenizer)

  def make(request, before):
    room = max_length and max_length - max(map(len, before), default=0)
    return _rows(tokenizer, request, len(before), rendering, bos, room, lookup)

  before = [[*bos, *c] for c in contexts]
  rows = [[make(r, before) for r in batch] for batch in batches]
  parts = parts or sharding.parts()
  size = round_up(batch_size, parts)
  order = [_dealt(batch, size, parts) for batch in rows]
  out = _pack(rows, [[], *before, []], order, (parts, size // parts))
  if not validation:
    return out
  unseen = []
  if validation == 'test_prompts':
    most = max(len(r.paraphrases) for batch in batches for r in batch)
    ask = functools.partial(
      _paraphrased, tokenizer, rendering, bos, most, max_length
    )
    held = lambda r: [make(r, [])[0], *ask(r), _NOTHING]
  else:
    unseen = [[*bos, *c] for c in validation]
    held = lambda r: [*make(r, unseen)[1:-1], _NOTHING]
  rows = [[held(r) for r in batch] for batch in batches]
  prefixes = [*unseen, []] if unseen else [[]] * len(rows[0][0])
  held = _pack(rows, prefixes, order, (parts, size // parts))
  return dataclasses.replace(out, validation=held)


_NOTHING = [], 0, []


def _paraphrased(tokenizer, rendering, bos, most, room, request):
  """`most` rows of a request's paraphrases, cut at their last token."""
  target, out = target_ids(tokenizer, request.target, rendering), []
  for text in request.paraphrases:
    ids, _ = _encode(tokenizer, render(tokenizer, text, rendering), False, bos)
    row = ids + target[:-1]
    if room is not None and len(row) > room:
      raise JeditError(
        f'record {request.id}: a paraphrase and the target have {len(row)} '
        f'tokens; the model takes {room}: shorten or remove it'
      )
    out.append((row, len(ids) - 1, target))
  return out + [_NOTHING] * (most - len(out))


def _dealt(batch, size: int, parts: int) -> list[int]:
  """The place of each request in a batch of `size`, in `parts` of like length.

  Requests are dealt out by length, there and back again (0 1 1 0 0 1 ...).
  """
  if parts == 1:
    return list(range(len(batch)))
  length = [-sum(len(ids) for ids, _, _ in request) for request in batch]
  places = [0] * len(batch)
  for n, b in enumerate(np.argsort(length, kind='stable').tolist()):
    lap, part = divmod(n, parts)
    part = parts - 1 - part if lap % 2 else part
    places[b] = part * (size // parts) + lap
  return places


def _pack(rows, prefixes, places, size: tuple[int, int]) -> EditBatch:
  """Rows (ids, lookup, target) [N][B][R] as padded arrays.

  Args:
    rows: of every request.
    prefixes: ids of the context of each row.
    places: where each request goes.
    size: (parts, requests a part).
  """
  flat = [row for batch in rows for request in batch for row in request]
  shape = len(rows), size[0] * size[1], len(prefixes)
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
    for b, request in zip(places[n], batch, strict=True):
      valid[n, b] = True
      for r, (ids, lookup, target) in enumerate(request):
        at = n, b, r
        rest = ids[lookup:]
        head[at][:lookup], head_len[at] = ids[:lookup], lookup
        tail[at][: len(rest)], tail_len[at] = rest, len(rest)
        if target:
          label[at][len(rest) - len(target) : len(rest)] = target
  every = lambda a: np.broadcast_to(a, (len(rows), *a.shape))
  rest = head, head_len, tail, tail_len, label, valid, (0, 0, 0, 0)
  out = EditBatch(every(prefix), every(prefix_len), *rest, parts=size[0])
  return with_room(out, room_of(out))
