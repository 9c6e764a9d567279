"""Text files, gzip or not, JSON in both of its layouts; writing whole files."""

import contextlib
import glob
import gzip
import io
import itertools
import json
import os
import pathlib
import re
import time
import zlib
from collections.abc import Iterable

import huggingface_hub
import safetensors
import safetensors.numpy

from jedit.types import JeditError

_HUB = re.compile(r'hub:([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?/(.+)')


def local(path: str | os.PathLike) -> pathlib.Path:
  """A file that is here; hub:OWNER/NAME[@REVISION]/FILE is fetched first.

  The latter is of a data set on the Hugging Face hub, and is kept where that
  library keeps its files.
  """
  text = os.fspath(path)
  if text.startswith('hub:'):
    name = _HUB.fullmatch(text)
    if name is None:
      raise JeditError(f'{text}: write hub:OWNER/NAME[@REVISION]/FILE')
    repo, revision, file = name.groups()
    try:
      path = huggingface_hub.hf_hub_download(
        repo, file, repo_type='dataset', revision=revision
      )
    except Exception as e:
      raise JeditError(
        f'{text}: the hub does not give it ({type(e).__name__}); check the '
        'name, or give a file that is here'
      ) from e
  path = pathlib.Path(path)
  if not path.is_file():
    raise JeditError(f'{path}: no such file')
  return path


def part_of(path: pathlib.Path) -> pathlib.Path:
  """The name under which this process writes a file before it is whole."""
  return path.with_name(f'{path.name}.{os.getpid()}.part')


def on_disk(path: pathlib.Path) -> None:
  """Waits until a file's bytes, or a folder's names, outlive the power."""
  number = os.open(path, os.O_RDONLY)
  try:
    os.fsync(number)
  finally:
    os.close(number)


_STALE = 24 * 3600  # seconds


@contextlib.contextmanager
def whole(path: pathlib.Path):
  """A binary file to write, which is there when it is whole, or not at all.

  What processes that were killed have left of it goes after a day.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  for old in path.parent.glob(f'{glob.escape(path.name)}.*.part'):
    with contextlib.suppress(OSError):  # another process was first
      if time.time() - old.stat().st_mtime > _STALE:
        old.unlink()
  part = part_of(path)
  try:
    with part.open('wb') as f:
      yield f
      f.flush()
      os.fsync(f.fileno())
    part.rename(path)
  finally:
    part.unlink(missing_ok=True)


def save_tensors(path: pathlib.Path, tensors, **kwargs) -> None:
  """A safetensors file; a full disk is a JeditError."""
  try:
    safetensors.numpy.save_file(tensors, path, **kwargs)
  except safetensors.SafetensorError as e:
    raise unwritten(path, e) from e


def unwritten(path: pathlib.Path, reason: Exception) -> JeditError:
  """What to say of a file or folder that could not be written."""
  return JeditError(
    f'{path} cannot be written: {reason}; if the disk is full, free space and '
    'run the same command again'
  )


def open_text(path: str | os.PathLike):
  """A text file in UTF-8, gzip or not, with a byte-order mark or without."""
  path = local(path)
  with path.open('rb') as f:
    packed = f.read(2) == b'\x1f\x8b'
  return (
    gzip.open(path, 'rt', encoding='utf-8-sig')
    if packed
    else path.open(encoding='utf-8-sig')
  )


def read_json(path: str | os.PathLike) -> Iterable[tuple[str, object]]:
  """(place, record) of a JSON list or lines; a JeditError for a bad line."""
  try:
    with open_text(path) as f:
      start = ''
      while not start.strip() and (line := f.readline()):
        start += line
      if start.lstrip()[:1] == '[':
        records = _list(path, start + f.read())
        yield from ((f'{path} item {i}', r) for i, r in enumerate(records))
        return
      lines = itertools.chain(io.StringIO(start), f)  # not all at once
      for number, line in enumerate(lines, 1):
        if line.strip():
          yield _line(f'{path} line {number}', line)
  except (OSError, UnicodeDecodeError, EOFError, zlib.error) as e:
    raise JeditError(f'{path}: cannot be read as text: {e}') from e


def _list(path, text: str) -> list:
  try:
    return json.loads(text)
  except ValueError as e:
    raise JeditError(f'{path}: not a JSON list: {e}') from e


def _line(where: str, text: str) -> tuple[str, object]:
  try:
    return where, json.loads(text)
  except ValueError as e:
    bad = JeditError(f'{where}: not JSON ({e}); mend or remove the line')
    return where, bad
