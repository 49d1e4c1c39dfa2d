"""Data of folders and of the hub: what is read, and what is said when it is not there."""

import csv
import json

import numpy as np
import pytest
import torch

from grokscape.testbeds import Images, Sentiment, Texts
from grokscape.testbeds.corpus import grades, reviews
from grokscape.testbeds.hub import DataNotHere, load_tables

datasets = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def pictures(tmp_path):
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for number, name in enumerate(("cat", "dog")):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = generator.integers(0, 80, (12, 10, 3), dtype=np.uint8)
                pixels[..., number] = 200 + k
                Image.fromarray(pixels).save(folder / f"{k}.png")
    return tmp_path / "pictures"


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def test_a_folder_of_images(pictures):
    split = Images(source=str(pictures), pixels=8, augment="crop_flip").split(0)
    assert split.train_inputs.shape == (8, 3, 8, 8)
    assert split.train_inputs.dtype == torch.uint8
    assert split.test_inputs.shape == (4, 3, 8, 8)
    assert split.num_classes == 2
    brightest = split.train_inputs.float().mean((2, 3))[:, :2].argmax(1)
    assert torch.equal(brightest, split.train_labels)
    assert (split.transform.crop, split.transform.flip) == (1, True)


def test_pictures_are_cut_and_mirrored_where_that_is_asked_for_alone(pictures):
    splits = (Images(source=str(pictures), pixels=16, augment=how).split(0) for how in ("none", "crop_flip"))
    plain, moved = (split.transform for split in splits)
    assert (plain.random, plain.crop, plain.flip) == (False, 0, False)
    assert (moved.random, moved.crop, moved.flip) == (True, 2, True)


def test_a_word_that_happens_to_contain_train_does_not_put_a_test_file_into_training(tmp_path):
    for name, count in (("constraints_train", 4), ("constraints_test", 2), ("latest-validation", 1), ("mytrain", 3)):
        write_csv(tmp_path / f"{name}.csv", [(f"{name} {k}", k % 2) for k in range(count)])
    train, test = load_tables(str(tmp_path))
    assert sorted({text.split()[0] for text in train["text"]}) == ["constraints_train", "mytrain"]
    assert {text.split()[0] for text in test["text"]} == {"constraints_test"}


def test_some_samples_follow_the_seed(pictures):
    task = Images(source=str(pictures), pixels=8, train_samples=5)
    one, two, other = task.split(0), task.split(0), task.split(1)
    assert torch.equal(one.train_inputs, two.train_inputs)
    assert one.train_inputs.shape[0] == 5
    assert not torch.equal(one.train_inputs, other.train_inputs)


@pytest.mark.parametrize("said", [True, False])
def test_a_folder_of_parquet_files_with_images(tmp_path, pictures, said):
    table = datasets.load_dataset("imagefolder", data_dir=str(pictures))
    for split in ("train", "test"):
        part = table[split].rename_column("image", "img")
        if not said:
            plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
            part = part.cast_column("img", datasets.Image(decode=False)).cast_column("img", plain)
        (tmp_path / "parquet").mkdir(exist_ok=True)
        part.to_parquet(tmp_path / "parquet" / f"{split}-00000-of-00001.parquet")
    found = Images(source=str(tmp_path / "parquet"), pixels=8).split(0)
    expected = Images(source=str(pictures), pixels=8).split(0)
    assert torch.equal(found.train_inputs, expected.train_inputs)
    assert torch.equal(found.train_labels, expected.train_labels)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_folder_of_texts(tmp_path, kind):
    train = [("a good film", 4), ("a bad, bad film", 0), ("a film", 2)]
    test = [("good or bad", 2), ("unheard", 4)]
    for name, rows in (("train", train), ("test", test)):
        if kind == "csv":
            write_csv(tmp_path / f"{name}.csv", rows)
        elif kind == "jsonl":
            lines = [json.dumps({"text": text, "label": label, "label_text": "?"}) for text, label in rows]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        else:
            columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
            datasets.Dataset.from_dict(columns).to_parquet(tmp_path / f"{name}-00000-of-00001.parquet")
    split = Texts(source=str(tmp_path), length=6).split(0)
    assert split.train_inputs.tolist()[2] == [2, 3, 4, 0, 0, 0]  # start, and the two most frequent words
    assert split.train_labels.tolist() == [4, 0, 2]
    assert split.num_classes == 5
    assert split.test_inputs.tolist()[1] == [2, 1, 0, 0, 0, 0]
    assert split.input_spec.padding == 0


