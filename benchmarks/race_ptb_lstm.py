"""The race on the Penn Treebank: an LSTM of 200 units, batches of 20 windows of 20 words.

The protocol stands in race_common.py. Run: python -m benchmarks.race_ptb_lstm --journal FILE
"""

from benchmarks.race_common import main

if __name__ == "__main__":
    main("race_ptb_lstm", "ptb", steps=320, left_out=("K-FAC",), notes="SINGD has no rule for recurrent layers.")
