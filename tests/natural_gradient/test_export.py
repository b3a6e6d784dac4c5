"""A folded network leaves torch as any other does: torch.export and ONNX, with the outputs of the reconstructed one."""

import pytest
import torch
from torch import nn

from fisherlayers.natural_gradient import fold, reconstruct
from natural_gradient.cases_natural_gradient import convolutional, images, perceptron, train, vectors


class Attentive(nn.Module):
    """Attention over the seven entries of a vector."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(1, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs):
        return self.head(self.encoder(self.embed(inputs.unsqueeze(-1))).mean(1))


def folded(case):
    """A trained and folded network in float32, inputs, and the outputs before folding."""
    torch.manual_seed(0)
    build, data = {
        "perceptron": (perceptron, vectors),
        "convolutional": (convolutional, images),
        "attentive": (Attentive, vectors),
    }[case]
    inputs, targets = data()
    model = reconstruct(build().float(), statistics_every=1, refresh_every=2)
    train(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), inputs.float(), targets, 5)
    outputs = model.eval()(inputs.float()).detach()
    return fold(model), inputs.float(), outputs


CASES = ["perceptron", "convolutional", "attentive"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", CASES)
def test_torch_export(case):
    model, inputs, outputs = folded(case)
    program = torch.export.export(model, (inputs,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    torch.testing.assert_close(program.module()(inputs), outputs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(program.module()(inputs[:3]), outputs[:3], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of the exporter and what it imports
@pytest.mark.parametrize("case", CASES)
def test_onnx(case, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="needs the [onnx] extra")
    model, inputs, outputs = folded(case)
    path = tmp_path / "model.onnx"
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    torch.onnx.export(model, (inputs,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows in (len(inputs), 3):
        [found] = session.run(None, {session.get_inputs()[0].name: inputs[:rows].numpy()})
        torch.testing.assert_close(torch.from_numpy(found), outputs[:rows], rtol=1e-4, atol=1e-5)
