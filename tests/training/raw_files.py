"""Small files in exactly the raw formats of Amazon 2014 and MovieLens, for tests."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

REVIEWS = [  # (user, item, day); grouped by item, as in the original files
    ("A1", "B000000001", 3),
    ("A2", "B000000001", 1),
    ("A1", "7806397051", 1),
    ("A2", "7806397051", 1),
    ("A1", "B000000003", 2),
]
META_LINES = [
    # the title has an entity, the description a quote of the other kind and a false escape
    "{'asin': '7806397051', 'description': \"Lasts 24h, it's 100\\d\", 'title': 'Wet &amp; Wild', "
    "'price': 9.99, 'imUrl': 'http://example.org/a.jpg', 'related': {'also_bought': ['B1']}, "
    "'salesRank': {'Beauty': 12}, 'categories': [['Beauty', 'Makeup', 'Face'], ['Gifts']]}",
    "{'asin': 'B999999999', 'title': 'Has no review', 'categories': [['Beauty']]}",
    "{'asin': 'B000000001', 'categories': [['Beauty']]}",
]
RATINGS = [("1", "50", 978300760), ("2", "10", 978300000), ("1", "10", 978300760), ("1", "7", 5)]
FILMS = [
    ("7", "Léon: The Professional (1994)", "Crime|Drama"),
    ("10", 'The "Big" One, Part 2 (1998)', "Comedy"),
    ("50", "Usual Suspects, The (1995)", "(no genres listed)"),
    ("51", "Nobody Rated This (2000)", "Drama"),
]


def write_amazon(folder: Path) -> tuple[Path, Path]:
    reviews, meta = folder / "reviews_Beauty_5.json.gz", folder / "meta_Beauty.json.gz"
    with gzip.open(reviews, "wt", encoding="utf-8") as file:
        for user, item, day in REVIEWS:
            review = {
                "reviewerID": user,
                "asin": item,
                "reviewerName": 'J. "Jo" Müller',
                "helpful": [0, 1],
                "reviewText": "Good.\nVery.",
                "overall": 5.0,
                "summary": "ok",
                "unixReviewTime": 86_400 * day,
                "reviewTime": f"01 {day}, 1970",
            }
            file.write(json.dumps(review) + "\n")
    with gzip.open(meta, "wt", encoding="utf-8") as file:
        file.write("\n".join(META_LINES) + "\n")
    return reviews, meta


def write_movielens_dat(folder: Path) -> Path:
    archive = folder / "ml-1m.zip"
    ratings = "".join(f"{user}::{film}::5::{time}\n" for user, film, time in RATINGS)
    films = "".join("::".join(film) + "\n" for film in FILMS)
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("ml-1m/", "")
        files.writestr("ml-1m/README", "SUMMARY")
        files.writestr("ml-1m/users.dat", "1::F::1::10::48067\n")
        files.writestr("ml-1m/ratings.dat", ratings.encode("latin-1"))
        files.writestr("ml-1m/movies.dat", films.encode("latin-1"))
    return archive


def write_movielens_csv(folder: Path) -> Path:
    archive = folder / "ml-latest-small.zip"
    ratings = "userId,movieId,rating,timestamp\r\n" + "".join(
        f"{user},{film},4.5,{time}\r\n" for user, film, time in RATINGS
    )
    films = "movieId,title,genres\r\n"
    for film, title, genres in FILMS:
        quoted = title.replace('"', '""')
        films += f'{film},"{quoted}",{genres}\r\n'
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("ml-latest-small/ratings.csv", ratings)
        files.writestr("ml-latest-small/movies.csv", films)
        files.writestr("ml-latest-small/tags.csv", "userId,movieId,tag,timestamp\r\n1,7,x,1\r\n")
    return archive
