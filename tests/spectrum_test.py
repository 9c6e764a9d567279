"""Eigenvectors that are read are those that were made; damage is noticed."""

import numpy as np

from jedit import condition, spectrum
from jedit.types import SecondMoment


def test_a_spectrum_is_kept(tmp_path):
  x = np.random.default_rng(0).normal(size=(2, 40, 7)).astype(np.float32)
  moment = SecondMoment(x.swapaxes(1, 2) @ x / 40, np.float32(40))
  kept, paths = [], [tmp_path / f'{e}.npy' for e in range(2)]
  for path, made, c in zip(
    paths, spectrum.of(moment), moment.moment, strict=True
  ):
    assert spectrum.load(path, c) is None
    spectrum.save(path, made)
    kept.append(spectrum.load(path, c))
    values, vectors = kept[-1]
    np.testing.assert_allclose(vectors * values @ vectors.T, c, atol=1e-5)
  assert sorted(tmp_path.iterdir()) == paths
  kept = moment._replace(spectrum=tuple(kept))
  for prior in (
    lambda m: condition.ridge_prior(m, 3.0),
    lambda m: condition.null_space_prior(m, 10.0, 1.0)[0],
  ):
    np.testing.assert_array_equal(prior(kept), prior(moment))
  assert spectrum.load(paths[0], moment.moment[1]) is None
  whole = paths[0].read_bytes()
  for damaged in whole[:-9], whole[:200] + bytes(len(whole) - 200):
    paths[0].write_bytes(damaged)
    assert spectrum.load(paths[0], moment.moment[0]) is None
