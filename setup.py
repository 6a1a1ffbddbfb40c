"""What pyproject.toml cannot say: a wheel takes along what stands beside the package, in
cegppo/beside/ (cegppo/shipped.py finds it there)."""

from setuptools import find_packages, setup

BESIDE = ("analysis", "experiments", "sweeps")

setup(
    packages=[*find_packages(include=["cegppo*"]), "cegppo.beside"],
    package_dir={"cegppo.beside": "."},  # run.py itself, and:
    package_data={"cegppo.beside": [f"{folder}/**/*" for folder in BESIDE]},
    exclude_package_data={"cegppo.beside": ["**/__pycache__/*"]},
)
