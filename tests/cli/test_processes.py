"""The command as a real process: start-up, exit codes, Ctrl-C, file-size limits and a full output."""

import functools
import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

from cli.conftest import FAST
from cli.pictures import write_folder
from fisherlayers.fisher_vectors import DeepFisherNetwork

COMMAND = [sys.executable, "-c", "from fisherlayers.cli import main; main()"]


def call(*arguments, **options):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output="stdout" not in options, text=True, timeout=120, **options
    )


def start(*arguments):
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background inherits an ignored Ctrl-C, which a program has to respect.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from fisherlayers.cli import app; app(['--help'], standalone_mode=False); "
        "print([name for name in ('torch', 'numpy', 'sklearn', 'PIL', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.rstrip().endswith("[]")
    assert "fisherlayers fit flowers/train -o flowers-model" in result.stdout


def test_bad_input_is_found_before_the_heavy_imports(tmp_path):
    code = (
        "import sys; from typer.testing import CliRunner; from fisherlayers.cli import app; "
        f"result = CliRunner().invoke(app, ['fit', {str(tmp_path / 'none')!r}, '-o', {str(tmp_path / 'm')!r}]); "
        "print(result.exit_code, [name for name in ('torch', 'sklearn', 'scipy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "2 []\n"


def test_version_and_usage_errors():
    assert call("--version").stdout.startswith("fisherlayers 0.")
    assert call("nonsense").returncode == 2


def test_an_error_is_one_message_and_code_2(tmp_path):
    result = call("fit", tmp_path / "none", "-o", tmp_path / "m")
    assert result.returncode == 2
    assert result.stderr.startswith("error: there is no folder")
    assert result.stdout == ""


def test_torchrun_fits_the_model_of_one_process(fitted, tmp_path):
    """Started by torchrun itself: two processes share the work, the first one speaks and saves."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["-m", "fisherlayers", "fit", fitted.train, "-o", tmp_path / "m", *FAST, "--validation", "0"]
    result = subprocess.run([*launch, *map(str, arguments)], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("images    24\n") == 1
    assert result.stderr.count("encode ...") == 1
    images = sorted(fitted.test.glob("*/*.png"))
    one, two = (DeepFisherNetwork.load(folder).decision_function(images) for folder in (fitted.model, tmp_path / "m"))
    np.testing.assert_allclose(two, one, atol=1e-4)


def test_ctrl_c_names_the_workspace(tmp_path):
    pictures = write_folder(tmp_path / "pictures", per_class=6, shape=(128, 128))
    options = [*FAST, "--preset", "photos", "--validation", "0", "--workspace", tmp_path / "work"]
    process = start("fit", pictures, "-o", tmp_path / "m", *options)
    for line in process.stderr:
        if line.startswith("encode"):
            process.send_signal(signal.SIGINT)
            break
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert rest.endswith(f"interrupted; finished work is kept in {tmp_path / 'work'}\n")
    assert "layer-1" in {path.name for path in next((tmp_path / "work").iterdir()).iterdir()}


@pytest.mark.parametrize("after", ["reading images", "layer 1: descriptors", "encode"])
def test_ctrl_c_ends_fit_and_leaves_nothing(tmp_path, after):
    pictures = write_folder(tmp_path / "pictures", per_class=6, shape=(128, 128))
    arguments = ["fit", pictures, "-o", tmp_path / "m", *FAST, "--preset", "photos", "--validation", "0"]
    process = start(*arguments)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith(after):
            process.send_signal(signal.SIGINT)
            break
    out, rest = process.communicate(timeout=60)
    assert process.returncode == 130, "".join(lines) + rest
    assert rest.endswith("interrupted; nothing was written\n")
    assert "Traceback" not in rest
    assert out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_a_file_size_limit_is_found_before_the_work(tmp_path):
    """The one real shortage of room that needs no privileges: like a quota, it fails the write itself."""
    pictures = write_folder(tmp_path / "pictures", per_class=2)

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    result = call("fit", pictures, "-o", tmp_path / "m", *FAST, preexec_fn=limit)
    assert result.returncode == 2
    assert result.stderr == f"error: cannot write to {tmp_path}: File too large\n"
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_output_that_is_full(fitted):
    with open("/dev/full", "w") as full:
        result = call("evaluate", fitted.model, fitted.test, "--json", stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 2
    assert "error: No space left on device" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


def test_a_reader_that_has_seen_enough(fitted):
    images = sorted(fitted.test.glob("*/*.png"))
    command = [*COMMAND, "predict", str(fitted.model), *map(str, images), "--csv"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    error = process.stderr.read()
    process.wait(timeout=60)
    process.stderr.close()
    assert "Traceback" not in error


def test_help_takes_less_than_half_a_second():
    """Processor time: another process on the same core must not fail the test."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_any_file_name_can_be_printed(fitted, tmp_path, encoding):
    """Also one that is not UTF-8, on a stream that is strict, as in most languages' locales."""
    name = os.fsencode(tmp_path) + "/日本 é".encode() + b"\xe9.png"
    with open(name, "wb") as file:
        file.write(next(fitted.test.glob("*/*.png")).read_bytes())
    options = {"env": {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}, "capture_output": True, "timeout": 120}
    for form in (["--json"], ["--csv"], []):
        command = [*COMMAND, "predict", os.fspath(fitted.model), name, *form]
        result = subprocess.run(command, **options)
        assert result.returncode == 0, result.stderr
        if form == ["--json"]:
            assert [os.fsencode(answer["image"]) for answer in json.loads(result.stdout)] == [name]
        elif encoding == "utf-8":
            assert name in result.stdout


@pytest.mark.skipif(not os.path.exists("/bin/sh"), reason="needs a shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_closed_streams(fitted, closed):
    """What is meant for the error stream must not end up between the rows."""
    images = sorted(fitted.test.glob("*/*.png"))[:2]
    command = [*COMMAND, "predict", str(fitted.model), *map(str, images), "--csv", "--top", "1"]
    result = subprocess.run(["/bin/sh", "-c", f'"$@" {closed}', "sh", *command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    if closed == "2>&-":
        assert [line.split(",")[0] for line in result.stdout.splitlines()] == ["image", *map(str, images)]
