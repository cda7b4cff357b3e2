"""Runs side by side: a page, tables and CLIP_benchmark's files, of the records that evaluations left on disk.

Neither a model nor photos are asked.
"""

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from agriclip_jax import page
from agriclip_jax.comparison import export, parts, pictures, scores, training
from agriclip_jax.errors import UserError
from agriclip_jax.evaluate import comparing, records
from agriclip_jax.evaluate.records import Run, percent
from agriclip_jax.files import write_json, write_whole

RUNS = page.COLOURS  # that can be told apart


def write(runs: Sequence[Run], out: Path | str) -> Path:
    """Writes report.html, table.csv, table.md and clip_benchmark/*.json into a folder, each whole or not at all.

    Args:
      runs: as from `records.read`; the others are compared with the first.
      out: the folder.

    Returns:
      The path of the page.

    Raises:
      UserError: the runs are none, too many or one twice; a record is damaged; a file cannot be written.
    """
    out, folders = Path(out), [run.folder.resolve() for run in runs]
    if not 1 <= len(runs) <= RUNS:
        raise UserError(f"{len(runs)} runs cannot be compared on a page; give 1 to {RUNS}")
    if twice := [str(folder) for folder, count in Counter(folders).items() if count > 1]:
        raise UserError(f"{twice[0]} is given twice; give each run once")
    try:
        names = records.names(runs)
        files = {
            "report.html": _page(runs, names),
            "table.csv": export.as_csv(runs, names),
            "table.md": export.markdown(runs, names),
        }
        for name, text in files.items():
            write_whole(out / name, text.encode("utf-8", "replace"))
        for name, record in export.clip_benchmark(runs, names):
            write_json(out / "clip_benchmark" / f"{name}.json", record)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        where = ", ".join(str(run.folder) for run in runs)
        raise UserError(
            f"a record in {where} is damaged ({error!r:.80}); make it anew with tools/evaluate.py"
        ) from error
    return out / "report.html"


def _page(runs: Sequence[Run], names: Sequence[str]) -> str:
    sections = [
        ("Zero-shot classification", scores.zeroshot(runs, names)),
        (f"Difference to {names[0]}", scores.differences(runs, names)),
        ("Classes that gained and lost", scores.moved(runs, names)),
        ("Other measures", scores.measures(runs, names)),
        ("Few images of each class", scores.few_shot(runs, names)),
        ("Prompts and ranks", scores.prompts(runs, names) + scores.ranks(runs, names)),
        ("Calibration", scores.calibration(runs, names)),
        ("Robustness", scores.robustness(runs, names)),
        ("What is confused with what", scores.confusions(runs[-1], names[-1])),
        ("The surest mistakes", pictures.mistakes(runs, names)),
        ("Random photos and their nearest classes", pictures.samples(runs, names)),
        ("Where the models look", pictures.attention(runs, names)),
        ("Retrieval", pictures.retrieval(runs, names)),
        ("Maps of the embeddings", pictures.maps(runs, names)),
        ("Learning curves", training.curves({name: run.workdir for name, run in zip(names, runs, strict=True)})),
        ("How the runs differ", training.settings(runs, names)),
    ]
    title = names[0] if len(runs) == 1 else " and ".join(names) if len(runs) == 2 else f"{len(runs)} runs compared"
    return page.render(title, "evaluation", _header(runs, names), sections, page.SCORES + STYLE)


