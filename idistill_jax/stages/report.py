"""One page that shows what came out.

    python -m idistill_jax.stages.report --config=configs/quickstart.py --workdir=runs/quickstart

every stage's folder -> report.html, self-contained; a copy lies at the root of the workdir.
"""

from idistill_jax import cli, flow
from idistill_jax.report import gather, page
from idistill_jax.workdir import artifacts

PAGE = "report.html"


def run(job: artifacts.Job) -> None:
  workdir = artifacts.Workdir(job.out.parent)
  report = gather.gather(workdir)
  path, text = job.out / PAGE, page.render(report)
  path.write_text(text, encoding="utf-8")
  job.publish(PAGE, text)
  job.count(queries=len(report.shown.queries), kilobytes=path.stat().st_size // 1000)


if __name__ == "__main__":
  cli.main(flow.STAGES["report"])
