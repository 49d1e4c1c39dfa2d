"""Image classification on data sets of the hub or of a folder."""

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from grokscape.settings import Settings, Size
from grokscape.testbeds.augmentation import ImageTransform, channel_statistics
from grokscape.testbeds.hub import column_of, labels_of, load_tables
from grokscape.testbeds.splits import assigned
from grokscape.testbeds.types import InputSpec, Split


class Images(Settings):
    """Images of a data set, kept as bytes and normalised per channel by the training set's mean and deviation.

    Attributes:
        source: name on the hub, or a folder (see `grokscape.testbeds.hub`).
        config: the hub's configuration, where there are several; of a folder, the folder in it.
        pixels: height and width; images are scaled by their shorter side, and cut in the middle.
        augment: "crop_flip" cuts windows from images with a border of an eighth of `pixels`, and mirrors half of them.
        train_samples, test_samples: so many random samples, by the split's seed; None for all.
        image_column, label_column: where they are not called "image" or "img", and "label" or "fine_label".
        random_labels: the control without structure: all labels are shuffled, by the split's seed.
    """

    kind: Literal["images"] = "images"
    source: str
    config: str | None = None
    pixels: Size = 32
    augment: Literal["none", "crop_flip"] = "none"
    train_samples: Size | None = None
    test_samples: Size | None = None
    image_column: str | None = None
    label_column: str | None = None
    random_labels: bool = False

    def split(self, seed: int) -> Split:
        """Train and held-out images; the seed chooses samples, where not all are wanted."""
        train, test, num_classes = _tables(
            self.source, self.config, self.pixels, self.image_column, self.label_column
        )
        train_images, train_labels = some(*train, self.train_samples, seed)
        test_images, test_labels = some(*test, self.test_samples, seed)
        train_labels, test_labels = assigned(train_labels, test_labels, seed, self.random_labels)
        border = self.pixels // 8 if self.augment == "crop_flip" else 0
        transform = ImageTransform(*channel_statistics(train_images), crop=border, flip=self.augment == "crop_flip")
        spec = InputSpec("image", tuple(train_images.shape[1:]))
        return Split(train_images, train_labels, test_images, test_labels, spec, num_classes, transform)


def some(inputs: Tensor, labels: Tensor, count: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """So many random samples."""
    if count is None or count >= len(labels):
        return inputs, labels
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:count]
    return inputs[chosen], labels[chosen]


@lru_cache(maxsize=2)
def _tables(
    source: str, config: str | None, pixels: int, image_column: str | None, label_column: str | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], int]:
    """Images (N, C, H, W) uint8 and labels of both splits, and the number of classes."""
    read, names, grey = [], None, True
    for table in load_tables(source, config):
        image = column_of(table, image_column, ("image", "img", "images"), "images")
        label = column_of(table, label_column, ("label", "fine_label", "labels"), "labels")
        names = getattr(table.features[label], "names", None) or names
        images, all_grey = _pixels(_with_pictures(table, image), image, pixels)
        read.append((images, labels_of(table, label)))
        grey = grey and all_grey
    if grey:
        read = [(images[:, :1].clone(), labels) for images, labels in read]
    num_classes = len(names) if names else int(max(labels.max() for _, labels in read)) + 1
    return read[0], read[1], num_classes


def _with_pictures(table: Any, column: str) -> Any:
    """The table with the column read as pictures, where its file did not say that it holds some."""
    from datasets import Image

    return table if isinstance(table.features[column], Image) else table.cast_column(column, Image())


def _pixels(table: Any, column: str, pixels: int) -> tuple[Tensor, bool]:
    """All images of a column at one size (N, 3, pixels, pixels), and whether all of them are grey."""
    images, grey = torch.empty((len(table), 3, pixels, pixels), dtype=torch.uint8), True
    for index in range(len(table)):
        try:
            picture = _in_bytes(table[index][column])
        except Exception as error:  # whatever the format's own reader says
            stored = table.cast_column(column, type(table.features[column])(decode=False))[index][column]
            name = (stored or {}).get("path") or f"number {index}"
            raise ValueError(f"image {name} cannot be used ({error}); restore it, or take it out") from None
        grey = grey and picture.mode == "L"
        images[index] = _fitted(picture, pixels)
    return images, grey


def _in_bytes(image: Any) -> Any:
    """A PIL image with 8 bits a channel, grey (L) or coloured (RGB)."""
    if image.mode.startswith("I;16"):
        from PIL import Image

        return Image.fromarray((np.asarray(image, dtype=np.uint32) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"expected 8 or 16 bits a channel, got mode {image.mode}, whose range is not known")
    return image.convert("L" if image.mode in ("L", "1") else "RGB")


def _fitted(image: Any, pixels: int) -> Tensor:
    """An image as (3, pixels, pixels) bytes, or (1, …), scaled by its shorter side and cut in the middle."""
    scale = pixels / min(image.size)
    if scale != 1:
        image = image.resize([max(pixels, round(side * scale)) for side in image.size])
    left, top = (image.width - pixels) // 2, (image.height - pixels) // 2
    image = image.crop((left, top, left + pixels, top + pixels))
    array = torch.from_numpy(np.array(image, dtype=np.uint8))
    return array[None] if image.mode == "L" else array.permute(2, 0, 1)
