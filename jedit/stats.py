"""Second moments of keys over text: one pass for all site layers.

The forward stops after the last site layer. Sums are float32 with Kahan's
compensation, so that 10^8 tokens lose no small terms (TPUs have no float64).
"""

import functools
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jedit import parts, sharding
from jedit.files import open_text, read_json, whole
from jedit.models import transformer
from jedit.models.transformer import Model
from jedit.room import round_up
from jedit.types import JeditError, Params, SecondMoment, kernel_of


class Sums(NamedTuple):
  """Running sum of key outer products; the carry of a resumable pass.

  Attributes:
    total: float32 [E, F, F].
    lost: float32 [E, F, F], what rounding has left out of `total`.
    count: float32 [], tokens.
  """

  total: jax.Array
  lost: jax.Array
  count: jax.Array


def zeros(layers: int, width: int) -> Sums:
  """The empty sum."""
  zero = lambda: sharding.by_rows(
    np.zeros((layers, width, width), np.float32), width
  )
  return Sums(zero(), zero(), jnp.zeros(()))


@functools.partial(jax.jit, static_argnums=(0, 5), donate_argnums=2)
def add(
  model: Model,
  params: Params,
  sums: Sums,
  tokens: Int[Array, 'R T'],
  mask: Bool[Array, 'R T'],
  room: int = 0,
) -> Sums:
  """Adds the keys of a batch of token rows.

  Args:
    model: the network.
    params: params split at the site.
    sums: what was summed before (donated).
    tokens: ids, right-padded.
    mask: which of them count.
    room: tokens that count in a part of the batch, at most; 0: all its slots.
  """

  def part(tokens, mask, whole):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    at = transformer.layout(mask, positions, room or tokens.size)
    x = model.embed(
      params, transformer.take(tokens.ravel(), at.slot), at.positions
    )
    x, _ = transformer.run(model, params['below'], x, at)
    real = (at.slot < tokens.size)[:, None]

    def square(trace):
      key = jnp.where(real, trace.key, 0).astype(jnp.float32)
      total = jnp.matmul(key.T, key, precision=jax.lax.Precision.HIGHEST)
      return whole.sum(total)

    return transformer.run(model, params['site'], x, at, keep=square)[1]

  new = parts.each_part_of(part, tokens, mask) - sums.lost
  total = sums.total + new
  lost = (total - sums.total) - new
  total, lost = sharding.by_rows((total, lost), total.shape[-1])
  return Sums(total, lost, sums.count + mask.sum())


def mean(sums: Sums) -> SecondMoment:
  """The moment, per token."""
  if not float(sums.count):
    raise JeditError('second moments: the corpus has no token')
  return SecondMoment((sums.total - sums.lost) / sums.count, sums.count)


def encoded(
  tokenizer: Any, texts: Iterable[str], characters: int = 2**18
) -> Iterator[list[int]]:
  """Ids of the documents of a corpus, in their order, without BOS.

  All cores encode; of several processes each encodes its share, and tells the
  others.

  Args:
    tokenizer: of the model.
    texts: the same ones on every process.
    characters: a process encodes about so many at once.
  """
  count, mine = jax.process_count(), jax.process_index()
  for group in _groups(texts, characters * count):
    own = group[mine::count]
    ids = tokenizer(own, add_special_tokens=False).input_ids if own else []
    yield from sharding.interleaved(ids, len(group))


def _groups(texts, characters):
  group, size = [], 0
  for text in texts:
    group.append(text)
    size += len(text)
    if size >= characters:
      yield group
      group, size = [], 0
  if group:
    yield group


