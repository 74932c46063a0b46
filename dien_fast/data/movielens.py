"""MovieLens: getting ML-100K, reading its four layouts, and the table of clicks made from it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from dien_fast.data.columns import LogHistory, first_line, offsets_of
from dien_fast.data.schema import Group, Pair, Schema
from dien_fast.data.tables import get_column
from dien_fast.errors import DataError
from dien_fast.files import write_atomically

# The wheel of recbole 1.2.1 on PyPI contains the data set. GroupLens does not allow others to redistribute it,
# so it is downloaded on first use.
_REQUIREMENT = "recbole==1.2.1"
_WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_FILES_SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}

_ML_100K_GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
_ML_1M_OCCUPATIONS = (
    "other",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
)
_TYPES = {
    "userId": pa.int64(),
    "movieId": pa.int64(),
    "rating": pa.float64(),
    "timestamp": pa.float64(),  # RecBole writes whole seconds as floats
    "age": pa.float64(),
}


class MovieLensTables(NamedTuple):
    """What a MovieLens directory holds.

    Attributes:
        ratings: userId, movieId, rating, timestamp (seconds).
        movies: movieId, title, genres (divided by ``|``; null where there are none).
        users: userId, age (years; ML-1M: the lower bound of a range), gender, occupation, zipCode; or None
            where the layout has none.
    """

    ratings: pa.Table
    movies: pa.Table
    users: pa.Table | None


def fetch_ml_100k(directory: str | Path) -> Path:
    """Return a directory with ML-100K in RecBole's layout, fetched with pip unless it is there.

    Args:
        directory: where ``ml-100k.inter``, ``.item`` and ``.user`` are kept; made if needed.

    Raises:
        DataError: the package index cannot be reached, or sends another file than the known one.
    """
    directory = Path(directory)
    if all(_digest(directory / name) == digest for name, digest in _FILES_SHA256.items()):
        return directory
    with tempfile.TemporaryDirectory() as temporary:
        wheel = _download(Path(temporary), directory)
        if _digest(wheel) != _WHEEL_SHA256:
            raise DataError(f"{wheel.name}: sha256 is {_digest(wheel)}, expected {_WHEEL_SHA256}")
        with zipfile.ZipFile(wheel) as archive:
            for name in _FILES_SHA256:
                with write_atomically(directory / name) as unfinished:
                    unfinished.write_bytes(archive.read(f"recbole/dataset_example/ml-100k/{name}"))
    return directory


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _download(into: Path, directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(into), _REQUIREMENT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(into.glob("*.whl"))
    if result.returncode or not wheels:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["pip gave no reason"]
        raise DataError(
            f"cannot fetch MovieLens-100K (pip download {_REQUIREMENT}: {lines[-1].strip()}); go online once, or "
            f"put its files into {directory} or use --dataset synthetic"
        )
    return wheels[0]


def read_movielens(path: str | Path) -> MovieLensTables:
    """Read a MovieLens directory, whichever of its layouts it has.

    Known layouts, found by their file names: ML-100K (``u.data``, ``u.item``, ``u.user``), ML-1M and ML-10M
    (``ratings.dat``, ``movies.dat``, ``users.dat``), ml-latest and ML-20M or later (``ratings.csv``,
    ``movies.csv``) and RecBole's atomic files (``*.inter``, ``*.item``, ``*.user``).

    Returns:
        The ratings (userId, movieId, rating, timestamp in seconds), the movies (movieId, title, genres divided by
        ``|``, null where there are none) and the users (userId, age in years, in ML-1M the lower bound of a range,
        gender, occupation, zipCode), or None where the layout has no users.

    Raises:
        DataError: no known layout, or a file that is not what its name says.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such directory")
    if (path / "u.data").exists():
        return _read_ml_100k(path)
    if (path / "ratings.dat").exists():
        return _read_dat(path)
    if (path / "ratings.csv").exists():
        return _read_latest(path)
    inter = sorted(path.glob("*.inter"))
    if len(inter) == 1:
        return _read_atomic(path, inter[0].stem)
    raise DataError(f"{path}: expected MovieLens files: u.data, ratings.dat, ratings.csv or one *.inter file")


def _read_ml_100k(path: Path) -> MovieLensTables:
    ratings = _read(path / "u.data", "\t", ["userId", "movieId", "rating", "timestamp"])
    fields = ["movieId", "title", "released", "videoReleased", "url", *_ML_100K_GENRES]
    items = _read(path / "u.item", "|", fields, encoding="latin-1")
    flags = np.stack([items[genre].to_numpy() == "1" for genre in _ML_100K_GENRES], axis=1)
    names = np.broadcast_to(np.array(_ML_100K_GENRES), flags.shape)[flags]
    lists = pa.ListArray.from_arrays(pa.array(offsets_of(flags.sum(axis=1)), pa.int32()), pa.array(names))
    movies = items.select(["movieId", "title"]).append_column("genres", _joined(lists))
    users = _read(path / "u.user", "|", ["userId", "age", "gender", "occupation", "zipCode"])
    return MovieLensTables(ratings, movies, users)


