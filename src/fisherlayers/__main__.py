"""``python -m fisherlayers``, and so ``torchrun -m fisherlayers``: the command."""

from fisherlayers.cli import main

main()
