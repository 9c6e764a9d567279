"""The stream of edits: chunks of the scan, with health and checkpoints between.

The carry (edited kernels, editor state, cursor) is the checkpoint; a run that
was killed goes on from the last one, bit for bit.
"""

import functools
import itertools
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import jedit
from jedit import checkpoint, evaluate, parts, sharding
from jedit.models import transformer
from jedit.models.load import Loaded
from jedit.room import room_of, with_room
from jedit.types import (
  EditBatch,
  Editor,
  JeditError,
  Params,
  kernel_of,
  with_kernel,
)
from launch import common, devices, preflight
from launch.folder import Log
from launch.measure import Counts, Measured, Measurer

_SOME = 8  # batches


class Stream(NamedTuple):
  """What a stream leaves behind."""

  params: Params  # split, edited
  state: Any
  compile_seconds: float
  log: list[dict]


def rooms(
  batches: EditBatch, work: Callable[[tuple[int, ...]], float]
) -> list[tuple[int, ...]]:
  """The room (room_of) of each batch of a stream: of one or two sizes.

  Each size is a program to compile. A second, for the batches that it is enough
  for, has to save half of a batch's work and 5 % of the stream's; a stream of
  less than `_SOME` batches has none.

  Args:
    batches: the whole stream.
    work: operations of a batch with a room.
  """
  one = lambda i: jax.tree.map(lambda a: a[i : i + 1], batches)
  each = [room_of(one(i)) for i in range(len(batches.valid))]
  widest = lambda a, b: tuple(map(max, a, b))
  large = functools.reduce(widest, each)
  if len(each) < _SOME:
    return [large] * len(each)
  smaller = itertools.accumulate(sorted(each, key=work), widest)
  saves = ((n * (work(large) - work(r)), r) for n, r in enumerate(smaller, 1))
  saved, small = max(saves)
  if saved < work(large) * max(0.5, 0.05 * len(each)):
    small = large
  return [small if widest(r, small) == small else large for r in each]


def chunk(batches: EditBatch, start: int, size: int) -> EditBatch:
  """Batches [start, start + size) on the devices, filled up with inert ones."""

  def cut(a):
    part = np.asarray(a[start : start + size])
    fill = np.zeros((size - len(part), *part.shape[1:]), part.dtype)
    return np.concatenate([part, fill])

  part = jax.tree.map(cut, batches)
  if not sharding.shape():
    return jax.tree.map(jnp.asarray, part)
  on = jax.sharding.get_mesh()
  return sharding.place(part, parts.specs(part, on))


@jax.jit
def _norms(kernel):
  return jnp.linalg.norm(kernel, axis=(1, 2))


