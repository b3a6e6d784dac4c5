"""The race on MNIST: MLP 784-80-80-80-10, batches of 50.

The protocol stands in race_common.py. Run: python -m benchmarks.race_mnist_mlp --journal FILE
"""

from benchmarks.race_common import main

if __name__ == "__main__":
    main("race_mnist_mlp", "mnist", steps=3_200)
