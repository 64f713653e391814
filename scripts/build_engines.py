"""Build an engine ahead of time; the same as `cleave build`."""

from cleave.__main__ import process, single
from cleave.runtime.engines.cli import build

if __name__ == "__main__":
    process(single(build))