def _read_dat(path: Path) -> MovieLensTables:
    ratings = _read(path / "ratings.dat", "::", ["userId", "movieId", "rating", "timestamp"])
    movies = _read(path / "movies.dat", "::", ["movieId", "title", "genres"], encoding="latin-1")
    movies = _without_no_genres(movies)
    if not (path / "users.dat").exists():
        return MovieLensTables(ratings, movies, None)
    users = _read(path / "users.dat", "::", ["userId", "gender", "age", "occupation", "zipCode"])
    codes = pa.array([str(code) for code in range(len(_ML_1M_OCCUPATIONS))])
    named = pa.array(_ML_1M_OCCUPATIONS).take(pc.index_in(users["occupation"], value_set=codes).combine_chunks())
    users = users.set_column(users.column_names.index("occupation"), "occupation", named)
    return MovieLensTables(ratings, movies, users)


def _read_latest(path: Path) -> MovieLensTables:
    ratings = _read(path / "ratings.csv", ",", ["userId", "movieId", "rating", "timestamp"], header=True)
    movies = _read(path / "movies.csv", ",", ["movieId", "title", "genres"], header=True)
    return MovieLensTables(ratings, _without_no_genres(movies), None)


def _read_atomic(path: Path, stem: str) -> MovieLensTables:
    """Read RecBole's atomic files: tab-separated, with a header of ``name:type`` fields."""
    ids = {"user_id": "userId", "item_id": "movieId"}
    ratings = _read_typed(path / f"{stem}.inter", {**ids, "rating": "rating", "timestamp": "timestamp"})
    names = {**ids, "movie_title": "title", "release_year": "year", "class": "genres", "genre": "genres"}
    movies = _read_typed(path / f"{stem}.item", names, optional=("year",))
    # Its lists are divided by spaces; no genre has one in its name.
    movies = movies.set_column(
        movies.column_names.index("genres"), "genres", pc.replace_substring(movies["genres"], " ", "|")
    )
    if "year" in movies.column_names:
        year = pc.binary_join_element_wise(" (", movies["year"], ")", "")
        titles = pc.binary_join_element_wise(movies["title"], pc.fill_null(year, ""), "")
        movies = movies.set_column(movies.column_names.index("title"), "title", titles)
    movies = movies.select(["movieId", "title", "genres"])
    if not (path / f"{stem}.user").exists():
        return MovieLensTables(ratings, movies, None)
    names = {**ids, "age": "age", "gender": "gender", "occupation": "occupation", "zip_code": "zipCode"}
    return MovieLensTables(ratings, movies, _read_typed(path / f"{stem}.user", names))


def _read(path: Path, delimiter: str, names: list[str], encoding: str = "utf-8", header: bool = False) -> pa.Table:
    """Return a delimited file with the given columns, text but for those in ``_TYPES``."""
    if not path.exists():
        raise DataError(f"{path}: no such file")
    content = path.read_bytes()
    if delimiter == "::":
        # Arrow takes one character; the unit separator is in no title.
        content, delimiter = content.replace(b"::", b"\x1f"), "\x1f"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        content = content.decode(encoding, errors="replace").encode()
    return _parse(path, content, delimiter, names, quote=header, header=header)


def _read_typed(path: Path, wanted: dict[str, str], optional: tuple[str, ...] = ()) -> pa.Table:
    """Return the wanted columns of an atomic file under their new names."""
    if not path.exists():
        raise DataError(f"{path}: no such file")
    content = path.read_bytes()
    header, _, _ = content.partition(b"\n")
    found = [name.partition(":")[0] for name in header.decode("utf-8", "replace").strip().split("\t")]
    names = [wanted.get(name, name) for name in found]
    missing = [new for new in dict.fromkeys(wanted.values()) if new not in names and new not in optional]
    # Users' files have no movies and the other way round; the id of the file's own kind is what counts.
    missing = [name for name in missing if name not in ("userId", "movieId") or path.suffix == ".inter"]
    if missing:
        raise DataError(f"{path}: no field for {missing[0]!r}; the header has {', '.join(found)}")
    table = _parse(path, content, "\t", names, quote=False, header=True)
    return table.select([name for name in dict.fromkeys(wanted.values()) if name in names])


