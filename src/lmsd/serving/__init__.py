"""A trained generator behind an address: what `lmsd serve` runs.

    options    the words of the command line: where it listens, and its limits
    served     a model that draws: images of many requests in one batch, each as if it were alone
    batcher    the bounded queue, grouped by what may share a batch
    source     where the model comes from, and when another one takes its place
    asked      the bodies of requests, checked
    api        the routes: OpenAI's images, health, metrics, pairs and votes, the page
    door       what every request passes first: hosts, keys, size, time
    ballots    pairs and votes on the disk
    program    the process: it listens, drains and ends

Image j of a request is a function of (model, prompt, seed, j), whatever shares its batch.
"""
