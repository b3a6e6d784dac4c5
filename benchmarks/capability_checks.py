"""What a way of training has to get on with: one function a row of the table, each on a tiny problem.

A check returns when the capability is there and raises when it is not: `Untouched` if training ran but left
parameters as they were, `NeedsPickle` if a checkpoint only loads with ``weights_only=False``, anything else otherwise.
"""

import copy
import gc
import io
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.utils import parametrizations

from benchmarks.capability_contenders import Batch, Contender, Run
from benchmarks.capability_problems import (
    Attentive,
    Checkpointed,
    Recurrent,
    Twice,
    convolutional,
    images,
    perceptron,
    seeded,
    vectors,
)
from fisherlayers import plain_state_dict

Check = Callable[[Contender], None]


class Untouched(Exception):
    """Some parameters were never moved."""


class NeedsPickle(Exception):
    """A checkpoint holds more than tensors and plain Python values."""


class NotMeaningful(Exception):
    """The question does not arise for this contender."""


def start(contender: Contender, model: nn.Module, parameters: list[Tensor] | None = None, batches: int = 1) -> Run:
    """Start on a model with fixed random numbers; a step will accumulate so many batches."""
    _seed()
    return contender.start(model, parameters, batches)


def _seed() -> None:
    torch.manual_seed(2)
    random.seed(2)


def _trains(contender: Contender, model: nn.Module, *batches: Batch) -> None:
    _moves(start(contender, model), *batches)


def _moves(run: Run, *batches: Batch) -> None:
    before = run.weights()
    for _ in range(3):
        for batch in batches:
            loss = run.update(batch)
            assert bool(torch.isfinite(loss)), f"loss {loss.item()}"
    after = run.weights()
    assert all(bool(torch.isfinite(weight).all()) for weight in after.values()), "weights are not finite"
    still = [name for name, weight in after.items() if torch.equal(weight, before[name])]
    if still:
        raise Untouched(", ".join(still))


def _stays(run: Run, batch: Batch, step: Callable[[], object]) -> None:
    before = run.weights()
    step()
    for name, weight in run.weights().items():
        torch.testing.assert_close(weight, before[name], rtol=1e-5, atol=1e-5)


def _losses(run: Run, batch: Batch, steps: int = 4) -> Tensor:
    return torch.stack([run.update(batch) for _ in range(steps)])


def perceptron_trains(contender: Contender) -> None:
    """Multilayer perceptron."""
    _trains(contender, seeded(perceptron), vectors())


def inplace_activation(contender: Contender) -> None:
    """In-place ReLU."""
    _trains(contender, seeded(lambda: perceptron(lambda: nn.ReLU(inplace=True))), vectors())


def convolution(contender: Contender) -> None:
    """Conv2d."""
    _trains(contender, seeded(convolutional), images())


def batch_norm(contender: Contender) -> None:
    """BatchNorm."""
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 3)))
    _trains(contender, model, vectors())


def embedding_and_lstm(contender: Contender) -> None:
    """Embedding + LSTM."""
    symbols = torch.randint(10, (16, 5), generator=torch.Generator().manual_seed(1))
    _trains(contender, seeded(Recurrent), (symbols % 10, vectors()[1]))


def transformer(contender: Contender) -> None:
    """TransformerEncoderLayer."""
    inputs = torch.randn(16, 5, 8, generator=torch.Generator().manual_seed(1))
    _trains(contender, seeded(Attentive), (inputs, vectors()[1]))


def module_called_twice(contender: Contender) -> None:
    """Module called twice."""
    _trains(contender, seeded(Twice), vectors())


def double(contender: Contender) -> None:
    """float64."""
    inputs, targets = vectors()
    _trains(contender, seeded(perceptron).double(), (inputs.double(), targets))


def bfloat16_parameters(contender: Contender) -> None:
    """bfloat16 parameters."""
    inputs, targets = vectors()
    _trains(contender, seeded(perceptron).bfloat16(), (inputs.bfloat16(), targets))


def bfloat16_autocast(contender: Contender) -> None:
    """bfloat16 autocast."""
    run = start(contender, seeded(perceptron))
    run.autocast = torch.bfloat16
    _moves(run, vectors())


def float16_autocast(contender: Contender) -> None:
    """float16 autocast."""
    run = start(contender, seeded(perceptron))
    run.autocast = torch.float16
    _moves(run, vectors())


def grad_scaler(contender: Contender) -> None:
    """GradScaler, with a skipped step."""
    run, batch = start(contender, seeded(perceptron)), vectors()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = run.weights()
    for _ in range(3):
        run.scaled_update(batch, scaler)
    still = [name for name, weight in run.weights().items() if torch.equal(weight, before[name])]
    if still:
        raise Untouched(", ".join(still))
    _stays(run, batch, lambda: run.scaled_update(batch, scaler, float("inf")))
    run.scaled_update(batch, scaler)
    assert all(bool(torch.isfinite(weight).all()) for weight in run.weights().values()), "weights are not finite"


