"""The method a config names: an editor and what is chained behind it."""

import inspect

import optax
from ml_collections import ConfigDict

from configs import base
from jedit import editors, hypernetwork, updates, values
from jedit.models.load import Loaded
from jedit.types import JeditError


def build(config: ConfigDict, loaded: Loaded, moment):
  """The editor a config names, its arguments checked."""
  check(config)
  arguments = config.editor.to_dict()
  make = getattr(editors, arguments.pop('name'))
  takes = inspect.signature(make).parameters
  if 'moment' in takes:
    arguments['moment'] = moment
  if 'network' in takes:
    arguments['network'] = _network(config)
  if 'optimise' in takes:
    optimise = values.optimiser(loaded.model, **config.optimiser)
    arguments['optimise'] = optimise
  editor = make(loaded.model, **arguments)
  behind = _behind(config)
  return optax.chain(editor, *behind) if behind else editor


def _network(config: ConfigDict) -> hypernetwork.Network:
  """MEND's, trained for the layers that are edited."""
  if not config.network:
    raise JeditError(
      'config.network: name the folder of a network that launch.train_mend has '
      'trained'
    )
  network, about = hypernetwork.load(config.network)
  if about['layers'] != list(config.layers):
    raise JeditError(
      f'config.network={config.network} is trained for layers '
      f'{about["layers"]}, config.layers={tuple(config.layers)}: choose these, '
      'or train another'
    )
  return network


def needs_moment(config: ConfigDict) -> bool:
  """Whether the editor takes second moments."""
  editor = getattr(editors, base.parse(config.method)[0])
  return 'moment' in inspect.signature(editor).parameters


def _behind(config: ConfigDict) -> list[optax.GradientTransformation]:
  """The transformations behind the editor."""
  out = []
  for name in base.parse(config.method)[2]:
    arguments = config.updates[name].to_dict()
    if name == 'fuse' and not arguments['size']:
      arguments['size'] = max(arguments['rank'], config.batch_size)
    out.append(getattr(updates, name)(**arguments))
  return out


def check(config: ConfigDict) -> None:
  """JeditError for an unknown method, or an argument it does not take."""
  try:
    name, _, behind = base.parse(config.method)
  except ValueError as e:
    raise JeditError(str(e)) from e
  if config.editor.get('name') != name or set(config.updates) != set(behind):
    raise JeditError(
      f'config.method={config.method!r} is not the method that the config was '
      'made for; choose it as --config=FILE:METHOD'
    )
  arguments = config.editor.to_dict()
  del arguments['name']
  for field, given, function in (
    ('editor', arguments, getattr(editors, name)),
    ('optimiser', config.optimiser, values.optimiser),
    *(
      (f'updates.{n}', args, getattr(updates, n))
      for n, args in config.updates.items()
    ),
  ):
    takes = base.defaults(function)
    wrong = sorted(set(given) - set(takes))
    if wrong:
      raise JeditError(
        f'config.{field}.{wrong[0]}: {config.method} takes {", ".join(takes)}'
      )
  _behind(config)  # refuses bad arguments before anything is computed
