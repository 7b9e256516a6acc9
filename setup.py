"""Packaging of tf_tickets; the version lives in tf_tickets/version.py."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(
    r'__version__ = "(.+)"', (here / "tf_tickets/version.py").read_text()
).group(1)

# Where the repository can be read, once it can, without a slash at the end.
REPOSITORY = ""


def description(text: str, repository: str) -> str:
    """The README as a package index shows it, where relative links are dead.

    Without a repository to link to, a link becomes the name of its file, which
    the source distribution holds.
    """
    image = rf"![\1]({repository}/raw/main/\2)" if repository else r"\1 (`\2`)"
    text = re.sub(r"!\[([^]]+)\]\((?!\w+://)([^)]+)\)", image, text)
    target = rf"[\1]({repository}/blob/main/\2)" if repository else r"`\2`"
    return re.sub(r"\[([^]]+)\]\((?!\w+://|#)([^)]+)\)", target, text)


plots = ["matplotlib>=3.8,<4"]
datasets = [
    "tensorflow-datasets>=4.9.7,<5",
    "importlib_resources>=6",  # which TensorFlow Datasets forgets to name
    "scikit-learn>=1.4,<2",
]
mnist1d = ["mnist1d>=0.0.2.post1,<0.1"]
tfmot = ["tensorflow-model-optimization>=0.8,<0.9", "tf-keras>=2.16,<3"]
litert = ["ai-edge-litert>=2,<3"]
ray = ["ray>=2.40,<3"]
hub = ["keras-hub>=0.20,<1"]

setup(
    name="tf_tickets",
    version=version,
    description=(
        "Lottery tickets for Keras 3: find sparse networks with model.fit, "
        "retrain them well, export them small."
    ),
    long_description=description((here / "README.md").read_text(), REPOSITORY),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    project_urls={"Source": REPOSITORY} if REPOSITORY else {},
    packages=find_packages(include=["tf_tickets", "tf_tickets.*"]),
    package_data={"tf_tickets": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=[
        "tensorflow>=2.18,<2.22",
        "keras>=3.10,<3.16",
        "numpy>=1.26,<3",
        "absl-py>=1.4,<3",
        "filelock>=4,<5",
        "safetensors>=0.8,<1",
    ],
    extras_require={
        "plots": plots,
        "datasets": datasets,
        "mnist1d": mnist1d,
        "tfmot": tfmot,
        "litert": litert,
        "ray": ray,
        "hub": hub,
        "docs": [
            "sphinx>=8,<10",
            "furo>=2024.8",
            "myst-nb>=1.2,<2",
            "sphinx-copybutton>=0.5,<1",
            "ipykernel>=6,<8",
            "latex2mathml>=3.77,<4",
        ],
        "release": ["build>=1,<2", "twine>=5,<8", "uv>=0.4"],
        "tests": [
            "pytest>=8,<10",
            "pytest-xdist>=3.5,<4",
            "hypothesis>=6.100,<7",
            "tensorboard>=2.18,<3",
            "ruff>=0.6,<1",
            "mypy>=1.11,<3",
            *plots,
            *datasets,
            *mnist1d,
            *tfmot,
            *litert,
        ],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
