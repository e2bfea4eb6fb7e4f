"""Trains on Google Cloud's Vertex AI through XManager: one image of this repository, on one to four hosts with GPUs.

  pip install xmanager
  python launch/xmanager.py --nodes=2 --accelerator=a100 --count=8 -- --gin_file=FILE --run_dir=/gcs/BUCKET/RUN [flags of nlhf train]

What follows `--` goes to every host as it is. Vertex mounts buckets at /gcs, where all hosts see one run directory. A run that is
started again with the same flags resumes where it stopped. XManager's own flags (--xm_...) work too, as does its set-up of
credentials and Docker. The image holds all of the repository's directory: launch from a fresh clone. Not tried on the cloud.
"""

import pathlib
import sys

_HERE = pathlib.Path(__file__).resolve().parent
_ROOT = _HERE.parent


def main() -> None:
  """Defines the flags, then launches."""
  # The directory of a script is searched first, and this script has the package's name.
  sys.path[:] = [path for path in sys.path if pathlib.Path(path).resolve() != _HERE]
  try:
    from absl import app, flags
    from xmanager import xm, xm_local
    from xmanager.cloud import utils
  except ModuleNotFoundError as error:
    sys.exit(f'launch/xmanager.py: no module {error.name}: pip install xmanager')

  title = flags.DEFINE_string('title', 'nlhf', 'Name of the experiment.')
  nodes = flags.DEFINE_integer('nodes', 1, 'Hosts.', lower_bound=1, upper_bound=4)
  accelerator = flags.DEFINE_string('accelerator', 'a100', "Kind of GPU, in XManager's words.")
  count = flags.DEFINE_integer('count', 8, 'GPUs of a host.', lower_bound=1)
  image = flags.DEFINE_string('image', 'python:3.12', 'The image to build on.')

  def launch(argv: list[str]) -> None:
    if nodes.value > 1:
      # Fills in the first host's address, once it is known.
      flags.FLAGS.xm_wrap_late_bindings = True
    requirements = xm.JobRequirements({accelerator.value: count.value})
    with xm_local.create_experiment(experiment_title=title.value) as experiment:
      [executable] = experiment.package(
        [
          xm.python_container(
            executor_spec=xm_local.Vertex.Spec(),
            path=str(_ROOT),
            base_image=image.value,
            docker_instructions=[
              f'COPY {_ROOT.name}/ /nlhf',
              'WORKDIR /nlhf',
              "RUN pip install -c constraints.txt -e '.[cuda]'",
            ],
            entrypoint=xm.CommandList(['exec nlhf train "$@"']),  # exec: SIGTERM reaches it.
          )
        ]
      )
      group = xm.JobGroup()
      for node in range(nodes.value):
        address = utils.get_workerpool_address('workerpool0')
        group.jobs[f'node_{node}'] = xm.Job(
          executable,
          executor=xm_local.Vertex(requirements),
          args=[*argv[1:], *_join(address, nodes.value, node)],
        )
      experiment.add(group)

  app.run(launch)


def _join(address: str, count: int, index: int) -> list[str]:
  """The flags by which a host joins the others."""
  if count == 1:
    return []
  return [
    f'--coordinator_address={address}',
    f'--process_count={count}',
    f'--process_index={index}',
  ]


if __name__ == '__main__':
  main()
