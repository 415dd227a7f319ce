"""What img2dataset writes is read as it is. `tests/fixtures/img2dataset` is the output of its version 1.47.0 for
five addresses, one of which was gone:

    img2dataset --url_list urls.csv --input_format csv --url_col url --caption_col caption \\
      --save_additional_columns '["license"]' --output_format webdataset --output_folder webdataset \\
      --image_size 32 --resize_mode keep_ratio_largest --number_sample_per_shard 3 --enable_wandb False

and the same with `--output_format parquet`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cm3core.document import Image, Text
from cm3core.interfaces.dataset import DocumentSource, Provenance
from cm3plugins.datasets.table import TableSourceConfig
from cm3plugins.datasets.webdataset import WebDatasetSourceConfig
from picture_files import picture, write_tar

OUTPUT = Path(__file__).parents[2] / "fixtures" / "img2dataset"
ADDRESS = "http://127.0.0.1:8765/src/{}.jpg"


def contents(source: DocumentSource) -> dict[str, tuple[str, tuple[int, ...], Provenance]]:
    """id -> caption, shape of the picture, and where it is from."""
    found = {}
    for index in range(len(source)):
        texts = [one.text for one in source.document(index) if isinstance(one, Text)]
        shapes = [one.load().shape for one in source.document(index) if isinstance(one, Image)]
        found[source.id(index)] = (texts[0], shapes[0], source.provenance(index))
    return found


EXPECTED = {
    "000000": ("a ramp, number 0", (24, 32, 3), Provenance("CC0-1.0", ADDRESS.format(0))),
    "000001": ("a ramp, number 1", (24, 32, 3), Provenance("CC-BY-4.0", ADDRESS.format(1))),
    "000010": ("a ramp of blue", (24, 32, 3), Provenance("CC-BY-4.0", ADDRESS.format(2))),
    "000011": ("a ramp, number 3", (24, 32, 3), Provenance("CC-BY-4.0", ADDRESS.format(3))),
}


@pytest.mark.parametrize("path", ["webdataset", "webdataset/{00000..00001}.tar"])
def test_tars(path: str) -> None:
    """A folder also holds its statistics and a Parquet file for each tar."""
    source = WebDatasetSourceConfig(path=str(OUTPUT / path), split="all").build()
    assert contents(source) == EXPECTED
    assert source.skipped == []


def test_parquet() -> None:
    source = TableSourceConfig(
        path=str(OUTPUT / "parquet"),
        split="all",
        columns={"caption": "caption", "image": "jpg"},
        provenance={"licence": "license", "source": "url"},
        id_column="key",
    ).build()
    assert contents(source) == EXPECTED
    # a download that failed is a row without a picture
    (skipped,) = source.skipped
    assert (Path(skipped.place).name, skipped.cause, skipped.next_step) == (
        "00000.parquet, row 2",
        "its column 'jpg', needed for the field 'image', is empty",
        "fill it in, or remove the record",
    )


def test_a_source_that_is_stated_counts_before_the_address(tmp_path: Path) -> None:
    values = {
        "a": '{"url": "http://x/a.jpg", "source": "my album"}',
        "b": '{"url": "http://x/b.jpg"}',
        "c": '{"url": 7}',
    }
    files: dict[str, bytes | str] = {}
    for seed, (key, text) in enumerate(values.items()):
        files |= {f"{key}.png": picture(seed), f"{key}.json": text, f"{key}.txt": "words"}
    source = WebDatasetSourceConfig(
        path=str(write_tar(tmp_path / "0.tar", files)), split="all"
    ).build()
    assert [source.provenance(index).source for index in range(3)] == [
        "my album",
        "http://x/b.jpg",
        "",
    ]
