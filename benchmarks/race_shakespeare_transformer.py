"""The race on tiny-shakespeare: a transformer of two blocks, batches of 16 windows of 64 characters.

The protocol stands in race_common.py. Run: python -m benchmarks.race_shakespeare_transformer --journal FILE
"""

from benchmarks.race_common import main

if __name__ == "__main__":
    main("race_shakespeare_transformer", "shakespeare", steps=600)
