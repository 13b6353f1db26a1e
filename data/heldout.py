"""Packages that no checkpoint of this project is ever trained on, in two disjoint groups.

`VALIDATION` is looked at while developing. `TEST` is everything that a user has once this project
and its tests are installed, so that the quickstart can read packages of the user's own machine
which the model has never seen; results are reported on it. The standard library belongs to `TEST`
as a package named `python` (see `data.sources.standard_library`).
"""

import re

VALIDATION = (
    "gpytorch",
    "imageio",
    "jinja2",
    "linear-operator",
    "networkx",
    "patsy",
    "seaborn",
    "tifffile",
    "werkzeug",
)

# The first names are the ones read first by `data.text.held_out_packages`.
TEST = (
    "flax optax orbax-checkpoint rich ml-collections etils treescope tensorboardx tensorstore jax "
    "matplotlib huggingface-hub chex pygments absl-py packaging msgpack fonttools "
    # what these bring along
    "aiofiles annotated-doc annotated-types anyio certifi charset-normalizer click clu contourpy "
    "cycler filelock fsspec h11 hf-xet httpcore httpcore2 httpx httpx2 humanize idna "
    "importlib-metadata importlib-resources jaxlib jax-cuda12-pjrt jax-cuda12-plugin "
    "jax-cuda13-pjrt jax-cuda13-plugin kiwisolver libtpu markdown-it-py mdurl ml-dtypes "
    "nest-asyncio numpy opt-einsum orbax orbax-export pillow prometheus-client protobuf psutil "
    "pyparsing python-dateutil pyyaml regex requests safetensors scipy shellingham simplejson six "
    "sniffio tokenizers toolz tqdm truststore typer typer-slim typing-extensions urllib3 uvloop "
    # what every environment has, and what the tests need
    "attrs coverage execnet hypothesis iniconfig pip pluggy pytest pytest-xdist python ruff "
    "setuptools sortedcontainers wheel zarr donfig google-crc32c numcodecs zipp"
).split()


def canonical(name: str) -> str:
    """The one spelling of a distribution's name (PEP 503): `Ml_Collections` → `ml-collections`."""
    return re.sub(r"[-_.]+", "-", name).lower()
