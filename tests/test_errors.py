"""The error tree: one root, a remedy in every error, intact after pickling."""

import pickle

import numpy as np
import pytest

import pave
from pave import errors
from pave.playroom.sound import tone
from pave.playroom.world import draw_scene


def every_error(root: type[errors.PaveError] = errors.PaveError) -> list[type[errors.PaveError]]:
    return [root, *(below for child in root.__subclasses__() for below in every_error(child))]


def ours() -> list[type[errors.PaveError]]:
    return [error for error in every_error() if error.__module__ == "pave.errors"]


def test_every_error_of_the_file_is_in_the_tree_and_in_its_docstring():
    written = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert {error.__name__ for error in ours()} == written - {"MediaWarning"}
    assert all(name in (errors.__doc__ or "") for name in written)


def test_every_error_is_public():
    assert all(getattr(pave, error.__name__) is error for error in ours())


@pytest.mark.parametrize("kind", [error for error in every_error() if issubclass(error, errors.FileError)])
def test_error_of_a_file_names_file_cause_and_remedy(kind):
    error = kind("a.safetensors", "it is empty", "fetch it again")
    assert str(error) == "a.safetensors: it is empty; fetch it again"
    assert (error.file, error.cause, error.remedy) == ("a.safetensors", "it is empty", "fetch it again")


@pytest.mark.parametrize("kind", ours(), ids=lambda kind: kind.__name__)
def test_error_survives_pickling_between_processes(kind):
    arguments = ("f", "c", "r") if issubclass(kind, errors.FileError) else ("what; remedy",)
    error = pickle.loads(pickle.dumps(kind(*arguments)))
    assert type(error) is kind and str(error) == str(kind(*arguments))


def test_patch_errors_are_file_errors_and_usage_errors_are_value_errors():
    assert issubclass(errors.PatchError, errors.FileError) and issubclass(errors.PatchDamaged, errors.FileDamaged)
    assert issubclass(errors.UsageError, ValueError) and not issubclass(errors.UsageError, errors.FileError)


def test_a_file_error_is_raised_as_another_type_with_the_same_message():
    def raised(error, *arguments):
        with pytest.raises(errors.PaveError) as caught, errors.raised_as(*arguments):
            raise error
        return caught.value

    cut = errors.FileDamaged("a", "is cut", "fetch it")
    converted = raised(cut, errors.DataError)
    assert (type(converted), str(converted), converted.__cause__) == (errors.DataError, "a: is cut; fetch it", None)
    assert str(raised(cut, errors.DataError, "b", "make it")) == "b: is cut; make it"
    kept = raised(cut, None, "b")
    assert type(kept) is errors.FileDamaged and (kept.file, kept.remedy) == ("b", "fetch it")
    other = errors.MediaError("no file at all")
    assert raised(other, errors.DataError) is other


def test_an_invalid_argument_is_a_usage_error_that_lists_the_valid_values():
    with pytest.raises(errors.UsageError, match=r"split='tset': use one of .*test"):
        draw_scene(0, "tset")  # type: ignore[arg-type]
    with pytest.raises(errors.UsageError, match=r"unknown sound 'moo'; use one of .*bell"):
        tone("moo", np.random.default_rng(0))


def test_nearest_suggests_the_close_name_and_lists_all_when_none_is_close():
    known = ["audio-playroom", "depth-scannet"]
    assert errors.nearest("audio-playrom", known) == "did you mean 'audio-playroom'?"
    assert errors.nearest("xyz", known) == "known: audio-playroom, depth-scannet"
    assert errors.nearest("xyz", []) == "known: none"
