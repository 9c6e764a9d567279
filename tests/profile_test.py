"""Where the time of a program went."""

import json

import jax
import jax.numpy as jnp
from absl import flags
from absl.testing import flagsaver

from launch import profile


def test_time_is_that_of_the_programs(tmp_path, capsys):
  flags.FLAGS.mark_as_parsed()

  def large(x):
    return jax.lax.fori_loop(0, 9, lambda _, x: jnp.tanh(x @ x), x)

  def small(x):
    return jnp.sin(x[:2])

  x = jnp.eye(300)
  programs = [jax.jit(f).lower(x).compile() for f in (large, small)]
  with flagsaver.flagsaver(profile=str(tmp_path)), profile.watched():
    for program in programs:
      program(x).block_until_ready()
  found = json.loads((tmp_path / 'profile.json').read_text())
  assert list(found) == ['jit_large', 'jit_small']  # the longer one first
  parts = list(found['jit_large'].values())
  assert parts == sorted(parts, reverse=True) and parts[0] > 0
  assert not any(name.startswith('while') for name in found['jit_large'])
  assert 'jit_large' in capsys.readouterr().out


def test_without_the_flag_nothing_is_written(tmp_path):
  flags.FLAGS.mark_as_parsed()
  with profile.watched():
    pass
  assert not list(tmp_path.iterdir())
