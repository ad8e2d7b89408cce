"""Convert the embedded default model into the cache folder, once.

seodang prepare
"""

from seodang.infer.checkpoint.default_model import default_model
from seodang.recipes.options.parser import command, parse


@command
def main(argv: list[str] | None = None) -> int:
    parse(argv, prog="seodang prepare", description=__doc__)
    print(default_model())
    return 0
