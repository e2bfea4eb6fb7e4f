"""Writers to experiment trackers: Weights & Biases, MLflow and trackio. Each is an extra of the package.

Bound as `Experiment.writers = (@trackers.wandb(), @trackers.mlflow())`. Where a run is sent, and by which key, the tracker
itself reads from the environment (WANDB_API_KEY, WANDB_MODE=offline, MLFLOW_TRACKING_URI, TRACKIO_DIR …): nothing here takes
a key. The resolved configuration becomes the tracker's. A file NAME.id in the run's directory holds the tracker's own name of
the run, by which a resumed run goes on in it.

A package is imported once a run begins, and looked for before (`metrics.check_installed`). A writer of your own is a function
that returns a `metrics.MakeWriter`, as these do.
"""

import importlib
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from nlhf_jax.runtime import atomic, background, metrics

# It would read what is printed, and wait for its server as long as that takes.
_WANDB_SETTINGS = {
  'console': 'off',
  'init_timeout': 0.5 * background.PATIENCE_SECONDS,
  'finish_timeout': 0.8 * background.PATIENCE_SECONDS,
}
# MLflow takes so many parameters at a time, and so long ones.
_MLFLOW_BATCH, _MLFLOW_LENGTH = 100, 6000


def wandb(
  project: str = 'nlhf_jax',
  entity: str | None = None,
  group: str | None = None,
  name: str | None = None,
  tags: Sequence[str] = (),
) -> metrics.Tracker:
  """A run of Weights & Biases; its files are in wandb/ of the run's directory, for `wandb sync` where it was offline.

  Args:
    project: where it is shown.
    entity: a team; None: the key's default.
    group: of runs that belong together.
    name: of the run; None: its directory's.
    tags: of the run.
  """

  def make_writer(about: metrics.About) -> metrics.Writer:
    module = importlib.import_module('wandb')
    identity, _ = _identity(about, 'wandb', lambda: secrets.token_hex(4))
    run = module.init(
      project=project,
      entity=entity,
      group=group,
      name=name or about.run_dir.name,
      tags=list(tags) or None,
      id=identity,
      resume='allow',
      dir=str(about.run_dir),
      config=dict(about.fields),
      allow_val_change=True,
      settings=dict(_WANDB_SETTINGS),
    )

    def text(step: int, kind: str, line: str) -> None:
      run.summary[f'warnings/{kind}'] = line

    # A step that a resumed run does again is not logged again: it is equal, and their steps only grow.
    scalars = lambda step, values: run.log(dict(values), step=step) if step >= run.step else None
    return metrics.Writer(scalars, text, lambda fine: run.finish(exit_code=0 if fine else 1))

  return metrics.Tracker('wandb', make_writer)


def mlflow(
  experiment: str = 'nlhf_jax', tracking_uri: str | None = None, name: str | None = None
) -> metrics.Tracker:
  """A run of MLflow.

  Args:
    experiment: which it belongs to; made if need be.
    tracking_uri: of the server or store, without a password; None: MLFLOW_TRACKING_URI, or MLflow's own default.
    name: of the run; None: its directory's.
  """

  def make_writer(about: metrics.About) -> metrics.Writer:
    module = importlib.import_module('mlflow')
    entities = importlib.import_module('mlflow.entities')
    client = module.MlflowClient(tracking_uri)

    def create() -> str:
      described = client.get_experiment_by_name(experiment)
      number = described.experiment_id if described else client.create_experiment(experiment)
      return client.create_run(number, run_name=name or about.run_dir.name).info.run_id

    run_id, is_new = _identity(about, 'mlflow', create)
    if is_new:
      params = [entities.Param(*pair) for pair in _mlflow_params(about.fields).items()]
      for start in range(0, len(params), _MLFLOW_BATCH):
        client.log_batch(run_id, params=params[start : start + _MLFLOW_BATCH])
    else:
      client.update_run(run_id, status='RUNNING')

    def scalars(step: int, values: Mapping[str, float]) -> None:
      now = int(1000 * time.time())
      client.log_batch(
        run_id, metrics=[entities.Metric(key, value, now, step) for key, value in values.items()]
      )

    text = lambda step, kind, line: client.set_tag(run_id, f'warning.{kind}', line)
    close = lambda fine: client.set_terminated(run_id, 'FINISHED' if fine else 'FAILED')
    return metrics.Writer(scalars, text, close)

  return metrics.Tracker('mlflow', make_writer)


def trackio(
  project: str = 'nlhf_jax',
  group: str | None = None,
  name: str | None = None,
  space_id: str | None = None,
) -> metrics.Tracker:
  """A run of trackio: a local file, a server of one's own (TRACKIO_SERVER_URL), or a Space on the hub.

  Args:
    project: where it is shown.
    group: of runs that belong together.
    name: of the run; None: its directory's, with what tells it from others of that name.
    space_id: OWNER/SPACE on the hub; None: TRACKIO_SPACE_ID, or none.
  """

  def make_writer(about: metrics.About) -> metrics.Writer:
    module = importlib.import_module('trackio')
    make_name = lambda: name or f'{about.run_dir.name}-{secrets.token_hex(3)}'
    identity, _ = _identity(about, 'trackio', make_name)
    run = module.init(
      project,
      identity,
      group=group,
      space_id=space_id,
      config=dict(about.fields),
      resume='allow',
      embed=False,
    )

    def scalars(step: int, values: Mapping[str, float]) -> None:
      finite = {key: value for key, value in values.items() if math.isfinite(value)}
      run.log(finite, step=step)

    text = lambda step, kind, line: run.alert(title=kind, text=line)
    return metrics.Writer(scalars, text, lambda fine: run.finish())

  return metrics.Tracker('trackio', make_writer)


def _identity(about: metrics.About, tracker: str, create: Any) -> tuple[str, bool]:
  """The tracker's name of this run, and whether it is new; kept in the run's directory as soon as it is known."""
  path = about.run_dir / f'{tracker}.id'
  if path.is_file():
    return path.read_text(encoding='utf-8').strip(), False
  identity = create()
  atomic.write_text(path, f'{identity}\n')
  return identity, True


def _mlflow_params(fields: Mapping[str, Any]) -> dict[str, str]:
  return {name: str(value)[:_MLFLOW_LENGTH] for name, value in fields.items()}
