"""This project's scorer, by the peers' protocol: batch, threads and workers are its own choice unless given."""

from common import arguments, report

from scorer.inputs.discover import find_shards
from scorer.job.run import score
from scorer.job.spec import Job
from scorer.model.model import Model
from scorer.system.signals import StopRequest

if __name__ == "__main__":
    options = arguments()
    model = Model.open(options.model, device="cpu", threads=options.threads, batch_size=options.batch)
    job = Job(find_shards(options.shards), options.output, resume_policy="restart")
    report(lambda: score(job, model, StopRequest(), lambda progress: None).record["scored"])