def scheduler(contender: Contender) -> None:
    """Learning-rate scheduler acts."""
    run, batch = start(contender, seeded(perceptron)), vectors()
    _moves(run, batch)
    for optimizer in run.optimizers:
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.0)
    _stays(run, batch, lambda: run.update(batch))


def closure(contender: Contender) -> None:
    """step(closure)."""
    if not contender.steps_alone:
        raise NotMeaningful
    run, batch = start(contender, seeded(perceptron)), vectors()
    before = run.weights()
    for _ in range(3):
        losses = [optimizer.step(lambda: run.backward(batch)) for optimizer in run.optimizers]
    assert all(bool(torch.isfinite(torch.as_tensor(loss))) for loss in losses), f"step returned {losses}"
    still = [name for name, weight in run.weights().items() if torch.equal(weight, before[name])]
    if still:
        raise Untouched(", ".join(still))


def clipping(contender: Contender) -> None:
    """Gradient clipping (to zero: nothing moves)."""
    run, batch = start(contender, seeded(perceptron)), vectors()

    def clipped() -> None:
        run.backward(batch)
        nn.utils.clip_grad_norm_(run.owner.parameters(), 0.0)
        run.step()

    _stays(run, batch, clipped)


def accumulation(contender: Contender) -> None:
    """Gradient accumulation (four chunks = one batch)."""
    inputs, targets = vectors()
    chunks = list(zip(inputs.chunk(4), targets.chunk(4), strict=True))
    whole, parts = start(contender, seeded(perceptron)), start(contender, seeded(perceptron), batches=4)
    for _ in range(4):
        expected = whole.update((inputs, targets))
        torch.testing.assert_close(parts.update(*chunks), expected, rtol=1e-4, atol=1e-5)


def exact_resume(contender: Contender) -> None:
    """Exact resume, weights_only=True."""
    batch, file = vectors(), io.BytesIO()
    run = start(contender, seeded(perceptron))
    _losses(run, batch, 5)
    torch.save([part.state_dict() for part in run.parts()], file)
    _seed()
    expected = _losses(run, batch, 6)
    safe = True
    try:
        states = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    except Exception:
        safe = False
        states = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    resumed = start(contender, perceptron())
    for part, state in zip(resumed.parts(), states, strict=True):
        part.load_state_dict(state)
    _seed()
    assert torch.equal(_losses(resumed, batch, 6), expected), "the losses after the restart differ"
    if not safe:
        raise NeedsPickle


def saved_model(contender: Contender) -> None:
    """torch.save(model)."""
    run, (inputs, targets) = start(contender, seeded(perceptron)), vectors()
    _losses(run, (inputs, targets), 2)
    file = io.BytesIO()
    torch.save(run.model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    torch.testing.assert_close(loaded(inputs), run.model(inputs))


def copies(contender: Contender) -> None:
    """deepcopy, EMA / SWA of the weights."""
    run, batch = start(contender, seeded(perceptron)), vectors()
    average = contender.average(run.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    expected: dict[str, torch.Tensor] = {}
    for _ in range(3):
        run.update(batch)
        average.update_parameters(run.model)
        plain = plain_state_dict(run.model)
        expected = {name: torch.lerp(value, expected.get(name, value), 0.5) for name, value in plain.items()}
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=f"{name} is not the average of the plain weights")
    outputs = average(batch[0])
    duplicate = copy.deepcopy(run.model)
    run.update(batch)
    assert torch.equal(average(batch[0]), outputs), "training moved the average"
    assert not torch.equal(duplicate(batch[0]), run.model(batch[0])), "training moved the copy"


def validated(contender: Contender) -> None:
    """Validation in inference_mode between steps."""
    inputs, targets = torch.randn(32, 150, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3
    run = start(contender, seeded(lambda: nn.Sequential(nn.Linear(150, 20), nn.ReLU(), nn.Linear(20, 3))))
    for _ in range(3):
        run.update((inputs, targets))
        run.model.eval()
        with torch.inference_mode():
            run.model(inputs)
        run.model.train()


def compiled(contender: Contender) -> None:
    """torch.compile(model) = eager."""
    batch = vectors()
    expected = _losses(start(contender, seeded(perceptron)), batch)
    run = start(contender, seeded(perceptron))
    torch._dynamo.reset()
    run.model = torch.compile(run.model, backend="aot_eager")
    torch.testing.assert_close(_losses(run, batch), expected, rtol=1e-4, atol=1e-5)


def parametrized(contender: Contender) -> None:
    """A layer that is parametrized already."""
    model = seeded(perceptron)
    parametrizations.weight_norm(model[2])
    run, batch = start(contender, model), vectors()
    before = [parameter.detach().clone() for parameter in model[2].parameters()]
    for _ in range(3):
        run.update(batch)
    pairs = zip(model[2].parameters(), before, strict=True)
    if any(torch.equal(parameter, old) for parameter, old in pairs):
        raise Untouched("the parametrized layer")


def transforms(contender: Contender) -> None:
    """torch.func: vmap(grad(functional_call))."""
    run, (inputs, targets) = start(contender, seeded(perceptron)), vectors(4)
    _losses(run, (inputs, targets), 2)
    parameters = {name: parameter.detach() for name, parameter in run.model.named_parameters()}

    def loss(parameters: dict[str, Tensor], sample: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(run.model, parameters, (sample[None],)), target[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs, targets)
    for index in range(4):
        run.model.zero_grad()
        functional.cross_entropy(run.model(inputs[index : index + 1]), targets[index : index + 1]).backward()
        for name, parameter in run.model.named_parameters():
            torch.testing.assert_close(each[name][index], parameter.grad, rtol=1e-4, atol=1e-5)


def frozen_layer(contender: Contender) -> None:
    """Frozen layer."""
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)))
    model[2].requires_grad_(False)
    run, batch = start(contender, model), vectors()
    before = run.weights()
    for _ in range(3):
        run.update(batch)
    for name, weight in run.weights().items():
        frozen = name.startswith("2.")
        assert torch.equal(weight, before[name]) == frozen, f"{name} {'moved' if frozen else 'did not move'}"


