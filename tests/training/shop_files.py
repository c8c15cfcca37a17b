"""Small files in exactly the formats of RecBole, RetailRocket and REES46, for tests."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl

INTER = """user_id:token\titem_id:token\trating:float\ttimestamp:float
196\t242\t3\t881250949
186\t302\t3\t891717742
196\t302\t1\t878887116
186\t242\t2\t880606923
196\t51\t4\t8.81250950E8
"""
ITEM = """item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tvec:float_seq
242\tKolya\t1996\tComedy\t0.5 1.25
302\tL.A. Confidential\t1997\tCrime Film-Noir Mystery Thriller\t1 2
51\tLegends of the Fall\t1994\tAnimation Children's Comedy\t0 0
"""
RETAILROCKET = """timestamp,visitorid,event,itemid,transactionid
1433221332117,257597,view,355908,
1433224214164,257597,view,248676,
1433221999827,257597,addtocart,248676,
1433221955914,257597,view,248676,
1433221337106,257597,transaction,248676,4000
"""
REES46 = "\n".join(
    (
        "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session",
        "2019-10-01 00:00:00 UTC,view,44600062,2103807459595387724,,shiseido,35.79,541312140,72d7",
        "2019-10-01 00:00:01 UTC,view,3900821,2053013552326770905,a,aqua,33.20,541312140,9333",
        "2019-10-01 00:00:05 UTC,cart,3900821,2053013552326770905,a,aqua,33.20,541312140,9333",
        "2019-10-01 00:00:09 UTC,purchase,3900821,2053013552326770905,a,aqua,33.20,541312140,9333",
        "",
    )
)
SHOP_COLUMNS = ("user_id=visitorid", "item_id=itemid")  # of RetailRocket


def write_zstd(path: Path, text: str) -> Path:
    """The text as zstd packs it. It must end with a line feed."""
    lines = pl.LazyFrame({"line": text.removesuffix("\n").split("\n")})
    target = path.with_name("packed.csv.zst")
    lines.sink_csv(
        target, compression="zstd", include_header=False, quote_style="never", separator="\x01"
    )
    target.rename(path)
    return path


def write_recbole(folder: Path, name: str = "ml") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.inter").write_text(INTER)
    (folder / f"{name}.item").write_text(ITEM)
    (folder / f"{name}.kg").write_text("head_id:token\trelation_id:token\ttail_id:token\n")
    return folder


def write_retailrocket(path: Path, users: int = 60, items: int = 40) -> Path:
    """A funnel: most lines are views, some of them are followed by a cart and a purchase."""
    drawn = random.Random(7)
    lines, time = [], 1_433_221_332_117
    for _ in range(users * 12):
        time += drawn.randrange(1, 60_000)
        user, item = drawn.randrange(users), drawn.randrange(items)
        lines.append(f"{time},{user},view,{item},")
        if drawn.random() < 0.3:
            lines.append(f"{time + 1},{user},addtocart,{item},")
            if drawn.random() < 0.7:
                lines.append(f"{time + 2},{user},transaction,{item},{len(lines)}")
    path.write_text("\n".join([RETAILROCKET.splitlines()[0], *lines, ""]))
    return path
