"""The error tree: one root, no error without a remedy, whole after a trip between processes."""

import pickle

import pytest

import pave
from pave import errors


def every_error(root: type[errors.PaveError] = errors.PaveError) -> list[type[errors.PaveError]]:
    return [root, *(below for child in root.__subclasses__() for below in every_error(child))]


def ours() -> list[type[errors.PaveError]]:
    return [error for error in every_error() if error.__module__ == "pave.errors"]


def test_every_error_of_the_file_is_in_the_tree_and_in_its_docstring():
    written = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert {error.__name__ for error in ours()} == written
    assert all(name in (errors.__doc__ or "") for name in written)


def test_every_error_is_public():
    assert all(getattr(pave, error.__name__) is error for error in ours())


@pytest.mark.parametrize("kind", [error for error in every_error() if issubclass(error, errors.FileError)])
def test_error_of_a_file_names_file_cause_and_remedy(kind):
    error = kind("a.safetensors", "it is empty", "fetch it again")
    assert str(error) == "a.safetensors: it is empty; fetch it again"
    assert (error.file, error.cause, error.remedy) == ("a.safetensors", "it is empty", "fetch it again")


@pytest.mark.parametrize("kind", ours(), ids=lambda kind: kind.__name__)
def test_error_comes_whole_out_of_a_worker_process(kind):
    words = ("f", "c", "r") if issubclass(kind, errors.FileError) else ("what; remedy",)
    error = pickle.loads(pickle.dumps(kind(*words)))
    assert type(error) is kind and str(error) == str(kind(*words))


def test_nearest_suggests_the_close_name_and_lists_all_when_none_is_close():
    known = ["audio-playroom", "depth-scannet"]
    assert errors.nearest("audio-playrom", known) == "did you mean 'audio-playroom'?"
    assert errors.nearest("xyz", known) == "known: audio-playroom, depth-scannet"
    assert errors.nearest("xyz", []) == "known: none"
