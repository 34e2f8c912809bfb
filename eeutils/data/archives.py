"""Official archives: where they lie on this machine, and how they are downloaded."""

import os
from pathlib import Path

from eeutils.data.sources import progress_bar
from eeutils.errors import IntegrityError
from eeutils.files import cache_dir, web_page


def local_folders() -> list[Path]:
    """Where a copy of one's own is looked for: in $EEUTILS_DATA (by default `data`), and in the cache folder."""
    return list(dict.fromkeys([Path(os.environ.get("EEUTILS_DATA", "data")).expanduser(), cache_dir()]))


def download(url: str, path: Path, *, md5: str, size: int, title: str, timeout_s: float) -> None:
    """Fetch an archive into `path` and check it.

    Args:
        url: of the archive.
        path: of the file to write; nobody else should know it yet.
        md5: that it must have, in hexadecimal.
        size: in bytes; for the progress bar.
        title: of the data set; for the progress bar.
        timeout_s: how long the site may be silent, in seconds; the download as a whole may take long.

    Raises:
        OSError: if the site cannot be reached, answers with an error, falls silent or stops half-way.
        IntegrityError: if what it sends is not the archive.
    """
    import pooch

    with progress_bar(f"{title} from the official site", size) as bar:
        pooch.HTTPDownloader(progressbar=bar, timeout=timeout_s, chunk_size=2**16)(url, path, None)
    check_md5(path, md5)


def check_md5(path: Path, md5: str) -> None:
    """See that an archive is the published one.

    Raises:
        IntegrityError: if its md5 is another; it says so if the file is a web page.
    """
    import pooch

    if (actual := pooch.file_hash(str(path), alg="md5")) != md5:
        page = " (it is a web page)" if web_page(path) else ""
        raise IntegrityError(f"the archive has md5 {actual}, expected {md5}{page}")
