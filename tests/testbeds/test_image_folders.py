"""Folders of images as people have them: odd names, odd files, and pictures of several kinds."""

import numpy as np
import pytest
import torch

from grokscape.testbeds import Images, Texts

datasets = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")


def picture(value, mode="RGB"):
    return Image.fromarray(np.full((4, 4, 3), value, np.uint8)).convert(mode)


def folder_of(path, files):
    for name, image in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(path / name) if hasattr(image, "save") else (path / name).write_bytes(image)
    return path


def usual(first="cat", second="dog"):
    """The value of a pixel is ten times the class, plus a hundred in the test set."""
    sides = (("train", 0), ("test", 100))
    return {
        f"{split}/{name}/{k}.png": picture(base + 10 * number)
        for split, base in sides for number, name in enumerate((first, second)) for k in range(2)
    }  # fmt: skip


def read(path):
    return Images(source=str(path), pixels=4).split(0)


def values(images):
    return images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(("first", "second", "root"), [("test", "train", "a"), ("cat", "dog", "x*y [z]")])
def test_names_of_classes_and_places_decide_nothing(tmp_path, first, second, root):
    split = read(folder_of(tmp_path / root, usual(first, second)))
    assert (values(split.train_inputs), split.train_labels.tolist()) == ([0, 0, 10, 10], [0, 0, 1, 1])
    assert (values(split.test_inputs), split.test_labels.tolist()) == ([100, 100, 110, 110], [0, 0, 1, 1])


def test_what_lies_there_besides_is_left_alone(tmp_path):
    more = {"train/cat/.hidden.png": picture(9), "train/cat/notes.txt": b"x", "train/.cache/1.png": picture(9)}
    more |= {"notes.csv": b"a,b\n1,2\n", "train/dog/metadata.csv": b"file_name\n0.png\n", "train/empty/x.txt": b""}
    split = read(folder_of(tmp_path, usual() | more | {"train/cat/deeper/9.PNG": picture(5)}))
    assert (values(split.train_inputs), split.train_labels.tolist()) == ([0, 0, 5, 10, 10], [0, 0, 0, 1, 1])
    assert split.num_classes == 2


@pytest.mark.parametrize(
    ("more", "less", "words"),
    [
        ({"train/cat/0.png": b"no image"}, "", r"image .*train/cat/0.png cannot be used \(cannot identify"),
        ({"train/cat/0.tif": Image.new("F", (4, 4))}, "", r"0.tif cannot be used \(expected 8 or 16 bits .* mode F"),
        ({"train/9.png": picture(1)}, "", r"train/9.png is an image beside the folders of classes"),
        ({"test/Dog/0.png": picture(1)}, "", r"to be classes of .*train \(cat, dog\), got Dog too"),
        ({}, "/dog/", "folders of two or more classes in .*train, got cat alone"),
        ({}, "train/", "expected a train split and one of test.*found test"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, more, less, words):
    files = {name: image for name, image in (usual() | more).items() if not less or less not in name}
    with pytest.raises(ValueError, match=words):
        read(folder_of(tmp_path, files))


def test_a_grey_picture_among_coloured_ones_takes_no_colour_from_them(tmp_path):
    files = usual() | {"train/cat/0.png": picture(7, "L"), "test/dog/1.png": Image.new("RGB", (4, 4), (1, 2, 3))}
    split = read(folder_of(tmp_path / "mixed", files))
    assert split.train_inputs.shape[1:] == split.test_inputs.shape[1:] == split.input_spec.shape == (3, 4, 4)
    assert split.train_inputs[0].unique().tolist() == [7]
    assert split.test_inputs[-1, :, 0, 0].tolist() == [1, 2, 3]
    grey = read(folder_of(tmp_path / "grey", {name: image.convert("L") for name, image in usual().items()}))
    assert grey.train_inputs.shape[1:] == grey.test_inputs.shape[1:] == grey.input_spec.shape == (1, 4, 4)
    assert values(grey.train_inputs) == [0, 0, 10, 10]


def test_sixteen_bits_become_eight(tmp_path):
    levels = np.array([0, 257, 300, 65535], np.uint16).reshape(2, 2)
    split = read(folder_of(tmp_path, usual() | {"train/cat/0.png": Image.fromarray(levels.repeat(2, 0).repeat(2, 1))}))
    assert split.train_inputs[0, 0, ::2, ::2].flatten().tolist() == [0, 1, 1, 255]


def test_words_that_mean_nothing_to_others_are_words(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text('text,label\nnull,0\nNA,1\n"",1\nnone at all,0\n')
    split = Texts(source=str(tmp_path), length=4).split(0)
    assert (split.train_inputs != 0).sum(1).tolist() == [2, 2, 1, 4]
    assert len(split.train_inputs[:2, 1].unique()) == 2
    assert not torch.equal(split.train_inputs[0, 1], split.train_inputs[3, 1])
