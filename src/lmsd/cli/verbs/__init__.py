"""The verbs of the command line, one module each."""

from lmsd.serving.options import DOTTED as DOTTED

VERBS = {
    "train": "train an experiment, or resume a run",
    "plan": "what a run needs and how long it takes: memory, FLOPs, hours, without a GPU",
    "sample": "prompts to a captioned grid of images",
    "edit": "change an image by a prompt, all of it or what a mask marks",
    "evaluate": "score a run on held-out data",
    "export": "a run to a folder that stands alone, with proof that it is the same",
    "compress": "a smaller net out of a run's, taught by the uncut one",
    "serve": "a run or an exported folder behind an address, with OpenAI's way of asking",
    "merge": "adapters into weights, or several runs into one",
    "update": "a run learns from new shards, and says what it gained and lost",
    "sweep": "many runs over some options, ranked by their scores on val",
    "runs": "list runs: state, how far, best score",
    "watch": "a page of runs and sweeps that lives while they do",
    "launch": "print a job file for SLURM, Kubernetes or SkyPilot that restarts and resumes",
    "ask": "a run that trains for a sample, scores, a checkpoint, or to stop",
    "promote": "the run that is served changes only for a better one",
    "report": "write report.html of a run again",
    "data": "build data sets, index shards, train the feature extractor",
    "doctor": "look at versions, devices, disk and shards; say what to fix",
    "verify-resume": "kill and resume your own configuration, and compare it to a run that was not",
    "demo": "the whole chain on handwritten digits, in minutes",
}

FLAGS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("sample", "edit", "evaluate", "export", "serve", "merge"), ()),
    **dict.fromkeys(("compress", "update", "watch", "launch", "ask", "promote"), ()),
    **dict.fromkeys(("plan", "runs", "report", "data", "doctor", "verify-resume"), ()),
    "train": ("--options", "--schema", "--cfg"),
    "demo": ("--ablation",),
    "sweep": ("--dry-run",),
}
"""The words with dashes that verbs take beside -h and --help, where any other is refused."""

WORDS: dict[str, tuple[str, ...]] = {
    "launch": ("slurm", "k8s", "sky"),
    "data": ("build", "index", "show", "features", "statistics", "encode", "votes", "synthesize", "merge"),
    "data build": (
        *("digits", "shapes", "edits", "folder", "imagefolder", "classes", "kohya"),
        *("coco", "table", "parquet", "tars", "cifar10"),
    ),
}
"""Words that must come first after these verbs."""
