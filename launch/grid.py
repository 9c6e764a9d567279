"""A grid over config fields, from what a flag says."""

import ast
import itertools
import re
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from jedit.types import JeditError


def points(
  config: ConfigDict,
  axes: Sequence[str],
  of: Callable[[str], ConfigDict] | None = None,
) -> dict[str, ConfigDict]:
  """The config of each point of a grid, under a name fit for a folder.

  Args:
    config: what all have in common.
    axes: FIELD=VALUE,VALUE,... each.
    of: the config of another method, for an axis `method`.
  """
  for text in axes:
    field, _, listed = text.partition('=')
    if of and field == 'method':
      config = of(listed.partition(',')[0].strip())
  parsed = [_axis(config, text) for text in axes]
  out = {}
  for values in itertools.product(*(values for _, values in parsed)):
    fields = [field for field, _ in parsed]
    one = config.copy_and_resolve_references()
    if of and 'method' in fields:
      one = of(values[fields.index('method')])
    for field, value in zip(fields, values, strict=True):
      try:
        one.update_from_flattened_dict({field: value})
      except (TypeError, KeyError) as e:  # another method has not this field
        raise JeditError(f'--grid={field}={value!r}: {e}') from e
    # No commas: they part the names that launch.report is given.
    name = '__'.join(f'{f}={_value(one, f)}' for f in fields)
    name = re.sub(r'[^\w.=+-]', '', name.replace(', ', '-'))
    if name in out:
      raise JeditError(f'--grid: {name} comes twice')
    out[name] = one
  return out


def _axis(config: ConfigDict, text: str) -> tuple[str, list]:
  field, equals, listed = text.partition('=')
  if not equals or not listed.strip():
    raise JeditError(f'--grid={text}: write FIELD=VALUE,VALUE,...')
  now = _value(config, field)
  if isinstance(now, ConfigDict):
    known = ', '.join(f'{field}.{name}' for name in now)
    raise JeditError(f'--grid={text}: name one of {known or "another field"}')
  if isinstance(now, str):
    return field, [value.strip() for value in listed.split(',')]
  try:
    endless = re.sub(r'\binf\b', '1e999', listed)  # as a flag takes it
    return field, ast.literal_eval(f'[{endless}]')
  except (SyntaxError, ValueError) as e:
    raise JeditError(
      f'--grid={text}: write values as Python does, like {now!r}'
    ) from e


def _value(config: ConfigDict, field: str):
  """A field's value, by its dotted name."""
  for part in field.split('.'):
    if not isinstance(config, ConfigDict) or part not in config:
      raise JeditError(
        f'--grid: the config has no field {field!r}; configs/base.py lists them'
      )
    config = config[part]
  return config
