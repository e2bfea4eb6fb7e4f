"""nlhf_jax: Nash learning from human feedback in JAX."""

import pathlib
import re

import setuptools

_HERE = pathlib.Path(__file__).parent
_VERSION = re.search(
  r"__version__ = '(.+)'", (_HERE / 'nlhf_jax/__init__.py').read_text(encoding='utf-8')
)[1]

setuptools.setup(
  name='nlhf_jax',
  version=_VERSION,
  description='Nash learning from human feedback in JAX/Flax',
  long_description=(_HERE / 'README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  # The configurations lie beside the package in the repository, and within it where it is installed.
  packages=[*setuptools.find_packages(include=['nlhf_jax', 'nlhf_jax.*']), 'nlhf_jax.configs'],
  package_dir={'nlhf_jax.configs': 'configs'},
  package_data={
    'nlhf_jax': ['py.typed'],
    'nlhf_jax.cli': ['*.html'],
    'nlhf_jax.configs': ['**/*.gin', '**/*.txt'],
    'nlhf_jax.evaluation': ['*.html', '*.js'],
    'nlhf_jax.judges': ['templates/*.txt'],
    'nlhf_jax.networks.cpu': ['*.c', '*.h'],
  },
  entry_points={'console_scripts': ['nlhf = nlhf_jax.__main__:main']},
  install_requires=[
    'jax>=0.10,<0.13',
    'flax>=0.12,<0.13',
    'optax>=0.2.5,<0.3',
    'orbax-checkpoint>=0.11,<0.13',
    'seqio>=0.0.19',
    'gin-config>=0.5',
    # clu's writers import TensorFlow wherever they are imported; these do not.
    'tensorboardX>=2.6',
    'beartype>=0.20',
    'jaxtyping>=0.3',
    'safetensors>=0.6',
    'tensorstore>=0.1.70',
    'tokenizers>=0.21',
    'numpy>=2.0',
    'scipy>=1.14',
    'rich>=13',
    'matplotlib>=3.9',
    'jinja2>=3.1',
    # Votes in Parquet and Arrow.
    'pyarrow>=17',
  ],
  extras_require={
    'cuda': ['jax[cuda13]'],
    'tpu': ['jax[tpu]'],
    # What T5X imports and an index has. T5X itself is on none, and an index refuses metadata with
    # direct URLs: requirements-t5x.txt names its commit.
    't5x': ['cached_property', 'chex', 'fiddle', 'tensorboard'],
    'hf': ['torch', 'transformers'],
    'gguf': ['gguf>=0.17'],
    'annotate': ['starlette>=1,<2', 'uvicorn>=0.34,<1'],
    # LLM judges.
    'judge': ['httpx>=0.28,<1', 'httpx-aiohttp>=0.2,<1'],
    # Experiment trackers; tested with 0.31.0, 3.17.2 (mlflow-skinny) and 0.43.0.
    'wandb': ['wandb>=0.31,<1'],
    'mlflow': ['mlflow>=3,<4'],
    'trackio': ['trackio>=0.43,<1'],
    # ziamath draws equations while the site is built; ruff lays signatures out.
    'docs': [
      'mkdocs>=1.6,<2',
      'mkdocs-material>=9.7',
      'mkdocstrings-python>=2',
      'ziamath>=0.13',
      'mypy>=2.0',
      'ruff>=0.12',
    ],
    'test': [
      'pytest>=8',
      'pytest-xdist>=3.6',
      'hypothesis>=6.100',
      'mypy>=2.0',
      'ruff>=0.12',
      'gguf>=0.17',
      'httpx>=0.28,<1',
      'httpx-aiohttp>=0.2,<1',
      'pyyaml>=6',
      'starlette>=1.10,<2',
      'uvicorn>=0.34,<1',
      # starlette.testclient asks with it; a browser's debugging port speaks WebSocket.
      'httpx2>=2',
      'websocket-client>=1.8',
    ],
  },
)
