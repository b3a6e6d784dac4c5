"""The race on MNIST: the autoencoder 784-1000-500-250-30 and back, batches of 250.

The protocol stands in race_common.py. Run: python -m benchmarks.race_autoencoder --journal FILE
"""

from benchmarks.race_common import main

if __name__ == "__main__":
    main("race_autoencoder", "autoencoder", steps=150)
