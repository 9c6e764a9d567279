"""The devices a program runs on: one, all of this host, or those of many.

  python -m launch.edit --config.model_parallel=4          # a host with 8
  python -m launch.edit --distributed --workdir=...        # pods, Slurm
  python -m launch.edit --workdir=... --coordinator=HOST:PORT --processes=2 \\
    --process=0                                            # and 1 on the other

Every process runs the same command. What is written is written by the first;
folders (--workdir and the cache) must be the same for all.
"""

import contextlib
import os
import sys
import traceback

import jax
import jax.numpy as jnp
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from jedit import sharding
from jedit.models import load as models
from jedit.models.load import Loaded
from jedit.types import JeditError, Params

_DETECT = flags.DEFINE_bool(
  'distributed', False, 'One of many processes; the cluster says which.'
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', '', 'HOST:PORT of process 0, where no cluster says it.'
)
_COUNT = flags.DEFINE_integer('processes', 0, 'How many, with --coordinator.')
_NUMBER = flags.DEFINE_integer('process', 0, 'Which, with --coordinator.')


def connect() -> None:
  """Joins the other processes, if there are any."""
  told = _COORDINATOR.value
  if bool(told) != bool(_COUNT.value) or (told and _DETECT.value):
    raise JeditError(
      '--coordinator=HOST:PORT needs --processes=N and --process=I; without '
      'them --distributed asks the cluster'
    )
  if told and not 0 <= _NUMBER.value < _COUNT.value:
    raise JeditError(f'--process={_NUMBER.value}: from 0 to --processes - 1')
  try:
    if told:
      jax.distributed.initialize(told, _COUNT.value, _NUMBER.value)
    elif _DETECT.value:
      jax.distributed.initialize()
  except (RuntimeError, ValueError) as e:
    raise JeditError(f'--distributed: {" ".join(str(e).split())}') from e


@contextlib.contextmanager
def together():
  """One process that fails ends all: the others would wait for it for long."""
  try:
    yield
  except BaseException as e:
    if jax.process_count() == 1:
      raise
    if isinstance(e, JeditError):
      print(f'error: {e}', file=sys.stderr)
    else:
      traceback.print_exc()
    sys.stderr.flush()
    os._exit(2)  # leaving as usual would wait for the others, too


def use(config: ConfigDict):
  """A context with the mesh of a config; nothing on a single device."""
  data, model, there = (
    config.data_parallel,
    config.model_parallel,
    jax.devices(),
  )
  if data < 0 or model < 1 or max(data, 1) * model > len(there):
    raise JeditError(
      f'config.data_parallel={data}, config.model_parallel={model}: there are '
      f'{len(there)} devices'
    )
  some = there[: data * model] if data else there
  if len(some) < len(there) and jax.process_count() > 1:
    raise JeditError(
      f'config.data_parallel={data}: several processes use all their '
      f'{len(there)} devices; 0 does'
    )
  if len(some) == 1:
    return contextlib.nullcontext()
  return jax.set_mesh(sharding.mesh(data, model, some))


def load(config: ConfigDict, source: str) -> Loaded:
  """Opens a model; on a mesh every device reads its part of the weights."""
  if not sharding.shape():
    return models.load(source)
  return models.load(source, sharding.placer(fsdp=config.fsdp))


def put(config: ConfigDict, loaded: Loaded) -> Params:
  """The params of a model on the devices in use."""
  if not sharding.shape():
    return jax.tree.map(jnp.asarray, loaded.params)
  on = jax.sharding.get_mesh()
  where = sharding.specs(loaded.model.config, loaded.params, on, config.fsdp)
  here = lambda x, s: x if isinstance(x, jax.Array) else sharding.place(x, s)
  return jax.tree.map(here, loaded.params, where)


def agreed(fact: bool) -> bool:
  """What the first process sees, on all of them: files come and go."""
  if jax.process_count() == 1:
    return fact
  return bool(multihost_utils.broadcast_one_to_all(jnp.asarray(fact)))


def wait(where: str) -> None:
  """Until all processes are here, so that what one wrote can be read."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(where)
