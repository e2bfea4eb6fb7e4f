"""The launch files start `nlhf train` with the flags that they promise, and report to a scheduler how it ended."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

from nlhf_jax.cli import experiments

ROOT = pathlib.Path(__file__).parent.parent.parent
LAUNCH = ROOT / 'launch'
GIVEN = {
  'plain': {'COORDINATOR_ADDRESS': 'host0:1234', 'PROCESS_COUNT': '2', 'PROCESS_INDEX': '1'},
  'slurm': {'SLURM_STEP_NODELIST': 'node[1-2]'},
  'open_mpi': {'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1:34911'},
  'gke': {'TPU_WORKER_HOSTNAMES': 'host-0,host-1'},
}
PLAIN = ['--coordinator_address=host0:1234', '--process_count=2', '--process_index=1']
# Must arrive as they are.
AWKWARD = ["--gin.MODEL_DIR='a model'", '--gin.X=$HOME *']


@pytest.fixture
def path(tmp_path):
  """A directory of programs that only record how they were called."""
  directory = tmp_path / 'bin'
  directory.mkdir()
  for name in ('nlhf', 'srun', 'scontrol'):
    program(directory / name, f'printf "%s\\n" "$@" > {directory / name}.called')
  program(directory / 'curl', 'exit 22')
  return directory


def program(file: pathlib.Path, body: str) -> None:
  file.write_text(f'#!/usr/bin/env bash\n{body}\n')
  file.chmod(0o755)


def called(path: pathlib.Path, name: str) -> list[str] | None:
  record = path / f'{name}.called'
  return record.read_text().splitlines() if record.exists() else None


def start(path, script, *args, **environment) -> subprocess.Popen:
  environment = {'PATH': f'{path}:/usr/bin:/bin', 'HOME': '/nowhere'} | environment
  command = ['bash', str(LAUNCH / script), *args]
  pipe = subprocess.PIPE
  return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def run(*args, **environment) -> tuple[int, str]:
  process = start(*args, **environment)
  _, errors = process.communicate(timeout=60)
  return process.returncode, errors


@pytest.mark.parametrize('script', sorted(LAUNCH.glob('*.sh')), ids=lambda p: p.name)
def test_syntax_of_scripts(script):
  assert os.access(script, os.X_OK)
  subprocess.run(['bash', '-n', str(script)], check=True)


@pytest.mark.parametrize('status', ['0', '75'])
@pytest.mark.parametrize('where', sorted(GIVEN))
def test_multihost_joins(path, where, status):
  environment = GIVEN[where] | {'STOPPED_STATUS': status}
  assert run(path, 'multihost.sh', 'a.gin', 'my runs/a', *AWKWARD, **environment) == (0, '')
  join = PLAIN if where == 'plain' else ['--multihost']
  expected = ['train', '--gin_file=a.gin', '--run_dir=my runs/a', *join, *AWKWARD]
  assert called(path, 'nlhf') == expected


@pytest.mark.parametrize('script', ['local.sh', 'multihost.sh'])
def test_experiment_by_name(path, script):
  assert run(path, script, 'tldr/nash_md_1', 'a', *AWKWARD, **GIVEN['slurm']) == (0, '')
  assert called(path, 'nlhf')[:3] == ['train', '--experiment=tldr/nash_md_1', '--run_dir=a']
  assert called(path, 'nlhf')[-2:] == AWKWARD


@pytest.mark.parametrize('script', ['local.sh', 'multihost.sh'])
def test_checkout_that_is_not_installed(path, script):
  (path / 'nlhf').unlink()
  program(path / 'python3', f'printf "%s\\n" "$@" > {path / "python3"}.called')
  assert run(path, script, 'a.gin', 'a', **GIVEN['slurm']) == (0, '')
  assert called(path, 'python3')[:4] == ['-m', 'nlhf_jax', 'train', '--gin_file=a.gin']


def test_multihost_on_a_tpu_pod(path):
  program(path / 'curl', 'exit 0')
  assert run(path, 'multihost.sh', 'a.gin', 'a') == (0, '')
  assert called(path, 'nlhf')[-1] == '--multihost'


def test_plain_hosts_before_a_cluster(path):
  assert run(path, 'multihost.sh', 'a.gin', 'a', **GIVEN['slurm'], **GIVEN['plain']) == (0, '')
  assert called(path, 'nlhf')[-3:] == PLAIN


@pytest.mark.parametrize('missing', [*GIVEN['plain'], 'all'])
def test_error_of_missing_variables(path, missing):
  given = {} if missing == 'all' else {k: v for k, v in GIVEN['plain'].items() if k != missing}
  status, errors = run(path, 'multihost.sh', 'a.gin', 'a', **given)
  assert status == 2 and errors.count('\n') == 1
  wanted = ' '.join(GIVEN['plain']) if missing == 'all' else f'and {missing} is not set'
  assert wanted in errors
  assert called(path, 'nlhf') is None


@pytest.mark.parametrize('script', ['multihost.sh', 'slurm.sh'])
def test_error_of_too_few_arguments(path, script):
  status, errors = run(path, script, 'a.gin', **GIVEN['slurm'])
  assert status == 2 and errors.startswith('usage: ') and errors.count('\n') == 1


def test_exit_status_of_a_failure(path):
  program(path / 'nlhf', 'exit 3')
  for status in ('0', '75'):
    environment = GIVEN['slurm'] | {'STOPPED_STATUS': status}
    assert run(path, 'multihost.sh', 'a.gin', 'a', **environment)[0] == 3


@pytest.mark.parametrize('wanted', ['0', '75'])
def test_sigterm(path, wanted):
  """Twice, as from a scheduler that signals all processes while the script passes it on; the program saves first."""
  listening, saved = path / 'listening', path / 'saved'
  program(
    path / 'nlhf',
    f'trap "touch {saved}.asked" TERM; touch {listening}\n'
    f'until [[ -e {saved}.asked ]]; do sleep 0.05; done; sleep 0.5; touch {saved}',
  )
  environment = GIVEN['slurm'] | {'STOPPED_STATUS': wanted}
  process = start(path, 'multihost.sh', 'a.gin', 'a', **environment)
  deadline = time.monotonic() + 30
  while not listening.exists() and time.monotonic() < deadline:
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  time.sleep(0.2)
  process.send_signal(signal.SIGTERM)
  process.wait(timeout=30)
  assert saved.exists()
  assert process.returncode == int(wanted)


def test_slurm_tasks(path):
  run_dir = ('a.gin', 'a', *AWKWARD)
  assert run(path, 'slurm.sh', *run_dir, SLURM_JOB_ID='7') == (0, '')
  command = called(path, 'srun')
  assert command[command.index('bash') :] == ['bash', 'launch/multihost.sh', *run_dir]
  assert called(path, 'scontrol') is None


@pytest.mark.parametrize('status, requeued', [(75, True), (1, False), (137, False)])
def test_slurm_requeues_what_was_stopped(path, status, requeued):
  program(path / 'srun', f'[[ $STOPPED_STATUS == 75 ]] && exit {status}')
  assert run(path, 'slurm.sh', 'a.gin', 'a', SLURM_JOB_ID='7')[0] == (0 if requeued else status)
  assert called(path, 'scontrol') == (['requeue', '7'] if requeued else None)


def test_slurm_options():
  """The signal goes to the processes, not to the script."""
  options = re.findall(r'^#SBATCH (\S+)', (LAUNCH / 'slurm.sh').read_text(), re.MULTILINE)
  assert '--signal=TERM@90' in options and '--requeue' in options
  values = dict(option.split('=') for option in options if '=' in option)
  assert values['--ntasks-per-node'] == values['--gpus-per-node']


def test_jobset():
  jobset = yaml.safe_load((LAUNCH / 'jobset.yaml').read_text())
  assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  assert jobset['spec']['failurePolicy']['maxRestarts'] > 0
  (rule,) = jobset['spec']['failurePolicy']['rules']
  assert rule['action'] == 'RestartJobSetAndIgnoreMaxRestarts'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  (replicated,) = jobset['spec']['replicatedJobs']
  job = replicated['template']['spec']
  pod = job['template']['spec']
  (container,) = pod['containers']
  environment = {x['name']: x['value'] for x in container['env']}
  codes = job['podFailurePolicy']['rules'][0]['onExitCodes']
  assert codes['containerName'] == container['name']
  assert codes['values'] == [int(environment['STOPPED_STATUS'])]
  assert pod['restartPolicy'] == 'Never' and job['backoffLimit'] == 0
  assert pod['terminationGracePeriodSeconds'] >= 60
  assert all(isinstance(x, str) for x in container['args'])
  mount, volume = container['volumeMounts'][0], pod['volumes'][0]
  assert mount['name'] == volume['name']
  assert container['args'][1].startswith(mount['mountPath'] + '/')
  across = [int(n) for n in pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x')]
  chips = job['parallelism'] * container['resources']['limits']['google.com/tpu']
  assert job['parallelism'] == job['completions'] and chips == across[0] * across[1]
  assert (ROOT / container['command'][1]).is_file()
  assert experiments.stage(container['args'][0]).files


def test_xmanager_jobs(tmp_path):
  """With a package of that name that records its arguments."""
  package = tmp_path / 'xmanager'
  (package / 'cloud').mkdir(parents=True)
  (package / '__init__.py').touch()
  (package / 'cloud' / '__init__.py').touch()
  (package / 'cloud' / 'utils.py').write_text('get_workerpool_address = "{}:1".format\n')
  (package / 'xm.py').write_text(
    'import types\n'
    'from absl import flags\n'
    'flags.DEFINE_boolean("xm_wrap_late_bindings", False, "")\n'
    'class JobGroup:\n'
    '  def __init__(self): self.jobs = {}\n'
    'python_container = lambda **kw: kw\n'
    'CommandList = JobRequirements = lambda x: x\n'
    'Job = lambda executable, executor, args: (executable, executor, args)\n'
  )
  (package / 'xm_local.py').write_text(
    'import contextlib, json\n'
    'class Vertex:\n'
    '  def __new__(cls, requirements): return requirements\n'
    '  Spec = dict\n'
    'class Experiment:\n'
    '  def package(self, containers): return [containers[0]["entrypoint"]]\n'
    '  def add(self, group): print(json.dumps(group.jobs))\n'
    'create_experiment = lambda experiment_title: contextlib.nullcontext(Experiment())\n'
  )
  command = [sys.executable, str(LAUNCH / 'xmanager.py')]
  environment = os.environ | {'PYTHONPATH': str(tmp_path)}
  done = subprocess.run(
    [*command, '--nodes=2', '--count=4', '--', '--gin_file=a.gin', *AWKWARD],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  jobs = yaml.safe_load(done.stdout)
  assert len(jobs) == 2
  for index, (entry, requirements, args) in enumerate(jobs.values()):
    assert entry == ['exec nlhf train "$@"'] and requirements == {'a100': 4}
    join = ['--coordinator_address=workerpool0:1', '--process_count=2', f'--process_index={index}']
    assert args == ['--gin_file=a.gin', *AWKWARD, *join]


def test_error_without_xmanager():
  code = "import sys, runpy; sys.modules['xmanager'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
  command = [sys.executable, '-c', code, str(LAUNCH / 'xmanager.py')]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1
  assert done.stderr.endswith('pip install xmanager\n') and done.stderr.count('\n') == 1
