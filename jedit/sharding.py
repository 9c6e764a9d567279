"""Meshes: how params and priors lie on many devices.

A mesh has two axes: facts are split over 'data' (parts.py), matrices over
'model'. What runs is the same program as on one device; the compiler adds what
the devices have to tell each other.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jedit.types import JeditError, Params

DATA, MODEL = 'data', 'model'

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
  if not shape():
    return x
  return jax.lax.with_sharding_constraint(x, spec(x.shape, axes))


def spec(size, axes, on: Mesh | None = None) -> PartitionSpec:
  """PartitionSpec of the last axes of a leaf; the first ones stay whole.

  Args:
    size: shape of the leaf.
    axes: of the mesh, for each of its last axes.
    on: the mesh; the one in use by default.
  """
  sizes = shape(on)
  axes = (None,) * (len(size) - len(axes)) + tuple(axes)

  def fits(length, axis):
    names = (axis,) if isinstance(axis, str) else axis or ()
    times = int(np.prod([sizes.get(n, 1) for n in names]))
    fit = times > 1 and length % times == 0 and set(names) <= set(sizes)
    return axis if fit else None

  return PartitionSpec(*map(fits, size, axes))


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
    return NamedSharding(on, spec(leaf.shape, axes, on))

  return jax.tree_util.tree_map_with_path(one, params)


def place(tree: Any, shardings: Any) -> Any:
  """NumPy arrays, the same on every host, as arrays on the mesh.

  Each host puts what its own devices hold.
  """

  def one(x, sharding):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(one, tree, shardings)


def writes() -> bool:
  """Whether this process writes; of several, the first does."""
  return jax.process_index() == 0


def fetch(tree: Any) -> Any:
  """Arrays as NumPy, whole, on every host."""

  def one(x):
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
      return np.asarray(x)
    if x.is_fully_replicated:
      return np.asarray(x.addressable_data(0))
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(one, tree)


def interleaved(rows: list[list[int]], count: int) -> list[list[int]]:
  """All rows of integers, of which process p of n has p, p + n, p + 2n, ...

  Args:
    rows: those of this process.
    count: of all.
  """
  processes = jax.process_count()
  if processes == 1:
    return rows
  # Powers of two: gathering compiles a program for each size.
  room = lambda n: 1 << max(int(n) - 1, 0).bit_length()
  sizes = np.zeros(room(-(-count // processes)), np.int32)
  sizes[: len(rows)] = [len(row) for row in rows]
  sizes = multihost_utils.process_allgather(sizes)
  flat = np.zeros(room(sizes.sum(1).max()), np.int32)
  flat[: sum(map(len, rows))] = [i for row in rows for i in row]
  flat = multihost_utils.process_allgather(flat)
  ends = sizes.cumsum(1)
  return [
    flat[p, ends[p, i] - sizes[p, i] : ends[p, i]].tolist()
    for i, p in (divmod(n, processes) for n in range(count))
  ]


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
      return place(x, NamedSharding(on, spec(x.shape, axes, on)))
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
