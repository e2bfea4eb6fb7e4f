"""Parameters that runs start from and judge by: their shapes, where they are sharded, and how they are found."""

import functools
import pathlib

import jax

from nlhf_jax.runtime import checkpoints, fingerprints, partitioning
from nlhf_jax.training.experiment import Experiment, Model, Origin, Start, from_run, load, run_of
from nlhf_jax.types import Params


def shapes_of(
  model: Model, layout: partitioning.Layout | None = None, dtype: str | None = None
) -> Params:
  """Shapes of a model's parameters, with their shardings on a mesh.

  Args:
    model: whose they are.
    layout: the mesh; None: no shardings.
    dtype: that they are kept in; None: the network's own.
  """
  like = jax.eval_shape(model.init, jax.random.PRNGKey(0))
  if dtype is not None:
    like = jax.eval_shape(functools.partial(cast, dtype=dtype), like)
  if layout is None:
    return like
  logical_axes = model.axes and model.axes()
  return partitioning.with_shardings(like, layout.param_shardings(like, logical_axes))


def load_params(
  model: Model,
  start: str | Start | None,
  runs: pathlib.Path,
  layout: partitioning.Layout | None = None,
  dtype: str | None = None,
) -> Params:
  """Parameters to start from, or to judge by, checked against the model's shapes; sharded over a mesh, if there is one."""
  params, _ = load_told(model, start, runs, layout)
  return params if dtype is None else cast(params, dtype)


def load_told(
  model: Model,
  start: str | Start | None,
  runs: pathlib.Path,
  layout: partitioning.Layout | None = None,
) -> tuple[Params, Origin]:
  """`load_params`, and where they come from."""
  like = shapes_of(model, layout)
  params, origin = load(start, like, runs)
  if layout is not None:
    params = partitioning.put(params, jax.tree.map(lambda x: x.sharding, like))
  return params, origin


def identity(start: str | Start, params: Params, runs: pathlib.Path) -> dict[str, str]:
  """Where parameters came from, and what tells them from others of that name.

  A run's are told by what its checkpoint says of its arrays: adapters that are merged on another mesh are the same, to rounding alone.

  Args:
    start: where they came from.
    params: what it gave.
    runs: the directory of the runs that it names.
  """
  name = run_of(start)
  if name is None:
    return {'from': 'a file', 'fingerprint': fingerprints.fingerprint_tree(params)}
  metadata = checkpoints.newest_metadata(runs / name / 'checkpoints')
  arrays = {x: n for x, n in metadata['fingerprints'].items() if x.startswith('params/')}
  # Checkpoints do not hold what adapters were trained on.
  base = (metadata.get('reference') or {}).get('fingerprint')
  return {'from': name, 'fingerprint': fingerprints.fingerprint_json([arrays, base])}


def kind_of(model: Model) -> str:
  """'Policy', 'PreferenceModel' or 'RewardModel'."""
  return type(model).__name__


def check_kind(model: Model, run: str | Start, runs: pathlib.Path) -> None:
  """Raises ValueError where a run has trained another kind of model; weights of other files are not known to be of any."""
  name = run_of(run)
  if name is not None:
    checkpoints.check_kind(runs / name / 'checkpoints', kind_of(model))


def trained_params(
  experiment: Experiment, run_dir: pathlib.Path, parameters: str = 'online'
) -> Params:
  """What an experiment has trained, adapters merged: this set of its checkpoints."""
  start = from_run(run_dir.name, experiment.adapters, experiment.start_from, parameters)
  check_kind(experiment.model, start, run_dir.parent)
  return load_params(experiment.model, start, run_dir.parent)


def cast(params: Params, dtype: str) -> Params:
  """The same in another type."""
  return jax.tree.map(lambda x: x.astype(dtype), params)