def ragged_batch(contender: Contender) -> None:
    """Ragged last batch."""
    inputs, targets = vectors(37)
    parts = zip(inputs.split(16), targets.split(16), strict=True)
    _trains(contender, seeded(perceptron), *parts)


def wrapped_in_ddp(contender: Contender) -> None:
    """DistributedDataParallel wrapper."""
    run = start(contender, seeded(perceptron))
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        run.model = nn.parallel.DistributedDataParallel(run.model)
        _moves(run, vectors())
    finally:
        # The wrapper goes before its group: torch's own end of a group has been seen to wait for ever.
        run.model = getattr(run.model, "module", run.model)
        gc.collect()
        torch.distributed.destroy_process_group()


def param_group(contender: Contender) -> None:
    """add_param_group."""
    if not contender.steps_alone:
        raise NotMeaningful
    model = seeded(perceptron)
    run = start(contender, model, list(model[0].parameters()))
    run.update(vectors())
    if len(run.optimizers) == 1:
        run.optimizers[0].add_param_group({"params": list(model[2].parameters()), "lr": 0.01})
    else:
        for optimizer, parameter in zip(run.optimizers, model[2].parameters(), strict=True):
            optimizer.add_param_group({"params": [parameter], "lr": 0.01})
    _moves(run, vectors())


def _checkpointing(contender: Contender, reentrant: bool) -> None:
    batch = vectors()
    expected = _losses(start(contender, seeded(lambda: Checkpointed(None))), batch)
    seen = _losses(start(contender, seeded(lambda: Checkpointed(reentrant))), batch)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)


def checkpointing(contender: Contender) -> None:
    """Activation checkpointing = without."""
    _checkpointing(contender, reentrant=False)


def reentrant_checkpointing(contender: Contender) -> None:
    """The same, reentrant."""
    _checkpointing(contender, reentrant=True)


def channels_last(contender: Contender) -> None:
    """channels_last = contiguous."""
    inputs, targets = images()
    expected = _losses(start(contender, seeded(convolutional)), (inputs, targets))
    layout = torch.channels_last
    run = start(contender, seeded(convolutional).to(memory_format=layout))
    seen = _losses(run, (inputs.to(memory_format=layout), targets))
    torch.testing.assert_close(seen, expected, rtol=1e-3, atol=1e-4)


CHECKS: list[Check] = [
    perceptron_trains,
    inplace_activation,
    convolution,
    batch_norm,
    embedding_and_lstm,
    transformer,
    module_called_twice,
    parametrized,
    frozen_layer,
    ragged_batch,
    double,
    bfloat16_parameters,
    bfloat16_autocast,
    float16_autocast,
    grad_scaler,
    channels_last,
    scheduler,
    closure,
    clipping,
    accumulation,
    param_group,
    exact_resume,
    saved_model,
    copies,
    validated,
    compiled,
    transforms,
    checkpointing,
    reentrant_checkpointing,
    wrapped_in_ddp,
]


def outcome(check: Check, contender: Contender) -> tuple[str, str]:
    """Run one cell.

    Args:
        check: the row.
        contender: the column.

    Returns:
        "ok", "part" (ran, but left parameters untouched), "pickle", "fail" or "-" (not meaningful); and the reason.
    """
    try:
        check(contender)
    except NotMeaningful:
        return "-", ""
    except Untouched as error:
        return "part", str(error)
    except NeedsPickle:
        return "pickle", "the checkpoint needs weights_only=False"
    except Exception as error:
        lines = str(error).strip().splitlines()
        return "fail", f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
    return "ok", ""