def run(
  config: ConfigDict,
  loaded: Loaded,
  editor: Editor,
  params: Params,
  begin: Callable[[Params], Any],
  batches: EditBatch,
  judge: Measurer,
  before: Measured,
  folder: pathlib.Path,
) -> Stream:
  """Edits all batches, from the last checkpoint of the folder on.

  Args:
    config: checkpoint_every, curve_at, max_perplexity, max_norm.
    loaded: the model.
    editor: the editor.
    params: split params before any edit (donated).
    begin: the editor's state before any edit, of params.
    batches: the whole stream.
    judge: scores the model on the way, after `curve_at` records.
    before: what it measured of the base model.
    folder: run folder.
  """
  size, total = config.checkpoint_every, len(batches.valid)
  base_norms = _norms(kernel_of(params))
  ids = loaded.tokenizer(common.PROSE.read_text(encoding='utf-8')).input_ids
  prose = jnp.asarray(ids, jnp.int32)[None]

  @jax.jit
  def ppl(params):
    return evaluate.perplexity(loaded.model, transformer.strung(params), prose)

  start = time.perf_counter()
  base_ppl = float(ppl(params))
  state = begin(params)
  where = None
  if sharding.shape():  # a chunk's output is the next one's input
    where = *jax.tree.map(lambda x: x.sharding, (params, state)), None
  fn = jax.jit(
    functools.partial(jedit.edit_sequence, editor),
    donate_argnums=0,
    out_shardings=where,
  )
  work = lambda room: preflight.operations(
    config, loaded.model.config, with_room(batches, room)
  )
  own_room, programs = rooms(batches, work), {}
  sizes = sorted(set(own_room), key=work, reverse=True)
  scanned = size if len(sizes) == 1 else 1  # batches a call
  for room in sizes:
    first = chunk(with_room(batches, room), 0, scanned)
    programs[room] = fn.lower(params, state, first).compile()
    if room == sizes[0]:
      preflight.confirm(config, programs[room])
  compile_seconds = time.perf_counter() - start
  # Of what every step runs: tails, or, where nothing is solved, plain rows.
  tails = np.asarray(batches.tail_len)
  kind, tokens = 1, tails.sum()
  if not config.optimiser:
    kind, tokens = 2, (np.asarray(batches.head_len) + tails)[:, :, 0].sum()
  padding = 1 - tokens / sum(room[kind] for room in own_room)
  common.say(
    f'edit step: programs: {len(programs)}, compiled in {compile_seconds:.1f} '
    f's; {padding:.0%} of the tokens of a step are padding'
  )
  store = folder / 'checkpoint'
  cursor, found = 0, checkpoint.steps(store)
  if devices.agreed(bool(found)):
    like = {
      'kernel': kernel_of(params),
      'state': state,
      'cursor': jnp.zeros((), int),
    }
    saved = checkpoint.load(store / f'{found[-1]:06d}', like)
    cursor, state = int(saved['cursor']), saved['state']
    params = with_kernel(params, saved['kernel'])
    del like, saved  # else they are held to the end
    common.say(f'resuming after batch {cursor} of {total}')
  log = Log(folder, cursor)
  records = lambda batches: min(batches * config.batch_size, len(judge.asked))
  aims = config.optimiser or 'stop' in config.editor  # others have no target
  facts = int(np.asarray(batches.valid).sum())
  done = int(np.asarray(batches.valid)[:cursor].sum())
  with common.bar(facts, 'edits', 'fact') as progress:
    progress.update(done)
    while cursor < total:
      began = time.perf_counter()
      real, reports = min(size, total - cursor), []
      for start in range(cursor, cursor + real, scanned):
        room = own_room[start]
        params, state, report = programs[room](
          params, state, chunk(with_room(batches, room), start, scanned)
        )
        reports.append(sharding.fetch(report))
      seconds = time.perf_counter() - began
      # What is behind the real ones only fills a chunk up.
      join = lambda *a, real=real: np.concatenate(a)[:real]
      report = jax.tree.map(join, *reports)
      count = int(report.facts.sum())
      cursor, done = cursor + real, done + count
      ratio = np.asarray(_norms(kernel_of(params)) / base_norms)
      entry = {
        'cursor': cursor,
        'num_edits': done,
        'seconds': seconds,
        'facts': count,
        'reached': int(report.reached.sum()) if aims else None,
        'steps': int(report.steps.sum()),
        'residual': np.round(report.residual, 5).tolist(),
        **{k: np.round(v, 5).tolist() for k, v in report.notes.items()},
        'norm_ratio': np.round(ratio, 5).tolist(),
        'perplexity': float(ppl(params)),
        'base_perplexity': base_ppl,
      }
      _check(config, entry, store)
      now = records(cursor)
      if any(records(cursor - real) < n <= now for n in config.curve_at):
        scored = [records(e['cursor']) for e in log.lines if 'curve' in e]
        entry['curve'] = judge.curve(
          jedit.join(params),
          before,
          Counts([*scored, now][0], [0, *scored][-1], now),
          config.curve_records,
        )
      log.add(**entry)  # before the checkpoint: a resumed run lacks no line
      checkpoint.save_step(
        store,
        cursor,
        {
          'kernel': kernel_of(params),
          'state': state,
          'cursor': np.array(cursor, np.int32),
        },
      )
      aimed = f'targets reached {entry["reached"]}/{count}, ' if aims else ''
      progress.set_postfix_str(
        f'{seconds / max(count, 1):.2f} s/fact, {aimed}perplexity '
        f'{entry["perplexity"]:.1f}'
      )
      progress.update(count)
  return Stream(params, state, compile_seconds, log.lines)


def _check(config: ConfigDict, entry: dict, store: pathlib.Path) -> None:
  """Stops a run whose model is being destroyed, before it is saved."""
  limit = config.max_perplexity * entry['base_perplexity']
  worst = max(
    entry['norm_ratio'], key=lambda r: r if math.isfinite(r) else 1e30
  )
  bad = None
  if not entry['perplexity'] <= limit:
    ppl = entry['perplexity']
    bad = f'perplexity {ppl:.1f} is above {limit:.1f} (max_perplexity)'
  elif not worst <= config.max_norm:
    bad = f'an edited matrix has {worst:.2f} times its norm (max_norm)'
  if bad:
    good = checkpoint.steps(store)
    name = store / f'{good[-1]:06d}' if good else 'none: the base model'
    raise JeditError(
      f'stopped after {entry["num_edits"]} facts: {bad}. Last good checkpoint: '
      f'{name}. Edit fewer facts, or raise the limit'
    )
