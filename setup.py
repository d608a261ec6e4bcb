"""The extension modules; everything else about the package is in pyproject.toml."""

import copy
import glob
import os

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CFLAGS = ["-std=c11", "-O3", "-Wall", "-Wextra"]
# What Cython itself generates is not ours to keep free of these.
CYTHON_CFLAGS = ["-Wno-unused-function", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
LDFLAGS = []

# Not by default: a compiler newer than ours may warn of what is harmless, and must still build it.
if os.environ.get("FASTRPC_WERROR") == "1":
    CFLAGS.append("-Werror")

if os.environ.get("FASTRPC_SANITIZE") == "1":
    SANITIZE = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g", "-O1"]
    CFLAGS += SANITIZE
    LDFLAGS += SANITIZE


class BuildExt(build_ext):
    """Compiles each extension into a folder of its own.

    Several are built at a time, and two of them contain publish.c.
    """

    def build_extension(self, ext):
        # A copy, because the threads share this object.
        own = copy.copy(self)
        own.build_temp = os.path.join(self.build_temp, ext.name)
        build_ext.build_extension(own, ext)


def extension(name, *c_sources):
    return Extension(
        f"fastrpc.{name}",
        [
            f"fastrpc/{name.replace('.', '/')}.pyx",
            *(f"src_c/{source}" for source in c_sources),
        ],
        include_dirs=["src_c"],
        depends=glob.glob("src_c/*.h"),
        extra_compile_args=CFLAGS + CYTHON_CFLAGS,
        extra_link_args=LDFLAGS,
    )


# For every module alike: none sets its own.
DIRECTIVES = {"language_level": "3", "embedsignature": True}

setup(
    ext_modules=cythonize(
        [
            extension("_json"),
            extension("_lock"),
            extension("client._matcher"),
            extension("client._pending", "pending.c"),
            extension("client._wait"),
            extension("sending._window"),
            extension("tasks._repr"),
            extension("wire._encoder", "publish.c"),
            extension("wire._frames", "publish.c"),
            extension("wire._memory"),
            extension("wire._poll"),
            extension("wire._reader", "frame.c"),
            extension("wire._table", "table.c"),
        ],
        compiler_directives=DIRECTIVES,
    ),
    cmdclass={"build_ext": BuildExt},
    options={"build_ext": {"parallel": True}},  # as many at a time as there are processors
)
