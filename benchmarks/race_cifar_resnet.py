"""The race on CIFAR-10: a small ResNet, batches of 100.

The protocol stands in race_common.py. Run: python -m benchmarks.race_cifar_resnet --journal FILE
"""

from benchmarks.race_common import main

if __name__ == "__main__":
    main("race_cifar_resnet", "cifar10", steps=480)
