"""One page that shows what came out.

    python -m idistill_jax.stages.report --config=configs/quickstart.py --workdir=runs/quickstart

every stage's folder -> report.html, self-contained, and its drawings in `figures/`; a copy of the page lies at the root
of the workdir.
"""

from idistill_jax import cli, flow
from idistill_jax.report import gather, page
from idistill_jax.workdir import artifacts

PAGE, FIGURES = "report.html", "figures"


def run(job: artifacts.Job) -> None:
  workdir = artifacts.Workdir(job.out.parent)
  report = gather.gather(workdir)
  drawings = page.draw(report)
  path, text = job.out / PAGE, page.render(report, drawings)
  path.write_text(text, encoding="utf-8")
  (job.out / FIGURES).mkdir(exist_ok=True)  # of an attempt that was killed
  for name, drawing in page.files(drawings).items():
    (job.out / FIGURES / name).write_text(drawing, encoding="utf-8")
  job.publish(PAGE, text)
  job.count(queries=len(report.shown.queries), kilobytes=path.stat().st_size // 1000)


if __name__ == "__main__":
  cli.main(flow.STAGES["report"])
