"""Write fixtures/vlfeat_fisher.npz: Fisher vectors made by VLFeat through its Python binding.

    python tests/fisher_vectors/make_vlfeat_fisher.py

needs cyvlfeat (see benchmarks/README.md); the tests only read the file.
"""

from pathlib import Path

import numpy as np
from cyvlfeat.fisher import fisher
from cyvlfeat.gmm import gmm

PATH = Path(__file__).parent / "fixtures" / "vlfeat_fisher.npz"


def main():
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(12, 12))
    rows = generator.laplace(size=(1500, 12)) @ mixing * 0.5 + 3.0
    means, variances, weights, *_ = gmm(
        rows.astype(np.float32),
        n_clusters=10,
        max_num_iterations=20,
        covariance_bound=np.full(12, 0.05),
        init_mode="kmeans",
    )
    descriptors = rows[:200].astype(np.float32)
    encode = {
        "raw": {},
        "improved": {"improved": True},
        "hard": {"fast": True},
        "normalized": {"normalized": True},
    }
    encodings = {
        name: fisher(descriptors, means, variances, weights, **options).ravel() for name, options in encode.items()
    }
    np.savez_compressed(PATH, descriptors=descriptors, means=means, variances=variances, weights=weights, **encodings)


if __name__ == "__main__":
    main()
