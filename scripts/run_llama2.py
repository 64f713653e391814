"""Continue prompts, as TorchPipe's llama2 example does; the same as `cleave run`."""

from cleave.__main__ import process, single
from cleave.runtime.cli import run

if __name__ == "__main__":
    process(single(run))
