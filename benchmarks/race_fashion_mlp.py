"""The race on Fashion-MNIST: MLP 784-512-512-512-10, batches of 500.

The protocol stands in race_common.py. Run: python -m benchmarks.race_fashion_mlp --journal FILE
"""

from benchmarks.race_common import main

if __name__ == "__main__":
    main("race_fashion_mlp", "fashion-mnist", steps=220)
