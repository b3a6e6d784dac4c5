"""The network as a module: the estimator's scores, gradients by finite differences, and the way back."""

from functools import partial

import numpy as np
import pytest
import torch

from fisher_vectors.texture_images import textures
from fisherlayers import DeepFisherNetwork, fold, reconstruct
from fisherlayers.fisher_vectors import stage

SMALL = {"components": (4, 5), "dimensions": (8, 6), "bin_sizes": (3, 4), "step": 3, "iterations": 5, "random_state": 0}


def colored(images):
    return [np.stack([image, image[::-1], 1 - image], axis=-1) for image in images]


def tensor(images):
    batch = torch.as_tensor(np.stack(images))
    return batch.movedim(-1, 1) if batch.ndim == 4 else batch


@pytest.fixture(scope="module")
def grey():
    images, labels = textures(6)
    return DeepFisherNetwork(**SMALL).fit(images, labels), images, labels


def test_scores_are_the_estimators(grey):
    model, images, _ = grey
    module = model.to_module()
    scores = module(tensor(images).float())
    np.testing.assert_allclose(scores.detach(), model.decision_function(images), rtol=0, atol=1e-4)
    # In double precision both are the same function.
    exact = model.to_module(dtype=torch.float64)
    np.testing.assert_allclose(exact(tensor(images)).detach(), scores.detach(), rtol=0, atol=1e-4)
    again = model.to_module(dtype=torch.float64)(tensor(images)[:, None])
    assert torch.equal(again, exact(tensor(images)))


@pytest.mark.parametrize(
    "options", [{"depth": 1, "upsample": 2}, {"max_pixels": 500, "padding": 2}, {"preset": "small"}]
)
def test_resampled_and_coloured_images(options):
    images, labels = textures(4)
    images = [np.uint8(255 * image.clip(0, 1)) for image in colored(images)]
    labels = [label in {"lying", "checks"} for label in labels]
    model = DeepFisherNetwork(**(SMALL | {"components": 4, "dimensions": 6} | options)).fit(images, labels)
    scores = model.to_module()(tensor(images)).detach()
    assert scores.shape == (16,)
    np.testing.assert_allclose(scores, model.decision_function(images), rtol=0, atol=1e-4)


def test_three_layers():
    images, labels = textures(4)
    options = SMALL | {"depth": 3, "components": 4, "dimensions": 6, "windows": (2,), "step": 2}
    model = DeepFisherNetwork(**options).fit(images, labels)
    module = model.to_module()
    assert len(module.stages) == 3
    assert len(module.projections) == 2
    np.testing.assert_allclose(module(tensor(images).float()).detach(), model.decision_function(images), atol=1e-4)


def test_gradients_of_every_part_are_those_of_finite_differences(grey, monkeypatch):
    # Without what has no finite or no continuous derivative: the square root at zero, and the posteriors' threshold.
    monkeypatch.setattr(stage, "signed_power", lambda values: values)
    monkeypatch.setattr(stage, "fisher_vectors", partial(stage.fisher_vectors, threshold=0.0))
    model, images, _ = grey
    module = model.to_module(dtype=torch.float64)
    batch = tensor(images[:3])
    module(batch).square().sum().backward()
    for name, parameter in module.named_parameters():
        direction = torch.randn_like(parameter) * parameter.detach().abs().mean()
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter += step * direction
                values.append(float(module(batch).square().sum()))
                parameter -= step * direction
        slope = (values[0] - values[1]) / 2e-6
        found = float((parameter.grad * direction).sum())
        assert found == pytest.approx(slope, rel=1e-5, abs=1e-7), name


def ascent(model, image, size):
    """Return the gain of the first score along its gradient, over the gain that the gradient promises."""
    module = model.to_module(dtype=torch.float64)
    batch = tensor(image).requires_grad_()
    module(batch)[0, 0].backward()
    assert torch.isfinite(batch.grad).all()
    step = size * batch.grad / batch.grad.norm()
    with torch.no_grad():
        gain = float(module(batch + step)[0, 0] - module(batch - step)[0, 0]) / 2
    return gain / (size * float(batch.grad.norm()))


def test_gradients_reach_the_images(grey, monkeypatch):
    model, images, _ = grey
    # The square root's slope is bounded near zero, where the true one is not: its part of the gain may be missing.
    assert 0.5 < ascent(model, images[:1], 1e-6) < 2
    monkeypatch.setattr(stage, "signed_power", lambda values: values)
    monkeypatch.setattr(stage, "fisher_vectors", partial(stage.fisher_vectors, threshold=0.0))
    assert ascent(model, images[:1], 1e-6) == pytest.approx(
        1, rel=0.01
    )  # what is left: the square root of SIFT, in which many entries are zero


def test_fine_tuning_by_a_reconstructed_optimizer_and_back_to_the_estimator(grey, tmp_path):
    model, images, labels = grey
    model = DeepFisherNetwork(**SMALL).fit(images, labels)
    before = model.decision_function(images)
    module = reconstruct(model.to_module(), include=["*reduction", "classifier"])
    batch, targets = tensor(images).float(), torch.as_tensor(np.unique(labels, return_inverse=True)[1])
    with torch.no_grad():
        np.testing.assert_allclose(module(batch), before, atol=1e-4)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module.temperature * module(batch), targets)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < losses[0]
    fold(module, optimizer)
    model.update_from(module)
    after = model.decision_function(images)
    np.testing.assert_allclose(after, module(batch).detach(), atol=1e-4)
    assert np.abs(after - before).max() > 1e-2
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(DeepFisherNetwork.load(tmp_path / "model").decision_function(images), after)


def test_another_classifiers_module_is_refused(grey):
    model, images, labels = grey
    other = DeepFisherNetwork(**(SMALL | {"depth": 1, "components": 3, "dimensions": 4})).fit(images, labels)
    with pytest.raises(ValueError, match="take it from to_module"):
        model.update_from(other.to_module())


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_scores_are_the_same_under_autocast(grey, dtype):
    model, images, _ = grey
    module = model.to_module()
    batch = (255 * tensor(images[:4]).clamp(0, 1)).to(torch.uint8)
    batch = batch if dtype == torch.uint8 else batch / 255
    expected, encodings = module(batch), module.encode(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(batch), expected)
        assert torch.equal(module.encode(batch), encodings)


def test_half_precision_is_refused_by_its_name(grey):
    model, images, _ = grey
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match=f"dtype must be torch.float32 or torch.float64, got {dtype}"):
            model.to_module(dtype=dtype)
        with pytest.raises(ValueError, match=f"works in torch.float32 or torch.float64 and was converted to {dtype}"):
            model.to_module().to(dtype)(tensor(images[:2]).to(dtype))
