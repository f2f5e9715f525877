"""The compiled part of the build; all else is in pyproject.toml."""

from setuptools import setup

setup(
    cffi_modules=["backends/polybn_host/build.py:ffi"],
    # One binary serves every Python: it uses the stable ABI of the oldest one.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
