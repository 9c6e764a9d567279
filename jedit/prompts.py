"""Requests and prompts as padded arrays of token ids.

Strings end here. Ids are joined, never decoded and encoded again; the subject
is found by character offsets; what a tokenizer puts before a text or a space
is asked of the tokenizer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jedit.requests import Request
from jedit.types import EditBatch, JeditError

RENDERINGS = 'raw', 'qa', 'chat'


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


def start_ids(tokenizer: Any) -> list[int]:
  """What the tokenizer puts in front of every text (BOS or nothing)."""
  bare = tokenizer('a', add_special_tokens=False).input_ids
  full = tokenizer('a').input_ids
  return (
    full[: len(full) - len(bare)] if full[-len(bare) :] == bare else full[:1]
  )


def continuation(tokenizer: Any, text: str) -> tuple[list[int], np.ndarray]:
  """Ids of a text that follows other text, and character spans [n, 2]."""
  before = 'a' if text[:1] in ' .' else '\n'
  out = tokenizer(
    before + text, add_special_tokens=False, return_offsets_mapping=True
  )
  spans = np.asarray(out.offset_mapping).reshape(-1, 2) - len(before)
  first = int(np.searchsorted(spans[:, 1] > 0, True))
  return out.input_ids[first:], spans[first:]


def target_ids(
  tokenizer: Any, target: str, rendering: str = 'raw'
) -> list[int]:
  """Ids of a target after its prompt: one space in between, none in chat."""
  gap = '' if rendering == 'chat' else ' '
  return continuation(tokenizer, gap + target.strip())[0]


def render(tokenizer: Any, text: str, rendering: str) -> str:
  """How a prompt is put to the model: raw, as a question, or as a chat turn."""
  if rendering == 'raw':
    return text
  if rendering == 'qa':
    return f'Question: {text}\nAnswer:'
  if rendering == 'chat':
    if not getattr(tokenizer, 'chat_template', None):
      raise JeditError('rendering=chat: this tokenizer has no chat template')
    turn = [{'role': 'user', 'content': text}]
    return tokenizer.apply_chat_template(
      turn, tokenize=False, add_generation_prompt=True
    )
  raise JeditError(f'rendering={rendering!r}: choose {", ".join(RENDERINGS)}')


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
) -> tuple[list[int], int]:
  """Ids of a prompt, after a context or alone, and the subject's last one."""
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
  return [*before, *ids], len(before) + int(where[-1])


def _rows(tokenizer, request, contexts, rendering, bos):
  """(ids, lookup, target) of each row of a request, without its context."""
  target = target_ids(tokenizer, request.target, rendering)
  if not target:
    raise JeditError(f'record {request.id}: the target has no token')
  text = render(tokenizer, request.text, rendering)
  start = _place(text, request)

  def row(after_context):
    ids, lookup = _prompt(
      tokenizer, text, request.subject, start, after_context, bos, request.id
    )
    return ids + target[:-1], lookup, target

  about = f'{request.subject} is a'
  ids, lookup = _prompt(
    tokenizer, about, request.subject, 0, False, bos, request.id
  )
  kl = ids[: lookup + 1], lookup, []
  return [row(False), *[row(True)] * contexts, kl]


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
    JeditError: naming the record whose subject or target has no token.
  """
  bos = start_ids(tokenizer)
  prefixes = [[], *([*bos, *c] for c in contexts), []]
  rows = [
    [_rows(tokenizer, r, len(contexts), rendering, bos) for r in batch]
    for batch in batches
  ]
  flat = [row for batch in rows for request in batch for row in request]
  for asked, made in zip(batches, rows, strict=True):
    for r, request in zip(asked, made, strict=True):
      longest = max(
        len(before) + len(ids)
        for before, (ids, _, _) in zip(prefixes, request, strict=True)
      )
      if max_length is not None and longest > max_length:
        raise JeditError(
          f'record {r.id}: its prompt, put after a context, has {longest} '
          f'tokens and the model takes {max_length}; shorten or remove it'
        )
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