def _header(runs: Sequence[Run], names: Sequence[str]) -> str:
    heads = parts.head("run", "checkpoint", "suite", "tasks scored", "image size", "code version", "folder")
    lines = []
    for place, run in enumerate(runs):
        record = next(iter(next(iter(run.records.values())).values()))
        cells = (
            f"step {run.checkpoint['step']:,}, {run.checkpoint['use']}",
            run.suite,
            f"{len(run.scored('zeroshot'))} of {len(run.of('zeroshot'))}",
            f"{record['image_size']} px" if "image_size" in record else "",
            str(record.get("code_version", "")),
            str(run.workdir),
        )
        lines.append(parts.row(parts.run(place, names), "".join(f"<td>{escape(cell)}</td>" for cell in cells)))
    cards = []
    for group in records.groups(runs):
        table = comparing.rows(runs, "zeroshot", group)
        found, count = comparing.means(table, comparing.top1)
        if count:
            items = "".join(
                f'<li>{parts.who(place, names)}<p class="figure">{percent(share[0]) if share else "–"}'
                f"<span> %</span></p><p>{parts.ends(share)}</p></li>"
                for place, share in enumerate(found)
            )
            chance = percent(float(np.mean([row.first["chance"] for row in table if row.is_shared])))
            note = f"mean zero-shot top-1 of {parts.many(count, 'task')}; chance is {chance} %"
            kind = "figures list" if len(runs) > 2 else "figures"
            cards.append(f'<div class="card"><p>{escape(group)}</p><ul class="{kind}">{items}</ul><p>{note}</p></div>')
    return parts.table("The runs", heads, [parts.body(lines)]) + (
        f'<div class="cards runs">{"".join(cards)}</div>' if cards else ""
    )


STYLE = """
h3{font-size:18px;font-weight:600;margin:26px 0 10px;text-wrap:balance}h4{font-size:15px;font-weight:600;margin:0 0 4px}
small{display:block;color:var(--soft);font-size:12px;font-weight:400}.rows i{color:var(--soft);font-style:normal}
.rows td i{font-size:12px}.rows td.text{white-space:normal;overflow-wrap:anywhere}
.wide+details{border:0}.rows .swatch,.who .swatch,.figures .swatch{width:24px;height:9px}.charts+.wide{margin-top:18px}
.rows thead th.n{max-width:120px;overflow-wrap:break-word}
header .wide{margin-bottom:22px}
.cards.runs{grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr))}
.figures{display:flex;flex-wrap:wrap;gap:8px 28px;list-style:none;margin:8px 0;padding:0}
.card .who{font-size:13px}.figures.list{display:block}
.list li{display:grid;grid-template-columns:minmax(0,1fr) auto 6em;gap:4px 10px;align-items:baseline}
.list .figure{font-size:24px;white-space:nowrap}.list .who{overflow-wrap:anywhere}
.list .figure span{font-size:15px}.list p:last-child{text-align:right;font-size:13px}
.card .list p:first-child{font-size:14px}
.more{margin-top:28px}
.quiet th,.quiet td{color:var(--soft)}
.zero{stroke:var(--soft);stroke-width:1;vector-effect:non-scaling-stroke}
.span{stroke:var(--c);stroke-width:2;vector-effect:non-scaling-stroke}
.point{stroke:var(--c);stroke-width:4;vector-effect:non-scaling-stroke}
.sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:20px 32px}
.sides>*{min-width:0}
.sides .rows th[scope=row]{white-space:normal}
.photos.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,150px),1fr))}
.photo .who{margin:8px 0 0}.gone{padding:24px 14px;color:var(--soft);font-size:13px}
.looks{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:16px}
.look{padding:12px}.look figcaption{font-size:14px;padding:2px 0 8px}
.look img{display:block;width:100%;height:auto;border-radius:5px}
.views{display:grid;grid-template-columns:repeat(auto-fit,minmax(90px,1fr));gap:6px}
.views img{aspect-ratio:1;object-fit:cover}
.look p{margin:2px 0 0;color:var(--soft);font-size:12px;overflow-wrap:anywhere}
.strip{display:grid;grid-template-columns:repeat(5,1fr);gap:5px;list-style:none;margin:4px 0 8px;padding:0}
.strip li{text-align:center;font-weight:600;font-size:14px}.strip img{aspect-ratio:1;object-fit:cover}
.strip .gone{padding:2px;font-size:10px}
.maps{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr));gap:16px}
use{fill:var(--c);fill-opacity:.8}.rest{--c:var(--soft)}.mark{width:14px;height:14px;margin-right:6px;vertical-align:-2px}
@media print{.looks,.maps{grid-template-columns:repeat(2,1fr)}.photos.small{grid-template-columns:repeat(4,1fr)}
.rows small,.rows thead th{font-size:7.5pt}.rows .n{padding:2px 3px}.rows .bar{min-width:60px}
header .rows td{white-space:normal;overflow-wrap:anywhere}
details::details-content{content-visibility:visible;block-size:auto}}
""".replace("\n", "")
