"""Parquet files, opened by pyarrow: `pip install 'lmsd[parquet]'`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lmsd.errors import UserError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile


def opened(path: Path) -> "ParquetFile":
    """A Parquet file. UserError when it is none, or pyarrow is missing."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError(f"{path.name}: Parquet files need pyarrow: pip install 'lmsd[parquet]'") from error
    try:
        return ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} is no whole Parquet file ({error}): fetch it again") from error


def table_rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    """The rows of a table without images, numbered from 1."""
    line = 0
    for batch in opened(path).iter_batches():
        for row in batch.to_pylist():
            line += 1
            yield line, row
