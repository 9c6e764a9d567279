"""condition() against every paper's equation, in float64."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jedit import condition, spectrum
from jedit.types import JeditError, SecondMoment
from tests import oracle

_CLOSE = 1e-10
_SIZES = dict(
  seed=st.integers(0, 10**6),
  width=st.sampled_from([3, 24]),  # few shapes: each one compiles
  count=st.sampled_from([1, 2, 8]),
  out=st.sampled_from([1, 5]),
)


def x64(test):
  """Runs a test in float64 (hypothesis does not mix with fixtures)."""

  @functools.wraps(test)
  def run(*args, **kwargs):
    with jax.enable_x64(True):
      return test(*args, **kwargs)

  return run


def problem(seed, width, count, out):
  """A second moment of full rank, keys and residuals, all float64."""
  rng = np.random.default_rng(seed)
  text = rng.normal(size=(4 * width, width)) * np.geomspace(1, 0.1, width)
  moment = text.T @ text / len(text)
  return moment, rng.normal(size=(count, width)), rng.normal(size=(count, out))


def ridge_root(moment, weight):
  [(values, vectors)] = spectrum.decompose(moment[None])
  return vectors / np.sqrt(weight * values)


def null_root(moment, ridge, threshold):
  [(values, vectors)] = spectrum.decompose(moment[None])
  return vectors[:, values < threshold] / np.sqrt(ridge)


def solve(root, keys, residuals, noise):
  noise = np.broadcast_to(np.asarray(noise, np.float64), len(keys)).copy()
  out = condition.condition(
    *map(jax.numpy.asarray, (root, keys)),
    jax.numpy.asarray(residuals),
    jax.numpy.asarray(noise),
  )
  assert all(x.dtype == np.float64 for x in out)
  return [np.asarray(x) for x in out]


def apart(a, b):
  """Relative distance |a - b| / |b|."""
  return np.linalg.norm(a - b) / np.linalg.norm(b)


@x64
@given(**_SIZES)
def test_memit(seed, width, count, out):
  c, k, r = problem(seed, width, count, out)
  delta, _ = solve(ridge_root(c, 30.0), k, r, 1)
  assert apart(delta, oracle.memit(c, k, r, 30.0)) < _CLOSE


@x64
@given(**_SIZES)
def test_rome_is_one_exact_key(seed, width, count, out):
  c, k, r = problem(seed, width, 1, out)
  old = np.random.default_rng(count).normal(size=out)
  delta, _ = solve(ridge_root(c, 1.0), k, r, 0)
  assert apart(delta, oracle.rome(c, k[0], old, old + r[0])) < _CLOSE
  assert apart(k @ delta, r) < _CLOSE


@x64
@given(**_SIZES, ridge=st.sampled_from([0.1, 1.0, 10.0]))
def test_emmet(seed, width, count, out, ridge):
  c, k, r = problem(seed, width, count, out)
  noise = ridge if count > 1 else 0
  delta, _ = solve(ridge_root(c, 7.0), k, r, noise)
  assert apart(delta, oracle.emmet(c, k, r, 7.0, ridge)) < _CLOSE


@x64
@given(**_SIZES, left=st.integers(1, 5))
def test_pmet(seed, width, count, out, left):
  c, k, r = problem(seed, width, count, out)
  delta, _ = solve(ridge_root(c, 6.0), k, r / np.sqrt(left), 1)
  assert apart(delta, oracle.pmet(c, k, r, 6.0, left)) < _CLOSE


@x64
@given(**_SIZES, batches=st.integers(2, 6))
def test_memit_with_history(seed, width, count, out, batches):
  c, k, r = problem(seed, width, count * batches, out)
  root, past = ridge_root(c, 30.0), np.zeros_like(c)
  for i in range(batches):
    part = slice(i * count, (i + 1) * count)
    delta, root = solve(root, k[part], r[part], 1)
    assert apart(delta, oracle.memit(c, k[part], r[part], 30.0, past)) < _CLOSE
    past += k[part].T @ k[part]


@x64
@given(**_SIZES, batches=st.integers(1, 6), ridge=st.sampled_from([1.0, 10.0]))
def test_alphaedit(seed, width, count, out, batches, ridge):
  c, k, r = problem(seed, width, count * batches, out)
  threshold = np.median(np.linalg.eigvalsh(c)) * (1 + 1e-6)
  root = null_root(c, ridge, threshold)
  p, past = oracle.projector(c, threshold), np.zeros_like(c)
  for i in range(batches):
    part = slice(i * count, (i + 1) * count)
    delta, root = solve(root, k[part], r[part], 1)
    want = oracle.alphaedit(p, k[part], r[part], ridge, past)
    assert apart(delta, want) < _CLOSE
    past += k[part].T @ k[part]


@x64
@given(**_SIZES, batches=st.integers(1, 6))
def test_sequence_equals_one_batch(seed, width, count, out, batches):
  c, k, r = problem(seed, width, count * batches, out)
  root, total, values = ridge_root(c, 30.0), 0.0, r.copy()
  for i in range(batches):  # a later batch starts from the edited memory
    part = slice(i * count, (i + 1) * count)
    delta, root = solve(root, k[part], values[part], 1)
    total = total + delta
    values = r - k @ total
  whole, posterior = solve(ridge_root(c, 30.0), k, r, 1)
  assert apart(total, whole) < _CLOSE
  assert apart(root @ root.T, posterior @ posterior.T) < _CLOSE


@x64
@given(**_SIZES)
def test_order_of_requests_is_irrelevant(seed, width, count, out):
  c, k, r = problem(seed, width, count, out)
  noise = np.random.default_rng(seed).uniform(0.5, 2, count)
  order = np.random.default_rng(seed).permutation(count)
  delta, root = solve(ridge_root(c, 3.0), k, r, noise)
  other = solve(ridge_root(c, 3.0), k[order], r[order], noise[order])
  assert apart(other[0], delta) < _CLOSE
  assert apart(other[1] @ other[1].T, root @ root.T) < _CLOSE


@x64
@given(
  **_SIZES, padding=st.sampled_from([1, 4]), noise=st.sampled_from([0, 0.1, 1])
)
def test_padded_rows_are_inert(seed, width, count, out, padding, noise):
  count = min(count, width) if noise == 0 else count
  c, k, r = problem(seed, width, count, out)
  rng = np.random.default_rng(seed)
  order = rng.permutation(count + padding)
  full = lambda x, fill: np.concatenate([x, fill])[order]
  keys = full(k, np.zeros((padding, width)))
  values = full(r, rng.normal(size=(padding, out)))
  noises = full(np.full(count, float(noise)), np.ones(padding))
  delta, root = solve(ridge_root(c, 3.0), k, r, noise)
  padded = solve(ridge_root(c, 3.0), keys, values, noises)
  tight = _CLOSE if noise else 1e-8  # equality on random keys: ill-posed
  assert apart(padded[0], delta) < tight
  prior = ridge_root(c, 3.0)
  prior = prior @ prior.T  # with noise 0 the posterior itself may be 0
  gap = padded[1] @ padded[1].T - root @ root.T
  assert np.linalg.norm(gap) < tight * np.linalg.norm(prior)


@x64
def test_an_all_padded_batch_changes_nothing():
  c, _, _ = problem(0, 8, 1, 3)
  root = ridge_root(c, 3.0)
  delta, after = solve(root, np.zeros((4, 8)), np.ones((4, 3)), 1)
  assert not delta.any()
  np.testing.assert_array_equal(after, root)


@x64
@given(**_SIZES, columns=st.sampled_from([1, 30]))
def test_root_is_the_posterior_covariance(seed, width, count, out, columns):
  _, k, r = problem(seed, width, count, out)
  rng = np.random.default_rng(seed + 1)
  root = rng.normal(size=(width, columns))
  noise = rng.uniform(0.1, 2, count)
  before = root @ root.T
  _, after = solve(root, k, r, noise)
  after = after @ after.T
  size = np.linalg.norm(before)
  want = oracle.posterior(before, k, noise)
  assert np.linalg.norm(after - want) < _CLOSE * size
  eigenvalues = np.linalg.eigvalsh
  assert eigenvalues(after).min() > -1e-12 * size
  assert eigenvalues(before - after).min() > -1e-12 * size  # it only shrinks
  assert np.trace(k @ after @ k.T) < np.trace(k @ before @ k.T)


@x64
@given(seed=st.integers(0, 10**6), count=st.sampled_from([1, 2, 8]))
def test_no_noise_is_an_equality(seed, count):
  c, k, r = problem(seed, 24, count, 4)
  delta, root = solve(ridge_root(c, 2.0), k, r, 0)
  assert apart(k @ delta, r) < _CLOSE
  prior = ridge_root(c, 2.0)
  assert np.linalg.norm(k @ root) < _CLOSE * np.linalg.norm(k @ prior)


def test_float32_in_float32_out():
  c, k, r = problem(0, 8, 3, 2)
  single = lambda x: jax.numpy.asarray(x, np.float32)
  out = condition.condition(
    *map(single, (ridge_root(c, 3.0), k, r)), jax.numpy.ones(3)
  )
  assert all(x.dtype == np.float32 for x in out)
  assert apart(out[0], oracle.memit(c, k, r, 3.0)) < 1e-5


def moments(*spectra):
  """A SecondMoment with these eigenvalues, and their vectors."""
  rng, out, bases = np.random.default_rng(0), [], []
  for values in spectra:
    basis = np.linalg.qr(rng.normal(size=(len(values),) * 2))[0]
    out.append(basis * values @ basis.T)
    bases.append(basis)
  return SecondMoment(np.asarray(out, np.float32), np.float32(1)), bases


def test_ridge_prior():
  moment, _ = moments(np.geomspace(1, 0.01, 8), np.geomspace(9, 0.1, 8))
  root = condition.ridge_prior(moment, 5.0)
  assert root.dtype == np.float32 and root.shape == (2, 8, 8)
  want = np.linalg.inv(5 * moment.moment.astype(np.float64))
  assert apart(root @ root.swapaxes(1, 2), want) < 1e-5


def test_ridge_prior_with_a_penalty():
  moment = SecondMoment(np.eye(3)[None] * [1.0, 2.0, 4.0], 1.0)
  root = condition.ridge_prior(moment, 2.0, penalty=6.0)[0]
  want = np.diag([1 / 8, 1 / 10, 1 / 14])
  np.testing.assert_allclose(root @ root.T, want, atol=1e-7)


def test_ridge_prior_floor():
  moment, [basis] = moments(np.array([4.0, 1.0, 0.0, 0.0]))
  root = condition.ridge_prior(moment, 2.0, floor=0.125)[0]
  want = basis / (2 * np.array([4.0, 1.0, 0.5, 0.5])) @ basis.T
  assert apart(root @ root.T, want) < 1e-5
  default = condition.ridge_prior(moment, 2.0)[0]
  assert np.isfinite(default).all()
  np.testing.assert_allclose(
    np.linalg.norm(default, 2), (2 * 4e-9) ** -0.5, rtol=1e-4
  )


def test_null_space_prior():
  spectra = np.array([3, 1, 0.01, 0.001]), np.array([3, 0.019, 0.01, 0.001])
  moment, bases = moments(*spectra)
  root, share = condition.null_space_prior(moment, 10.0, 0.02)
  np.testing.assert_array_equal(share, [0.5, 0.75])
  assert root.dtype == np.float32 and root.shape == (2, 4, 3)
  for s, values, basis, c in zip(
    root, spectra, bases, moment.moment, strict=True
  ):
    p = basis[:, values < 0.02] @ basis[:, values < 0.02].T
    assert apart(s @ s.T, p / 10) < 1e-5
    assert apart(s @ s.T, oracle.projector(c, 0.02) / 10) < 1e-5


def test_null_space_prior_relative_threshold():
  spectra = np.array([100, 1, 0.5, 0.1]), np.array([1, 0.5, 0.1, 0.005])
  moment, _ = moments(*spectra)
  root, share = condition.null_space_prior(moment, 1.0, 0.02, relative=True)
  np.testing.assert_array_equal(share, [0.75, 0.25])  # below 2 and 0.02
  assert [np.linalg.matrix_rank(s) for s in root] == [3, 1]


@pytest.mark.parametrize('bad, words', [
  (lambda m: condition.ridge_prior(m, 0.0), 'weight=0.0.*above 0'),
  (lambda m: condition.null_space_prior(m, 0.0, 1.0), 'ridge=0.0.*above 0'),
  (lambda m: condition.null_space_prior(m, 1.0, 1e-4),
   r'threshold=0.0001.*smallest 0\.1.*raise'),
  (lambda m: condition.ridge_prior(
    m._replace(moment=m.moment * np.nan), 1.0), 'NaN or infinity.*again'),
])  # fmt: skip
def test_errors(bad, words):
  moment, _ = moments(np.array([1.0, 0.1]), np.array([1.0, 0.00001]))
  with pytest.raises(JeditError, match=words):
    bad(moment)