def test_data_that_is_not_here_comes_with_the_command(monkeypatch):
    monkeypatch.setattr("grokscape.testbeds.hub._reachable", lambda endpoint: False)
    message = r"hf download nobody/nothing --repo-type dataset --local-dir data/nothing.*--data data/nothing"
    with pytest.raises(DataNotHere, match=message):
        Images(source="nobody/nothing").split(0)


def test_a_folder_that_does_not_exist():
    with pytest.raises(DataNotHere, match=r"the folder \./nowhere does not exist"):
        load_tables("./nowhere")


def test_a_folder_without_data(tmp_path):
    with pytest.raises(ValueError, match="expected folders train/ and test/"):
        load_tables(str(tmp_path))


def test_a_missing_split(tmp_path):
    write_csv(tmp_path / "train.csv", [("a", 1)])
    with pytest.raises(ValueError, match=r"expected a train split and one of test.*found train"):
        load_tables(str(tmp_path))


def test_columns_are_named_when_they_are_not_found(tmp_path):
    for name in ("train", "test"):
        write_csv(tmp_path / f"{name}.csv", [("a", 1)])
    with pytest.raises(ValueError, match=r"found no column 'words' for texts; the columns are text, label"):
        Texts(source=str(tmp_path), text_column="words").split(0)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_files_that_are_not_utf8_are_named(tmp_path, suffix):
    rows = {"csv": "text,label\nän ö,0\n", "jsonl": '{"text": "än ö", "label": 0}\n'}[suffix]
    for name in ("train", "test"):
        (tmp_path / f"{name}.{suffix}").write_bytes(rows.encode("utf-8-sig"))  # as Windows has it
    assert Texts(source=str(tmp_path), length=3).split(0).test_inputs.tolist() == [[2, 3, 4]]
    (tmp_path / f"test.{suffix}").write_bytes(rows.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"test\.{suffix} is not UTF-8 \(invalid continuation byte: byte 0xe4"):
        load_tables(str(tmp_path))


def test_files_that_cannot_be_read(tmp_path):
    for name in ("train", "test"):
        datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "test.parquet").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"the parquet files of /.* cannot be read together \(.*\); expected the same"):
        load_tables(str(tmp_path))


def test_a_configuration_of_a_folder_is_a_folder_in_it(tmp_path):
    for config, label in (("irony", 1), ("emotion", 3)):
        (tmp_path / config).mkdir()
        for name in ("train", "test"):
            write_csv(tmp_path / config / f"{name}.csv", [("a", label)])
    assert Texts(source=str(tmp_path), config="emotion").split(0).train_labels.tolist() == [3]
    with pytest.raises(ValueError, match="holds no folder hate, which config asks for"):
        Texts(source=str(tmp_path), config="hate").split(0)


@pytest.mark.parametrize(("labels", "text"), [
    ((0, -1), "column 'label' has samples without a label"),
    (("bad", "good"), "column 'label' must hold a class index for each sample, .* got 'bad'; number the classes"),
    ((0.25, 0.75), "class index for each sample, .* got 0.25"),
    ((1, ""), "class index for each sample, .* got (None|'')"),
])
def test_labels_that_are_no_classes(tmp_path, labels, text):
    write_csv(tmp_path / "train.csv", [("a", 0), ("b", 1)])
    write_csv(tmp_path / "test.csv", list(zip("cd", labels, strict=True)))
    with pytest.raises(ValueError, match=text):
        Texts(source=str(tmp_path)).split(0)


def test_the_corpus_is_graded_and_repeatable():
    one, two = Sentiment().split(3), Sentiment().split(3)
    assert torch.equal(one.train_inputs, two.train_inputs)
    assert torch.equal(one.test_labels, two.test_labels)
    assert not torch.equal(one.train_inputs, Sentiment().split(4).train_inputs)
    assert one.train_labels.unique().tolist() == [0, 1, 2, 3, 4]
    assert {*map(tuple, one.train_inputs.tolist())}.isdisjoint(map(tuple, one.test_inputs.tolist()))


def test_grades_follow_the_words_and_overlap_with_noise():
    texts, scores = reviews(2000, torch.Generator().manual_seed(0))
    by_text = dict(zip(texts, scores.tolist(), strict=True))
    for text, score in by_text.items():
        if text.count("dreadful") == 1 and "not" not in text and "," not in text:
            assert score < 0
    noisy = scores + 0.3 * torch.randn(2000, generator=torch.Generator().manual_seed(1))
    agreement = (grades(noisy) == grades(scores)).double().mean()
    assert 0.6 < agreement < 0.95
