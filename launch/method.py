"""The method a config names: an editor and what is chained behind it."""

import functools

import numpy as np
import optax
from ml_collections import ConfigDict

from configs import base
from jedit import editors, hypernetwork, updates, values
from jedit.models.load import Loaded
from jedit.types import JeditError, SecondMoment


def build(config: ConfigDict, loaded: Loaded, moment):
  """The editor a config names, its arguments checked."""
  check(config)
  arguments = config.editor.to_dict()
  name = arguments.pop('name')
  if base.needs(name, 'network'):
    arguments['network'] = _network(config)
  if base.needs(name, 'optimise'):
    optimise = values.optimiser(loaded.model, **config.optimiser)
    arguments['optimise'] = optimise
  make = functools.partial(getattr(editors, name), loaded.model, **arguments)
  chain = lambda editor: optax.chain(editor, *behind) if behind else editor
  behind = _behind(config)
  if not base.needs(name, 'moment'):
    return chain(make())
  host = lambda moment: chain(make(moment))
  wrapped = base.parse(config.method)[2][-1:] == ['blue']
  return editors.blue(host, moment) if wrapped else host(moment)


def rehearse(config: ConfigDict, loaded: Loaded):
  """The editor on made-up moments: bad values show before real ones are made.

  They are of keys [2]; all that moments decide is in the state that it starts
  from.
  """
  lo, hi = config.layers
  made_up = np.tile(np.diag([0.0, 1.0]).astype(np.float32), (hi - lo + 1, 1, 1))
  return build(config, loaded, SecondMoment(made_up, np.ones(())))


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


def check_network(config: ConfigDict, base_hash: str) -> None:
  """Refuses a network that was trained on other weights than those edited."""
  if not config.network:
    return
  trained = hypernetwork.load(config.network)[1]
  if trained['base_hash'] != base_hash:
    raise JeditError(
      f'config.network={config.network} is trained on other weights '
      f'({trained["model"]}): choose that model, or train another network'
    )


def needs_moment(config: ConfigDict) -> bool:
  """Whether the editor takes second moments."""
  return base.needs(config.editor.name, 'moment')


def needs_validation(config: ConfigDict) -> bool:
  """Whether the editor chooses by validation rows."""
  return bool(config.editor.get('smooth', False))


def _behind(config: ConfigDict) -> list[optax.GradientTransformation]:
  """The transformations behind the editor."""
  out = []
  for name in base.parse(config.method)[2]:
    if name == 'blue':
      continue
    arguments = config.updates[name].to_dict()
    if name == 'fuse' and not arguments['size']:
      solved = base.needs(config.editor.name, 'optimise')
      size = config.batch_size if solved else 1_000_000  # no bound: exact
      arguments['size'] = max(arguments['rank'], size)
    out.append(getattr(updates, name)(**arguments))
  return out


def check(config: ConfigDict) -> None:
  """JeditError for an unknown method, or an argument it does not take."""
  try:
    name, _, behind = base.parse(config.method)
  except ValueError as e:
    raise JeditError(str(e)) from e
  if config.editor.get('name') != name or set(config.updates) != set(behind) - {
    'blue'
  }:
    raise JeditError(
      f'config.method={config.method!r} is not the method that the config was '
      'made for; choose it as --config=FILE:METHOD'
    )
  arguments = config.editor.to_dict()
  del arguments['name']
  engine = values.optimiser if base.needs(name, 'optimise') else lambda: None
  for field, given, function in (
    ('editor', arguments, getattr(editors, name)),
    ('optimiser', config.optimiser, engine),
    *(
      (f'updates.{n}', args, getattr(updates, n))
      for n, args in config.updates.items()
    ),
  ):
    takes = base.defaults(function)
    wrong = sorted(set(given) - set(takes))
    if wrong:
      raise JeditError(
        f'config.{field}.{wrong[0]}: {config.method} takes '
        f'{", ".join(takes) or "none"}'
      )
  if config.validation not in ('contexts', 'test_prompts'):
    raise JeditError(
      f'config.validation={config.validation!r}: contexts or test_prompts'
    )
  for field, least in (
    ('spoken', 0), ('eval_records', 0), ('curve_records', 1),
    ('checkpoint_every', 1),
  ):  # fmt: skip
    if config[field] < least:
      raise JeditError(f'config.{field}={config[field]}: at least {least}')
  if not all(isinstance(n, int) and n > 0 for n in config.curve_at):
    raise JeditError(
      f'config.curve_at={tuple(config.curve_at)}: numbers of edits, like '
      '100,500,1000'
    )
  if config.references and not config.spoken:
    raise JeditError(
      'config.references: consistency is measured of config.spoken records; '
      'set it above 0'
    )
  _behind(config)  # refuses bad arguments before anything is computed
