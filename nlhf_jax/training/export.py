"""What a run has trained, in the formats of other tools."""

import pathlib

from nlhf_jax.arguments import DType
from nlhf_jax.formats import hf, hf_directory, peft, t5x
from nlhf_jax.networks import llama_config, t5
from nlhf_jax.runtime import checkpoints
from nlhf_jax.training import weights
from nlhf_jax.training.experiment import Experiment
from nlhf_jax.training.resolve import resolve
from nlhf_jax.types import TrainState


def export(
  experiment: Experiment,
  run_dir: pathlib.Path,
  output_dir: pathlib.Path,
  to: str,
  *,
  dtype: DType | None = None,
  base_model: str | None = None,
) -> None:
  """Writes what a run has trained in another format.

  Args:
    experiment: the run's.
    run_dir: the run.
    output_dir: where to.
    to: 'hf': a model for `transformers`; 't5x': a checkpoint that T5X resumes from; 'peft': adapters alone.
    dtype: of the arrays of 'hf'; None: as they are.
    base_model: the model that the weights came from: its tokenizer goes along with 'hf', its name with 'peft'.

  Raises:
    ValueError: the run has no such thing.
  """
  if experiment.network is None:
    raise ValueError(
      f'{run_dir} does not name the network that it trained: bind Experiment.network.'
    )
  config = experiment.network.config
  if 'network' in weights.shapes_of(experiment.model):
    raise ValueError(
      f'{run_dir} trained a judge whose head has weights of its own, for which {to} has no place: restore it with '
      'training.weights.trained_params.'
    )
  if not isinstance(config, t5.T5Config | llama_config.LlamaConfig):
    raise ValueError(f'{run_dir} trained a network of your own, for which {to} has no place.')
  if to == 'hf':
    params = weights.trained_params(experiment, run_dir)
    hf.save(params, config, output_dir, dtype=dtype, tokenizer_from=base_model)
    return
  if to == 'peft' and experiment.adapters is None:
    raise ValueError(f'{run_dir} trained no adapters: export it with --to=hf.')
  if to == 'peft' and base_model and hf_directory.is_adapter(pathlib.Path(base_model)):
    raise ValueError(
      f'{base_model} is an adapter itself, which was merged into its base before training: export with --to=hf.'
    )
  if to == 't5x' and not isinstance(config, t5.T5Config):
    raise ValueError(f'{run_dir} trained no T5, which T5X needs: export it with --to=hf.')
  state = _newest_state(experiment, run_dir)
  if to == 'peft':
    alpha, adapters = experiment.adapters.alpha, state.params.online
    peft.save_adapters(adapters, config, output_dir, alpha=alpha, base_model=base_model or '')
    return
  if experiment.adapters is not None:
    params = weights.trained_params(experiment, run_dir)
    # The adapters' moments say nothing of the merged weights.
    state = state._replace(params=state.params._replace(online=params), opt_state=())
  t5x.save(state, output_dir)


def _newest_state(experiment: Experiment, run_dir: pathlib.Path) -> TrainState:
  run = resolve(experiment, run_dir.parent)
  state, _ = checkpoints.restore(run_dir / 'checkpoints', run.state, saved=run.saved)
  return state
