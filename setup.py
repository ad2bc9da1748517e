"""Adds the recipes and the shipped weights, which are beside the package in a checkout, to its wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


SHIPPED = ("recipes", "weights/soundwave-small")


class BuildWithShipped(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            for name in SHIPPED:
                shutil.copytree(name, Path(self.build_lib, "soundwave_hf", name), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithShipped})
