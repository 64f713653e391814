"""Export a checkpoint, as TorchPipe's llama2 example does; the same as `cleave export`."""

from cleave.__main__ import process, single
from cleave.export.cli import export

if __name__ == "__main__":
    process(single(export))
