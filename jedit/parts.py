"""A batch in parts, each on its share of the devices.

Facts do not interact until a layer is solved, so a batch made for a number of
parts (prompts.edit_batches, `parts`) is packed part by part, and what runs on a
part is vmapped over them; a layer's keys and residuals are all that is ever
gathered of it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding

from jedit import sharding
from jedit.sharding import DATA, constrain
from jedit.types import EditBatch

_FACTS = 'facts'  # the axis of parts
_OF_REQUESTS = 'head', 'head_len', 'tail', 'tail_len', 'label', 'valid'


class Whole(NamedTuple):
  """From a part of a batch to all of it; the identity where there is one part.

  Attributes:
    gather: (x, axis=0): [b, ...] of the part's requests -> [B, ...] of all.
    sum: over parts.
  """

  gather: Callable[..., jax.Array] = lambda x, axis=0: x
  sum: Callable[[jax.Array], jax.Array] = lambda x: x


def _gather(x, axis=0):
  x = jax.lax.all_gather(x, _FACTS, axis=axis, tiled=True)
  return constrain(x, *(None,) * x.ndim)


_TOGETHER = Whole(_gather, lambda x: jax.lax.psum(x, _FACTS))


def each_part(fn: Callable[[EditBatch, Whole], Any], batch: EditBatch) -> Any:
  """fn(part of the batch, Whole), which gives the same for every part.

  On a mesh a part runs where its requests are; without one, part after part
  in one program. What fn gathers or sums is one value for all, and what is
  computed of it is computed once.
  """
  if batch.parts == 1:
    return fn(batch, Whole())
  cut = _parts(batch)
  return _over(lambda part: fn(part, _TOGETHER), (_axes(cut),), None)(cut)


def _over(fn, in_axes, out_axes):
  """vmap over parts, each on its share of the devices."""
  on = DATA if sharding.parts() > 1 else None
  names = dict(axis_name=_FACTS, spmd_axis_name=on)
  return jax.vmap(fn, in_axes, out_axes, **names)


def _cut(x: jax.Array, parts: int) -> jax.Array:
  """[B, ...] -> [parts, B / parts, ...]."""
  x = x.reshape(parts, -1, *x.shape[1:])
  return constrain(x, *(DATA, *(None,) * (x.ndim - 1)))


def each_part_of(fn: Callable[..., Any], *rows: jax.Array) -> Any:
  """each_part for plain arrays [R, ...]: fn(*part of each, Whole).

  Rows that the mesh does not divide stay together.
  """
  count = sharding.parts()
  if count == 1 or len(rows[0]) % count:
    return fn(*rows, Whole())
  cut = [_cut(x, count) for x in rows]
  return _over(lambda *part: fn(*part, _TOGETHER), 0, None)(*cut)


def each_rows(fn: Callable[..., Any], *rows: Any) -> Any:
  """fn of a part of arrays [R, ...] at a time; [R, ...] again.

  R is a multiple of the parts that the mesh in use has.
  """
  count = sharding.parts()
  if count == 1:
    return fn(*rows)
  cut = [_cut(x, count) for x in rows]
  out = _over(fn, 0, 0)(*cut)
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)


def each_layer(fn: Callable[..., Any], *stacked: Any) -> Any:
  """fn of one layer after the other, of trees with leaves [E, ...].

  For what decomposes matrices: vmapped, LAPACK takes several layers at once,
  and on several simulated devices each call waits for ever for threads that all
  devices share.
  """
  return jax.lax.map(lambda layer: fn(*layer), stacked)


def _parts(batch: EditBatch) -> EditBatch:
  """Leaves of requests as [parts, B / parts, ...]."""
  count = batch.parts
  fields = {n: _cut(getattr(batch, n), count) for n in _OF_REQUESTS}
  held = batch.validation
  return dataclasses.replace(
    batch,
    **fields,
    budget=tuple(n // count for n in batch.budget),
    parts=1,
    validation=None if held is None else _parts(held),
  )


def _axes(batch: EditBatch) -> EditBatch:
  """Which axis of each leaf is that of parts."""
  held = batch.validation
  fields = dict.fromkeys(_OF_REQUESTS, 0)
  return dataclasses.replace(
    batch,
    **fields,
    prefix=None,
    prefix_len=None,
    validation=None if held is None else _axes(held),
  )


def specs(batches: EditBatch, on: Mesh) -> EditBatch:
  """NamedShardings of stacked batches [N, B, ...]: requests over 'data'."""

  def one(name):
    leaf = getattr(batches, name)
    axes = [None] * leaf.ndim
    if name in _OF_REQUESTS:
      axes[1] = DATA
    return NamedSharding(on, sharding.spec(leaf.shape, axes, on))

  held = batches.validation
  fields = {name: one(name) for name in (*_OF_REQUESTS, 'prefix', 'prefix_len')}
  return dataclasses.replace(
    batches,
    **fields,
    validation=None if held is None else specs(held, on),
  )
