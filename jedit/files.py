"""Text files, gzip or not, and JSON in both of its usual layouts."""

import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Iterable

from jedit.types import JeditError


def open_text(path: str | os.PathLike):
  """A text file, gzip or not."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise JeditError(f'{path}: no such file')
  with path.open('rb') as f:
    packed = f.read(2) == b'\x1f\x8b'
  return (
    gzip.open(path, 'rt', encoding='utf-8')
    if packed
    else path.open(encoding='utf-8')
  )


def read_json(path: str | os.PathLike) -> Iterable[tuple[str, object]]:
  """(place, record) of a JSON list or lines; a JeditError for a bad line."""
  try:
    with open_text(path) as f:
      text = f.read()
  except (OSError, UnicodeDecodeError, EOFError, zlib.error) as e:
    raise JeditError(f'{path}: cannot be read as text: {e}') from e
  if text.lstrip()[:1] == '[':
    try:
      records = json.loads(text)
    except ValueError as e:
      raise JeditError(f'{path}: not a JSON list: {e}') from e
    yield from ((f'{path} item {i}', r) for i, r in enumerate(records))
    return
  for number, line in enumerate(text.split('\n'), 1):
    if line.strip():
      try:
        yield f'{path} line {number}', json.loads(line)
      except ValueError as e:
        yield (
          f'{path} line {number}',
          JeditError(
            f'{path} line {number}: not JSON ({e}); mend or remove the line'
          ),
        )
