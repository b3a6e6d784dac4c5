"""Slow and obvious definitions of mixtures and Fisher vectors, and a named mixture problem."""

import math

import torch

from fisherlayers.fisher_vectors.mixture import DiagonalMixture


def random_mixture(components=4, features=3, *, seed=0, spread=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(components, generator=generator, dtype=dtype) + 0.2
    means = spread * torch.randn(components, features, generator=generator, dtype=dtype)
    variances = torch.rand(components, features, generator=generator, dtype=dtype) + 0.3
    return DiagonalMixture(weights / weights.sum(), means, variances)


def sample(mixture, rows, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    which = torch.multinomial(mixture.weights, rows, replacement=True, generator=generator)
    noise = torch.randn(rows, mixture.num_features, generator=generator, dtype=mixture.means.dtype)
    return mixture.means[which] + noise * mixture.variances[which].sqrt()


def density(mixture, x):
    """Return w_k N(x; mu_k, sigma_k^2) for every component, by the textbook formula."""
    result = []
    for k in range(mixture.num_components):
        product = mixture.weights[k]
        for d in range(mixture.num_features):
            variance = mixture.variances[k, d]
            product = product * torch.exp(-((x[d] - mixture.means[k, d]) ** 2) / (2 * variance))
            product = product / torch.sqrt(2 * math.pi * variance)
        result.append(product)
    return torch.stack(result)


def posterior(mixture, x, assignment="soft", threshold=0.0):
    joint = density(mixture, x)
    gamma = joint / joint.sum()
    if assignment == "hard":
        return torch.nn.functional.one_hot(gamma.argmax(), len(gamma)).to(gamma)
    return torch.where(gamma > threshold, gamma, 0.0)


def fisher_vector_loops(mixture, descriptors, assignment="soft", threshold=0.0):
    """Return [u_1 ... u_K, v_1 ... v_K] as VLFeat documents them, by loops over descriptors and components."""
    u, v = torch.zeros_like(mixture.means), torch.zeros_like(mixture.means)
    for x in descriptors:
        gamma = posterior(mixture, x, assignment, threshold)
        for k in range(mixture.num_components):
            z = (x - mixture.means[k]) / mixture.variances[k].sqrt()
            u[k] += gamma[k] * z / mixture.weights[k].sqrt()
            v[k] += gamma[k] * (z**2 - 1) / (2 * mixture.weights[k]).sqrt()
    return torch.cat([u.flatten(), v.flatten()]) / len(descriptors)


def em_step_loops(mixture, descriptors, variance_floor):
    """Return the textbook EM step."""
    gamma = torch.stack([posterior(mixture, x) for x in descriptors])
    return maximized(gamma, descriptors, variance_floor)


def incremental_pass_loops(mixture, descriptors, gamma, blocks, variance_floor):
    """Go once through every b-th row, b = 0, 1, ...: posteriors of one block are made anew, all are maximised over.

    `gamma` holds the posteriors of all descriptors, NaN where there are none yet; it is written to. Returns the mixture
    and the mean log-likelihood of the descriptors, each under the mixture that it met.
    """
    met = []
    for block in range(blocks):
        for row in range(block, len(descriptors), blocks):
            gamma[row] = posterior(mixture, descriptors[row])
            met.append(density(mixture, descriptors[row]).sum().log())
        known = ~gamma[:, 0].isnan()
        mixture = maximized(gamma[known], descriptors[known], variance_floor)
    return mixture, float(torch.stack(met).mean())


def maximized(gamma, descriptors, variance_floor):
    """Return the mixture that posteriors of descriptors ask for."""
    mass = gamma.sum(0)
    means = torch.stack([(gamma[:, k, None] * descriptors).sum(0) / mass[k] for k in range(len(mass))])
    variances = torch.stack([
        (gamma[:, k, None] * (descriptors - means[k]) ** 2).sum(0) / mass[k] for k in range(len(mass))
    ])
    return DiagonalMixture(mass / mass.sum(), means, variances.clamp_min(variance_floor))
