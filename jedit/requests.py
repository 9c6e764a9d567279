"""Facts to edit, as strings: read, checked, ordered, cut into batches.

With records.py, what a record is, the only module besides prompts.py that sees
text.
"""

import collections
import dataclasses
import itertools
import os
import random
from collections.abc import Sequence

from jedit.files import read_json
from jedit.published import unfold
from jedit.records import Request, parse
from jedit.types import JeditError


def read(
  path: str | os.PathLike, on_bad_request: str = 'error', target: str = ''
) -> tuple[list[Request], list[str]]:
  """Requests of a file, and the reasons for those that were left out.

  Args:
    path: JSON lines or a JSON list, gzip or not.
    on_bad_request: 'error' stops at the first bad record, 'skip' lists it.
    target: the field that is written (records.parse); '' is the usual one.

  Raises:
    JeditError: naming file, line, record and field.
  """
  if on_bad_request not in ('error', 'skip'):
    raise JeditError(f'on_bad_request={on_bad_request!r}: choose error or skip')
  out, skipped = [], []
  for number, (where, record) in enumerate(read_json(path)):
    parts, found = list(unfold(record, str(number))), []
    try:
      for one in parts:
        if isinstance(one, JeditError):
          raise one
        found.append(parse(one, where, str(number), target))
    except JeditError as e:
      if on_bad_request != 'skip':
        raise
      rest = f', and with it {len(parts) - 1} other edits of its record'
      skipped.append(f'{e}{rest if parts[1:] else ""}')
      continue
    if parts[1:]:
      found = [dataclasses.replace(f, part_of=str(number)) for f in found]
    out += found
  return out, skipped


def whole(requests: Sequence[Request]) -> list[list[Request]]:
  """The requests, those that come from one record together."""
  found = itertools.groupby(enumerate(requests), lambda r: r[1].part_of or r[0])
  return [[request for _, request in group] for _, group in found]


def complete(
  kept: Sequence[Request], asked: Sequence[Request]
) -> tuple[list[Request], list[str]]:
  """(those of `kept` of whose record no edit was left out; why the others)."""
  count = lambda these: collections.Counter(r.part_of for r in these)
  have, want = count(kept), count(asked)
  whole = lambda r: r.part_of is None or have[r.part_of] == want[r.part_of]
  lost = [r for r in kept if not whole(r)]
  return list(filter(whole, kept)), [
    f'record {r.id}: another edit of its record is left out' for r in lost
  ]


def select(
  requests: Sequence[Request], num_edits: int, order: str, seed: int
) -> list[Request]:
  """The first `num_edits` (0: all), as given or shuffled by the seed.

  Edits of one record stay together, but for the last ones: questions that ask
  for all of them come with the last.
  """
  if order not in ('given', 'shuffled'):
    raise JeditError(f'order={order!r}: choose given or shuffled')
  if not requests:
    raise JeditError('requests: the file holds no usable record')
  if num_edits < 0 or num_edits > len(requests):
    raise JeditError(
      f'num_edits={num_edits}: the requests hold {len(requests)} usable '
      f'records; choose 0 (all) to {len(requests)}'
    )
  records = whole(requests)
  if order == 'shuffled':
    random.Random(seed).shuffle(records)
  out = list(itertools.chain(*records))
  return out[: num_edits or len(out)]


def batched(
  requests: Sequence[Request], batch_size: int, on_collision: str = 'error'
) -> tuple[list[list[Request]], list[str]]:
  """Batches in order, with collisions inside a batch settled.

  Two requests collide when subject and relation agree. 'error' refuses them,
  'last' keeps the last, 'merge' makes one request of those with one target and
  one old target (and refuses contradictions). Another relation of the same
  subject warns.

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
      elif on_collision == 'merge' and _agree(old, new):
        warnings.append(f'record {new.id} is merged into record {old.id}')
        chosen[new.fact] = _both(old, new)
      else:
        pair = f'to "{old.target}" and "{new.target}"'
        if on_collision == 'merge' and old.target == new.target:
          pair = f'from "{old.old_target}" and "{new.old_target}"'
        raise JeditError(
          f'records {old.id} and {new.id} are in one batch and both edit '
          f'"{new.text}" ({pair}); remove one, or set on_collision=last'
        )
    subjects = collections.Counter(subject for subject, _ in chosen)
    for subject, count in subjects.items():
      if count > 1:
        warnings.append(f'{count} facts of subject "{subject}" share a batch')
    batches.append(list(chosen.values()))
  return batches, warnings


def _agree(old: Request, new: Request) -> bool:
  """Whether two requests say one thing; neighbours are of the old target."""
  before = {old.old_target, new.old_target} - {None}
  return old.target == new.target and len(before) < 2


def _both(old: Request, new: Request) -> Request:
  """One request with all that is asked of two."""
  parts = 'paraphrases', 'neighbours', 'openings', 'probes'
  asked = {p: getattr(old, p) + getattr(new, p) for p in parts}
  if new.text != old.text:
    asked['paraphrases'] = (*asked['paraphrases'], new.text)
  return dataclasses.replace(
    old,
    **{p: tuple(dict.fromkeys(all_)) for p, all_ in asked.items()},
    old_target=old.old_target or new.old_target,
    target_id=old.target_id or new.target_id,
  )


def as_edited(
  requests: Sequence[Request], size: int, on_collision: str
) -> Sequence[Request]:
  """Each request as it is after batched(requests, size, on_collision)."""
  if on_collision != 'merge':  # only that makes others of them
    return requests
  batches, _ = batched(requests, size, on_collision)
  found = [{r.fact: r for r in batch} for batch in batches]
  return [found[i // size][r.fact] for i, r in enumerate(requests)]


def standing(requests: Sequence[Request]) -> list[Request]:
  """Without what is asked of records one of whose edits is overwritten.

  What follows from several edits together no longer does.
  """
  lost = {requests[i].part_of for i in overwritten(requests)} - {None}
  stays = lambda r: tuple(p for p in r.probes if p.kind != 'portability')
  return [
    dataclasses.replace(r, probes=stays(r)) if r.part_of in lost else r
    for r in requests
  ]


def overwritten(requests: Sequence[Request]) -> set[int]:
  """Indices of requests that a later one of the same fact replaces.

  One that says the same in another record does not; the same one twice does.
  """
  last = {r.fact: (i, r) for i, r in enumerate(requests)}
  gone = lambda i, r, j, by: i != j and (by.target != r.target or by == r)
  return {i for i, r in enumerate(requests) if gone(i, r, *last[r.fact])}