def _parse(path: Path, content: bytes, delimiter: str, names: list[str], *, quote: bool, header: bool) -> pa.Table:
    try:
        table = pyarrow.csv.read_csv(
            BytesIO(content),
            read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=int(header)),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, quote_char='"' if quote else False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: _TYPES.get(name, pa.string()) for name in names},
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        if "timestamp" in names:
            seconds = table["timestamp"].cast(pa.int64())
            table = table.set_column(names.index("timestamp"), "timestamp", seconds)
        return table
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a MovieLens file of that name: {first_line(error)}") from None


def _joined(lists: pa.ListArray) -> pa.Array:
    text = pc.binary_join(lists, "|")
    return pc.if_else(pc.equal(text, ""), None, text)


def _without_no_genres(movies: pa.Table) -> pa.Table:
    genres = movies["genres"]
    genres = pc.if_else(pc.equal(genres, "(no genres listed)"), None, genres)
    return movies.set_column(movies.column_names.index("genres"), "genres", genres)


def click_table(
    ratings: pa.Table,
    movies: pa.Table,
    users: pa.Table | None = None,
    max_length: int | None = 50,
    keep_rating: float = 4,
    *,
    views: bool = False,
) -> pa.Table:
    """Return one row per rating: did the user like the movie, given what the user liked before?

    The history of a row holds the movies that the user rated ``keep_rating`` or more at an earlier time;
    ratings of the same second are in no history of each other, because their order is unknown.

    Args:
        ratings: userId, movieId, rating, timestamp.
        movies: movieId, genres.
        users: userId, age, gender, occupation, zipCode; None leaves these columns out.
        max_length: events kept, the newest; None keeps all.
        keep_rating: the lowest rating that counts as liked.
        views: give the histories as views of the liked ratings (Arrow's large_list_view) instead of copies. They
            take the memory of one log, however many rows there are, but not every library reads them.

    Returns:
        userId, timestamp, label (int64, 0 or 1), the users' columns, genres (text), movieId,
        histHighRatedMovieIds (lists of int64, oldest first) and histTimestamps (when these were rated), sorted by
        user and time.

    Raises:
        DataError: a column is missing, or a rating lacks one of its values.

    Example:
        >>> ratings = {"userId": [1, 1, 1], "movieId": [7, 8, 9], "rating": [5, 4, 2], "timestamp": [1, 2, 3]}
        >>> table = click_table(pa.table(ratings), pa.table({"movieId": [7], "genres": ["Drama"]}))
        >>> table["histHighRatedMovieIds"].to_pylist()
        [[], [7], [7, 8]]
    """
    names = ["userId", "movieId", "rating", "timestamp"]
    for name in names:
        if get_column(ratings, name, "ratings").null_count:
            raise DataError(f"ratings: column {name!r} has empty values")
    ratings = ratings.select(names).sort_by([("userId", "ascending"), ("timestamp", "ascending")])
    user, movie, rating, time = (ratings[name].to_numpy() for name in names)
    liked = rating >= keep_rating

    # user and time as one number that rises down the table
    span = int(time.max(initial=0)) - int(time.min(initial=0)) + 1
    first = np.cumsum(np.diff(user, prepend=user[:1]) != 0) * span
    moment = first + (time - time.min(initial=0) if len(time) else time)
    liked_moment = moment[liked]
    stop = np.searchsorted(liked_moment, moment, side="left")
    start = np.searchsorted(liked_moment, first, side="left")
    if max_length is not None:
        start = np.maximum(start, stop - max_length)
    history = LogHistory(start, stop - start, views)

    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "userId": ratings["userId"],
        "timestamp": ratings["timestamp"],
        "label": pa.array(liked.astype(np.int64)),
    }
    if users is not None:
        rows = pc.index_in(ratings["userId"], value_set=get_column(users, "userId", "users"))
        for name in ("age", "gender", "occupation", "zipCode"):
            columns[name] = get_column(users, name, "users").take(rows)
    rows = pc.index_in(ratings["movieId"], value_set=get_column(movies, "movieId", "movies"))
    columns["genres"] = get_column(movies, "genres", "movies").take(rows)
    columns["movieId"] = ratings["movieId"]
    for name, values in (("histHighRatedMovieIds", movie), ("histTimestamps", time)):
        columns[name] = history.of(pa.array(values[liked]))
    return pa.table(columns)


def movielens_schema(table: pa.Table) -> Schema:
    """Return the schema of a :func:`click_table`, without the users' columns where it has none.

    As in the article, words seen less than five times are unknown.
    """
    present: Callable[[str], bool] = table.column_names.__contains__
    return Schema(
        user="userId",
        time="timestamp",
        numeric=list(filter(present, ["age"])),
        categorical=list(filter(present, ["gender", "movieId", "occupation", "zipCode"])),
        sequences=["genres", "histHighRatedMovieIds"],
        groups=[
            Group("movies", [Pair("movieId", "histHighRatedMovieIds", "negHistMovieIds")], time="histTimestamps")
        ],
        min_count=5,
    )
