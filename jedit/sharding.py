"""Meshes: how params, facts and priors lie on many devices.

A mesh has two axes: facts are split over 'data', matrices over 'model'. What
runs is the same program as on one device; the compiler adds what the devices
have to tell each other. Facts do not interact until a layer is solved, so a
batch made for a number of parts (prompts.edit_batches, `parts`) is packed part
by part, and a layer's keys and residuals are all that is ever gathered of it.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jedit.types import EditBatch, JeditError, Params

DATA, MODEL = 'data', 'model'
_FACTS = 'facts'  # the axis of parts, inside each_part

# A regular expression of a path in params -> what the last axes of the leaf
# are; layers are stacked before them. 'model' is split over that axis; 'heads'
# and 'groups' (of keys and values), too, where whole ones go to each device;
# 'rest' is split over 'data' where weights are to be (fsdp), else it is whole.
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
  ('embed/tokens', ('model', 'rest')),
  ('head/kernel', ('rest', 'model')),
  ('head/bias', ('model',)),
  ('.*attn/q/kernel', ('rest', 'heads')),
  ('.*attn/q/bias', ('heads',)),
  ('.*attn/[kv]/kernel', ('rest', 'groups')),
  ('.*attn/[kv]/bias', ('groups',)),
  ('.*(attn/qkv|mlp/gate|mlp/up)/kernel', ('rest', 'model')),
  ('.*(attn/qkv|mlp/gate|mlp/up)/bias', ('model',)),
  ('.*attn/out/kernel', ('heads', 'rest')),
  ('.*mlp/down/kernel', ('model', 'rest')),
  ('.*', ()),
)
# Rows of a [F, ..] matrix of the solve: over all devices.
ROWS = DATA, MODEL


def mesh(
  data: int = 0, model: int = 1, devices: Sequence | None = None
) -> Mesh:
  """A mesh of axes 'data' and 'model'; use it by `with jax.set_mesh(mesh):`.

  Args:
    data: parts a batch of facts is split into; 0: all devices there are, over
      `model`.
    model: parts each matrix is split into.
    devices: jax.devices() by default.
  """
  devices = jax.devices() if devices is None else devices
  if model < 1 or data < 0 or len(devices) % model:
    raise JeditError(
      f'mesh of data={data}, model={model}: model must divide the number of '
      f'devices, {len(devices)}'
    )
  data = data or len(devices) // model
  if data * model != len(devices):
    raise JeditError(
      f'mesh of data={data}, model={model} is for {data * model} devices, here '
      f'are {len(devices)}; data=0 takes them all'
    )
  return jax.make_mesh(
    (data, model), (DATA, MODEL), (AxisType.Auto,) * 2, devices=devices
  )


def shape(on: Mesh | None = None) -> dict[str, int]:
  """Sizes of the axes of a mesh, or of the one in use; {} without one."""
  return dict((on or jax.sharding.get_abstract_mesh()).shape)


def count() -> int:
  """Devices of the mesh in use; 1 without one."""
  return int(np.prod(list(shape().values())))


def parts() -> int:
  """How many parts facts and rows are split into on the mesh in use."""
  return shape().get(DATA, 1)


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
  """x laid out like this on the mesh in use; x without one.

  An axis of x that the mesh's do not divide stays whole.
  """
  sizes = shape()
  if not sizes:
    return x
  return jax.lax.with_sharding_constraint(x, _spec(x.shape, axes, sizes))


def _spec(shape, axes, sizes) -> PartitionSpec:
  """PartitionSpec of the last axes of a leaf; the first ones stay whole."""
  axes = (None,) * (len(shape) - len(axes)) + tuple(axes)

  def fits(size, axis):
    names = (axis,) if isinstance(axis, str) else axis or ()
    times = int(np.prod([sizes.get(n, 1) for n in names]))
    fit = times > 1 and size % times == 0 and set(names) <= set(sizes)
    return axis if fit else None

  return PartitionSpec(*map(fits, shape, axes))


def specs(config: Any, params: Params, on: Mesh, fsdp: bool = False) -> Params:
  """NamedSharding of every leaf of params, split or not, by RULES.

  Args:
    config: of the model (models.layers.Config): heads and groups of them.
    params: arrays or their shapes.
    on: the mesh.
    fsdp: split weights over 'data', too; each layer is gathered when it runs.
  """
  sizes = shape(on)
  divides = lambda count: None if count % sizes.get(MODEL, 1) else MODEL
  means = {
    'model': MODEL,
    'heads': divides(config.num_heads),
    'groups': divides(config.num_kv_heads),
    'rest': DATA if fsdp else None,
  }

  def one(path, leaf):
    name = '/'.join(str(getattr(k, 'key', k)) for k in path)
    axes = next(axes for rule, axes in RULES if re.fullmatch(rule, name))
    axes = [means[axis] for axis in axes]
    return NamedSharding(on, _spec(leaf.shape, axes, sizes))

  return jax.tree_util.tree_map_with_path(one, params)


def place(tree: Any, shardings: Any) -> Any:
  """NumPy arrays, the same on every host, as arrays on the mesh.

  Each host puts what its own devices hold.
  """

  def one(x, sharding):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(one, tree, shardings)


def fetch(tree: Any) -> Any:
  """Arrays as NumPy, whole, on every host."""

  def one(x):
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
      return np.asarray(x)
    if x.is_fully_replicated:
      return np.asarray(x.addressable_data(0))
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(one, tree)


def by_rows(prior: Any, width: int) -> Any:
  """What a solve starts from, its axis of `width` (F) over all devices.

  Leaves [.., F, r] or [.., n, F]; others are whole everywhere.
  """

  def one(x):
    axes = [ROWS if n == width else None for n in x.shape[-2:]]
    if all(axes) and len(axes) == 2:
      axes[1] = None
    if isinstance(x, np.ndarray) and shape():
      try:
        on = jax.sharding.get_mesh()
      except ValueError:  # traced: what the devices are is not known yet
        return constrain(jnp.asarray(x), *axes)
      return place(x, NamedSharding(on, _spec(x.shape, axes, shape(on))))
    return constrain(jnp.asarray(x), *axes)

  return jax.tree.map(one, prior)


def placer(on: Mesh | None = None, fsdp: bool = False) -> Callable:
  """jedit.load's `place` for a mesh: a device reads the part that it holds.

  Args:
    on: the mesh; by default the one in use.
    fsdp: see specs.
  """
  on = on or jax.sharding.get_mesh()

  def place(config, path, shape, dtype, read):
    leaf = jax.ShapeDtypeStruct(shape, dtype)
    where = specs(config, {path: leaf}, on, fsdp)[path]
    holders, parts = {}, []
    for device, index in where.addressable_devices_indices_map(shape).items():
      holders.setdefault(str(index), (index, []))[1].append(device)
    for index, devices in holders.values():  # one part at a time on the host
      part = read(index)
      parts += [jax.device_put(part, device) for device in devices]
      jax.block_until_ready(parts[-len(devices) :])
    return jax.make_array_from_single_device_arrays(shape, where, parts)

  return place


class Whole(NamedTuple):
  """From a part of a batch to all of it; the identity where there is one part.

  Attributes:
    gather: [b, ...] of the part's requests -> [B, ...] of all.
    sum: over parts.
  """

  gather: Callable[[jax.Array], jax.Array] = lambda x: x
  sum: Callable[[jax.Array], jax.Array] = lambda x: x


def _gather(x):
  x = jax.lax.all_gather(x, _FACTS, tiled=True)
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
  on = DATA if parts() > 1 else None
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
  count = parts()
  if count == 1 or len(rows[0]) % count:
    return fn(*rows, Whole())
  cut = [_cut(x, count) for x in rows]
  return _over(lambda *part: fn(*part, _TOGETHER), 0, None)(*cut)


def each_rows(fn: Callable[..., Any], parts: int, *rows: Any) -> Any:
  """fn of arrays [R, ...], of R / parts rows at a time; [R, ...] again."""
  if parts == 1:
    return fn(*rows)
  cut = jax.tree.map(lambda x: _cut(x, parts), rows)
  out = _over(fn, 0, 0)(*cut)
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)


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


_OF_REQUESTS = 'head', 'head_len', 'tail', 'tail_len', 'label', 'valid'


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


def batch_specs(batches: EditBatch, on: Mesh) -> EditBatch:
  """NamedShardings of stacked batches [N, B, ...]: requests over 'data'."""
  sizes = shape(on)

  def one(name):
    leaf = getattr(batches, name)
    axes = [None] * leaf.ndim
    if name in _OF_REQUESTS:
      axes[1] = DATA
    return NamedSharding(on, _spec(leaf.shape, axes, sizes))

  held = batches.validation
  fields = {name: one(name) for name in (*_OF_REQUESTS, 'prefix', 'prefix_len')}
  return dataclasses.replace(
    batches,
    **fields,
    validation=None if held is None else batch_specs(held, on),
  )
