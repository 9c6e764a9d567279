"""Where the time of a program went.

  python -m launch.edit --profile=FOLDER --config.num_edits=20

Writes the profiler's trace (for Perfetto or TensorBoard) and profile.json, the
seconds of every operation by compiled program, and prints the largest. For
short runs: every operation is an entry.
"""

import collections
import contextlib
import json
import pathlib
import re

import jax
from absl import flags
from jax.profiler import ProfileData, ProfileOptions

from jedit import checkpoint, sharding

_FOLDER = flags.DEFINE_string(
  'profile', '', 'Folder for a profile; "" is none.'
)
_LINES, _OPERATIONS = 8, 4
# What only waits for operations of its own.
_AROUND = re.compile(r'(while|call|conditional)\b.*')


@contextlib.contextmanager
def watched():
  """What runs inside is profiled, if --profile says so."""
  folder = _FOLDER.value
  if not folder:
    yield
    return
  options = ProfileOptions()
  options.python_tracer_level = 0
  with jax.profiler.trace(folder, profiler_options=options):
    yield
  if sharding.writes():
    found = seconds(folder)
    path = pathlib.Path(folder) / 'profile.json'
    checkpoint.write_text(path, json.dumps(found, indent=2) + '\n')
    print(table(found), flush=True)


def seconds(folder: str) -> dict[str, dict[str, float]]:
  """{program: {operation: seconds}} of the newest trace, the largest first.

  Seconds of all threads or streams together.
  """
  files = sorted(
    pathlib.Path(folder).rglob('*.xplane.pb'), key=lambda p: p.stat().st_mtime
  )
  spent = collections.defaultdict(collections.Counter)
  for plane in ProfileData.from_file(str(files[-1])).planes:
    for line in plane.lines:
      for event in line.events:
        about = dict(event.stats)
        name = about.get('hlo_op')
        if name and not _AROUND.fullmatch(name):
          spent[about.get('hlo_module', '?')][name] += event.duration_ns / 1e9
  order = sorted(spent, key=lambda program: -spent[program].total())
  return {program: dict(spent[program].most_common()) for program in order}


def table(found: dict[str, dict[str, float]]) -> str:
  """The largest programs, and the largest operations of each."""
  whole = sum(sum(part.values()) for part in found.values()) or 1.0
  lines = ['seconds of operations, all threads together:']
  for program, part in list(found.items())[:_LINES]:
    total = sum(part.values())
    largest = list(part.items())[:_OPERATIONS]
    listed = ', '.join(f'{name} {value:.1f}' for name, value in largest)
    lines.append(f'{total:>9.1f} {total / whole:>5.0%}  {program}  ({listed})')
  return '\n'.join(lines)