def windows(
  documents: Iterable[list[int]],
  start: list[int],
  length: int,
  rows: int,
  tokens: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Token rows and masks [rows, length] of documents cut into windows.

  Args:
    documents: ids of each document, without BOS.
    start: BOS ids put in front of each window.
    length: window length in tokens, BOS included.
    rows: windows a batch.
    tokens: stop after this many tokens (0: all).
  """
  batch = np.zeros((rows, length), np.int32)
  sizes = np.zeros(rows, np.int32)
  filled = seen = 0
  step = length - len(start)

  def out():
    return batch.copy(), np.arange(length) < sizes[:, None]

  for ids in documents:
    for at in range(0, len(ids), step):
      piece = [*start, *ids[at : at + step]]
      piece = piece[: tokens - seen] if tokens else piece
      batch[filled, : len(piece)], sizes[filled] = piece, len(piece)
      filled, seen = filled + 1, seen + len(piece)
      if filled == rows:
        yield out()
        batch[:], sizes[:], filled = 0, 0, 0
      if tokens and seen >= tokens:
        break
    if tokens and seen >= tokens:
      break
  if filled:
    yield out()


def collect(
  model: Model,
  params: Params,
  batches: Iterable[tuple[np.ndarray, np.ndarray]],
  partial: str | os.PathLike | None = None,
  progress: Callable[[int], None] = lambda tokens: None,
  every: int = 50,
) -> SecondMoment:
  """Second moments of the keys of the site layers over batches of `windows`.

  Args:
    model: the network.
    params: params split at the site.
    batches: the same ones again when a pass is resumed.
    partial: file that holds the sums of an unfinished pass, to be removed when
      the moments are safe; None: no resuming.
    progress: called with the tokens summed so far.
    every: batches between two saves of `partial`.
  """
  layers, width = kernel_of(params).shape[:2]
  sums, done, room = zeros(layers, width), 0, 0
  if partial is not None:
    sums, done, room = _unfinished(partial, sums)
  seen, tokens_seen = 0, int(sums.count)
  for number, (tokens, mask) in enumerate(batches, 1):
    at, seen = seen, seen + len(tokens)
    if seen <= done:
      continue
    # On other devices than before, a batch may have other windows.
    mask = mask & (np.arange(at, seen) >= done)[:, None]
    room = _room(mask, room)
    sums = add(model, params, sums, tokens, mask, room)
    tokens_seen += int(mask.sum())  # the devices are not waited for
    progress(tokens_seen)
    if partial is not None and number % every == 0:
      save_arrays(partial, windows=seen, room=room, **sums._asdict())
  return mean(sums)


def _room(mask: np.ndarray, least: int) -> int:
  """Tokens of the fullest part of a batch, in quarters of its slots.

  So that a text of short documents does not cost what a dense one does, in at
  most four programs.
  """
  parts = sharding.parts()
  parts = 1 if len(mask) % parts else parts
  slots = mask.size // parts
  most = int(mask.reshape(parts, -1).sum(1).max())
  return min(slots, max(least, round_up(most, -(-slots // 4))))


def _unfinished(path: str | os.PathLike, start: Sums) -> tuple[Sums, int, int]:
  """(sums, windows summed, room) of an unfinished pass, if there is one."""
  try:
    with np.load(path) as f:
      sums = Sums(*(f[n] for n in Sums._fields))
      done, room = int(f['windows']), int(f['room'])
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return start, 0, 0
  return Sums(*sharding.by_rows(sums, start.total.shape[-1])), done, room


def save_arrays(path: str | os.PathLike, **arrays) -> None:
  """Writes a .npz file whole or not at all."""
  arrays = sharding.fetch(arrays)
  if not sharding.writes():
    return
  with whole(pathlib.Path(path)) as f:
    np.savez(f, **arrays)


def save(path: str | os.PathLike, moment: SecondMoment, identity: str) -> None:
  """Writes moments with what they were made from."""
  save_arrays(path, moment=moment.moment, count=moment.count, identity=identity)


def load(path: str | os.PathLike, identity: str) -> SecondMoment:
  """Reads moments; JeditError when they were made from something else."""
  try:
    with np.load(path) as f:
      found = str(f['identity'])
      moment = SecondMoment(f['moment'], f['count'])
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
    raise JeditError(
      f'{path} is no file of second moments ({e}); remove it'
    ) from e
  if found != identity:
    raise JeditError(
      f'{path} holds second moments of something else:\n  it has    {found}\n'
      f'  wanted is {identity}\nname another file, or make them again'
    )
  return moment


def published(pattern: str, layers: Iterable[int], width: int) -> SecondMoment:
  """Moments from the .npz files that kmeng01/rome publishes, one a layer.

  Args:
    pattern: file name with `{}` for the layer; each holds a sum of outer
      products (mom2) and a count.
    layers: site layers.
    width: F, checked.
  """
  moments, counts = [], []
  for layer in layers:
    path = pattern.replace('{}', str(layer))
    try:
      with np.load(path, allow_pickle=False) as f:
        keys = {k.split('.')[-1]: k for k in f.files}
        total, count = f[keys['mom2']], f[keys['count']]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
      raise JeditError(
        f'{path}: no published second moment (mom2, count): {e}'
      ) from e
    if total.shape != (width, width):
      raise JeditError(
        f'{path} is of another model: {total.shape}, the keys have {width}'
      )
    moments.append((total.astype(np.float64) / count).astype(np.float32))
    counts.append(count)
  return SecondMoment(np.stack(moments), np.float32(np.min(counts)))


def read_corpus(path: str | os.PathLike) -> Iterator[str]:
  """Documents of a text file (blank lines part them) or of JSON lines with a
  field "text"; gzip or not."""
  try:
    yield from _documents(path)
  except (OSError, UnicodeDecodeError, EOFError, zlib.error) as e:
    raise JeditError(f'{path}: cannot be read as text: {e}') from e


def _documents(path):
  with open_text(path) as f:
    first = next((line for line in f if line.strip()), '')
  if re.match(r'\s*(\{\s*["}]|\[\s*(\{|\]|$))', first):  # not "{{Infobox"
    for where, record in read_json(path):
      if isinstance(record, JeditError):
        raise record
      if not isinstance(record, dict) or not isinstance(
        record.get('text'), str
      ):
        raise JeditError(f'{where}: no field "text"; a corpus line needs one')
      yield record['text']
    return
  with open_text(path) as f:
    lines = []
    for line in f:
      if line.strip():
        lines.append(line)
      elif lines:
        yield ''.join(lines)
        lines = []
    if lines:
      yield ''.join(lines)
