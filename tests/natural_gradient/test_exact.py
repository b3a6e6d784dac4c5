"""The exact natural gradient against its definition."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp, vjp
from torch.nn import functional

from fisherlayers.inverse_root import inverse_square_root
from fisherlayers.natural_gradient import ExactNaturalGradient
from fisherlayers.natural_gradient.exact import exact_information
from fisherlayers.natural_gradient.scores import scores_of
from natural_gradient.references_natural_gradient import fisher_by_labels


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))


def test_softmax_information_is_the_expected_outer_product_of_scores():
    model, inputs = small(), torch.randn(6, 4)
    torch.testing.assert_close(exact_information(model, inputs), fisher_by_labels(model, inputs))


def test_gaussian_information_of_a_linear_model_is_that_of_least_squares():
    model, inputs = nn.Linear(4, 2), torch.randn(20, 4)
    homogeneous = torch.cat([inputs, torch.ones(20, 1)], 1)
    moment = homogeneous.T @ homogeneous / 20
    information = exact_information(model, inputs, output="gaussian")
    torch.testing.assert_close(information[:8, :8], torch.kron(torch.eye(2), moment[:4, :4]))
    torch.testing.assert_close(information[8:, 8:], torch.eye(2))


def test_one_step_solves_least_squares():
    model, inputs, aims = nn.Linear(4, 2), torch.randn(30, 4), torch.randn(30, 2)
    optimizer = ExactNaturalGradient(model, lr=1.0, damping=1e-12, output="gaussian")
    optimizer.observe(inputs)
    (0.5 * (model(inputs) - aims).square().sum(1).mean()).backward()
    optimizer.step()
    homogeneous = torch.cat([inputs, torch.ones(30, 1)], 1)
    solution = torch.linalg.lstsq(homogeneous, aims).solution
    torch.testing.assert_close(model.weight, solution[:4].T)
    torch.testing.assert_close(model.bias, solution[4])


def test_a_step_is_the_damped_solve():
    model, inputs, targets = small(), torch.randn(10, 4), torch.randint(0, 3, (10,))
    optimizer = ExactNaturalGradient(model, lr=0.3, damping=0.1)
    optimizer.observe(inputs)
    functional.cross_entropy(model(inputs), targets).backward()
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    information = fisher_by_labels(model, inputs)
    damped = information + 0.1 * information.trace() / len(gradient) * torch.eye(len(gradient))
    optimizer.step()
    after = nn.utils.parameters_to_vector(model.parameters())
    torch.testing.assert_close(after, before - 0.3 * torch.linalg.solve(damped, gradient))


@pytest.mark.parametrize("form", ["dense", "samples"])
def test_a_clipped_step_diverges_by_the_limit(form):
    model, inputs, targets = small(), torch.randn(10, 4), torch.randint(0, 3, (10,))
    free, clipped = copy.deepcopy(model), copy.deepcopy(model)
    information = fisher_by_labels(model, inputs)
    damped = information + 0.1 * information.trace() / len(information) * torch.eye(len(information))

    def step(network, **options):
        optimizer = ExactNaturalGradient(network, lr=0.5, damping=0.1, form=form, **options)
        optimizer.observe(inputs)
        functional.cross_entropy(network(inputs), targets).backward()
        before = nn.utils.parameters_to_vector(network.parameters()).detach()
        optimizer.step()
        return nn.utils.parameters_to_vector(network.parameters()).detach() - before

    whole = step(free)
    divergence = float(0.5 * whole @ damped @ whole)
    short = step(clipped, kl_clip=divergence / 9)
    torch.testing.assert_close(short, whole / 3)
    torch.testing.assert_close(step(model, kl_clip=divergence * 1.01), whole)


def test_weight_decay_is_decoupled_and_passes_over_what_has_no_gradient():
    model, inputs, targets = small(), torch.randn(10, 4), torch.randint(0, 3, (10,))
    model.unused = nn.Parameter(torch.ones(3))
    plain = copy.deepcopy(model)
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    for network, decay in ((model, 0.4), (plain, 0.0)):
        optimizer = ExactNaturalGradient(network, lr=0.5, damping=0.1, weight_decay=decay)
        optimizer.observe(inputs)
        functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
    shrunk, free = (nn.utils.parameters_to_vector(network.parameters()) for network in (model, plain))
    used = torch.cat([torch.full_like(p, float(p.grad is not None)).flatten() for p in model.parameters()])
    assert 0 < float(used.sum()) < len(used)
    torch.testing.assert_close(shrunk, free - 0.5 * 0.4 * used * before)


@pytest.mark.parametrize("kl_clip", [None, 1e-6])
def test_momentum_adds_up_directions_and_is_part_of_the_state(kl_clip):
    torch.manual_seed(0)
    inputs, targets = torch.randn(10, 4), torch.randint(0, 3, (10,))
    model = small()
    reference = copy.deepcopy(model)
    optimizer = ExactNaturalGradient(model, lr=0.3, damping=0.1, momentum=0.9, kl_clip=kl_clip)
    velocity = 0.0
    for turn in range(4):
        for network in (model, reference):
            network.zero_grad()
            functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
        # One step without momentum from the same place gives the direction.
        alone = copy.deepcopy(reference)
        single = ExactNaturalGradient(alone, lr=0.3, damping=0.1, kl_clip=kl_clip)
        single.observe(inputs)
        for mine, theirs in zip(alone.parameters(), reference.parameters(), strict=True):
            mine.grad = theirs.grad
        before = nn.utils.parameters_to_vector(reference.parameters()).detach()
        single.step()
        velocity = 0.9 * velocity + before - nn.utils.parameters_to_vector(alone.parameters()).detach()
        nn.utils.vector_to_parameters(before - velocity, reference.parameters())
        vectors = [nn.utils.parameters_to_vector(network.parameters()) for network in (model, reference)]
        torch.testing.assert_close(*vectors, rtol=1e-5, atol=1e-6)
        if turn == 1:
            saved = optimizer.state_dict()
            optimizer = ExactNaturalGradient(model, lr=1.0)
            optimizer.load_state_dict(saved)


def test_a_state_without_a_limit_on_steps_goes_on_without_one():
    model, inputs, targets = small(), torch.randn(10, 4), torch.randint(0, 3, (10,))
    free = copy.deepcopy(model)
    loaded = ExactNaturalGradient(model, lr=0.5, damping=0.1, kl_clip=1e-9)
    state = loaded.state_dict()
    for newer in ("kl_clip", "momentum", "weight_decay"):
        del state["param_groups"][0][newer]
    loaded.load_state_dict(state)
    for network, optimizer in ((model, loaded), (free, ExactNaturalGradient(free, lr=0.5, damping=0.1))):
        optimizer.observe(inputs)
        functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
    vectors = [nn.utils.parameters_to_vector(network.parameters()) for network in (model, free)]
    torch.testing.assert_close(*vectors)


def test_the_path_does_not_depend_on_the_parametrization():
    # A network with W = A V computes the same function; with little damping so does a small natural step.
    torch.manual_seed(0)
    plain, mixing = nn.Linear(3, 3, bias=False), torch.randn(3, 3) + 2 * torch.eye(3)
    other = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        other[1].weight.copy_(mixing)
        other[0].weight.copy_(torch.linalg.solve(mixing, plain.weight))
    other[1].requires_grad_(False)
    inputs, aims = torch.randn(20, 3), torch.randn(20, 3)
    for model in (plain, other):
        optimizer = ExactNaturalGradient(model, lr=0.5, damping=1e-10, output="gaussian")
        optimizer.observe(inputs)
        functional.mse_loss(model(inputs), aims).backward()
        optimizer.step()
    torch.testing.assert_close(plain(inputs), other(inputs), rtol=1e-6, atol=1e-7)


def test_a_closure_is_evaluated_once_and_its_loss_returned():
    model, inputs, targets = small(), torch.randn(10, 4), torch.randint(0, 3, (10,))
    optimizer = ExactNaturalGradient(model, lr=0.1, damping=1.0)
    optimizer.observe(inputs)

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert closure() < first


def test_frozen_parameters_are_left_alone():
    model, inputs = small(), torch.randn(6, 4)
    model[0].requires_grad_(False)
    assert exact_information(model, inputs).shape == (12, 12)


def mixed():
    """A convolution, an in-place activation, a layer without bias, and a layer that is read twice."""
    torch.manual_seed(0)
    twice = nn.Linear(6, 6)
    return nn.Sequential(
        nn.Conv1d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4, 6, bias=False), nn.Tanh(),
        twice, nn.ReLU(inplace=True), twice, nn.Tanh(), nn.Linear(6, 3),
    )  # fmt: skip


FORMS = {
    "linear": (small, (7, 4), "softmax"),
    "gaussian": (small, (7, 4), "gaussian"),
    "mixed": (mixed, (7, 1, 4), "softmax"),
}


@pytest.mark.parametrize("case", FORMS)
def test_the_scores_of_a_batch_are_the_factor_of_its_information(case):
    make, shape, output = FORMS[case]
    model, inputs = make(), torch.randn(shape)
    scores = scores_of(model, inputs, output=output)
    rows = torch.stack([
        torch.cat([piece.flatten() for piece in scores.combine(unit.view(7, 3))]) for unit in torch.eye(21)
    ])
    torch.testing.assert_close(rows.T @ rows / 7, exact_information(model, inputs, output=output))
    torch.testing.assert_close(rows @ rows.T, scores.gram())
    vector = [torch.randn_like(parameter) for parameter in model.parameters()]
    torch.testing.assert_close(rows @ torch.cat([piece.flatten() for piece in vector]), scores.times(vector).flatten())


@pytest.mark.parametrize("case", FORMS)
def test_both_forms_take_the_same_steps(case):
    make, shape, output = FORMS[case]
    first, targets = make(), torch.randint(0, 3, (7,))
    ends = []
    for form in ("dense", "samples"):
        model = copy.deepcopy(first)
        if case == "mixed":
            model[3].weight.requires_grad_(False)
        optimizer = ExactNaturalGradient(model, lr=0.05, damping=0.5, output=output, form=form)
        generator = torch.Generator().manual_seed(1)
        for _ in range(5):
            optimizer.zero_grad()
            functional.cross_entropy(model(torch.randn(shape, generator=generator)), targets).backward()
            optimizer.step()
        ends.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-11)


def test_the_step_of_the_papers_network_solves_the_damped_system():
    # 784-80-80-80-10: F d is taken by forward and backward derivatives, F itself would have 76,570 squared entries.
    torch.manual_seed(0)
    widths = [784, 80, 80, 80, 10]
    parts = [piece for a, b in itertools.pairwise(widths) for piece in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*parts[:-1])
    inputs, targets = torch.rand(20, 784), torch.randint(0, 10, (20,))
    functional.cross_entropy(model(inputs), targets).backward()
    gradient = {name: parameter.grad for name, parameter in model.named_parameters()}
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = ExactNaturalGradient(model, lr=1.0, damping=2.0)
    optimizer.observe(inputs)
    optimizer.step()
    direction = {name: start[name] - parameter.detach() for name, parameter in model.named_parameters()}

    def logits(parameters):
        return functional_call(model, parameters, (inputs,))

    values, change = jvp(logits, (start,), (direction,))
    p = values.softmax(1)
    (moved,) = vjp(logits, start)[1]((p * change - p * (p * change).sum(1, keepdim=True)) / 20)
    trace = 0.0
    _, pull = vjp(logits, start)
    for sample in range(20):
        for kind in range(10):
            aim = torch.zeros(20, 10)
            aim[sample] = p[sample, kind].sqrt() * (torch.eye(10)[kind] - p[sample])
            trace += sum(piece.square().sum() for piece in pull(aim)[0].values()) / 20
    ridge = 2.0 * trace / 76_570
    for name, piece in direction.items():
        torch.testing.assert_close(moved[name] + ridge * piece, gradient[name], rtol=1e-7, atol=1e-10)


def test_descent_in_joint_coordinates_of_all_layers_is_the_exact_natural_gradient():
    # w = S w' for all parameters together, S renewed at every step: the reconstruction that mode "exact" would be.
    joint, model = small(), small()
    optimizer = ExactNaturalGradient(model, lr=0.3, damping=0.1)
    generator = torch.Generator().manual_seed(1)
    names = [name for name, _ in joint.named_parameters()]
    shapes = [parameter.shape for parameter in joint.parameters()]
    w = nn.utils.parameters_to_vector(joint.parameters()).detach()
    for _ in range(4):
        inputs, targets = torch.randn(10, 4, generator=generator), torch.randint(0, 3, (10,), generator=generator)
        nn.utils.vector_to_parameters(w, joint.parameters())
        root = inverse_square_root(exact_information(joint, inputs), damping=0.1)
        coordinates = torch.linalg.solve(root, w).requires_grad_()
        pieces = torch.split(root @ coordinates, [shape.numel() for shape in shapes])
        plain = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        functional.cross_entropy(functional_call(joint, plain, (inputs,)), targets).backward()
        w = root @ (coordinates.detach() - 0.3 * coordinates.grad)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        torch.testing.assert_close(nn.utils.parameters_to_vector(model.parameters()), w)


def test_training_batches_are_followed_and_evaluation_is_not():
    inputs, targets = torch.randn(12, 4), torch.randint(0, 3, (12,))
    ends = []
    for by_hand in (True, False):
        model = small()
        optimizer = ExactNaturalGradient(model, lr=0.3, damping=0.1)
        if by_hand:
            optimizer.observe(inputs)
        model.eval()(torch.randn(5, 4))
        model.train()
        for half in (slice(0, 6), slice(6, 12)):  # accumulated gradients: both halves count
            (functional.cross_entropy(model(inputs[half]), targets[half]) / 2).backward()
        optimizer.step()
        ends.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(ends[0], ends[1])


def test_copies_of_the_model_do_not_feed_the_optimizer():
    model = small()
    optimizer = ExactNaturalGradient(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(torch.randn(5, 4))
    with pytest.raises(RuntimeError, match="there is no Fisher information yet"):
        optimizer.step()


@pytest.mark.parametrize("form", ["dense", "samples"])
def test_without_information_nothing_moves_and_a_diverged_run_stays_not_finite(form):
    for bias, moved in ((1e4, False), (float("nan"), True)):
        model, inputs = nn.Linear(4, 2), torch.randn(3, 4)
        with torch.no_grad():
            model.bias[0] = bias
        before = model.weight.detach().clone()
        optimizer = ExactNaturalGradient(model, form=form)
        functional.cross_entropy(model(inputs), torch.ones(3, dtype=torch.long)).backward()
        optimizer.step()
        assert model.weight.isnan().all() if moved else torch.equal(model.weight, before)


def test_forms_that_do_not_fit_in_memory_say_what_to_do():
    with torch.device("meta"):
        wide = nn.Linear(3000, 10)
    with pytest.raises(ValueError, match=r"30010 x 30010 matrix .* use form='samples'"):
        ExactNaturalGradient(wide, form="dense").observe(torch.zeros(2, 3000, device="meta"))
    model = nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r"21000 x 21000 matrix for 7000 samples and 3 outputs .* smaller batches"):
        ExactNaturalGradient(model, form="samples").observe(torch.zeros(7000, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": float("inf")}, "lr must be positive and finite"),
        ({"damping": 0.0}, "damping must be positive"),
        ({"damping": float("inf")}, "damping must be positive and finite .* got inf"),
        ({"kl_clip": 0.0}, "kl_clip must be positive, in nats, or None"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"weight_decay": -1e-3}, "weight_decay must be a number of at least 0, got -0.001"),
        ({"output": "poisson"}, "output must be 'softmax' or 'gaussian', got 'poisson'"),
        ({"form": "sparse"}, "form must be 'auto', 'dense' or 'samples', got 'sparse'"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExactNaturalGradient(small(), **arguments)


def test_a_step_before_any_information():
    with pytest.raises(RuntimeError, match="call the model in training mode, or call observe"):
        ExactNaturalGradient(small()).step()


@pytest.mark.parametrize(
    ("model", "inputs", "options", "message"),
    [
        (nn.Linear(4, 2), torch.zeros(0, 4), {}, "at least one sample"),
        (nn.Linear(4, 2), torch.zeros(3, 4), {"output": "poisson"}, "output must be"),
        (nn.Linear(4, 2), torch.zeros(3, 5, 4), {}, r"must return \(N, outputs\) for 3 inputs, got \(3, 5, 2\)"),
    ],
)
def test_information_of_bad_inputs(model, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        exact_information(model.double(), inputs.double(), **options)
