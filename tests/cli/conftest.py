"""A runner of the command line, and a model that is fitted once."""

import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from cli.pictures import write_folder
from fisherlayers.cli import app

FAST = ("--depth", "1", "--components", "4", "--jobs", "1")


@pytest.fixture(scope="session")
def run():
    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)

    return run


@pytest.fixture(scope="session")
def fitted(run, tmp_path_factory):
    root = tmp_path_factory.mktemp("fitted")
    train, test = write_folder(root / "train"), write_folder(root / "test", per_class=4, first_seed=100)
    result = run("fit", train, "-o", root / "model", *FAST)
    assert result.code == 0, result.err
    return SimpleNamespace(train=train, test=test, model=root / "model", out=result.out, err=result.err)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "pictures", per_class=3)


@pytest.fixture
def refused(run):
    def refused(*arguments):
        result = run(*arguments)
        assert result.code == 2, result.out + result.err
        assert "Traceback" not in result.err
        assert result.err.count("error:") == 1
        return result.err

    return refused


@pytest.fixture
def load_json():
    return json.loads
