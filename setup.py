"""What pyproject.toml cannot say beside `packages.find`: the folder configs/ is installed as gfn_jax/configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["gfn_jax*"]), "gfn_jax.configs"],
    package_dir={"gfn_jax.configs": "configs"},
)
